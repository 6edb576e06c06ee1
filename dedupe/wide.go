package dedupe

import (
	"math/bits"

	"stitch/dedupe/match"
)

// On a processor with vectors of 256 bits anchors are found by other sums than
// gear's, made for many positions at a time. They too depend on match.Window bytes.

const (
	// The window's sum, 16 bits with a sign, is more than wideMost at an anchor:
	// one position in 224. In memory with many zeros sums of 16 bits repeat more
	// than gear's; with one in 256 there would be fewer anchors than gear has.
	wideMost   = 1<<15 - 1 - 292
	wideGroups = 64 // the most groups of 32 positions at a time
	wideMore   = 66 // bytes read behind the last position
)

// scanWide is scan for many positions at a time.
func (x *index) scanWide(out []anchor, src []byte, from, to int) []anchor {
	var masks [wideGroups]uint32
	for at := max(from+1-match.Window, 0); at+match.Window <= to; at += 32 * wideGroups {
		n := min(to-match.Window+1-at, 32*wideGroups)
		sampleAll(masks[:(n+31)/32], src[at:], n)
		left := laneMost
		for i, m := range masks[:(n+31)/32] {
			for ; m != 0 && left > 0; m &= m - 1 {
				begin := at + 32*i + bits.TrailingZeros32(m)
				h := identify((*[match.Window]byte)(src[begin:]))
				out = append(out, x.anchor(h, begin+match.Window-8))
				left--
			}
		}
	}
	return out
}

// sampleAll sets masks for the first n positions of b, as sampleGroups does, and
// reads nothing behind b.
func sampleAll(masks []uint32, b []byte, n int) {
	whole := min(max(len(b)-wideMore, 0)/32, len(masks))
	if whole > 0 {
		sampleGroups(&masks[0], &b[0], whole)
	}
	if rest := masks[whole:]; len(rest) > 0 {
		var tail [(wideMore/32+2)*32 + wideMore]byte
		copy(tail[:], b[32*whole:])
		sampleGroups(&rest[0], &tail[0], len(rest))
	}
	if over := n % 32; over > 0 {
		masks[len(masks)-1] &= 1<<over - 1
	}
}

// identify hashes a window.
func identify(w *[match.Window]byte) (h uint64) {
	for i := 0; i < match.Window; i += 16 {
		hi, lo := bits.Mul64(load64(w[:], i)^0x2d358dccaa6c78a5, load64(w[:], i+8)^0x8bb84b93962eacc9^h)
		h ^= hi ^ lo
	}
	return h
}
