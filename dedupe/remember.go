package dedupe

import "stitch/dedupe/match"

const (
	// Of what repeats older bytes only stripes are hashed, at every stripeEvery
	// bytes of the block.
	stripe      = 256
	stripeEvery = 4 << 10
)

// refresh appends to as the anchors to insert for src beyond those it was
// given. Bytes that repeat a source have anchors there already; those of some
// stripes move to the new copy, so that it can be found, and is found before
// the old one, also when that has been recycled. For a received block the
// tokens are as the peer sees them, and what they do not cover is scanned too.
func (h *History) refresh(as []anchor, src []byte, tokens []Token, received bool) []anchor {
	at := 0
	for i := range tokens {
		t := &tokens[i]
		if received {
			as = h.index.scan(as, src, at, edge(at+t.Lit, len(src)))
		}
		at += t.Lit
		if t.Ring != Zeros {
			as = h.index.stripes(as, src, at, at+t.Len)
		}
		at += t.Len
	}
	if received {
		as = h.index.scan(as, src, at, len(src))
	}
	return as
}

// stripes scans the stripes in src[from:to].
func (x *index) stripes(as []anchor, src []byte, from, to int) []anchor {
	first := (from + stripeEvery - 1) / stripeEvery * stripeEvery
	for at := first; at < to; at += stripeEvery {
		as = x.scan(as, src, at, min(at+stripe, to))
	}
	return as
}

// edge extends the end of a literal to the windows that contain its end.
func edge(end, n int) int { return min(end+match.Window/2, n) }

// heads are the heads of both rings now.
func (h *History) heads() heads { return heads{h.tx.head.Load(), h.rx.head.Load()} }

// insert puts the anchors of a block that lies at spans into the index.
func (h *History) insert(as []anchor, r Ring, spans [2]Span) {
	h.index.fetch(as)
	heads := h.heads()
	for i := range as {
		a := &as[i]
		off := int(a.off)
		switch {
		case off+8 <= spans[0].Len:
			h.index.put(a, r, spans[0].Pos+uint64(off), &heads)
		case off >= spans[0].Len:
			h.index.put(a, r, spans[1].Pos+uint64(off-spans[0].Len), &heads)
		}
	}
}
