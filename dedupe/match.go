package dedupe

import "math"

const (
	// MaxBlock is the most bytes of one block.
	MaxBlock = 256 << 10
	// MinToken is the least bytes a Token covers with its source, so a block
	// of n bytes has at most n/MinToken tokens.
	MinToken = 16

	minMatch  = 32  // least for a match found by an anchor
	minZeros  = 32  // least for a run of zeros
	resyncGap = 256 // how long an edit in place may be
	minResync = 64  // least match behind it
	minScan   = 4 << 10
	maxScan   = 32 << 10
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

	// run is where the last match went on.
	// other is the run before, if it was long: a page out of order interrupts a
	// run only for the time of that page.
	run, other run
	low        [2]uint64 // legal sources begin here
	floor      [2]uint64 // lowest source used
	good       [2]prefix // the legality rule
}

// newMatcher makes the matcher of a connection: it may use its own and
// acknowledged bytes of tx, and decoded bytes of rx.
func newMatcher(h *History, owner uint32, _ WriterOptions) matcher {
	sent := func(_ uint64, w word) int {
		if w.tag() == owner {
			return w.filled()
		}
		return w.acked()
	}
	return matcher{h: h, good: [2]prefix{sent, h.rx.held}}
}

// match sets m.tokens for src.
func (m *matcher) match(src []byte) {
	m.src, m.lit, m.at = src, 0, 0
	m.tokens, m.anchors = m.tokens[:0], m.anchors[:0]
	m.cursor, m.scanned, m.window = 0, 0, minScan
	m.low = [2]uint64{m.h.low(m.h.tx), m.h.low(m.h.rx)}
	m.floor = [2]uint64{math.MaxUint64, math.MaxUint64}
	for m.at < len(src) {
		if m.follow() || m.zeros() || m.hits() {
			m.window = minScan
			continue
		}
		m.skip()
	}
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

// emit adds a token for src[start:start+n] from pos; start is not before lit.
func (m *matcher) emit(start, n int, r Ring, pos uint64) {
	m.at = start + n
	if r != Zeros {
		m.floor[r] = min(m.floor[r], pos)
		m.turn(r, pos-uint64(start), n)
	}
	if k := len(m.tokens) - 1; k >= 0 && start == m.lit {
		last := &m.tokens[k]
		if last.Ring == r && (r == Zeros || last.Pos+uint64(last.Len) == pos) {
			last.Len += n
			m.lit = m.at
			return
		}
	}
	m.tokens = append(m.tokens, Token{Lit: start - m.lit, Len: n, Ring: r, Pos: pos})
	m.lit = m.at
}

// run says that the bytes at src[o:] are expected at position diag+o of ring
// (diag wraps). long is how many bytes it has given; 0 if there is no run.
type run struct {
	ring Ring
	diag uint64
	long int
}

// longRun is what makes a run worth going back to.
const longRun = 8 << 10

// turn notes that the last match, of n bytes, lies on the run of r and diag.
func (m *matcher) turn(r Ring, diag uint64, n int) {
	if m.run.ring == r && m.run.diag == diag {
		m.run.long += n
		return
	}
	last := m.run
	if m.run = (run{r, diag, n}); m.other.ring == r && m.other.diag == diag {
		m.run.long += m.other.long
	}
	if last.long >= longRun {
		m.other = last
	}
}

// follow tries the bytes right behind the last match's source, or a little
// further on after an edit in place; or where the run before would be by now.
func (m *matcher) follow() bool {
	return m.along(m.run, resyncGap) || m.other != m.run && m.along(m.other, 0)
}

// along tries to go on with a run, which may have up to gap other bytes first.
func (m *matcher) along(u run, gap int) bool {
	if u.long == 0 {
		return false
	}
	pos := u.diag + uint64(m.at)
	ring := m.h.source(u.ring)
	if !m.legal(u.ring, pos) {
		return false
	}
	seg, i, mu := ring.segment(pos)
	if seg == nil {
		return false
	}
	rest := m.src[m.at:]
	skip, n := 0, commonPrefix(rest, seg[i:])
	if n < MinToken {
		skip, n = resync(rest, seg[i:], gap)
	}
	back := 0
	if skip == 0 && n > 0 {
		back = commonSuffix(m.src[m.lit:m.at], seg[:i])
	}
	mu.RUnlock()
	return n > 0 && m.accept(m.at+skip, back, n, u.ring, pos+uint64(skip), MinToken)
}

// legal says whether pos itself may be referred to. It comes before comparing:
// an extent given out but not yet filled still shows the bytes of its last lap,
// and matching them only to refuse would cost the block's length at every
// anchor.
func (m *matcher) legal(r Ring, pos uint64) bool {
	return pos >= m.low[r] && pos < maxPos && m.h.source(r).forward(pos, 1, m.good[r]) == 1
}

// accept emits the legal part of src[at-back:at+n], which equals the ring's
// bytes around pos, if it is at least least long.
func (m *matcher) accept(at, back, n int, r Ring, pos uint64, least int) bool {
	if pos < m.low[r] {
		return false
	}
	ring, good := m.h.source(r), m.good[r]
	n = ring.forward(pos, n, good)
	back = int(min(uint64(back), pos-m.low[r]))
	back = ring.backward(pos, back, good)
	if back+n < least {
		return false
	}
	m.emit(at-back, back+n, r, pos-uint64(back))
	return true
}

// zeros takes a run of zeros.
func (m *matcher) zeros() bool {
	n := zeroPrefix(m.src[m.at:])
	if n < minZeros {
		return false
	}
	m.emit(m.at, n, Zeros, 0)
	return true
}

// hits scans the next window, up to the next run of zeros, and takes the first
// anchor that leads to a match.
func (m *matcher) hits() bool {
	end := min(m.at+m.window, len(m.src))
	end = m.at + findZeros(m.src[m.at:end])
	if end > m.scanned {
		k := len(m.anchors)
		m.anchors = m.h.index.scan(m.anchors, m.src, max(m.at, m.scanned), end)
		m.h.index.lookup(m.anchors[k:])
		m.scanned = end
	}
	for ; m.cursor < len(m.anchors); m.cursor++ {
		a := &m.anchors[m.cursor]
		if int(a.off) >= m.at && m.try(a) {
			return true
		}
	}
	return false
}

// skip leaves what has been scanned in vain as literals.
func (m *matcher) skip() {
	m.at = max(m.scanned, m.at+1)
	m.window = min(2*m.window, maxScan)
}

// try verifies the index's hint for a.
func (m *matcher) try(a *anchor) bool {
	r, off, ok := m.h.index.hint(a)
	if !ok {
		return false
	}
	ring := m.h.source(r)
	pos := m.h.index.latest(off, ring.head.Load())
	if !m.legal(r, pos) {
		return false
	}
	seg, i, mu := ring.segment(pos)
	if seg == nil {
		return false
	}
	at := int(a.off)
	k, n, back := verify(m.src, m.lit, at, seg, i, 1<<m.h.index.unit)
	mu.RUnlock()
	return n > 0 && m.accept(at, back, n, r, pos+uint64(k), minMatch)
}

// verify looks for src[at:] in the unit of seg that begins at i: k bytes into
// the unit, n bytes are equal from at on and back before it, together at least
// minMatch; n is 0 if there is none. It does not go below src[lit].
func verify(src []byte, lit, at int, seg []byte, i, unit int) (k, n, back int) {
	want := load64(src, at)
	for k = range min(unit, len(seg)-7-i) {
		if load64(seg, i+k) != want {
			continue
		}
		n = commonPrefix(src[at:], seg[i+k:])
		back = commonSuffix(src[lit:at], seg[:i+k])
		if n+back >= minMatch {
			return k, n, back
		}
	}
	return 0, 0, 0
}
