package dedupe

import (
	"math"
	"sync"

	"stitch/dedupe/match"
)

const (
	// MaxBlock is the most bytes of one block.
	MaxBlock = 256 << 10
	// MinToken is the least bytes a Token covers with its source, so a block
	// of n bytes has at most n/MinToken tokens.
	MinToken = 16

	minMatch = 64  // least for a match found by an anchor
	minZeros = 128 // least for a run of zeros
	// So many bytes are scanned at a time: around an edit, after a match, and
	// when there was none for long.
	leastScan = 1 << 10
	minScan   = 4 << 10
	maxScan   = 32 << 10
	// A run that has given steady bytes goes on behind edits of up to editGap
	// bytes, if no anchor near there leads to something better. Behind edits of
	// up to smallGap bytes that is asked once in settle bytes only.
	steady   = 256
	editGap  = 192
	smallGap = 16
	settle   = 16 << 10
	// longRun is what makes a run worth going back to.
	longRun = 8 << 10
	stride  = 8 << 10 // bytes compared at a time along a run
	probes  = 4       // other candidates to compare with one found
	line    = 64      // bytes: see WriterOptions.Lines
)

// Token says: take Lit bytes of the literals, then Len bytes from Pos of Ring.
// What follows the last token is literal.
type Token struct {
	Lit, Len int
	Ring     Ring
	Pos      uint64
}

// matcher finds the tokens of one connection's blocks. It is not safe for
// concurrent use; it lives inside a Writer.
type matcher struct {
	h      *History
	owner  uint32
	lines  bool
	tokens []Token
	// anchors of the stretches scanned in this block; cursor is the next one
	// to try; scanned is how far the block has been scanned.
	anchors []anchor
	cursor  int
	scanned int
	window  int // bytes to scan next

	src []byte
	lit int // where the pending literals begin
	at  int // where to look next
	// up to settled a run is kept in spite of edits
	settled int
	// near is nil before it is first needed. Literals before filled it was asked
	// for. credit is what it has earned, passed how often it was not asked since
	// there is none; known is the share of the latest input that was matched.
	near           *near
	filled         int
	credit, passed int
	known          float64

	// run is where the last match went on.
	// other is the run before, if it was long: a page out of order interrupts a
	// run only for the time of that page.
	run, other run
	heads      heads
	low        [2]uint64 // legal sources begin here
	floor      [2]uint64 // lowest source used
	good       [2]prefix // the legality rule
}

// newMatcher makes the matcher of a connection: it may use its own and
// acknowledged bytes of tx, and decoded bytes of rx, as far as o allows.
func newMatcher(h *History, owner uint32, o WriterOptions) matcher {
	own := func(_ uint64, w word) int {
		if w.tag() == owner {
			return w.filled()
		}
		return 0
	}
	sent := func(pos uint64, w word) int { return max(own(pos, w), w.acked()) }
	m := matcher{h: h, owner: owner, lines: o.Lines, credit: nearMost, good: [2]prefix{sent, h.rx.held}}
	if o.Alone {
		m.good = [2]prefix{own, func(uint64, word) int { return 0 }}
	}
	return m
}

// match sets m.tokens for src.
func (m *matcher) match(src []byte) {
	m.src, m.lit, m.at = src, 0, 0
	m.tokens, m.anchors = m.tokens[:0], m.anchors[:0]
	m.cursor, m.scanned, m.settled, m.filled, m.window = 0, 0, 0, 0, minScan
	m.heads = m.h.heads()
	m.low = [2]uint64{m.h.low(m.h.tx), m.h.low(m.h.rx)}
	m.floor = [2]uint64{math.MaxUint64, math.MaxUint64}
	for m.at < len(src) {
		if m.follow() || m.zeros() || m.hits() {
			m.window = minScan
			continue
		}
		m.skip()
	}
	m.recall()
	m.run.diag += uint64(len(src))
	m.other.diag += uint64(len(src))
	m.src = nil
}

