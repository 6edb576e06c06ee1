package wg

import (
	"stitch/tunnel/netdev/super"
	"stitch/tunnel/wg/carrier"
)

// frame is one that waits to be sent, or a super-frame, or (segment 0) a message
// of a train that is measured.
type frame struct {
	segment uint16
	header  super.Header
	data    []byte
}

// head is the carrier header it leaves with.
func (f *frame) head() carrier.Header {
	if f.segment == 0 {
		return carrier.Header{Kind: carrier.Bench}
	}
	return carrier.Header{Kind: carrier.Frame, Segment: f.segment}
}

// clamp corrects the MSS that a TCP SYN in a frame announces.
func (f *frame) clamp(b []byte, most int) {
	if f.segment != 0 {
		super.ClampMSS(b, super.Ethernet, most, false)
	}
}

// frameRing is a bounded ring of frames that keeps their buffers. When it is
// full the sender waits a little, then drops: see mux.sendFrame. It is not
// safe for concurrent use.
type frameRing struct {
	slots         [frameQueue]frame
	head, n, size int
}

// room reports whether one more may wait.
func (r *frameRing) room() bool { return r.n < frameQueue && r.size < frameQueueBytes }

// push copies a frame. There must be room.
func (r *frameRing) push(segment uint16, h super.Header, data []byte) {
	f := &r.slots[(r.head+r.n)%frameQueue]
	f.segment, f.header, f.data = segment, h, append(f.data[:0], data...)
	r.n++
	r.size += len(data)
}

// pop swaps the oldest frame with f, whose buffer is used again.
func (r *frameRing) pop(f *frame) bool {
	if r.n == 0 {
		return false
	}
	slot := &r.slots[r.head]
	*f, *slot = *slot, *f
	r.head = (r.head + 1) % frameQueue
	r.n--
	r.size -= len(f.data)
	return true
}
