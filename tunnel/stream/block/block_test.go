package block_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"testing"

	"stitch/compress"
	"stitch/dedupe"
	"stitch/tunnel/stream/block"
	"stitch/tunnel/stream/block/blocktest"
)

const small = 1 << 20 // the smallest history

var levels = []compress.Level{compress.Fast, compress.Balanced, compress.Strong, compress.Extreme, compress.Store}

// shop is shared by the encoders and decoders of these tests.
var shop = block.NewShop(4)

func newEncoder(h *dedupe.History, id uint64) *block.Encoder {
	return block.NewEncoder(h, id, block.Options{Shop: shop, Tables: true})
}

// pinned is newEncoder with the level of every block given.
func pinned(h *dedupe.History, id uint64, l compress.Level) *block.Encoder {
	e := newEncoder(h, id)
	e.Pin(l)
	return e
}

func newDecoder(h *dedupe.History, id uint64) *block.Decoder { return block.NewDecoder(h, id, shop) }

// material cuts blocks out of a pool, with edits, zeros, runs and fresh bytes.
type material struct {
	r    *rand.Rand
	pool []byte
}

func newMaterial(seed uint64) *material {
	pool := append(blocktest.Random(seed, 100_000), blocktest.Text(seed, 100_000)...)
	return &material{rand.New(rand.NewPCG(seed, 5)), append(pool, blocktest.Pages(seed, 30)...)}
}

func (m *material) block(n int) []byte {
	b := make([]byte, 0, n+70_000)
	for len(b) < n {
		k := 1 + m.r.IntN(1<<(3+m.r.IntN(12)))
		switch m.r.IntN(8) {
		case 0:
			b = append(b, make([]byte, k)...)
		case 1:
			b = append(b, blocktest.Random(m.r.Uint64(), k)...)
		case 2:
			b = append(b, bytes.Repeat([]byte{byte(k)}, k)...)
		default:
			o := m.r.IntN(len(m.pool))
			b = append(b, m.pool[o:min(o+2*k, len(m.pool))]...)
			b[m.r.IntN(len(b))]++
		}
	}
	return b[:n]
}

func (m *material) any() []byte { return m.block(1 + m.r.IntN(1<<m.r.IntN(17))) }

// pipe is one direction of a connection whose bodies, acks and nacks wait
// until the test moves them.
type pipe struct {
	t          *testing.T
	enc        *block.Encoder
	dec        *block.Decoder
	sent, got  []byte
	bodies     [][]byte // on the way
	acks       [][]byte // on the way back
	nacks      [][]byte
	misses     int
	wire, most int // bytes of bodies; the most they may be
}

func newPipe(t *testing.T, from, to *dedupe.History, id uint64) *pipe {
	p := &pipe{t: t, enc: newEncoder(from, id), dec: newDecoder(to, id)}
	t.Cleanup(func() { // the Shop's contexts are for the other tests, too
		p.enc.Close()
		p.dec.Close()
	})
	return p
}

func (p *pipe) send(src []byte, l compress.Level) {
	prefix := []byte("head")
	p.enc.Pin(l)
	body := p.enc.Append(prefix, src)
	if !bytes.HasPrefix(body, prefix) {
		p.t.Fatal("dst was overwritten")
	}
	body = body[len(prefix):]
	if limit := len(src) + len(src)/1024 + 64; len(body) > limit || len(body) > block.MaxFrame {
		p.t.Fatalf("%d bytes became %d", len(src), len(body))
	}
	p.wire += len(body)
	p.sent = append(p.sent, src...)
	p.bodies = append(p.bodies, bytes.Clone(body))
}

// deliver moves one body.
func (p *pipe) deliver() {
	if len(p.bodies) == 0 {
		return
	}
	was := len(p.got)
	out, err := p.dec.Decode(p.got, p.bodies[0])
	p.bodies = p.bodies[1:]
	if errors.Is(err, block.ErrMiss) {
		p.misses++
		p.nacks = append(p.nacks, p.dec.AppendNack(nil))
	} else if err != nil {
		p.t.Fatal(err)
	}
	p.got = out
	if !bytes.Equal(p.got[was:], p.sent[was:len(p.got)]) {
		p.t.Fatalf("wrong bytes from %d on", was)
	}
	p.acks = append(p.acks, p.dec.AppendAck(nil))
}