// safe says whether every source used is still above the tails by half of the
// margin; else the block must be sent without tokens.
func (m *matcher) safe() bool {
	slack := m.h.window.Load() / 16
	for i, r := range [2]*ring{m.h.tx, m.h.rx} {
		low := m.h.low(r)
		if m.floor[i] < low-min(low, slack) || m.floor[i] < r.floor.Load() {
			return false
		}
	}
	return true
}

// stretch says that src[from:to] equals the ring from position diag+from on
// (diag wraps), all of it legal. An empty one is no match.
type stretch struct {
	ring     Ring
	diag     uint64
	from, to int
}

func (s *stretch) len() int { return s.to - s.from }

// emit adds a token for s, which does not begin before lit.
func (m *matcher) emit(s stretch) {
	pos := s.diag + uint64(s.from)
	if s.ring == Zeros {
		pos = 0
	} else {
		m.floor[s.ring] = min(m.floor[s.ring], pos)
		m.turn(&s)
	}
	lit := s.from - m.lit
	m.at, m.lit = s.to, s.to
	if k := len(m.tokens) - 1; k >= 0 && lit == 0 {
		last := &m.tokens[k]
		if last.Ring == s.ring && (s.ring == Zeros || last.Pos+uint64(last.Len) == pos) {
			last.Len += s.len()
			return
		}
	}
	m.tokens = append(m.tokens, Token{Lit: lit, Len: s.len(), Ring: s.ring, Pos: pos})
}

// run says that the bytes at src[o:] are expected at position diag+o of ring
// (diag wraps). long is how many bytes it has given; 0 if there is no run.
type run struct {
	ring Ring
	diag uint64
	long int
}

// turn notes that the last match is s.
func (m *matcher) turn(s *stretch) {
	if m.run.ring == s.ring && m.run.diag == s.diag {
		m.run.long += s.len()
		return
	}
	last := m.run
	if m.run = (run{s.ring, s.diag, s.len()}); m.other.ring == s.ring && m.other.diag == s.diag {
		m.run.long += m.other.long
	}
	if last.long >= longRun {
		m.other = last
	}
}

// follow tries the bytes right behind the last match's source, or where the run
// before would be by now; then the last run's further on, behind an edit in
// place, unless an anchor knows better.
func (m *matcher) follow() bool {
	gap := 0
	if m.at < m.settled && !m.lines {
		gap = smallGap
	}
	if m.pursue(m.run, gap) || m.other != m.run && m.pursue(m.other, 0) {
		return true
	}
	s := m.behindEdit()
	if s.len() < MinToken {
		return false
	}
	if s.len() < leastScan || m.at >= m.settled {
		m.settled = m.at + settle
		m.look(s.from + leastScan - m.at)
		s = m.best(s)
	}
	m.emit(s)
	return true
}

// pursue emits what u's next bytes have in common with src from m.at on, up to
// an edit longer than gap.
func (m *matcher) pursue(u run, gap int) (found bool) {
	a, b, mu := m.ahead(u)
	if mu == nil {
		return false
	}
	defer mu.RUnlock()
	for start, at := m.at, 0; at < len(a); {
		skip, n := resync(a[at:], b[at:], gap)
		if n == 0 {
			break
		}
		at += skip + n
		s := stretch{u.ring, u.diag, start + at - n, start + at}
		if m.lines {
			m.cut(&s)
		}
		if s.len() >= MinToken {
			m.emit(s)
			found = true
		}
	}
	return found
}

// ahead returns the bytes from m.at on and the legal ones of u, as many, in one
// segment, which the caller unlocks; nil if there are none.
func (m *matcher) ahead(u run) (a, b []byte, mu *sync.RWMutex) {
	pos := u.diag + uint64(m.at)
	if u.long == 0 || !m.legal(u.ring, pos) {
		return nil, nil, nil
	}
	ring := m.h.source(u.ring)
	n := ring.forward(pos, min(len(m.src)-m.at, stride), m.good[u.ring])
	seg, i, mu := ring.segment(pos)
	if seg == nil {
		return nil, nil, nil
	}
	n = min(n, len(seg)-i)
	return m.src[m.at:][:n], seg[i:][:n], mu
}

