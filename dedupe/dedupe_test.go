package dedupe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
)

// side is one agent with a naive record of what may be referred to.
type side struct {
	h     *History
	bytes []byte // every byte ever given a position of tx
	who   []byte // and who may refer to it: 0 nobody, else its connection
	conns byte
}

// everybody may refer to what the peer has acknowledged.
const everybody = 255

func newSide(size int64) *side { return &side{h: NewHistory(size)} }

func (s *side) mark(spans [2]Span, who byte) {
	for _, sp := range spans {
		if end := int(sp.Pos) + sp.Len; end > len(s.who) {
			s.who = append(s.who, make([]byte, end-len(s.who))...)
			s.bytes = append(s.bytes, make([]byte, end-len(s.bytes))...)
		}
		for i := range sp.Len {
			s.who[int(sp.Pos)+i] = who
		}
	}
}

func (s *side) record(spans [2]Span, src []byte, who byte) {
	s.mark(spans, who)
	for _, sp := range spans {
		src = src[copy(s.bytes[sp.Pos:][:sp.Len], src):]
	}
}

// conn is a one-way connection whose blocks arrive when deliver is called.
type conn struct {
	t        *testing.T
	from, to *side
	w        *Writer
	r        *Reader
	id       byte
	flying   []flight
	acks     uint64
	stored   []Block
}

type flight struct {
	b   Block
	src []byte
}

func dial(t *testing.T, from, to *side) *conn {
	from.conns++
	return &conn{t: t, from: from, to: to, w: from.h.NewWriter(WriterOptions{}), r: to.h.NewReader(), id: from.conns}
}

// check holds every token against the naive record.
func (c *conn) check(src []byte, b Block) {
	at := 0
	for i, tk := range b.Tokens {
		at += tk.Lit
		if tk.Len < MinToken || at+tk.Len > len(src) {
			c.t.Fatalf("token %d: %+v at %d of %d", i, tk, at, len(src))
		}
		want, legal := make([]byte, tk.Len), true
		switch tk.Ring {
		case Sent:
			copy(want, c.from.bytes[tk.Pos:])
			for _, who := range c.from.who[tk.Pos:][:tk.Len] {
				legal = legal && (who == c.id || who == everybody)
			}
		case Received:
			copy(want, c.to.bytes[tk.Pos:])
		}
		if !legal || !bytes.Equal(want, src[at:at+tk.Len]) {
			c.t.Fatalf("token %d %+v: source is wrong or not legal (%v)", i, tk, legal)
		}
		at += tk.Len
	}
}

func (c *conn) send(src []byte) Block {
	b, err := c.w.Put(src)
	if err != nil {
		c.t.Fatal(err)
	}
	c.check(src, b)
	b.Tokens = append([]Token(nil), b.Tokens...)
	c.from.record(b.Spans, src, c.id)
	c.flying = append(c.flying, flight{b, bytes.Clone(src)})
	return b
}

// deliver hands the oldest block in flight to the peer; true if it missed and
// was repaired.
func (c *conn) deliver() (missed bool) {
	f := c.flying[0]
	c.flying = c.flying[1:]
	out, _, err := c.r.Rebuild(nil, f.b.Tokens, literals(f.src, f.b.Tokens))
	if errors.Is(err, ErrGone) || errors.Is(err, ErrLate) {
		missed = true
		if out, _, err = c.w.Again(nil, f.b.Seq); err != nil {
			c.t.Fatal(err)
		}
	}
	if err != nil || !bytes.Equal(out, f.src) {
		c.t.Fatalf("block %d is wrong: %v", f.b.Seq, err)
	}
	b := f.b
	if missed {
		b.Tokens = nil
	}
	if err := c.r.Put(out, &b); err != nil {
		c.t.Fatal(err)
	}
	c.stored = append(c.stored, f.b)
	return missed
}

// ack acknowledges what has been delivered.
func (c *conn) ack() {
	c.acks += uint64(len(c.stored))
	for _, b := range c.stored {
		c.from.mark(b.Spans, everybody)
	}
	c.stored = nil
	if err := c.w.Acked(c.acks); err != nil {
		c.t.Fatal(err)
	}
}

func literals(src []byte, ts []Token) (lits []byte) {
	for _, t := range ts {
		lits = append(lits, src[:t.Lit]...)
		src = src[t.Lit+t.Len:]
	}
	return append(lits, src...)
}

// source makes blocks that repeat parts of a pool, with edits, zeros and fresh
// bytes between.
type source struct {
	r    *rand.Rand
	pool []byte
}

func newSource(seed uint64, n int) *source {
	s := &source{r: rand.New(rand.NewPCG(seed, 9))}
	s.pool = s.random(n)
	return s
}

func (s *source) random(n int) []byte {
	b := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], s.r.Uint64())
	}
	return b[:n]
}

