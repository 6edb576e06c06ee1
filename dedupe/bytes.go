package dedupe

import (
	"encoding/binary"

	"stitch/dedupe/match"
)

func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }

// resync finds, after at most span bytes, where a and b agree at the same
// offset for MinToken bytes or more, and for how many; n is 0 if they do not.
func resync(a, b []byte, span int) (skip, n int) {
	b = b[:len(a)]
	if n = match.Prefix(a, b); n >= MinToken {
		return 0, n
	}
	for i := n &^ 7; i < span && i+MinToken <= len(a); i += 8 {
		if load64(a, i) != load64(b, i) {
			continue
		}
		n = 8 + match.Prefix(a[i+8:], b[i+8:])
		back := match.Suffix(a[:i], b[:i])
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
		return match.Prefix(b[:min(len(b), 8)], zeroBlock[:])
	}
	return match.Prefix(b, zeroBlock[:])
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
