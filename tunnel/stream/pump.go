package stream

import (
	"errors"
	"io"
	"os"
	"time"

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
	return block.NewEncoder(history, pc.id, o), block.NewDecoder(history, pc.id, shop)
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
		case err == nil:
		case errors.Is(err, io.EOF):
			if r.settle() != nil {
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
	if !errors.Is(err, os.ErrDeadlineExceeded) {
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
	if r.pc.out.data(endFrame(out, 0)) != nil {
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

// awaitCredit returns how many bytes may be sent; 0 means that it is over.
func (r *relay) awaitCredit() uint64 {
	for {
		r.mu.Lock()
		room, over := r.sendMax-r.sent.Load(), r.over
		r.mu.Unlock()
		if over {
			return 0
		}
		if room > 0 {
			return room
		}
		select {
		case <-r.wake:
		case <-r.closed:
		case <-time.After(stallCheck):
			if _, err := r.local.Unacked(); err != nil {
				r.abort(true)
			}
		}
	}
}
