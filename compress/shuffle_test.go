package compress

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

// table returns n bytes of words of so many bytes: counters that grow by small
// random steps, most significant bytes alike.
func table(r *rand.Rand, n, word int) []byte {
	var b []byte
	for v := r.Uint64() >> 16; len(b) < n; v += r.Uint64N(1 << 12) {
		w := make([]byte, word)
		binary.LittleEndian.PutUint32(w, uint32(v))
		if word >= 8 {
			binary.LittleEndian.PutUint64(w, v|0xffff<<48)
		}
		if word == 16 {
			binary.LittleEndian.PutUint64(w[8:], v*0x9e3779b97f4a7c15&0xff00ff|0x1234<<32)
		}
		b = append(b, w...)
	}
	return b[:n]
}

// TestTableOf: arrays of words are seen as such, and what zstd itself sees well
// is left alone.
func TestTableOf(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 7))
	random := make([]byte, piece)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	sparse := make([]byte, piece)
	for i := 0; i < piece; i += 50 {
		sparse[i] = byte(i)
	}
	columns := bytes.Repeat([]byte("id           0\tname        \n"), piece/20)
	for name, c := range map[string]struct {
		bytes []byte
		want  width
	}{
		"words of 4":  {table(r, piece, 4), 1},
		"words of 8":  {table(r, piece, 8), 2},
		"words of 16": {table(r, piece, 16), 3},
		"random":      {random, 0},
		"zeros":       {make([]byte, piece), 0},
		"one byte":    {bytes.Repeat([]byte{' '}, piece), 0},
		"sparse":      {sparse, 0},
		"text":        {bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog, "), piece/20), 0},
		"columns":     {columns, 0},
	} {
		if got := tableOf((*[piece]byte)(c.bytes)); got != c.want {
			t.Errorf("%s: width %d, want %d", name, got, c.want)
		}
	}
}

// TestShuffle holds shuffle against its definition, and its inverse against it.
func TestShuffle(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 7))
	for w := width(1); w < 4; w++ {
		var src, got, back [piece]byte
		for i := range src {
			src[i] = byte(r.Uint32())
		}
		shuffle(&got, &src, w)
		k := w.bytes()
		n := piece / k
		for j := range k {
			for i := range n {
				want := src[i*k+j]
				if i > 0 {
					want -= src[(i-1)*k+j]
				}
				if got[j*n+i] != want {
					t.Fatalf("words of %d: byte %d of word %d is %d, want %d", k, j, i, got[j*n+i], want)
				}
			}
		}
		if unshuffle(&back, &got, w); back != src {
			t.Fatalf("words of %d do not come back", k)
		}
	}
}

func TestZeroBytes(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 7))
	for range 10000 {
		var b [8]byte
		want := 0
		for i := range b {
			if r.IntN(2) == 0 {
				b[i] = byte(r.IntN(256)) & byte(r.IntN(256))
			}
			if b[i] == 0 {
				want++
			}
		}
		if got := zeroBytes(binary.LittleEndian.Uint64(b[:])); got != want {
			t.Fatalf("%x: %d zero bytes, want %d", b, got, want)
		}
	}
}

// mixture is literals of n bytes of which some stretches are tables.
func mixture(r *rand.Rand, n int) (b []byte) {
	for len(b) < n {
		k := 1 + r.IntN(3*piece)
		if r.IntN(2) == 0 {
			b = append(b, sample(r, k)...)
		} else {
			b = append(b, table(r, k, 4<<r.IntN(3))...)
		}
	}
	return b[:n]
}

