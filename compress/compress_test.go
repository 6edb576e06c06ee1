package compress

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"
)

var allLevels = []Level{Store, Fast, Balanced, Strong, Extreme}

// sample returns n bytes: repeated short words, or random ones.
func sample(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	kinds := 1 + r.IntN(256)
	for i := range b {
		b[i] = byte(r.IntN(kinds))
		if i > 100 && r.IntN(4) == 0 {
			copy(b[i:], b[i-100:i-80])
		}
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	p := NewPool(2, 2)
	for i := range 2000 {
		n := r.IntN(1 << r.IntN(18))
		src := sample(r, n)
		l := allLevels[i%len(allLevels)]
		prefix := []byte("prefix")
		enc, c := p.Encode(bytes.Clone(prefix), src, l)
		if !bytes.HasPrefix(enc, prefix) || len(enc)-len(prefix) > MaxLen(n) {
			t.Fatalf("level %d: %d bytes became %d", l, n, len(enc)-len(prefix))
		}
		got, err := p.Decode(bytes.Clone(prefix), enc[len(prefix):], c, n)
		if err != nil || !bytes.Equal(got[len(prefix):], src) {
			t.Fatalf("level %d codec %v %d bytes: %v", l, c, n, err)
		}
		if _, err := p.Decode(nil, enc[len(prefix):], c, n+1); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("codec %v: wrong length gave %v", c, err)
		}
	}
}

func TestEncodeSaves(t *testing.T) {
	p := NewPool(1, 2)
	src := bytes.Repeat([]byte("all work and no play makes jack a dull boy. "), 1000)
	for l, want := range map[Level]Codec{Store: Raw, Fast: S2, Balanced: Zstd, Strong: Zstd, Extreme: Zstd} {
		enc, c := p.Encode(nil, src, l)
		if c != want || want != Raw && len(enc)*5 > len(src) {
			t.Errorf("level %d: codec %v, %d bytes", l, c, len(enc))
		}
	}
	if _, c := p.Encode(nil, make([]byte, MaxBlock+1), Strong); c != Raw {
		t.Errorf("more than MaxBlock was encoded as %v", c)
	}
}

// bombs are inputs that claim or contain far more than they should.
func bombs() map[string][]byte {
	zeros := make([]byte, 64<<20)
	e, _ := zstd.NewWriter(nil, zstd.WithWindowSize(8<<20))
	return map[string][]byte{
		"zstd window 512 MiB": {0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x98, 0x01, 0x00, 0x00},
		"zstd ratio":          e.EncodeAll(zeros, nil),
		"zstd size 2^62":      {0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0x01, 0x00, 0x00},
		"zstd two frames":     append(e.EncodeAll(zeros[:1000], nil), e.EncodeAll(zeros, nil)...),
		"s2 1 GiB":            append(binary.AppendUvarint(nil, 1<<30), 0),
	}
}

func TestBombs(t *testing.T) {
	p := NewPool(1, 2)
	enc, c := p.Encode(nil, make([]byte, 1000), Strong) // makes the decoder
	if _, err := p.Decode(nil, enc, c, 1000); err != nil {
		t.Fatal(err)
	}
	for name, b := range bombs() {
		for _, c := range []Codec{S2, Zstd} {
			for _, n := range []int{0, 1000, MaxBlock, 1 << 30} {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				got, err := p.Decode(nil, b, c, n)
				runtime.ReadMemStats(&after)
				if err == nil || len(got) != 0 {
					t.Errorf("%s as %v of %d: no error", name, c, n)
				}
				if used := after.TotalAlloc - before.TotalAlloc; used > MaxBlock+1<<20 {
					t.Errorf("%s as %v of %d: allocated %d", name, c, n, used)
				}
			}
		}
	}
}

func TestDecodeUnknownCodec(t *testing.T) {
	if _, err := NewPool(0, 2).Decode(nil, nil, 3, 0); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
	for c, want := range map[Codec]string{Raw: "raw", S2: "s2", Zstd: "zstd", 9: "codec(9)"} {
		if c.String() != want {
			t.Errorf("%d is %q", c, c.String())
		}
	}
}

func TestRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	random := make([]byte, 100_000)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	six := bytes.Clone(random)
	for i := range six {
		six[i] &= 0x7f
	}
	for _, c := range []struct {
		name string
		src  []byte
		want bool
	}{
		{"random", random, true},
		{"random 1 KiB", random[:1024], true},
		{"short", random[:1000], false},
		{"seven bits", six, false},
		{"base64", []byte(base64.StdEncoding.EncodeToString(random)), false},
		{"zeros", make([]byte, 4096), false},
		{"half zeros", append(bytes.Clone(random[:50_000]), make([]byte, 50_000)...), false},
	} {
		if got := Random(c.src); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// TestGate checks that a random stream is probed ever more seldom, and that a
// compressible block in it is noticed at once.
func TestGate(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	random := make([]byte, 8192)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	var g Gate
	tries := 0
	for range 1000 {
		if g.Try(random) {
			tries++
			g.Report(len(random), len(random))
		}
	}
	if tries < 2 || tries > 10 {
		t.Errorf("%d probes in 1000 blocks", tries)
	}
	text := bytes.Repeat([]byte("text "), 1000)
	if !g.Try(text) {
		t.Fatal("text behind random bytes is not tried")
	}
	g.Report(len(text), len(text)/4)
	if g.Try(random) || !g.Try(text) {
		t.Error("a gate that was opened is not as new")
	}
}

// TestGateFailing: blocks that look compressible and are not are tried, and do
// not close the gate for others; among random ones they do not open it.
func TestGateFailing(t *testing.T) {
	text := []byte(base64.StdEncoding.EncodeToString(make([]byte, 3000)))
	var g Gate
	for range 100 {
		if !g.Try(text) {
			t.Fatal("a block that looks compressible is not tried")
		}
		g.Report(len(text), len(text))
	}
	r := rand.New(rand.NewPCG(4, 4))
	random := make([]byte, 8192)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	tries := 0
	for range 1000 {
		if g.Try(random) {
			tries++
			g.Report(len(random), len(random))
		}
		if g.Try(text) {
			g.Report(len(text), len(text))
		}
	}
	if tries > 30 {
		t.Errorf("%d probes of 1000 random blocks", tries)
	}
}

func TestEncodeAllocs(t *testing.T) {
	p := NewPool(1, 2)
	src := bytes.Repeat([]byte("0123456789abcdef-"), 4000)
	dst := make([]byte, 0, ScratchLen(len(src)))
	out := make([]byte, 0, len(src))
	for _, l := range allLevels {
		n := testing.AllocsPerRun(20, func() {
			enc, c := p.Encode(dst, src, l)
			if _, err := p.Decode(out, enc, c, len(src)); err != nil {
				t.Fatal(err)
			}
		})
		if n > 1 {
			t.Errorf("level %d: %v allocs", l, n)
		}
	}
}

func FuzzDecode(f *testing.F) {
	p := NewPool(1, 2)
	for _, l := range allLevels {
		enc, c := p.Encode(nil, bytes.Repeat([]byte("seed"), 100), l)
		f.Add(enc, uint8(c), 400)
	}
	for _, b := range bombs() {
		if len(b) < 100 {
			f.Add(b, uint8(Zstd), 1000)
			f.Add(b, uint8(S2), 1000)
		}
	}
	f.Fuzz(func(t *testing.T, src []byte, c uint8, n int) {
		dst := []byte("canary")
		got, err := p.Decode(dst, src, Codec(c), n)
		if !bytes.HasPrefix(got, []byte("canary")) {
			t.Fatal("dst was overwritten")
		}
		if err == nil && len(got) != 6+n || err != nil && len(got) != 6 {
			t.Fatalf("%d bytes for %d, %v", len(got)-6, n, err)
		}
	})
}

// TestContextBombs: sections that claim or contain more than they should are
// refused before they take more than one window; and a good one still works.
func TestContextBombs(t *testing.T) {
	p := NewPool(1, 1)
	e := p.Encoder(Strong)
	text := bytes.Repeat([]byte("context "), 500)
	first, second := e.Append(nil, text), e.Append(nil, text)
	p.Release(e)
	cases := bombs()
	cases["a middle"] = second
	cases["cut"] = first[:len(first)-1]
	cases["more behind it"] = append(bytes.Clone(first), 0)
	cases["nothing"] = nil
	for name, b := range cases {
		for _, n := range []int{1, len(text), MaxBlock, 1 << 30} {
			d := p.Decoder()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			got, err := d.Append([]byte("x"), b, n)
			runtime.ReadMemStats(&after)
			if err == nil || string(got) != "x" {
				t.Errorf("%s of %d: %d bytes, %v", name, n, len(got), err)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > Window+MaxBlock+1<<20 {
				t.Errorf("%s of %d: allocated %d", name, n, used)
			}
			p.ReleaseDecoder(d)
		}
	}
	d := p.Decoder()
	for _, b := range [][]byte{first, second} {
		if got, err := d.Append(nil, b, len(text)); err != nil || !bytes.Equal(got, text) {
			t.Fatal(err)
		}
	}
}

// TestContextRoundTrip: sections of any size, at every level, and contexts used
// again by another stream.
func TestContextRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	p := NewPool(1, 2)
	for i := range 60 {
		l := Balanced + Level(i%3)
		e, d := p.Encoder(l), p.Decoder()
		if e == nil || d == nil || e.Level() != l {
			t.Fatal("no context")
		}
		for range 1 + r.IntN(20) {
			src := sample(r, 1+r.IntN(1<<r.IntN(19)))
			enc := e.Append([]byte("head"), src)
			if limit := len(src) + 3*(len(src)>>17+1) + 16; len(enc)-4 > limit {
				t.Fatalf("%d bytes became %d", len(src), len(enc)-4)
			}
			got, err := d.Append(nil, enc[4:], len(src))
			if err != nil || !bytes.Equal(got, src) {
				t.Fatalf("level %d, %d bytes: %v", l, len(src), err)
			}
		}
		p.Release(e)
		p.ReleaseDecoder(d)
	}
}

// FuzzContext gives a context's decoder any section: no panic, nothing returned
// with an error, no write behind what is returned.
func FuzzContext(f *testing.F) {
	p := NewPool(1, 1)
	e := p.Encoder(Strong)
	text := bytes.Repeat([]byte("seed "), 100)
	first := e.Append(nil, text)
	f.Add(first, e.Append(nil, text), len(text))
	words := table(rand.New(rand.NewPCG(9, 9)), 2*piece+500, 8)
	p.Release(e)
	e = p.Encoder(Strong)
	f.Add(e.AppendShuffled(nil, words), e.AppendShuffled(nil, words), len(words))
	for _, b := range bombs() {
		if len(b) < 100 {
			f.Add(first, b, 1000)
		}
	}
	f.Fuzz(func(t *testing.T, first, second []byte, n int) {
		d := p.Decoder()
		defer p.ReleaseDecoder(d)
		for _, b := range [][]byte{first, second} {
			buf := bytes.Repeat([]byte{0xa5}, 4096)
			got, err := d.Append(buf[:6], b, n)
			if err == nil && len(got) != 6+n || err != nil && len(got) != 6 {
				t.Fatalf("%d bytes for %d, %v", len(got)-6, n, err)
			}
			if n < 4000 && bytes.Count(buf[max(6, 6+n):], []byte{0xa5}) != 4096-max(6, 6+n) {
				t.Fatal("bytes behind the block were written")
			}
		}
	})
}

// TestRenewKeepsThePlace: a context is exchanged for another while others wait for
// a place: none of them gets it, and the one that had it always has one.
func TestRenewKeepsThePlace(t *testing.T) {
	p := NewPool(1, 1)
	e := p.Encoder(Strong)
	stop := make(chan struct{})
	var taken atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if other := p.Encoder(Strong); other != nil {
				taken.Add(1)
				p.Release(other)
			}
		}
	})
	d := p.Decoder()
	for i := range 200 {
		l := Balanced + Level(i%2)
		if e = p.Renew(e, l); e.Level() != l {
			t.Fatalf("level %d instead of %d", e.Level(), l)
		}
		text := bytes.Repeat([]byte{byte(i)}, 1000)
		if got, err := d.Append(nil, e.Append(nil, text), len(text)); err != nil || !bytes.Equal(got, text) {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	if n := taken.Load(); n > 0 {
		t.Errorf("%d times somebody else had the place", n)
	}
	p.Release(e)
	p.ReleaseDecoder(d)
	if e = p.Encoder(Strong); e == nil {
		t.Error("the place is not free at the end")
	}
}
