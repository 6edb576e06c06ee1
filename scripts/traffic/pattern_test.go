package traffic

import (
	"bytes"
	"testing"
)

// slow is Fill, one byte at a time.
func slow(id uint64, d Direction, off uint64) byte {
	block, at := off/64, off%64
	if block%64 == 0 && at < uint64(len(Canary)) {
		return Canary[at]
	}
	w := mix(mix(id*4+uint64(d)) + block*8 + at/8)
	return byte(w >> (8 * (at % 8)))
}

func TestFillMatchesByteByByte(t *testing.T) {
	for _, off := range []uint64{0, 1, 63, 64, 65, 4095, 4096, 1 << 40} {
		for _, n := range []int{0, 1, 7, 64, 200, 9000} {
			got := make([]byte, n)
			Fill(got, 17, Answer, off)
			for i := range got {
				if want := slow(17, Answer, off+uint64(i)); got[i] != want {
					t.Fatalf("offset %d+%d: %#x, want %#x", off, i, got[i], want)
				}
			}
			if i := Check(got, 17, Answer, off); i != -1 {
				t.Fatalf("offset %d, %d bytes: Check says %d", off, n, i)
			}
		}
	}
}

func TestStreamsDiffer(t *testing.T) {
	a, b, c := make([]byte, 200), make([]byte, 200), make([]byte, 200)
	Fill(a, 1, Request, 64)
	Fill(b, 1, Answer, 64)
	Fill(c, 2, Request, 64)
	if bytes.Equal(a, b) || bytes.Equal(a, c) || bytes.Equal(b, c) {
		t.Error("two streams have the same bytes")
	}
}

func FuzzCheckFindsFirstWrongByte(f *testing.F) {
	f.Add(uint64(1), uint64(0), uint16(100), uint16(3), byte(1))
	f.Add(uint64(9), uint64(4090), uint16(5000), uint16(4999), byte(0x80))
	f.Fuzz(func(t *testing.T, id, off uint64, n, at uint16, flip byte) {
		off %= 1 << 60
		b := make([]byte, n)
		Fill(b, id, Answer, off)
		want := -1
		if int(at) < len(b) && flip != 0 {
			b[at] ^= flip
			want = int(at)
		}
		if got := Check(b, id, Answer, off); got != want {
			t.Errorf("Check = %d, want %d", got, want)
		}
	})
}