// behindEdit is what src and a steady run have in common behind an edit. With
// lines that is not asked: a few bytes, which may be guessed, decide where a run
// goes on, and so whether whole lines behind them are found.
func (m *matcher) behindEdit() (s stretch) {
	if m.run.long < steady || m.lines {
		return s
	}
	a, b, mu := m.ahead(m.run)
	if mu == nil {
		return s
	}
	skip, n := resync(a, b, editGap)
	mu.RUnlock()
	if n == 0 {
		return s
	}
	return m.probe(m.run, m.at+skip)
}

// probe compares src with the ring around src[at], as u has it.
func (m *matcher) probe(u run, at int) (s stretch) {
	pos := u.diag + uint64(at)
	if u.long == 0 {
		return s
	}
	if !m.legal(u.ring, pos) {
		m.h.source(u.ring).tier.want(pos)
		return s
	}
	ring, good := m.h.source(u.ring), m.good[u.ring]
	n, back := m.equal(ring, pos, at)
	back = int(min(uint64(back), pos-m.low[u.ring]))
	s = stretch{u.ring, u.diag, at - ring.backward(pos, back, good), at + ring.forward(pos, n, good)}
	if m.lines {
		m.cut(&s)
	}
	return s
}

// equal is how many bytes from src[at] and from pos on are equal, and how many
// pending literals in front of them.
func (m *matcher) equal(r *ring, pos uint64, at int) (n, back int) {
	seg, i, mu := r.segment(pos)
	if seg == nil {
		return 0, 0
	}
	n = match.Prefix(m.src[at:], seg[i:])
	back = match.Suffix(m.src[m.lit:at], seg[:i])
	mu.RUnlock()
	if i+n == len(seg) {
		n += m.equalFrom(r, pos+uint64(n), at+n)
	}
	if back == i {
		back += m.equalBefore(r, pos-uint64(back), at-back)
	}
	return n, back
}

// legal says whether pos itself may be referred to. It comes before comparing:
// an extent given out but not yet filled still shows the bytes of its last lap,
// and matching them only to refuse would cost the block's length at every
// anchor.
func (m *matcher) legal(r Ring, pos uint64) bool {
	return pos >= m.low[r] && pos < maxPos && m.h.source(r).forward(pos, 1, m.good[r]) == 1
}

// cut shortens s to whole lines of the source, unless all of it is the
// connection's own.
func (m *matcher) cut(s *stretch) {
	from, to := s.diag+uint64(s.from), s.diag+uint64(s.to)
	if s.ring == Sent && m.h.tx.ownedBy(m.owner, from, to) {
		return
	}
	s.from += int(-from % line)
	s.to = max(s.from, s.to-int(to%line))
}

// equalFrom is how many bytes from src[at] and from pos on are equal.
func (m *matcher) equalFrom(r *ring, pos uint64, at int) (n int) {
	for at+n < len(m.src) {
		seg, i, mu := r.segment(pos + uint64(n))
		if seg == nil {
			break
		}
		k := match.Prefix(m.src[at+n:], seg[i:])
		mu.RUnlock()
		n += k
		if i+k < len(seg) {
			break
		}
	}
	return n
}

// equalBefore is how many pending literals before src[at] equal the bytes
// before pos.
func (m *matcher) equalBefore(r *ring, pos uint64, at int) (n int) {
	for m.lit < at-n && pos > uint64(n) {
		seg, i, mu := r.segment(pos - uint64(n) - 1)
		if seg == nil {
			break
		}
		k := match.Suffix(m.src[m.lit:at-n], seg[:i+1])
		mu.RUnlock()
		n += k
		if k <= i {
			break
		}
	}
	return n
}