// TestShuffledRoundTrip: sections with and without tables, of any size, follow
// each other in a context, within what AppendShuffled promises.
func TestShuffledRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 7))
	p := NewPool(1, 2)
	some := 0
	for i := range 40 {
		e, d := p.Encoder(Balanced+Level(i%3)), p.Decoder()
		for range 1 + r.IntN(20) {
			src := mixture(r, 1+r.IntN(1<<r.IntN(19)))
			enc := e.AppendShuffled([]byte("head"), src)
			if limit := len(src) + 70*(len(src)>>17+1) + 16; len(enc)-4 > limit {
				t.Fatalf("%d bytes became %d", len(src), len(enc)-4)
			}
			if enc[4] == shuffled {
				some++
			}
			got, err := d.Append([]byte("x"), enc[4:], len(src))
			if err != nil || !bytes.Equal(got[1:], src) {
				t.Fatalf("%d bytes: %v", len(src), err)
			}
		}
		p.Release(e)
		p.ReleaseDecoder(d)
	}
	if some < 50 {
		t.Errorf("only %d sections had tables", some)
	}
}

// TestShuffledSaves: a table becomes much smaller, and text no larger.
func TestShuffledSaves(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 7))
	p := NewPool(1, 2)
	size := func(src []byte) (plain, some int) {
		a, b := p.Encoder(Strong), p.Encoder(Strong)
		defer p.Release(a)
		defer p.Release(b)
		return len(a.Append(nil, src)), len(b.AppendShuffled(nil, src))
	}
	for _, word := range []int{4, 8, 16} {
		if plain, some := size(table(r, 64<<10, word)); 20*some > 19*plain {
			t.Errorf("words of %d: %d bytes plain, %d shuffled", word, plain, some)
		}
	}
	text := bytes.Repeat([]byte("to be or not to be, that is the question; "), 2000)
	if plain, some := size(text); some != plain {
		t.Errorf("text: %d bytes plain, %d with a look for tables", plain, some)
	}
}

// TestWidths: what no encoder makes is refused.
func TestWidths(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 7))
	p := NewPool(1, 2)
	e := p.Encoder(Strong)
	src := table(r, 5*piece, 8)
	good := e.AppendShuffled(nil, src)
	edit := func(at int, b ...byte) []byte {
		return append(append(bytes.Clone(good[:at]), b...), good[at+len(b):]...)
	}
	for name, c := range map[string]struct {
		section []byte
		n       int
	}{
		"nothing behind the mark":     {good[:1], len(src)},
		"cut widths":                  {good[:2], len(src)},
		"a width behind the last":     {edit(2, good[2]|4), len(src)},
		"fewer literals than a piece": {good, piece - 1},
		"other literals":              {good, len(src) - piece},
		"two marks":                   {append([]byte{shuffled, good[1], good[2]}, good...), len(src)},
	} {
		d := p.Decoder()
		if got, err := d.Append([]byte("x"), c.section, c.n); !errors.Is(err, ErrCorrupt) || string(got) != "x" {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		p.ReleaseDecoder(d)
	}
	d := p.Decoder()
	if got, err := d.Append(nil, good, len(src)); err != nil || !bytes.Equal(got, src) {
		t.Fatal(err)
	}
}

// BenchmarkShuffle compresses literals of which about a quarter are tables, with
// and without looking for them. They repeat only outside the window.
func BenchmarkShuffle(b *testing.B) {
	const section = 128 << 10
	r := rand.New(rand.NewPCG(8, 7))
	var src []byte
	for len(src) < 3*Window {
		src = append(append(src, sample(r, 3*piece)...), table(r, piece, 4<<r.IntN(3))...)
	}
	p := NewPool(1, 2)
	for _, look := range []bool{false, true} {
		b.Run(fmt.Sprintf("look=%v", look), func(b *testing.B) {
			e := p.Encoder(Strong)
			defer p.Release(e)
			b.SetBytes(section)
			b.ReportAllocs()
			var dst []byte
			at, in, out := 0, 0, 0
			for b.Loop() {
				if look {
					dst = e.AppendShuffled(dst[:0], src[at:at+section])
				} else {
					dst = e.Append(dst[:0], src[at:at+section])
				}
				at = (at + section) % (3 * Window)
				in, out = in+section, out+len(dst)
			}
			b.ReportMetric(float64(in)/float64(out), "ratio")
		})
	}
}
