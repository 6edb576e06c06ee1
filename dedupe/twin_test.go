package dedupe

import (
	"bytes"
	"math/bits"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"stitch/dedupe/match"
)

// pair returns two slices that agree in places.
func pair(r *rand.Rand) (a, b []byte) {
	a = make([]byte, r.IntN(600))
	for i := range a {
		a[i] = byte(r.IntN(3)) * byte(r.IntN(2))
	}
	b = bytes.Clone(a)
	for range r.IntN(5) {
		if len(b) > 0 {
			b[r.IntN(len(b))]++
		}
	}
	return a, b[:len(b)-r.IntN(min(len(b), 9)+1)]
}

func TestByteHelpers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		a, b := pair(r)
		n := 0
		for n < min(len(a), len(b)) && a[n] == b[n] {
			n++
		}
		if got := match.Prefix(a, b); got != n {
			t.Fatalf("prefix %d, want %d", got, n)
		}
		n = 0
		for n < min(len(a), len(b)) && a[len(a)-1-n] == b[len(b)-1-n] {
			n++
		}
		if got := match.Suffix(a, b); got != n {
			t.Fatalf("suffix %d, want %d", got, n)
		}
		if got, want := zeroPrefix(a), len(a)-len(bytes.TrimLeft(a, "\x00")); got != want {
			t.Fatalf("zeros %d, want %d", got, want)
		}
		checkFindZeros(t, a)
		if skip, n := resync(a[:len(b)], b, 256); n > 0 && (n < MinToken || !bytes.Equal(a[skip:skip+n], b[skip:skip+n])) {
			t.Fatalf("resync to %d, %d bytes", skip, n)
		}
	}
}

// checkFindZeros: what is found is a run, and no run of twice the least length
// is in front of it.
func checkFindZeros(t *testing.T, b []byte) {
	t.Helper()
	got := findZeros(b)
	first := bytes.Index(b, make([]byte, 2*minZeros))
	if first >= 0 && got > first || got < len(b) && zeroPrefix(b[got:]) < minZeros {
		t.Fatalf("zeros found at %d, first long run at %d", got, first)
	}
}

func TestResyncBehindEdit(t *testing.T) {
	a := newSource(1, 1000).pool
	for _, n := range []int{1, 7, 8, 63, 64, 200, 230} {
		b := bytes.Clone(a)
		for i := range n {
			b[i] ^= 0x55
		}
		if skip, got := resync(a, b, 256); skip != n || got != len(a)-n {
			t.Errorf("edit of %d bytes: in step at %d for %d", n, skip, got)
		}
	}
}

// samplers are the ways to find anchors that this processor has, and for each
// the hash of a window computed anew, 0 if it is not an anchor's.
func samplers(tb testing.TB) map[string]sampler {
	all := map[string]sampler{"gear": {(*index).scanGear, func(w []byte) (h uint64) {
		for i, b := range w {
			h += gear[b] << (match.Window - 1 - i)
		}
		if bits.LeadingZeros64(h) < sampleBits {
			return 0
		}
		return h
	}}}
	if !wide {
		tb.Log("this processor has no sampleGroups: only gear is tested")
		return all
	}
	all["wide"] = sampler{(*index).scanWide, func(w []byte) uint64 {
		var sum int16
		for i, b := range w {
			c := []int16{61, 37}[i&1]
			for k, x := range []uint16{0x9e37, 0x79b9, 0x7f4b, 0xc2b3, 0x27d5} {
				if i>>(k+1)&1 == 0 {
					c *= int16(x)
				}
			}
			sum += c * int16(b)
		}
		if sum <= wideMost {
			return 0
		}
		return identify((*[match.Window]byte)(w))
	}}
	return all
}

type sampler struct {
	scan func(x *index, out []anchor, src []byte, from, to int) []anchor
	hash func(window []byte) uint64
}