// answer moves one nack, or else one ack, to the sender.
func (p *pipe) answer() {
	switch {
	case len(p.nacks) > 0:
		err := p.enc.ResendBehind(p.nacks[0], func(body []byte) { p.bodies = append(p.bodies, bytes.Clone(body)) })
		if err != nil {
			p.t.Fatal(err)
		}
		body, err := p.enc.Resend(nil, p.nacks[0])
		if err != nil {
			p.t.Fatal(err)
		}
		p.nacks = p.nacks[1:]
		p.bodies = append(p.bodies, body)
	case len(p.acks) > 0:
		if err := p.enc.Ack(p.acks[0]); err != nil {
			p.t.Fatal(err)
		}
		p.acks = p.acks[1:]
	}
}

// drain moves everything and checks that all of it arrived.
func (p *pipe) drain() {
	p.t.Helper()
	for len(p.bodies)+len(p.nacks)+len(p.acks) > 0 {
		p.deliver()
		p.answer()
	}
	if !bytes.Equal(p.got, p.sent) {
		p.t.Fatalf("%d bytes sent, %d arrived", len(p.sent), len(p.got))
	}
}

// TestRoundTrip is 10,000 structured blocks through a ring that wraps many
// times, over connections both ways, moved and acknowledged in random order. With
// STITCH_LONG=1 it is a million.
func TestRoundTrip(t *testing.T) {
	rounds := 10_000
	if testing.Short() {
		rounds = 1000
	}
	if os.Getenv("STITCH_LONG") != "" {
		rounds = 1_000_000
	}
	a := blocktest.NewAgents(small)
	m := newMaterial(1)
	pipes := []*pipe{newPipe(t, a.A, a.B, 1), newPipe(t, a.A, a.B, 2), newPipe(t, a.B, a.A, 3), newPipe(t, a.B, a.A, 4), newPipe(t, nil, nil, 5)}
	total, wire, misses := 0, 0, 0
	for i := range rounds {
		p := pipes[m.r.IntN(len(pipes))]
		p.send(m.any(), levels[i%len(levels)])
		for range m.r.IntN(5) {
			q := pipes[m.r.IntN(len(pipes))]
			q.deliver()
			if m.r.IntN(2) == 0 {
				q.answer()
			}
		}
		if i%500 == 499 { // renew a connection
			p.drain()
			k := m.r.IntN(4)
			q := pipes[k]
			q.drain()
			q.enc.Close()
			q.dec.Close()
			total, wire, misses = total+len(q.sent), wire+q.wire, misses+q.misses
			from, to := a.A, a.B
			if k >= 2 {
				from, to = to, from
			}
			pipes[k] = newPipe(t, from, to, uint64(i))
		}
	}
	for _, p := range pipes {
		p.drain()
		total, wire, misses = total+len(p.sent), wire+p.wire, misses+p.misses
		if s, d := p.enc.Stats(), p.dec.Stats(); s.In != int64(len(p.sent)) || d.Out != s.In ||
			s.Matched+s.Zero+s.Literal != s.In || d.Resent != int64(p.misses) || s.Resent != d.Resent {
			t.Errorf("stats %+v and %+v for %d bytes", s, d, len(p.sent))
		}
	}
	t.Logf("%d bytes as %d, %d misses", total, wire, misses)
	if wire > total*3/4 {
		t.Errorf("%d bytes became %d", total, wire)
	}
}

// TestMisses: the receiver loses its history without the sender's knowing.
// Everything in flight is repaired, in order, or kept meanwhile.
func TestMisses(t *testing.T) {
	a := blocktest.NewAgents(small)
	m := newMaterial(2)
	first := newPipe(t, a.A, a.B, 1)
	data := m.block(60_000)
	first.send(data, compress.Fast)
	first.drain()

	p := newPipe(t, a.A, dedupe.NewHistory(small), 2)
	for range 8 {
		p.send(data, compress.Fast)
		p.send(m.block(3000), compress.Fast)
	}
	if p.wire > 80_000 {
		t.Fatalf("nothing matched: %d bytes", p.wire)
	}
	p.deliver()
	if p.misses != 1 || len(p.got) != 0 {
		t.Fatalf("%d misses, %d bytes", p.misses, len(p.got))
	}
	for range 15 {
		p.deliver()
	}
	if p.misses != 1 || len(p.got) != 0 {
		t.Fatalf("%d misses, %d bytes while a block is missing", p.misses, len(p.got))
	}
	p.drain()
	if p.misses < 1 {
		t.Error("no miss")
	}
	was := p.misses
	p.send(data, compress.Fast)
	p.drain()
	if p.misses != was {
		t.Error("the dropped source was used again")
	}
}