func (s *source) block(n int) []byte {
	var b []byte
	for len(b) < n {
		k := 1 + s.r.IntN(1<<(4+s.r.IntN(12)))
		switch s.r.IntN(8) {
		case 0:
			b = append(b, make([]byte, k)...)
		case 1:
			b = append(b, s.random(k)...)
		case 2:
			b = append(b, bytes.Repeat([]byte{byte(s.r.Uint32()), 1, 2}[:1+s.r.IntN(3)], k/3+1)...)
		default:
			o := s.r.IntN(len(s.pool))
			b = append(b, s.pool[o:min(o+4*k, len(s.pool))]...)
			b[s.r.IntN(len(b))]++
		}
	}
	return b[:n]
}

// TestTwin sends structured blocks over several connections both ways, with
// delivery and acknowledgement in random order, and holds every reference
// against the naive record.
func TestTwin(t *testing.T) {
	for _, size := range []int64{minSize, 4 << 20} {
		a, b := newSide(size), newSide(size)
		src := newSource(uint64(size), 200_000)
		conns := []*conn{dial(t, a, b), dial(t, a, b), dial(t, b, a), dial(t, b, a)}
		matched, missed := 0, 0
		for range 600 {
			c := conns[src.r.IntN(len(conns))]
			switch k := src.r.IntN(4); {
			case k < 2:
				matched += c.send(src.block(1 + src.r.IntN(1<<src.r.IntN(17)))).Matched
			case k == 2 && len(c.flying) > 0:
				if c.deliver() {
					missed++
				}
			default:
				c.ack()
			}
		}
		t.Logf("size %d: sent %d, matched %d, missed %d", size, len(a.bytes)+len(b.bytes), matched, missed)
		if matched*4 < len(a.bytes)+len(b.bytes) {
			t.Errorf("size %d: only %d bytes matched", size, matched)
		}
		for _, c := range conns {
			c.w.Close()
		}
	}
}

// TestWrap sends many times the ring through it while nothing is delivered for
// long: blocks must survive aside.
func TestWrap(t *testing.T) {
	a, b := newSide(minSize), newSide(minSize)
	src := newSource(7, 3_000_000)
	slow, fast := dial(t, a, b), dial(t, a, b)
	for range 20 {
		slow.send(src.block(20_000))
		for range 10 {
			fast.send(src.block(50_000))
			fast.deliver()
			fast.ack()
		}
	}
	for len(slow.flying) > 0 {
		slow.deliver()
	}
	slow.ack()
	if len(slow.w.sent) != 0 {
		t.Error("acknowledged blocks are kept")
	}
	if _, _, err := slow.w.Again(nil, 0); !errors.Is(err, ErrGone) {
		t.Errorf("acknowledged block: %v", err)
	}
}

// TestForeignHints forces collisions: the index says nonsense about every
// anchor. References must stay exact (D-08).
func TestForeignHints(t *testing.T) {
	a, b := newSide(minSize), newSide(minSize)
	src := newSource(8, 100_000)
	c := dial(t, a, b)
	for range 50 {
		for i := range a.h.index.slots {
			a.h.index.slots[i] = src.r.Uint64()
		}
		c.send(src.block(30_000))
		c.deliver()
		c.ack()
	}
}

// TestOneBucket truncates the hash: all anchors share a bucket.
func TestOneBucket(t *testing.T) {
	a, b := newSide(minSize), newSide(minSize)
	a.h.index.slots, a.h.index.buckets = a.h.index.slots[:bucketSize], 1
	src := newSource(9, 100_000)
	c := dial(t, a, b)
	for range 50 {
		c.send(src.block(30_000))
		c.deliver()
		c.ack()
	}
}

// TestShift puts one byte in front of a repeated stream: all but a little of it
// is found again (D-17).
func TestShift(t *testing.T) {
	a, b := newSide(16<<20), newSide(16<<20)
	src := newSource(10, 4<<20)
	one, two := dial(t, a, b), dial(t, a, b)
	for p := src.pool; len(p) > 0; p = p[min(len(p), MaxBlock):] {
		one.send(p[:min(len(p), MaxBlock)])
		one.deliver()
	}
	one.ack()
	matched := 0
	shifted := append([]byte{1}, src.pool...)
	for p := shifted; len(p) > 0; p = p[min(len(p), MaxBlock):] {
		matched += two.send(p[:min(len(p), MaxBlock)]).Matched
	}
	if matched < len(src.pool)-8192 {
		t.Errorf("%d bytes of %d found behind one byte", matched, len(src.pool))
	}
}

