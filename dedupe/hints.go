package dedupe

import (
	"encoding/binary"
	"math/bits"

	"stitch/dedupe/store"
)

// A chunk's anchors lie beside it on disk, so that after a restart all of a large
// history is found in before its bytes have been read: they are 1/28 of these. A
// chunk's hints are
//
//	kind 1: by which sums its anchors were chosen (1: gear.go, 2: wide.go), 0 x 7,
//	8 for each anchor, in rising order: 45 bits of its hash above 19 bits of the
//	distance from the anchor before, or from the chunk's begin
//
// little-endian. A distance that 19 bits do not hold is told by entries without a
// hash in front. Nobody trusts them: what they lead to is compared byte by byte.
const (
	hintsKind  = 8 // bytes before the first anchor
	gapBits    = 19
	gapMax     = 1<<gapBits - 1
	kindGear   = 1
	kindWide   = 2
	maxAnchors = (store.MaxHints - hintsKind) / 8
)

// hintIndex is an index without slots. It has so many buckets that bucket and tag
// of its anchors hold the top 45 bits of a hash.
var hintIndex = index{buckets: 1 << 21}

// kindOf says how this process chooses anchors.
func kindOf() byte {
	if wide {
		return kindWide
	}
	return kindGear
}

// hintsOf appends the hints of a chunk's bytes to b; as is scratch.
func hintsOf(b, data []byte, as []anchor) ([]byte, []anchor) {
	as = hintIndex.scan(as[:0], data, 0, len(data))
	b = append(b, kindOf(), 0, 0, 0, 0, 0, 0, 0)
	at, room := 0, maxAnchors
	for i := range as {
		a := &as[i]
		gap := int(a.off) - at
		for ; gap > gapMax; gap -= gapMax {
			b = binary.LittleEndian.AppendUint64(b, gapMax)
			room--
		}
		if room <= 0 {
			break // many anchors are of bytes that repeat: the others are as good
		}
		hash := uint64(a.bucket)<<24 | a.tag>>posBits
		b = binary.LittleEndian.AppendUint64(b, hash<<gapBits|uint64(gap))
		room--
		at = int(a.off)
	}
	return b, as
}

// known appends to as the anchors that hints tell of; false if they were chosen
// by other sums than ours, or make no sense.
func (x *index) known(as []anchor, hints []byte) ([]anchor, bool) {
	if len(hints) < hintsKind || len(hints)%8 != 0 || hints[0] != kindOf() {
		return as, false
	}
	off := 0
	for b := hints[hintsKind:]; len(b) > 0; b = b[8:] {
		v := binary.LittleEndian.Uint64(b)
		if off += int(v & gapMax); off > chunkSize-8 {
			return as, false
		}
		if hash := v >> gapBits; hash != 0 {
			bucket, _ := bits.Mul64(hash<<gapBits, x.buckets)
			as = append(as, anchor{off: int32(off), bucket: uint32(bucket), tag: hash << posBits & tagMask})
		}
	}
	return as, true
}
