package dedupe

// refresh appends to as the anchors to insert for src beyond those it was
// given. A stretch that repeats a source in the older half of its ring is
// scanned: its anchors must move to the new copy before the old one goes. A
// younger source keeps its anchors: repeats are not hashed at all. For a
// received block the tokens are as the peer sees them, and what they do not
// cover is scanned too.
func (h *History) refresh(as []anchor, src []byte, tokens []Token, received bool) []anchor {
	at := 0
	for i := range tokens {
		t := &tokens[i]
		if received {
			as = h.index.scan(as, src, at, edge(at+t.Lit, len(src)))
		}
		at += t.Lit
		if t.Ring != Zeros && h.old(t, received) {
			as = h.index.scan(as, src, at, at+t.Len)
		}
		at += t.Len
	}
	if received {
		as = h.index.scan(as, src, at, len(src))
	}
	return as
}

// edge extends the end of a literal to the windows that contain its end.
func edge(end, n int) int { return min(end+gearWindow/2, n) }

// old says whether t's source is in the older half of its ring.
func (h *History) old(t *Token, received bool) bool {
	ring := h.tx
	if (t.Ring == Sent) == received {
		ring = h.rx
	}
	head := ring.head.Load()
	return t.Pos+h.window.Load()/2 < head
}

// insert puts the anchors of a block that lies at spans into the index.
func (h *History) insert(as []anchor, r Ring, spans [2]Span) {
	h.index.lookup(as) // brings the slots' cache lines in together
	for i := range as {
		a := &as[i]
		off := int(a.off)
		switch {
		case off+8 <= spans[0].Len:
			h.index.put(a, r, spans[0].Pos+uint64(off))
		case off >= spans[0].Len:
			h.index.put(a, r, spans[1].Pos+uint64(off-spans[0].Len))
		}
	}
}