// TestLegality is the rules one by one.
func TestLegality(t *testing.T) {
	a, b := newSide(minSize), newSide(minSize)
	src := newSource(11, 100_000)
	page := src.pool[:50_000]
	one, two, back := dial(t, a, b), dial(t, a, b), dial(t, b, a)
	want := func(what string, c *conn, found bool) {
		t.Helper()
		got := c.send(page).Matched
		if found != (got > 49_000) || !found && got > 0 {
			t.Errorf("%s: %d bytes matched", what, got)
		}
	}
	want("the first time", one, false)
	want("earlier on the same connection", one, true)
	want("unacknowledged, another connection", two, false)
	if got := back.send(page).Matched; got != 0 {
		t.Errorf("not yet arrived: %d bytes matched", got)
	}
	one.deliver()
	back.deliver()
	want("in the peer's ring, decoded by us", back, true)
	one.ack()
	three := dial(t, a, b)
	want("acknowledged, another connection", three, true)
}

// TestDrop: a dropped source is not used again.
func TestDrop(t *testing.T) {
	a, b := newSide(minSize), newSide(minSize)
	src := newSource(12, 100_000)
	one := dial(t, a, b)
	blk := one.send(src.pool[:50_000])
	one.deliver()
	one.ack()
	for _, s := range blk.Spans {
		one.w.Drop(Sent, s, 0)
	}
	if got := dial(t, a, b).send(src.pool[:50_000]).Matched; got != 0 {
		t.Errorf("%d bytes of a dropped source matched", got)
	}
	back := dial(t, b, a)
	for _, s := range blk.Spans {
		back.w.Drop(Received, s, 0)
		back.w.Drop(Received, Span{maxPos + 1, 5}, 1<<40)
		back.w.Drop(Zeros, s, 0)
	}
	if got := back.send(src.pool[:50_000]).Matched; got != 0 {
		t.Errorf("%d bytes of a source dropped by the peer matched", got)
	}
}

func TestEpochs(t *testing.T) {
	a, b := newSide(minSize), newSide(2*minSize)
	meet(t, a.h, b.h)
	if b.h.window.Load() != minSize {
		t.Error("the smaller history does not count")
	}
	src := newSource(13, 60_000)
	c := dial(t, a, b)
	c.send(src.pool)
	c.deliver()
	c.ack()
	old := a.h.Epoch()
	a.h.Restart()
	if a.h.Epoch() == old || a.h.Epoch() == 0 {
		t.Error("no new epoch")
	}
	if _, err := c.w.Put(src.pool); !errors.Is(err, ErrStale) {
		t.Errorf("stale writer: %v", err)
	}
	if x, _ := meet(t, a.h, b.h); !x.Reset {
		t.Error("the peer's restart must reset")
	}
	if _, _, err := c.r.Rebuild(nil, nil, nil); !errors.Is(err, ErrStale) {
		t.Errorf("stale reader: %v", err)
	}
	if err := c.r.Put(nil, &Block{}); !errors.Is(err, ErrStale) {
		t.Errorf("stale reader: %v", err)
	}
	c = dial(t, a, b)
	if got := c.send(src.pool).Matched; got != 0 {
		t.Errorf("%d bytes matched across a restart", got)
	}
	c.deliver()
}

func TestAckBounds(t *testing.T) {
	a := newSide(minSize)
	w := a.h.NewWriter(WriterOptions{})
	if err := w.Acked(1); !errors.Is(err, ErrAck) {
		t.Errorf("nothing sent: %v", err)
	}
	if _, err := w.Put([]byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint64{0, 1, 1, 0} {
		if err := w.Acked(n); err != nil {
			t.Errorf("ack %d: %v", n, err)
		}
	}
	w.Close()
	w.Close()
	if err := w.Acked(9); err != nil || len(a.h.retained) != 0 {
		t.Errorf("closed: %v, %d writers kept", err, len(a.h.retained))
	}
}

func TestAhead(t *testing.T) {
	a := newSide(minSize)
	b := Block{Spans: [2]Span{{0, 1}}, TxHead: 4096, RxHead: 1}
	if err := a.h.NewReader().Put([]byte{1}, &b); !errors.Is(err, ErrAhead) {
		t.Error(err)
	}
}

func TestSizes(t *testing.T) {
	for in, want := range map[int64]int64{-1: minSize, 0: minSize, minSize + 1: minSize, 3 << 20: 3 << 20, 1 << 50: maxSize} {
		if in > 1<<40 {
			continue // only the arithmetic below: it would map 64 GiB
		}
		if got := NewHistory(in).Size(); got != want {
			t.Errorf("size %d became %d", in, got)
		}
	}
	for _, size := range []int64{minSize, 3 << 20, 100 << 20} {
		h := NewHistory(size)
		if s := h.Stats(); s.Index*100 > 2*size*4 {
			t.Errorf("index of %d bytes for two rings of %d: more than 4 %%", s.Index, size)
		}
	}
}
