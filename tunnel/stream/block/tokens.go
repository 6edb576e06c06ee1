package block

import (
	"encoding/binary"
	"slices"

	"stitch/dedupe"
)

// course predicts the next source: the ring of the last one, in step with the
// connection since then.
type course struct {
	ring dedupe.Ring
	diag [2]uint64 // position - offset in the connection, of each ring's last
}

func zigzag(d int64) uint64   { return uint64(d<<1) ^ uint64(d>>63) }
func unzigzag(v uint64) int64 { return int64(v>>1) ^ -int64(v&1) }

// inStep says whether t, which begins at offset off of the connection, is
// where the course leads.
func (c *course) inStep(t *dedupe.Token, off uint64) bool {
	return t.Ring == c.ring && t.Pos-off == c.diag[c.ring]
}

// code returns the source number of t and follows it.
func (c *course) code(t *dedupe.Token, off uint64) uint64 {
	if t.Ring == dedupe.Zeros {
		return uint64(dedupe.Zeros)
	}
	diag := t.Pos - off
	delta := int64(diag - c.diag[t.Ring])
	c.ring, c.diag[t.Ring] = t.Ring, diag
	return zigzag(delta)<<2 | uint64(t.Ring)
}

// decode is the inverse of code; false for a ring there is not.
func (c *course) decode(v, off uint64) (r dedupe.Ring, pos uint64, ok bool) {
	r = dedupe.Ring(v & 3)
	if r >= dedupe.Zeros {
		return r, 0, v == uint64(dedupe.Zeros)
	}
	c.diag[r] += uint64(unzigzag(v >> 2))
	c.ring = r
	return r, c.diag[r] + off, true
}

// isRun says whether the n bytes at off are one match in step.
func (c *course) isRun(tokens []dedupe.Token, n int, off uint64) bool {
	return len(tokens) == 1 && tokens[0].Len == n && c.inStep(&tokens[0], off)
}

// appendTokens appends the token section of a block of n bytes at off.
func (c *course) appendTokens(dst []byte, tokens []dedupe.Token, n int, off uint64) []byte {
	for i := range tokens {
		dst = binary.AppendUvarint(dst, uint64(tokens[i].Lit))
	}
	sources := *c
	at := 0
	for i := range tokens {
		t := &tokens[i]
		at += t.Lit + t.Len
		length := uint64(t.Len-dedupe.MinToken) + 1
		if at == n {
			length = 0
		}
		given := uint64(1)
		if c.inStep(t, off+uint64(at-t.Len)) {
			given = 0
		}
		c.code(t, off+uint64(at-t.Len))
		dst = binary.AppendUvarint(dst, length<<1|given)
	}
	*c = sources
	at = 0
	for i := range tokens {
		t := &tokens[i]
		at += t.Lit
		step := c.inStep(t, off+uint64(at))
		if v := c.code(t, off+uint64(at)); !step {
			dst = binary.AppendUvarint(dst, v)
		}
		at += t.Len
	}
	return dst
}

// parseTokens reads h's tokens from r into dst and returns how many of the
// block's bytes they leave to literals.
func (c *course) parseTokens(dst []dedupe.Token, r *reader, h *header) (ts []dedupe.Token, lits int, ok bool) {
	dst = dst[:0]
	if h.form == formRun {
		return append(dst, dedupe.Token{Len: h.n, Ring: c.ring, Pos: c.diag[c.ring] + h.off}), 0, true
	}
	dst = slices.Grow(dst, h.tokens)
	for range h.tokens {
		dst = append(dst, dedupe.Token{Lit: int(r.number(uint64(h.n)))})
	}
	// Until its source is known, Pos says whether one is given.
	at := 0
	for i := range dst {
		t := &dst[i]
		v := r.number(2*MaxBlock + 1)
		at += t.Lit
		if t.Len, t.Pos = dedupe.MinToken-1+int(v>>1), v&1; v>>1 == 0 {
			t.Len = h.n - at
		}
		at += t.Len
		if t.Len < dedupe.MinToken || at > h.n {
			return dst, 0, false
		}
	}
	lits = h.n
	at = 0
	for i := range dst {
		t := &dst[i]
		at += t.Lit
		off := h.off + uint64(at)
		if t.Pos == 0 {
			t.Ring, t.Pos = c.ring, c.diag[c.ring]+off
		} else if t.Ring, t.Pos, ok = c.decode(r.number(1<<63-1), off); !ok {
			return dst, 0, false
		}
		at += t.Len
		lits -= t.Len
	}
	return dst, lits, !r.bad
}
