package dedupe

import (
	"encoding/binary"
	"math/bits"
)

func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }

// commonPrefix is how many leading bytes of a and b are equal.
func commonPrefix(a, b []byte) int {
	n := min(len(a), len(b))
	a, b = a[:n], b[:n]
	i := 0
	for ; i+8 <= n; i += 8 {
		if x := load64(a, i) ^ load64(b, i); x != 0 {
			return i + bits.TrailingZeros64(x)>>3
		}
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
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

// zeroPrefix is how many leading bytes of b are zero.
func zeroPrefix(b []byte) int {
	i := 0
	for ; i+8 <= len(b); i += 8 {
		if x := load64(b, i); x != 0 {
			return i + bits.TrailingZeros64(x)>>3
		}
	}
	for i < len(b) && b[i] == 0 {
		i++
	}
	return i
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
