package dedupe

import (
	"math/bits"
	"sync/atomic"
)

const (
	slotEvery = 128 // bytes of history (both rings) for each slot
	maxUnit   = 6   // log2 of the coarsest unit of a slot's position
	wantTag   = 6   // bits of tag when the position leaves room
)

// index maps anchors to positions: one direct-mapped table for both rings, the
// newest wins. A slot is ring (1 bit), tag, and ring offset in units of
// 1<<unit bytes. What a slot says is only a hint, verified by comparing bytes;
// an empty slot reads as a hint to offset 0. Slots are atomic: safe for
// concurrent use.
type index struct {
	slots    []uint32
	unit     uint // log2 of the position's unit
	posBits  uint
	tagMask  uint32
	ringSize uint64
}

func newIndex(size int64) *index {
	x := newIndexLayout(size)
	x.slots = newSlots(x, int(2*size/slotEvery))
	return x
}

// newIndexLayout divides a slot's bits; it has no slots yet.
func newIndexLayout(size int64) *index {
	offBits := uint(bits.Len64(uint64(size - 1)))
	unit := uint(0)
	if offBits > 31-wantTag {
		unit = min(offBits-(31-wantTag), maxUnit)
	}
	x := &index{unit: unit, posBits: offBits - unit, ringSize: uint64(size)}
	x.tagMask = 1<<(31-x.posBits) - 1
	return x
}

// anchor makes the anchor of hash h, whose window's last word begins at off.
func (x *index) anchor(h uint64, off int) anchor {
	h *= 0x9e3779b97f4a7c15
	slot, _ := bits.Mul64(h, uint64(len(x.slots)))
	return anchor{off: int32(off), slot: uint32(slot), tag: uint32(h>>20) & x.tagMask}
}

// lookup fills in the entries of as: independent loads that overlap.
func (x *index) lookup(as []anchor) {
	for i := range as {
		as[i].entry = atomic.LoadUint32(&x.slots[as[i].slot])
	}
}

// put makes a point to pos of ring r.
func (x *index) put(a *anchor, r Ring, pos uint64) {
	unit := uint32(pos % x.ringSize >> x.unit)
	atomic.StoreUint32(&x.slots[a.slot], uint32(r)<<31|a.tag<<x.posBits|unit)
}

// hint decodes a's entry: the ring and the ring offset where the unit of the
// candidate begins; false if the tag does not fit.
func (x *index) hint(a *anchor) (r Ring, off uint64, ok bool) {
	e := a.entry
	if e>>x.posBits&x.tagMask != a.tag {
		return 0, 0, false
	}
	return Ring(e >> 31), uint64(e&(1<<x.posBits-1)) << x.unit, true
}

// latest is the highest position below head with the ring offset off.
func (x *index) latest(off, head uint64) uint64 {
	lap := head - head%x.ringSize
	if off < head-lap {
		return lap + off
	}
	if lap == 0 {
		return off // never given out: the caller's bounds reject it
	}
	return lap - x.ringSize + off
}