// zeros takes a run of zeros.
func (m *matcher) zeros() bool {
	n := zeroPrefix(m.src[m.at:])
	if n < minZeros {
		return false
	}
	s := stretch{ring: Zeros, from: m.at, to: m.at + n}
	m.fill(s)
	m.emit(s)
	return true
}

// look scans the next n bytes, or more, up to the next run of zeros.
func (m *matcher) look(n int) {
	end := min(m.at+n, len(m.src))
	if end <= m.scanned {
		return
	}
	from := max(m.at, m.scanned)
	end = min(max(end, from+leastScan), len(m.src))
	end = from + findZeros(m.src[from:end])
	k := len(m.anchors)
	m.anchors = m.h.index.scan(m.anchors, m.src, from, end)
	m.h.index.lookup(m.anchors[k:])
	m.scanned = end
}

// hits scans the next window and takes the first anchor that leads to a match,
// or a better match near it.
func (m *matcher) hits() bool {
	m.look(m.window)
	for ; m.cursor < len(m.anchors); m.cursor++ {
		a := &m.anchors[m.cursor]
		if int(a.off) < m.at {
			continue
		}
		for _, e := range a.places {
			if e == 0 {
				break
			}
			if s := m.try(a, e); s.len() >= minMatch {
				s = m.best(s)
				m.fill(s)
				m.emit(s)
				return true
			}
		}
	}
	return false
}

// skip leaves what has been scanned in vain as literals.
func (m *matcher) skip() {
	at := max(m.scanned, m.at+1)
	m.fill(stretch{from: at, to: at})
	m.at = at
	m.window = min(2*m.window, maxScan)
}

// hint is the run that slot e makes of a; none if e is empty.
func (m *matcher) hint(a *anchor, e uint64) (u run) {
	if e == 0 {
		return u
	}
	if r, pos, ok := m.heads.place(e); ok {
		u = run{r, pos - uint64(a.off), 1}
	}
	return u
}

// try verifies slot e's hint for a.
func (m *matcher) try(a *anchor, e uint64) stretch {
	return m.verify(a, m.hint(a, e))
}

// verify is probe around an anchor. With lines its window must be within what is
// found: where there are anchors depends on each byte of their windows, and would
// tell of one that is in no whole line.
func (m *matcher) verify(a *anchor, u run) stretch {
	s := m.probe(u, int(a.off))
	if end := int(a.off) + 8; m.lines && (s.from > end-match.Window || s.to < end) {
		return stretch{}
	}
	return s
}

// best looks at other anchors near s for a match that covers s and is longer or
// younger: a short match may lie in the way of a long one, and of two copies
// the younger one is more like what comes.
func (m *matcher) best(s stretch) stretch {
	near := max(s.to, s.from+leastScan)
	tried := s
	for m.cursor < len(m.anchors) && int(m.anchors[m.cursor].off) < m.at {
		m.cursor++
	}
	for k, left := m.cursor, probes; k < len(m.anchors) && int(m.anchors[k].off) < near && left > 0; k++ {
		a := &m.anchors[k]
		for _, e := range a.places {
			if e == 0 {
				break
			}
			u := m.hint(a, e)
			if u.long == 0 || u.same(&s) || u.same(&tried) {
				continue
			}
			left--
			tried = m.verify(a, u)
			if m.covers(&tried, &s) {
				s = tried
			}
			tried.ring, tried.diag = u.ring, u.diag
		}
	}
	return s
}

func (u *run) same(s *stretch) bool { return u.ring == s.ring && u.diag == s.diag }

// covers says whether t is all that s is, and longer or younger.
func (m *matcher) covers(t, s *stretch) bool {
	if t.len() == 0 || t.from > s.from || t.to < s.to {
		return false
	}
	return t.len() > s.len() || m.age(t) < m.age(s)
}

// age is how far s's source is below its ring's head.
func (m *matcher) age(s *stretch) uint64 { return m.heads[s.ring] - s.diag - uint64(s.from) }
