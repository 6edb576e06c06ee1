package dedupe

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

// dialWith is dial for a Writer with options.
func dialWith(t *testing.T, from, to *side, o WriterOptions) *conn {
	c := dial(t, from, to)
	c.w.Close()
	c.w = from.h.NewWriter(o)
	return c
}

// TestLines: with Lines a reference to another connection's bytes covers whole
// lines of the source, to the connection's own any bytes (DESIGN rule h). The
// control is the same traffic without.
func TestLines(t *testing.T) {
	for _, lines := range []bool{false, true} {
		a, b := newSide(minSize), newSide(minSize)
		src := newSource(20, 60_000)
		other, back := dial(t, a, b), dial(t, b, a)
		c := dialWith(t, a, b, WriterOptions{Lines: lines})
		other.send(src.pool[:30_000])
		other.deliver()
		other.ack()
		back.send(src.pool[30_000:])
		back.deliver()
		odd, own := 0, 0
		for range 40 {
			blk := c.send(src.block(1 + src.r.IntN(20_000)))
			for _, tk := range blk.Tokens {
				switch {
				case tk.Ring == Zeros || tk.Pos%line == 0 && tk.Len%line == 0:
				case tk.Ring == Sent && a.who[tk.Pos] == c.id:
					own++
				default:
					odd++
				}
			}
		}
		if lines == (odd > 0) || own == 0 {
			t.Errorf("lines %v: %d tokens of others' bytes are not of whole lines, %d of own", lines, odd, own)
		}
	}
}

// TestLinesTellNothing: another connection has sent a page with a secret byte in
// it. Who sends what he knows of it, changed as he likes, with a guess for that
// byte, gets the same tokens whatever he guesses, as long as the line of that byte
// is not all known to him. In the control, without Lines, he does not.
func TestLinesTellNothing(t *testing.T) {
	told := map[bool]int{}
	for _, lines := range []bool{false, true} {
		r := rand.New(rand.NewPCG(22, 1))
		for range 500 {
			page := make([]byte, 1800)
			for i := range page {
				page[i] = byte(r.Uint32())
			}
			g := 200 + r.IntN(1400)
			if g%line == line-1 { // its line is to go on behind it
				g--
			}
			known := bytes.Clone(page)
			if end, ok := lonely(page); ok && end%line != 0 { // found by the guess only
				g = end - 1
				for i := range known[:g-220] {
					known[i]++
				}
			}
			for i := g + 1; i < g+1+r.IntN(40); i++ {
				known[i]++ // what is not known
			}
			known[g+1]++
			for range r.IntN(4) {
				at := r.IntN(g)
				for i := at; i < min(at+r.IntN(220), g); i++ {
					known[i]++
				}
			}
			var all [2][]Token
			for k := range all {
				a, b := newSide(minSize), newSide(minSize)
				c := dial(t, a, b)
				c.send(page)
				c.deliver()
				c.ack()
				guess := bytes.Clone(known)
				guess[g] = page[g] + byte(k)
				blk := dialWith(t, a, b, WriterOptions{Lines: lines}).send(guess)
				all[k] = slices.Clone(blk.Tokens)
			}
			if !slices.Equal(all[0], all[1]) {
				told[lines]++
			}
		}
	}
	if told[true] > 0 || told[false] < 100 {
		t.Errorf("%d of 500 bytes are told, %d in the control", told[true], told[false])
	}
}

// lonely returns where the window of an anchor ends before which is none for long.
func lonely(page []byte) (end int, ok bool) {
	before := 300
	for _, a := range newIndex(minSize).scan(nil, page, 0, len(page)) {
		end = int(a.off) + 8
		if end-before > 220 && end < len(page)-64 {
			return end, true
		}
		before = end
	}
	return 0, false
}

// TestAlone: with Alone only the connection's own bytes are referred to.
func TestAlone(t *testing.T) {
	for _, alone := range []bool{false, true} {
		a, b := newSide(minSize), newSide(minSize)
		page := newSource(21, 50_000).pool
		for _, first := range []*conn{dial(t, a, b), dial(t, b, a)} {
			first.send(page)
			first.deliver()
			first.ack()
		}
		c := dialWith(t, a, b, WriterOptions{Alone: alone})
		if got := c.send(page).Matched; alone == (got > 0) {
			t.Errorf("alone %v: %d bytes of others' matched", alone, got)
		}
		if got := c.send(page).Matched; got < len(page)-100 {
			t.Errorf("alone %v: %d of its own bytes matched", alone, got)
		}
	}
}
