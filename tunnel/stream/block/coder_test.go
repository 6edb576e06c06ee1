package block

import (
	"math/rand/v2"
	"slices"
	"testing"

	"stitch/dedupe"
)

// decision is one call of a decider.
type decision struct {
	ctx  int // 8: plain
	v    uint64
	bits int
}

// TestCoderRoundTrip: any decisions come back, whatever their odds; a section
// that is longer than it must be is not a possible one.
func TestCoderRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		var ds []decision
		odds := 1 + r.IntN(300)
		for range r.IntN(400) {
			d := decision{ctx: r.IntN(9)}
			if d.ctx == 8 {
				d.bits = r.IntN(40)
				d.v = r.Uint64() & (1<<d.bits - 1)
			} else if r.IntN(odds) == 0 {
				d.v = 1
			}
			ds = append(ds, d)
		}
		var probs [2][8]prob
		resetAll(probs[0][:])
		resetAll(probs[1][:])
		code := func(c decider, ps []prob, d decision) uint64 {
			if d.ctx == 8 {
				return c.plain(d.v, d.bits)
			}
			return c.bit(&ps[d.ctx], d.v)
		}
		var e rangeEncoder
		e.begin([]byte("head"))
		for _, d := range ds {
			code(&e, probs[0][:], d)
		}
		section := e.finish()[4:]
		var dec rangeDecoder
		dec.begin(section)
		for i, d := range ds {
			if got := code(&dec, probs[1][:], decision{ctx: d.ctx, bits: d.bits}); got != d.v {
				t.Fatalf("decision %d of %d: %d, want %d", i, len(ds), got, d.v)
			}
		}
		if !dec.done() {
			t.Fatalf("%d bytes for %d decisions are not done", len(section), len(ds))
		}
		for _, more := range [][]byte{{0}, slices.Repeat([]byte{1}, 3000)} {
			dec.in = append(slices.Clone(section), more...)
			if dec.done() {
				t.Fatalf("%d bytes are done with %x behind them", len(section), more)
			}
		}
	}
}

// TestNumbers: every size of number comes back, and one that repeats costs less
// than a bit.
func TestNumbers(t *testing.T) {
	var a, b number
	a.reset()
	b.reset()
	var vs []uint64
	r := rand.New(rand.NewPCG(2, 2))
	for n := range 62 {
		vs = append(vs, 1<<n-1, 1<<n, r.Uint64N(1<<n))
	}
	for range 800 {
		vs = append(vs, 4088)
	}
	var e rangeEncoder
	e.begin(nil)
	for i, v := range vs {
		if i == len(vs)-400 {
			e.begin(nil) // both ends: the numbers before have been learned
			b = a
		}
		a.code(&e, v)
	}
	section := e.finish()
	if len(section) > 400/8 {
		t.Errorf("%d bytes for a number 400 times", len(section))
	}
	var d rangeDecoder
	d.begin(section)
	for range 400 {
		if got := b.code(&d, 0); got != 4088 {
			t.Fatal(got)
		}
	}
	a.reset()
	b.reset()
	e.begin(nil)
	for _, v := range vs {
		a.code(&e, v)
	}
	d.begin(e.finish())
	for _, v := range vs {
		if got := b.code(&d, 0); got != v {
			t.Fatalf("%d became %d", v, got)
		}
	}
}

// TestPatternsAreFree: pages in step behind headers that differ cost a quarter of
// a byte each, pages from two courses in turns half of one, and pages from
// everywhere four.
func TestPatternsAreFree(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for name, c := range map[string]struct {
		step func(i int) uint64
		most float64 // bytes a token
	}{
		"in step":    {func(int) uint64 { return 0 }, 0.25},
		"in turns":   {func(i int) uint64 { return uint64(i%2) * 1e6 }, 0.5},
		"everywhere": {func(int) uint64 { return r.Uint64N(1<<30/4104) * 4104 }, 4},
	} {
		m := newModel()
		var e rangeEncoder
		wire, off := 0, uint64(0)
		const blocks, pages = 50, 60
		for range blocks {
			var ts []dedupe.Token
			for i := range pages {
				ts = append(ts, dedupe.Token{Lit: 8, Len: 4096, Pos: 1e9 + off + uint64(8+i*4104) + c.step(i)})
			}
			e.begin(nil)
			m.append(&e, ts, make([]bool, pages), 262144, off)
			wire += len(e.finish())
			off += 262144
		}
		if got := float64(wire) / (blocks * pages); got > c.most {
			t.Errorf("%s: %.2f bytes a token", name, got)
		}
	}
}
