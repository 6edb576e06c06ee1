package wg

import (
	"stitch/tunnel/netdev"
	"stitch/tunnel/netdev/super"
	"stitch/tunnel/wg/carrier"
)

// frame is one that waits to be sent, or a super-frame, or (segment 0) a message
// of a train that is measured.
type frame struct {
	segment uint16
	header  super.Header
	data    []byte // part of big, or if that is nil of small
	small   []byte
	big     []byte // a buffer that was handed over
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

// handOver is the length from which on a frame's buffer is taken instead of a
// copy of the frame: copying 64 KiB costs as much as encrypting five datagrams,
// and holds the lock meanwhile. Short frames are better off close together.
const handOver = 4 << 10

// frameRing is a bounded ring of frames that keeps their buffers. When it is
// full the sender waits a little, then drops: see mux.sendFrame. It is not
// safe for concurrent use.
type frameRing struct {
	slots         [frameQueue]frame
	head, n, size int
	spare         [][]byte // of netdev.BufferLen; the one used last, which a cache still has, is at the end
}

// room reports whether one more may wait.
func (r *frameRing) room() bool { return r.n < frameQueue && r.size < frameQueueBytes }

// push copies a frame, or takes *buf, which it is a part of, and leaves another
// one there; buf may be nil. There must be room.
func (r *frameRing) push(segment uint16, h super.Header, data []byte, buf *[]byte) {
	f := &r.slots[(r.head+r.n)%frameQueue]
	f.segment, f.header = segment, h
	if buf == nil || len(data) < handOver || len(*buf) != netdev.BufferLen {
		f.small = append(f.small[:0], data...)
		f.data = f.small
	} else {
		f.data, f.big = data, *buf
		*buf = r.buffer()
	}
	r.n++
	r.size += len(data)
}

// buffer returns a spare buffer or a new one.
func (r *frameRing) buffer() []byte {
	n := len(r.spare) - 1
	if n < 0 {
		return make([]byte, netdev.BufferLen)
	}
	b := r.spare[n]
	r.spare = r.spare[:n]
	return b
}

// pop swaps the oldest frame with f, whose buffers are used again.
func (r *frameRing) pop(f *frame) bool {
	if r.n == 0 {
		return false
	}
	if f.big != nil {
		r.spare = append(r.spare, f.big)
		f.big = nil
	}
	slot := &r.slots[r.head]
	*f, *slot = *slot, *f
	r.head = (r.head + 1) % frameQueue
	r.n--
	r.size -= len(f.data)
	return true
}
