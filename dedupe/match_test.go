package dedupe

import "testing"

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
