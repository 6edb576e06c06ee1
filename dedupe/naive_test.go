package dedupe

import (
	"bytes"
	"os"
	"runtime"
	"testing"
)

// naive finds, by trying every position, how many bytes of src lie in stretches
// of n or more bytes that c may refer to: what a matcher could find at most,
// but for the choice between overlapping stretches.
func (c *conn) naive(src []byte, n int) (found int) {
	known, sent := map[string]int{}, string(c.from.bytes)
	legal := 0
	for i, who := range c.from.who {
		if who != c.id && who != everybody {
			legal = i + 1
		} else if i+1-legal >= n {
			known[sent[i+1-n:i+1]] = i + 1
		}
	}
	for i := 0; i+n <= len(src); {
		end, ok := known[string(src[i:i+n])]
		if !ok {
			i++
			continue
		}
		k := n
		for i+k < len(src) && end < len(c.from.who) && c.from.bytes[end] == src[i+k] &&
			(c.from.who[end] == c.id || c.from.who[end] == everybody) {
			k, end = k+1, end+1
		}
		found += k
		i += k
	}
	return found
}

// TestNaive: of what trying every position finds in stretches of 256 bytes,
// about the distance of anchors, nearly all is found; the blocks are pieces of
// a pool at any alignment, edited, with zeros and fresh bytes between.
func TestNaive(t *testing.T) {
	a, b := newSide(4<<20), newSide(4<<20)
	src := newSource(30, 100_000)
	other, c := dial(t, a, b), dial(t, a, b)
	var found, most int
	for i := range 15 {
		one := src.block(1 + src.r.IntN(20_000))
		other.send(one)
		if i%3 != 0 { // else not acknowledged: not to be used
			other.deliver()
			other.ack()
		}
		two := src.block(1 + src.r.IntN(40_000))
		most += c.naive(two, 256)
		blk := c.send(two)
		found += blk.Matched + blk.ZeroRuns
	}
	t.Logf("%d bytes found, naively %d", found, most)
	if most < 100_000 || found*100 < most*95 {
		t.Errorf("%d bytes found of %d", found, most)
	}
}

// TestRoundTrips moves random structured blocks over connections of all kinds
// both ways, in any order, through rings that wrap many times, and holds every
// reference against the naive record. With STITCH_LONG it is a million blocks.
func TestRoundTrips(t *testing.T) {
	epochs, rounds := 2, 5000
	if os.Getenv("STITCH_LONG") != "" {
		epochs = 200
	}
	sent, matched := 0, 0
	for epoch := range epochs {
		a, b := newSide(minSize), newSide(minSize)
		src := newSource(uint64(100+epoch), 200_000)
		conns := []*conn{dial(t, a, b), dial(t, b, a)}
		for _, o := range []WriterOptions{{}, {Lines: true}, {Alone: true}} {
			conns = append(conns, dialWith(t, a, b, o), dialWith(t, b, a, o))
		}
		for range rounds {
			c := conns[src.r.IntN(len(conns))]
			n := 1 + src.r.IntN(1<<src.r.IntN(14))
			matched += c.send(src.block(n)).Matched
			sent += n
			for range src.r.IntN(3) {
				c := conns[src.r.IntN(len(conns))]
				if len(c.flying) > 0 {
					c.deliver()
				}
				if src.r.IntN(2) == 0 {
					c.ack()
				}
			}
		}
	}
	t.Logf("%d bytes sent, %d matched", sent, matched)
	if matched*5 < sent {
		t.Errorf("only %d of %d bytes matched", matched, sent)
	}
}

