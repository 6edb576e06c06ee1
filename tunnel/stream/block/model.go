package block

import (
	"math/bits"

	"stitch/dedupe"
)

// number models numbers that repeat or are of similar size: how many bits, the
// three bits under the top one, and the rest bit by bit.
type number struct {
	width [64]prob
	high  [19][8]prob // of numbers of up to 19 bits: larger ones do not repeat
	low   [19][8]prob
}

func (m *number) reset() {
	resetAll(m.width[:])
	for i := range m.high {
		resetAll(m.high[i][:])
		resetAll(m.low[i][:])
	}
}

// code codes v, less than 1<<62.
func (m *number) code(c decider, v uint64) uint64 {
	v++
	n := int(tree(c, m.width[:], uint64(bits.Len64(v)-1)&63, 6))
	if n >= len(m.high) {
		return (1<<n | c.plain(v&(1<<n-1), n)) - 1
	}
	top := min(n, 3)
	rest := n - top
	got := uint64(1)
	for i := top - 1; i >= 0; i-- {
		got = got<<1 | c.bit(&m.high[n][got], v>>(rest+i)&1)
	}
	if plain := rest - len(m.low[n]); plain > 0 {
		got = got<<plain | c.plain(v>>(rest-plain)&(1<<plain-1), plain)
		rest -= plain
	}
	for i := rest - 1; i >= 0; i-- {
		got = got<<1 | c.bit(&m.low[n][i], v>>i&1)
	}
	return got - 1
}

// tree codes the n bits of v, each in the light of those above it; it uses
// 1<<n probabilities.
func tree(c decider, ps []prob, v uint64, n int) uint64 {
	at := uint64(1)
	for i := n - 1; i >= 0; i-- {
		at = at<<1 | c.bit(&ps[at], v>>i&1)
	}
	return at - 1<<n
}

const (
	recentCount = 8
	// The kinds of a token: the recent course it keeps to, zeros, or a source
	// in the rings Sent and Received that is given.
	kindZeros = recentCount
	kindSent  = recentCount + 1
	kindCount = 16 // a power of two
)

// course is a stretch of the history in step with the connection: the bytes at
// offset off come from diag + off of ring.
type course struct {
	ring dedupe.Ring
	diag uint64
}

// model is what both ends know from the tokens so far.
type model struct {
	recent [recentCount]course // latest first
	kind   uint64              // of the last token
	count  number
	kinds  [kindCount][kindCount]prob // by the kind before
	ends   [kindCount]prob
	patch  prob
	lit    [3]number
	length [3]number
	far    [2]number
	sign   [2]prob
}

func newModel() *model {
	m := new(model)
	m.count.reset()
	for i := range m.kinds {
		resetAll(m.kinds[i][:])
	}
	resetAll(m.ends[:])
	m.patch.reset()
	resetAll(m.sign[:])
	for _, ns := range [][]number{m.lit[:], m.length[:], m.far[:]} {
		for i := range ns {
			ns[i].reset()
		}
	}
	return m
}

// class puts the kinds together that behave alike.
func class(kind uint64) int {
	switch {
	case kind == 0:
		return 0
	case kind == kindZeros:
		return 1
	}
	return 2
}

// token codes t, which follows at bytes of the block's n; the block begins at
// offset off of its connection. patched says that its literals are differences
// from what stands in front of its source. It is false for what no encoder
// makes.
func (m *model) token(c decider, t *dedupe.Token, patched *bool, at, n int, off uint64) bool {
	lit := m.lit[class(m.kind)].code(c, uint64(t.Lit))
	if lit > uint64(n-at) {
		return false
	}
	t.Lit = int(lit)
	at += t.Lit
	off += uint64(at)
	m.kind = tree(c, m.kinds[m.kind][:], m.kindOf(t, off), 4)
	if !m.source(c, t, off) {
		return false
	}
	if m.kind == 0 && t.Lit > 0 && t.Lit <= maxPatch {
		var b uint64
		if *patched {
			b = 1
		}
		*patched = c.bit(&m.patch, b) == 1
	}
	var last uint64
	if t.Len == n-at {
		last = 1
	}
	if c.bit(&m.ends[m.kind], last) == 1 {
		t.Len = n - at
	} else {
		t.Len = dedupe.MinToken + int(m.length[class(m.kind)].code(c, uint64(t.Len-dedupe.MinToken))&(2*MaxBlock-1))
	}
	return t.Len >= dedupe.MinToken && t.Len <= n-at
}

