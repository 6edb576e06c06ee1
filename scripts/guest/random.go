package main

import "encoding/binary"

// random is a small, fast, seeded generator (xorshift64*). The guest's memory
// must be the same at every boot, so nothing else may feed it. It is not safe
// for concurrent use.
type random uint64

// newRandom returns a generator whose sequence follows from seed.
func newRandom(seed uint64) *random {
	r := random(seed*0x9e3779b97f4a7c15 | 1)
	for range 4 { // small seeds differ in few bits
		r.next()
	}
	return &r
}

func (r *random) next() uint64 {
	x := uint64(*r)
	x ^= x >> 12
	x ^= x << 25
	x ^= x >> 27
	*r = random(x)
	return x * 0x2545f4914f6cdd1d
}

// below returns a number from 0 to n-1; n is positive.
func (r *random) below(n int) int {
	return int(r.next() >> 33 * uint64(n) >> 31)
}

// fill overwrites b with random bytes.
func (r *random) fill(b []byte) {
	for ; len(b) >= 8; b = b[8:] {
		binary.LittleEndian.PutUint64(b, r.next())
	}
	for i := range b {
		b[i] = byte(r.next() >> 56)
	}
}
