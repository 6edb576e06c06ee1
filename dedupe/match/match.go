// Package match is what searches for repeated bytes have in common: the table of a
// gear hash, by which positions are sampled, and the comparison of what was found.
//
// It is pure.
package match

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// Window is how many bytes a gear hash of 64 bits depends on.
const Window = 64

// Gear returns a random number for each byte value, by splitmix64 from a seed. The
// hash of a byte c behind h is Gear[c] + 2*h (Xia et al., "Ddelta: a
// deduplication-inspired fast delta compression approach", 2014). Positions whose
// hash is less than most are to be the samples: no run of one byte value is one.
func Gear(seed, most uint64) (t [256]uint64) {
	x := seed
	for b := range t {
		for {
			x += 0x9e3779b97f4a7c15
			z := x
			z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
			z = (z ^ z>>27) * 0x94d049bb133111eb
			t[b] = z ^ z>>31
			if -t[b] >= most { // what a run of b hashes to
				break
			}
		}
	}
	return t
}

func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }

// Prefix returns how many leading bytes of a and b are equal.
func Prefix(a, b []byte) int {
	const near, span = 64, 256
	n := min(len(a), len(b))
	a, b = a[:n], b[:n]
	i, differ := words(a, b, 0, min(n, near))
	if differ {
		return i
	}
	for i+span <= n && bytes.Equal(a[i:i+span], b[i:i+span]) {
		i += span // bytes.Equal uses vectors
	}
	if i, differ = words(a, b, i, n); differ {
		return i
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

// words compares words of a and b from i up to end and returns where they first
// differ, or how far it got.
func words(a, b []byte, i, end int) (at int, differ bool) {
	for ; i+8 <= end; i += 8 {
		if x := load64(a, i) ^ load64(b, i); x != 0 {
			return i + bits.TrailingZeros64(x)>>3, true
		}
	}
	return i, false
}

// Suffix returns how many trailing bytes of a and b are equal.
func Suffix(a, b []byte) int {
	n := min(len(a), len(b))
	a, b = a[len(a)-n:], b[len(b)-n:]
	i := n
	for ; i >= 8; i -= 8 {
		if x := load64(a, i-8) ^ load64(b, i-8); x != 0 {
			return n - i + bits.LeadingZeros64(x)>>3
		}
	}
	for i > 0 && a[i-1] == b[i-1] {
		i--
	}
	return n - i
}