// kindOf is the kind of t at offset off; for a decoder it means nothing.
func (m *model) kindOf(t *dedupe.Token, off uint64) uint64 {
	if t.Ring == dedupe.Zeros {
		return kindZeros
	}
	want := course{t.Ring, t.Pos - off}
	for i := range m.recent {
		if m.recent[i] == want {
			return uint64(i)
		}
	}
	return kindSent + uint64(t.Ring)&1
}

// source codes where t's bytes come from, m.kind being known.
func (m *model) source(c decider, t *dedupe.Token, off uint64) bool {
	switch k := m.kind; {
	case k < recentCount:
		u := m.recent[k]
		copy(m.recent[1:k+1], m.recent[:k])
		m.recent[0] = u
	case k == kindZeros:
		t.Ring, t.Pos = dedupe.Zeros, 0
		return true
	case k <= kindSent+uint64(dedupe.Received):
		u := m.given(c, dedupe.Ring(k-kindSent), t.Pos-off)
		copy(m.recent[1:], m.recent[:recentCount-1])
		m.recent[0] = u
	default:
		return false
	}
	t.Ring, t.Pos = m.recent[0].ring, m.recent[0].diag+off
	return true
}

// given codes diag as the distance from the latest course in its ring.
func (m *model) given(c decider, r dedupe.Ring, diag uint64) course {
	var base uint64
	for i := range m.recent {
		if m.recent[i].ring == r {
			base = m.recent[i].diag
			break
		}
	}
	d := int64(diag - base)
	neg := c.bit(&m.sign[r], uint64(d)>>63)
	if d < 0 {
		d = -d
	}
	d = int64(m.far[r].code(c, uint64(d)&(1<<62-1)))
	if neg == 1 {
		d = -d
	}
	return course{r, base + uint64(d)}
}

// isRun says whether the n bytes at off are one match in step.
func (m *model) isRun(tokens []dedupe.Token, n int, off uint64) bool {
	return len(tokens) == 1 && tokens[0].Len == n && tokens[0] == m.run(n, off)
}

// run is the token of n bytes in step with the latest course.
func (m *model) run(n int, off uint64) dedupe.Token {
	return dedupe.Token{Len: n, Ring: m.recent[0].ring, Pos: m.recent[0].diag + off}
}

// append codes the tokens of a block of n bytes at off.
func (m *model) append(c decider, tokens []dedupe.Token, patched []bool, n int, off uint64) {
	m.count.code(c, uint64(len(tokens)))
	at := 0
	for i := range tokens {
		t := &tokens[i]
		m.token(c, t, &patched[i], at, n, off)
		at += t.Lit + t.Len
	}
}

// parse leaves the tokens of a block in s and returns how many of its bytes
// they leave to literals, and how many of these are differences. It is false
// for a section no encoder makes.
func (m *model) parse(s *scratch, n int, off uint64) (lits, patched int, ok bool) {
	d := &s.coder
	count := m.count.code(d, 0)
	if count == 0 || count > uint64(n/dedupe.MinToken) {
		return 0, 0, false
	}
	at := 0
	lits = n
	for range count {
		var t dedupe.Token
		var differs bool
		if !m.token(d, &t, &differs, at, n, off) {
			return 0, 0, false
		}
		at += t.Lit + t.Len
		lits -= t.Len
		if differs {
			patched += t.Lit
		}
		s.tokens, s.patched = append(s.tokens, t), append(s.patched, differs)
	}
	return lits, patched, d.done()
}