// TestScanTwin holds the anchors against those of hashes computed anew at every
// position.
func TestScanTwin(t *testing.T) {
	x := newIndex(minSize)
	src := newSource(2, 1).block(50_000)
	cuts := [][2]int{{0, len(src)}, {0, 10}, {0, 64}, {1, 65}, {63, 5000}, {64, 5000}, {1000, 1001}, {777, 40_000}, {50_000, 50_000}}
	for n := 64; n < 400; n++ {
		cuts = append(cuts, [2]int{n % 3, n}, [2]int{len(src) - n, len(src)})
	}
	for name, s := range samplers(t) {
		for _, c := range cuts {
			got := s.scan(x, nil, src, c[0], c[1])
			var want []anchor
			for end := max(c[0]+1, match.Window); end <= c[1]; end++ {
				if h := s.hash(src[end-match.Window : end]); h != 0 {
					want = append(want, x.anchor(h, end-8))
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("%s, %v: %d anchors, want %d", name, c, len(got), len(want))
			}
		}
	}
}

// TestScanStops: nothing is read behind the bytes given; the page behind them
// cannot be.
func TestScanStops(t *testing.T) {
	page := os.Getpagesize()
	b, err := unix.Mmap(-1, 0, 3*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err == nil {
		err = unix.Mprotect(b[2*page:], unix.PROT_NONE)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	end := copy(b[:2*page], newSource(6, 2*page).pool)
	x := newIndex(minSize)
	for name, s := range samplers(t) {
		for n := 1; n < 3000; n += 1 + n/500 {
			src := b[end-n : end : end]
			if got, want := s.scan(x, nil, src, 0, n), s.scan(x, nil, bytes.Clone(src), 0, n); !slices.Equal(got, want) {
				t.Errorf("%s, %d bytes: %d anchors, want %d", name, n, len(got), len(want))
			}
		}
	}
}

// TestSampling: about one position in 256, or in 224, and none in runs of one
// byte.
func TestSampling(t *testing.T) {
	x := newIndex(minSize)
	n := 1 << 20
	for name, s := range samplers(t) {
		if got := len(s.scan(x, nil, newSource(3, n).pool, 0, n)); got < n/280 || got > n/206 {
			t.Errorf("%s: %d anchors in %d random bytes", name, got, n)
		}
		for b := range 256 {
			if got := len(s.scan(x, nil, bytes.Repeat([]byte{byte(b)}, 1000), 0, 1000)); got != 0 {
				t.Errorf("%s: %d anchors in a run of %d", name, got, b)
			}
		}
	}
}

// TestIndex: of an anchor's many places the two newest are found, whatever else
// its bucket is asked to hold.
func TestIndex(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	x := newIndex(minSize)
	h := heads{1 << 40, 1<<40 + 12345}
	a := x.anchor(r.Uint64(), 5)
	var want []uint64
	for range 1000 {
		ring := Ring(r.IntN(2))
		pos := h[ring]
		n := 1 + r.Uint64N(minSize/8)
		h[0] += n
		h[1] += n
		x.put(&a, ring, pos, &h)
		x.put(&a, ring, pos, &h)
		want = append(want, uint64(ring)<<63|pos)
		for range bucketSize - 2 {
			other := anchor{bucket: a.bucket, tag: r.Uint64() & tagMask}
			x.put(&other, ring, pos-r.Uint64N(1<<30), &h)
		}
		as := []anchor{a}
		x.lookup(as)
		for _, w := range want[max(0, len(want)-2):] {
			if !slices.ContainsFunc(as[0].places[:], func(e uint64) bool {
				ring, pos, ok := h.place(e)
				return ok && w == uint64(ring)<<63|pos
			}) {
				t.Fatalf("%x is not among %x", w, as[0].places)
			}
		}
		as[0] = anchor{bucket: a.bucket, tag: a.tag ^ 1<<posBits}
		if x.lookup(as); as[0].places[0] != 0 {
			t.Fatal("another tag fits")
		}
	}
}

func TestEachPage(t *testing.T) {
	var got []uint64
	total := 0
	eachPage(pageSize-1, pageSize+2, func(page uint64, from, to int) {
		got = append(got, page)
		total += to - from
	})
	if len(got) != 3 || total != pageSize+2 {
		t.Errorf("pages %v, %d bytes", got, total)
	}
}