// TestWrongToken: an encoder's mistake gives other bytes than meant; the
// checksum finds it and the block is sent again (D-15).
func TestWrongToken(t *testing.T) {
	a := blocktest.NewAgents(small)
	page := blocktest.Random(3, 100_000)
	// What the sender takes for the bytes at these positions are others.
	other := blocktest.NewAgents(small)
	p, q := newPipe(t, a.A, a.B, 1), newPipe(t, other.A, other.B, 1)
	p.send(page, compress.Store)
	p.drain()
	q.send(blocktest.Random(4, 100_000), compress.Store)
	q.drain()
	p.dec, q.dec = q.dec, p.dec
	q.got, q.sent = nil, nil
	p.got, p.sent = nil, nil
	p.send(page[:50_000], compress.Store)
	p.send([]byte("and so on"), compress.Store)
	p.drain()
	if p.misses != 1 {
		t.Errorf("%d misses", p.misses)
	}
}

func TestClosed(t *testing.T) {
	a := blocktest.NewAgents(small)
	e, d := newEncoder(a.A, 1), newDecoder(a.B, 1)
	body := e.Append(nil, []byte("x"))
	for range 2 {
		e.Close()
		d.Close()
	}
	if _, err := d.Decode(nil, body); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if err := e.Ack([]byte{1}); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if _, err := e.Resend(nil, []byte{0, 0}); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if out := d.AppendNack(nil); len(out) != 0 {
		t.Errorf("a nack of nothing: %x", out)
	}
}

// TestStale: after a restart the encoder goes on without the history, the
// decoder says so.
func TestStale(t *testing.T) {
	a := blocktest.NewAgents(small)
	p := newPipe(t, a.A, a.B, 1)
	data := blocktest.Random(6, 5000)
	p.send(data, compress.Fast)
	p.send(data, compress.Fast)
	p.deliver()
	a.B.Restart()
	if !a.Meet() {
		t.Fatal("the restart went unnoticed")
	}
	if _, err := p.dec.Decode(nil, p.bodies[0]); !errors.Is(err, block.ErrStale) {
		t.Error(err)
	}
	body := p.enc.Append(nil, data)
	if len(body) < len(data) {
		t.Error("a stale encoder used the history")
	}
	q := newPipe(t, a.A, a.B, 2)
	q.send(data, compress.Fast)
	q.drain()
	if q.wire < len(data) || q.misses != 0 {
		t.Errorf("%d bytes, %d misses after a restart", q.wire, q.misses)
	}
}

// TestShapes is inputs that are hard on matchers: bounded growth, exact bytes
// (D-16).
func TestShapes(t *testing.T) {
	period := bytes.Repeat(blocktest.Random(7, 4099), 100)
	for name, src := range map[string][]byte{
		"zeros":    make([]byte, 3*block.MaxBlock),
		"ones":     bytes.Repeat([]byte{255}, 2*block.MaxBlock),
		"random":   blocktest.Random(8, 3*block.MaxBlock+1),
		"period":   period,
		"sawtooth": bytes.Repeat([]byte{0, 1, 2, 3, 4, 5, 6, 7}, 60_000),
		"mixed":    bytes.Repeat(append(make([]byte, 100), blocktest.Random(9, 100)...), 2000),
	} {
		a := blocktest.NewAgents(4 << 20)
		c, at := a.Forward(1), 0
		check := func(b []byte) {
			if !bytes.Equal(b, src[at:at+len(b)]) {
				t.Errorf("%s: wrong bytes at %d", name, at)
			}
			at += len(b)
		}
		for _, limit := range []int{len(src) + len(src)/1000 + 64, 4000} {
			at, c.Wire = 0, 0
			if err := c.Send(src, check); err != nil || at != len(src) {
				t.Errorf("%s: %d of %d bytes: %v", name, at, len(src), err)
			}
			if c.Wire > limit {
				t.Errorf("%s: %d bytes became %d", name, len(src), c.Wire)
			}
		}
	}
}

