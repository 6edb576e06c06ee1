package stream

import (
	"errors"
	"io"
	"os"
	"time"

	"stitch/dedupe"
	"stitch/tunnel/stream/block"
)

// besideSize is from where on the second half of a block's encoding, and its
// writing, run beside the first half of the next block's. A smaller block is not
// worth a goroutine.
const besideSize = 32 << 10

// quiet is how long a stream has sent nothing when it counts as idle.
const quiet = time.Second

// codec returns the encoder and decoder of a stream of the given mode.
func (pc *peerConn) codec(m mode, shop *block.Shop) (*block.Encoder, *block.Decoder) {
	o, history := pc.options(m, shop)
	return block.NewEncoder(history, pc.id, o), block.NewDecoder(history, pc.id, shop)
}

// options are those of the codec of a stream of the given mode; it uses the history,
// if there is one.
func (pc *peerConn) options(m mode, shop *block.Shop) (block.Options, *dedupe.History) {
	began := time.Now()
	o := block.Options{
		Shop: shop, Lines: pc.terms.Tenants, Alone: pc.domain.name == "",
		Tables: pc.terms.Features&featureTables != 0, Repairs: pc.terms.Features&featureRepairs != 0,
		Clock: func() time.Duration { return time.Since(began) },
	}
	history := pc.history
	switch m {
	case modeCompress:
		o.Mode, history = block.Compress, nil
	case modeAccelerate:
		o.Mode, history = block.Store, nil
	}
	return o, history
}

// pump carries what the local host sends to the peer.
func (r *relay) pump() {
	for {
		room := r.awaitCredit()
		if room == 0 {
			return
		}
		err := r.await()
		if err == nil {
			err = r.forward(room)
		}
		switch {
		case err == nil, errors.Is(err, os.ErrDeadlineExceeded): // woken: there may be something else to do
		case errors.Is(err, io.EOF):
			if r.leave() != nil { // of the compressor's context others can make use
				r.peerLost()
				return
			}
			r.sendFin()
			return
		case errors.Is(err, errPeerWrite):
			r.peerLost()
			return
		default:
			r.abort(true)
			return
		}
	}
}

// await waits until the host has sent something or ended. A stream that is quiet
// gives up its compressor's context meanwhile.
func (r *relay) await() error {
	r.local.SetReadDeadline(time.Now().Add(quiet))
	err := r.local.Wait()
	r.local.SetReadDeadline(time.Time{})
	if !errors.Is(err, os.ErrDeadlineExceeded) || r.halting() {
		return err
	}
	if err := r.settle(); err != nil {
		return err
	}
	frame := r.enc.Idle(beginFrame(nil, frameData))
	if len(frame) > frameHeader && r.pc.out.data(endFrame(frame, 0)) != nil {
		return errPeerWrite
	}
	return r.local.Wait()
}

// errPeerWrite marks an error of the inter-agent connection.
var errPeerWrite = errors.New("stream: inter-agent connection lost")

// forward reads once from the host, at most room bytes, and sends the block: a
// single byte at once, and as much as has gathered while the link was busy with
// the blocks before. So blocks are small when the host or the link is idle and
// large in bulk, without a timer: writing waits for the link, and what the host
// sends meanwhile is the next block.
func (r *relay) forward(room uint64) error {
	if r.local.AtMark() && r.pc.terms.Features&featureUrgent != 0 {
		r.pc.out.control(appendCount(nil, frameUrgent, r.sent.Load()))
	}
	data := r.bufs.get()
	n, err := r.local.Read(data[:min(room, block.MaxBlock)])
	if n == 0 {
		r.bufs.put(data)
		return err
	}
	r.sent.Add(uint64(n))
	if r.sniff.Opaque(data[:n]) {
		r.enc.Opaque()
		r.opaque.Store(true)
	}
	work := r.enc.Match(data[:n])
	if err := r.settle(); err != nil {
		return err
	}
	if n < besideSize {
		return r.transmit(data, work)
	}
	r.beside = true
	r.start(func() { r.outcome <- r.transmit(data, work) })
	return nil
}

// settle waits for the block that is being sent beside, if there is one.
func (r *relay) settle() error {
	if !r.beside {
		return nil
	}
	r.beside = false
	return <-r.outcome
}

// transmit ends the encoding of a block and writes it. It owns data.
func (r *relay) transmit(data []byte, work *block.Work) error {
	frame := r.bufs.get()
	defer r.bufs.put(frame)
	r.enc.SetLink(r.link.Update(r.pc.conn.DeliveryRate()))
	out := r.enc.Finish(beginFrame(frame[:0], frameData), work)
	r.bufs.put(data)
	out = endFrame(out, 0)
	if r.enc.Barred() {
		out = r.appendLeave(out)
	}
	if r.pc.out.data(out) != nil {
		return errPeerWrite
	}
	return nil
}

// appendLeave appends the frame that ends the compressor's context, if there is one.
func (r *relay) appendLeave(b []byte) []byte {
	start := len(b)
	if b = r.enc.Leave(beginFrame(b, frameData)); len(b) == start+frameHeader {
		return b[:start]
	}
	return endFrame(b, start)
}

// leave ends the compressor's context where no block follows soon.
func (r *relay) leave() error {
	if err := r.settle(); err != nil {
		return err
	}
	if frame := r.appendLeave(nil); len(frame) > 0 && r.pc.out.data(frame) != nil {
		return errPeerWrite
	}
	r.pc.conn.Pace()
	return nil
}

// linkRate is what the path to the peer takes, from samples of the kernel. A
// sample taken while there was too little to send says only that the path takes
// at least so much; before any other one the rate is not known, because a rate
// that we ourselves held down would make the codec hold it down for good. Pure.
type linkRate struct{ rate float64 }

// Update takes a sample in bytes per second and whether it was limited by us.
// It returns the rate, 0 if not known.
func (l *linkRate) Update(sample float64, limited bool) float64 {
	if sample > 0 && (!limited || l.rate > 0 && sample > l.rate) {
		l.rate = sample
	}
	return l.rate
}

// awaitCredit returns how many bytes may be sent; 0 means that it is over, or that
// the stream pauses.
func (r *relay) awaitCredit() uint64 {
	for {
		r.mu.Lock()
		room, over := r.sendMax-r.sent.Load(), r.over
		r.mu.Unlock()
		switch {
		case over || r.halting():
			return 0
		case room > 0:
			return room
		case r.enc.Barred() && r.leave() != nil:
			r.peerLost()
			return 0
		}
		select {
		case <-r.wake:
		case <-r.closed:
		case <-r.pause.halt:
		case <-time.After(stallCheck):
			if _, _, err := r.local.Unacked(); err != nil {
				r.abort(true)
			}
		}
	}
}
