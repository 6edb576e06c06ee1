package stream

import (
	"slices"
	"sync"
	"time"

	"stitch/tunnel/stream/block"
)

// drain writes the queue to the host and follows what the host acknowledges,
// for as long as that matters: to grant credit, to say DONE, to let the bytes
// before a reset through.
func (r *relay) drain() {
	pause := pollMin
	var deadline time.Time // of a reset in order
	for {
		if r.halting() {
			r.drainPaused()
			return
		}
		chunk, fin := r.next()
		wrote, err := r.write(chunk, fin)
		if r.halts(err) {
			continue
		}
		if err != nil {
			r.abort(true)
			return
		}
		progress, again, err := r.look()
		if err != nil {
			r.abort(true)
			return
		}
		switch again {
		case drainIdle:
			return
		case drainReset:
			if deadline.IsZero() {
				deadline = time.Now().Add(resetGrace)
			}
			if r.flushed() || time.Now().After(deadline) {
				r.abort(false)
				return
			}
		case drainMore:
			continue
		}
		if wrote || progress {
			pause = pollMin
		}
		r.rest(pause)
		pause = min(2*pause, pollMax)
	}
}

// drainState is what look found.
type drainState uint8

const (
	drainMore  drainState = iota // the queue is not empty
	drainPoll                    // acknowledgements are waited for
	drainReset                   // and then the host is reset
	drainIdle                    // nothing to do: drain has ended
)

// next takes the first chunk; fin says that the FIN is due.
func (r *relay) next() (chunk []byte, fin bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.queue) == 0 {
		return nil, r.mayShut()
	}
	chunk = r.queue[0]
	r.queue[0] = nil
	r.queue = r.queue[1:]
	if len(r.queue) == 0 {
		r.queue = nil
	}
	return chunk, false
}

// mayShut reports whether our host is to be told the end of the other one; mu
// is held. When our host has ended too this would be the last it hears, and a
// clean end: then it waits until its own bytes have arrived.
func (r *relay) mayShut() bool {
	return r.fin && !r.shut && (!r.finSent || r.peerDone)
}

// write writes a chunk, or the FIN, to the host.
func (r *relay) write(chunk []byte, fin bool) (wrote bool, err error) {
	if chunk != nil {
		n, err := r.writeMarked(chunk)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.written += uint64(n)
		r.queued -= n
		if n < len(chunk) && r.halts(err) {
			r.queue = slices.Insert(r.queue, 0, slices.Clone(chunk[n:]))
		}
		r.bufs.put(chunk)
		return true, err
	}
	if !fin {
		return false, nil
	}
	if err := r.local.CloseWrite(); err != nil {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shut = true
	return true, nil
}

// writeMarked writes a chunk, and the urgent bytes in it as such.
func (r *relay) writeMarked(chunk []byte) (n int, err error) {
	for n < len(chunk) && err == nil {
		at, marked := r.nextMark(n, len(chunk))
		if n < at {
			var more int
			more, err = r.local.Write(chunk[n:at])
			n += more
		}
		if marked && err == nil {
			if err = r.local.WriteUrgent(chunk[at]); err == nil {
				n++
			}
		}
	}
	return n, err
}

// nextMark returns where the next urgent byte is, from the n-th on, in a chunk of
// the given size; false and the size if there is none in it.
func (r *relay) nextMark(n, size int) (at int, marked bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.marks) > 0 && r.marks[0] < r.written+uint64(n) {
		r.marks = r.marks[1:]
	}
	if len(r.marks) == 0 || r.marks[0] >= r.written+uint64(size) {
		return size, false
	}
	return int(r.marks[0] - r.written), true
}

// look asks what the host has acknowledged and acts on it.
func (r *relay) look() (progress bool, s drainState, err error) {
	n, window, err := r.local.Unacked()
	if err != nil {
		return false, drainIdle, err
	}
	rtt := r.pc.conn.RTT()
	r.mu.Lock()
	defer r.mu.Unlock()
	total := r.written
	if r.shut {
		total++
	}
	acked := total - min(total, uint64(n))
	progress, r.acked = acked > r.acked, max(r.acked, acked)
	if limit, ok := r.grant.Update(time.Now(), r.received.Load(), min(acked, r.written), uint64(window), rtt); ok && !r.fin {
		r.pc.out.control(appendCount(nil, frameCredit, limit))
	}
	if r.fin && !r.done && len(r.queue) == 0 && acked >= r.written {
		r.done = true
		r.pc.out.control(appendCount(nil, frameDone, r.finTotal))
	}
	r.shutDone = r.shut && n == 0
	r.settleEnd()
	return progress, r.state(), nil
}

// state says what drain does next; mu is held.
func (r *relay) state() drainState {
	switch {
	case r.over:
	case len(r.queue) > 0 || r.mayShut():
		return drainMore
	case r.rst:
		return drainReset
	case r.fin && !r.done, r.shut && !r.shutDone, r.grant.Scarce(r.received.Load()):
		return drainPoll
	}
	r.draining = false
	return drainIdle
}

// flushed reports whether the host has acknowledged everything written.
func (r *relay) flushed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.acked >= r.written
}

func (r *relay) rest(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-r.more:
	case <-r.closed:
	case <-r.pause.halt:
	case <-t.C:
	}
}

// bufSize holds a block's frame while it is made, which takes more than the block.
func bufSize() int { return frameHeader + block.Room() }

// buffers is a pool of buffers of bufSize and the codec's working memory, shared
// by the streams to one peer.
type buffers struct {
	shop *block.Shop
	pool sync.Pool
}

func (b *buffers) get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return (*p)[:bufSize()]
	}
	return make([]byte, bufSize())
}

// put takes a buffer back; one of another size is left to the collector.
func (b *buffers) put(p []byte) {
	if cap(p) == bufSize() {
		p = p[:bufSize()]
		b.pool.Put(&p)
	}
}
