package wg

import "stitch/tunnel/netdev/super"

// frame is one that waits to be sent, or a super-frame.
type frame struct {
	segment uint16
	header  super.Header
	data    []byte
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