// TestBytewise sends a byte at a time.
func TestBytewise(t *testing.T) {
	a := blocktest.NewAgents(small)
	p := newPipe(t, a.A, a.B, 1)
	for _, b := range blocktest.Text(1, 3000) {
		p.send([]byte{b}, compress.Balanced)
		p.deliver()
	}
	p.drain()
	if p.wire > 3000*13 {
		t.Errorf("%d bytes for 3000", p.wire)
	}
}

// TestReturnTrip: guest pages go one way, and come back edited, for little
// more than the edits.
func TestReturnTrip(t *testing.T) {
	src := blocktest.Pages(1, 4<<10)
	back, edited, pages := blocktest.Edit(src, 2, 100)
	a := blocktest.NewAgents(32 << 20)
	if err := a.Forward(1).Send(src, nil); err != nil {
		t.Fatal(err)
	}
	c, at := a.Backward(2), 0
	err := c.Send(back, func(b []byte) {
		if !bytes.Equal(b, back[at:at+len(b)]) {
			t.Errorf("wrong bytes at %d", at)
		}
		at += len(b)
	})
	blocks := len(src)/block.MaxBlock + 1
	t.Logf("%d bytes: %d for %d edited bytes on %d pages, %d blocks", len(src), c.Wire, edited, pages, blocks)
	if err != nil || c.Wire > (edited+12*pages)*3/2+12*blocks {
		t.Errorf("%d bytes: %v", c.Wire, err)
	}
}

// TestHeldBound: a peer that runs ahead of a repair without end is cut off.
func TestHeldBound(t *testing.T) {
	a := blocktest.NewAgents(small)
	data := blocktest.Random(10, block.MaxBlock)
	if err := a.Forward(1).Send(data, nil); err != nil {
		t.Fatal(err)
	}
	e, d := newEncoder(a.A, 2), newDecoder(dedupe.NewHistory(small), 2)
	var err error
	n := 0
	for ; n < 2000 && (err == nil || n == 1); n++ {
		var out []byte
		out, err = d.Decode(nil, e.Append(nil, data))
		if len(out) > 0 || n == 0 && !errors.Is(err, block.ErrMiss) {
			t.Fatalf("block %d: %d bytes, %v", n, len(out), err)
		}
		if n == 0 {
			err = nil
		}
	}
	if !errors.Is(err, block.ErrCorrupt) || n != block.MaxHeld/(block.MaxBlock+256)+2 {
		t.Errorf("%d blocks: %v", n, err)
	}
}

func TestAppendPanics(t *testing.T) {
	for _, n := range []int{0, block.MaxBlock + 1} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%d bytes were taken", n)
				}
			}()
			newEncoder(nil, 1).Append(nil, make([]byte, n))
		}()
	}
}

// TestAllocs: a block costs no allocation once everything has its size.
func TestAllocs(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	a := blocktest.NewAgents(16 << 20)
	src := append(blocktest.Random(11, 100_000), blocktest.Text(11, 100_000)...)
	for _, l := range levels {
		c := a.Forward(uint64(l))
		c.Enc.Pin(l)
		c.Enc.Bulk()
		step := 0
		n := testing.AllocsPerRun(100, func() {
			src[step*1009%len(src)]++
			step++
			if err := c.Send(src, nil); err != nil {
				t.Fatal(err)
			}
		})
		if n > 0 {
			t.Errorf("level %d: %v allocations a block", l, n)
		}
		c.Close()
	}
}

// TestRoom: a whole block of any level is made in place in a buffer of Room.
func TestRoom(t *testing.T) {
	h := dedupe.NewHistory(small)
	for _, l := range []compress.Level{compress.Store, compress.Fast, compress.Balanced, compress.Strong, compress.Extreme} {
		for _, src := range [][]byte{blocktest.Random(70, block.MaxBlock), blocktest.Text(71, block.MaxBlock)} {
			e := pinned(h, 1, l)
			dst := make([]byte, 0, block.Room())
			if out := e.Append(dst, src); &out[0] != &dst[:1][0] {
				t.Errorf("level %v: a buffer of %d bytes was too small", l, block.Room())
			}
			e.Close()
		}
	}
}
