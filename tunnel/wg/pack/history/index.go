package history

import (
	"math/bits"

	"stitch/dedupe/match"
)

const (
	// sampleBits is how many top bits of the hash are zero at an anchor: one
	// position in 128.
	sampleBits = 7
	anchorMax  = 1 << (64 - sampleBits)
	// maxAnchors is the most of one payload: more there are only in one that
	// repeats with a short period, and then these do.
	maxAnchors = 4096
	bucketSize = 4
)

// gear is local.
var gear = match.Gear(0x7061636b6574, anchorMax)

// anchor is a sampled position: the last byte of its window.
type anchor struct {
	hash uint64
	at   int32
}

// scan appends the anchors of src at from to to-1. Two halves are hashed at the
// same time: one hash alone waits for its own last step.
func scan(out []anchor, src []byte, from, to int) []anchor {
	from = max(from, match.Window-1)
	if from >= to {
		return out
	}
	half := (to - from) / 2
	mid := from + half
	g, h := roll(src[from-match.Window+1:from]), roll(src[mid-match.Window+1:mid])
	one, two := src[from:mid], src[mid:mid+half]
	var late [maxAnchors / 8]anchor // of the second half
	n := 0
	for i, c := range one {
		g = gear[c] + 2*g
		h = gear[two[i]] + 2*h
		if g < anchorMax && len(out) < maxAnchors {
			out = append(out, anchor{g, int32(from + i)})
		}
		if h < anchorMax && n < len(late) {
			late[n] = anchor{h, int32(mid + i)}
			n++
		}
	}
	if mid+half < to {
		if h = gear[src[mid+half]] + 2*h; h < anchorMax && n < len(late) {
			late[n] = anchor{h, int32(mid + half)}
			n++
		}
	}
	return append(out, late[:min(n, maxAnchors-len(out))]...)
}

// roll is the hash behind b.
func roll(b []byte) (h uint64) {
	for _, c := range b {
		h = gear[c] + 2*h
	}
	return h
}

// index says where anchors were last: in slots of sequence number (32 bits),
// tag, and position in the record (16 bits each), four to a bucket. It is a hint,
// verified by comparing bytes.
type index []uint64

func newIndex(size int) index { return make(index, size>>sampleBits/bucketSize*bucketSize) }

// find returns the bucket and tag of an anchor's hash.
func (x index) find(hash uint64) (bucket *[bucketSize]uint64, tag uint64) {
	hash *= 0x9e3779b97f4a7c15
	b, _ := bits.Mul64(hash, uint64(len(x)/bucketSize))
	return (*[bucketSize]uint64)(x[b*bucketSize:]), hash & 0xffff << 16
}

// get returns where an anchor was.
func (x index) get(hash uint64) (seq uint32, at int, ok bool) {
	bucket, tag := x.find(hash)
	for _, e := range bucket {
		if e&0xffff0000 == tag && e>>32 != 0 {
			return uint32(e >> 32), int(e & 0xffff), true
		}
	}
	return 0, 0, false
}

// put says where it is now. In a full bucket the oldest gives way.
func (x index) put(hash uint64, seq uint32, at int) {
	bucket, tag := x.find(hash)
	victim, age := 0, uint32(0)
	for k, e := range bucket {
		if e>>32 == 0 || e&0xffff0000 == tag {
			victim = k
			break
		}
		if a := seq - uint32(e>>32); a >= age {
			victim, age = k, a
		}
	}
	bucket[victim] = uint64(seq)<<32 | tag | uint64(at)
}
