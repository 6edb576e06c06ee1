package ether

import (
	"sync/atomic"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev"
)

// queue holds copies of frames that wait for the TAP, in order. It is bounded;
// when it is full put refuses, so the newest frame is dropped. Buffers grow to
// the longest frame they held and are used again.
type queue struct{ free, full chan []byte }

func newQueue(n int) *queue {
	q := &queue{free: make(chan []byte, n), full: make(chan []byte, n)}
	for range n {
		q.free <- nil
	}
	return q
}

// put copies frame into the queue and reports whether there was room. It does
// not block and may be called concurrently.
func (q *queue) put(frame []byte) bool {
	select {
	case buf := <-q.free:
		if buf == nil {
			buf = make([]byte, netdev.MinOffset, netdev.MinOffset+len(frame))
		}
		q.full <- append(buf[:netdev.MinOffset], frame...) // has room for every buffer
		return true
	default:
		return false
	}
}

// portCounts are the counters of a Port that the Switch does not have.
type portCounts struct {
	lanFrames, lanBytes, toPeers, linkRefused            atomic.Uint64
	linkFrames, linkBytes, toLAN, queueFull, writeFailed atomic.Uint64
	made, relearn                                        atomic.Uint64
}

// writer writes frames to the TAP in batches. Only one goroutine uses it.
type writer struct {
	tap   netdev.Device
	queue *queue
	count *portCounts
	batch [][]byte // buffers of the queue
	macs  []config.MAC
	own   []Outgoing
	rarps [][]byte
}

func newWriter(tap netdev.Device, q *queue, count *portCounts) *writer {
	return &writer{tap: tap, queue: q, count: count, batch: make([][]byte, 0, maxBatch)}
}

// frames writes buf and what else is waiting, and gives the buffers back.
func (w *writer) frames(buf []byte) {
	w.batch = append(w.batch[:0], buf)
	for len(w.batch) < min(maxBatch, w.tap.BatchSize()) {
		select {
		case buf := <-w.queue.full:
			w.batch = append(w.batch, buf)
			continue
		default:
		}
		break
	}
	w.count.toLAN.Add(w.write(w.batch))
	for _, buf := range w.batch {
		w.queue.free <- buf
	}
}

// announce writes a RARP for each of macs, which it takes.
func (w *writer) announce(macs []config.MAC) {
	w.macs, w.rarps = macs, w.rarps[:0]
	for _, mac := range macs {
		w.rarps = append(w.rarps, appendRARP(make([]byte, netdev.MinOffset, netdev.MinOffset+rarpLen), mac, 0))
	}
	for at := 0; at < len(w.rarps); at += w.tap.BatchSize() {
		w.count.relearn.Add(w.write(w.rarps[at:min(at+w.tap.BatchSize(), len(w.rarps))]))
	}
}

// write returns how many of bufs the TAP took. What it did not take is
// dropped: the LAN's hosts repeat what matters, and a TAP that is gone ends
// the reader too.
func (w *writer) write(bufs [][]byte) uint64 {
	n, err := w.tap.Write(bufs, netdev.MinOffset)
	taken := uint64(max(0, min(n, len(bufs))))
	if err != nil {
		w.count.writeFailed.Add(uint64(len(bufs)) - taken)
	}
	return taken
}
