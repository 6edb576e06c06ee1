package dedupe

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }

// commonPrefix is how many leading bytes of a and b are equal.
func commonPrefix(a, b []byte) int {
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

// commonSuffix is how many trailing bytes of a and b are equal.
func commonSuffix(a, b []byte) int {
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

// resync finds, after at most span bytes, where a and b agree at the same
// offset for MinToken bytes or more, and for how many; n is 0 if they do not.
func resync(a, b []byte, span int) (skip, n int) {
	b = b[:len(a)]
	if n = commonPrefix(a, b); n >= MinToken {
		return 0, n
	}
	for i := n &^ 7; i < span && i+MinToken <= len(a); i += 8 {
		if load64(a, i) != load64(b, i) {
			continue
		}
		n = 8 + commonPrefix(a[i+8:], b[i+8:])
		back := commonSuffix(a[:i], b[:i])
		if n+back >= MinToken {
			return i - back, n + back
		}
		i += n &^ 7
	}
	return 0, 0
}

// zeroPrefix is how many leading bytes of b, at most MaxBlock, are zero.
func zeroPrefix(b []byte) int {
	if len(b) < 8 || load64(b, 0) != 0 {
		return commonPrefix(b[:min(len(b), 8)], zeroBlock[:])
	}
	return commonPrefix(b, zeroBlock[:])
}

// findZeros returns where the first run of at least minZeros zeros that one
// look in minZeros bytes can see begins in b; len(b) if there is none.
func findZeros(b []byte) int {
	for i := 0; i+minZeros <= len(b); i += minZeros {
		if load64(b, i) != 0 {
			continue
		}
		start := i
		for start > 0 && b[start-1] == 0 {
			start--
		}
		if zeroPrefix(b[start:min(start+minZeros, len(b))]) == minZeros {
			return start
		}
	}
	return len(b)
}