// FuzzPut sends any bytes, some of them twice: what the other side makes of the
// tokens is what was sent, and nothing is written where it must not.
func FuzzPut(f *testing.F) {
	src := newSource(31, 2000) // small seeds: large ones take long to minimise
	f.Add(src.pool, uint16(1000))
	f.Add(src.block(1000), uint16(77))
	f.Add(bytes.Repeat([]byte{0, 1, 2, 3, 4, 5, 6}, 70), uint16(300))
	f.Add(make([]byte, 300), uint16(0))
	f.Add(bytes.Repeat(src.pool[:399], 2), uint16(400))
	const canary = 0xa5
	f.Fuzz(func(t *testing.T, data []byte, cut uint16) {
		if len(data) == 0 || len(data) > MaxBlock {
			return
		}
		a, b := newSide(minSize), newSide(minSize)
		c := dial(t, a, b)
		at := int(cut) % len(data)
		for _, blk := range [][]byte{data, data[at:], append(bytes.Clone(data[at:]), data[:at]...)} {
			room := bytes.Repeat([]byte{canary}, len(blk)+64)
			in := room[32 : 32+len(blk) : 32+len(blk)]
			copy(in, blk)
			got := c.send(in)
			if !bytes.Equal(in, blk) || bytes.Count(room[:32], []byte{canary}) < 32 || bytes.Count(room[32+len(blk):], []byte{canary}) < 32 {
				t.Fatal("the block was written to")
			}
			room = bytes.Repeat([]byte{canary}, len(blk)+64)
			out, _, err := c.r.Rebuild(room[32:32:32+len(blk)], got.Tokens, literals(blk, got.Tokens))
			if err != nil || !bytes.Equal(out, blk) || bytes.Count(room[:32], []byte{canary}) < 32 || bytes.Count(room[32+len(blk):], []byte{canary}) < 32 {
				t.Fatalf("rebuilt wrongly or beyond its room: %v", err)
			}
			c.deliver()
			c.ack()
		}
	})
}

// TestThirdTrip: a guest goes, comes back edited and goes again: the third time
// the edits of the second cost nothing more. The control is the second trip.
func TestThirdTrip(t *testing.T) {
	a, b := newSide(32<<20), newSide(32<<20)
	pages := guest(32, 4<<20)
	trip := func(from, to *side) (literal int) {
		c := dial(t, from, to)
		for p := pages; len(p) > 0; {
			n := min(len(p), MaxBlock)
			blk := c.send(p[:n])
			literal += n - blk.Matched - blk.ZeroRuns
			c.deliver()
			c.ack()
			p = p[n:]
		}
		return literal
	}
	trip(a, b)
	edited := edit(pages, 33, 2)
	second := trip(b, a)
	third := trip(a, b)
	t.Logf("%d bytes edited: second trip %d literal bytes, third %d", edited, second, third)
	if second < edited*9/10 || third > second/10 {
		t.Errorf("%d bytes edited: second trip %d literal bytes, third %d", edited, second, third)
	}
}

// TestShuffled: the pages of another guest in another order, behind other
// headers, are found.
func TestShuffled(t *testing.T) {
	a, b := newSide(32<<20), newSide(32<<20)
	pages := guest(34, 4<<20)
	one, two := dial(t, a, b), dial(t, a, b)
	for p := pages; len(p) > 0; p = p[min(len(p), MaxBlock):] {
		one.send(p[:min(len(p), MaxBlock)])
		one.deliver()
	}
	one.ack()
	matched, shuffled := 0, sibling(pages, 35)
	for p := shuffled; len(p) > 0; p = p[min(len(p), MaxBlock):] {
		matched += two.send(p[:min(len(p), MaxBlock)]).Matched
	}
	// One page in four is another guest's.
	if matched < len(shuffled)*72/100 {
		t.Errorf("%d bytes of %d matched", matched, len(shuffled))
	}
}

// TestPutAllocs: a block costs no allocation once everything has its size, on
// either side.
func TestPutAllocs(t *testing.T) {
	a, b := NewHistory(32<<20), NewHistory(32<<20)
	w, r := a.NewWriter(WriterOptions{}), b.NewReader()
	pages := guest(36, 8<<20)
	out, lits := make([]byte, 0, MaxBlock), make([]byte, 0, MaxBlock)
	step := 0
	one := func() {
		src := pages[step*60_000%(len(pages)-MaxBlock):][:MaxBlock]
		src[step*1009%len(src)]++
		step++
		blk, err := w.Put(src)
		if err != nil {
			t.Fatal(err)
		}
		lits = lits[:0]
		rest := src
		for _, tk := range blk.Tokens {
			lits = append(lits, rest[:tk.Lit]...)
			rest = rest[tk.Lit+tk.Len:]
		}
		lits = append(lits, rest...)
		if out, _, err = r.Rebuild(out[:0], blk.Tokens, lits); err != nil || !bytes.Equal(out, src) {
			t.Fatalf("block %d: %v", step, err)
		}
		if err := r.Put(out, &blk); err != nil {
			t.Fatal(err)
		}
		if err := w.Acked(uint64(step)); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		one()
	}
	runtime.GC()
	if n := testing.AllocsPerRun(200, one); n > 0 {
		t.Errorf("%v allocations a block", n)
	}
}
