package dedupe

import (
	"math/bits"
	"sync/atomic"
)

const (
	slotEvery  = 256 // bytes of history (both rings) for each slot
	bucketSize = 8   // slots in a cache line
	// A slot is ring (1 bit), tag, and position; so many bits of the position
	// tell twice the largest ring.
	posBits = 39
	posMask = 1<<posBits - 1
	tagMask = 1<<63 - 1 - posMask
)

// index maps anchors to positions: one table for both rings, of buckets of a
// cache line each. In a full bucket the newest of an anchor's two places, or
// else the oldest slot, gives way. What a slot says is only a hint, verified by
// comparing bytes; an empty slot is a hint to position 0. Slots are atomic:
// safe for concurrent use.
type index struct {
	slots   []uint64
	buckets uint64
}

func newIndex(size int64) *index {
	x := &index{buckets: uint64(2 * size / slotEvery / bucketSize)}
	x.slots = newSlots(x, int(x.buckets)*bucketSize)
	return x
}

// anchor is a sampled position: off is where the last 8 bytes of its window
// begin; bucket and tag come from the hash; places is what the index holds.
type anchor struct {
	off    int32
	bucket uint32
	tag    uint64
	places [2]uint64 // 0 if there is none
}

// anchor makes the anchor of hash h, whose window's last word begins at off.
func (x *index) anchor(h uint64, off int) anchor {
	h *= 0x9e3779b97f4a7c15
	b, _ := bits.Mul64(h, x.buckets)
	return anchor{off: int32(off), bucket: uint32(b), tag: h << 20 & tagMask}
}

func (x *index) bucket(a *anchor) *[bucketSize]uint64 {
	return (*[bucketSize]uint64)(x.slots[int(a.bucket)*bucketSize:])
}

// lookup fills in the places of as.
func (x *index) lookup(as []anchor) {
	x.fetch(as)
	for i := range as {
		a := &as[i]
		n := 0
		b := x.bucket(a)
		for k := range b {
			e := atomic.LoadUint64(&b[k])
			if e&tagMask == a.tag && n < len(a.places) {
				a.places[n] = e
				n++
			}
		}
	}
}

// fetch brings the buckets of as into the cache: loads that do not wait for
// each other.
func (x *index) fetch(as []anchor) {
	var sum uint64
	for i := range as {
		sum += atomic.LoadUint64(&x.slots[int(as[i].bucket)*bucketSize])
	}
	_ = sum
}

// heads are the heads of both rings at some time; ages are counted from them.
type heads [2]uint64

// age is how many bytes below its ring's head slot e points.
func (h *heads) age(e uint64) uint64 { return (h[e>>63] - 1 - e) & posMask }

// place decodes slot e; false if it never was a place in the ring.
func (h *heads) place(e uint64) (r Ring, pos uint64, ok bool) {
	r = Ring(e >> 63)
	age := h.age(e)
	return r, h[r] - 1 - age, age < h[r]
}

// put makes a point to pos of ring r.
func (x *index) put(a *anchor, r Ring, pos uint64, h *heads) {
	fresh := uint64(r)<<63 | a.tag | pos&posMask
	b := x.bucket(a)
	var oldest, twin victim
	twins := 0
	for k := range b {
		e := atomic.LoadUint64(&b[k])
		switch {
		case e == fresh:
			return
		case e == 0:
			oldest = victim{k, posMask}
			continue
		case e&tagMask == a.tag:
			twins++
			twin.older(k, h.age(e))
		}
		oldest.older(k, h.age(e))
	}
	if twins >= len(a.places) {
		oldest = twin
	}
	atomic.StoreUint64(&b[oldest.slot], fresh)
}

// victim is the slot that is to give way, and its age.
type victim struct {
	slot int
	age  uint64
}

func (v *victim) older(slot int, age uint64) {
	if age >= v.age {
		*v = victim{slot, age}
	}
}
