package dedupe

const (
	// nearSpan is how many pending literals behind a run, and in front of a
	// match, are looked for near by; nearSlack is how far before and behind
	// where they would be if nothing had moved.
	nearSpan, nearSlack = 4 << 10, 1 << 10
	nearOld             = nearSpan + 2*nearSlack // bytes of one place
	// nearStep is the distance of the words of a place that are looked for.
	// What is shorter than nearLeast zstd finds among the literals for less
	// than a token.
	nearStep, nearLeast = 8, 48
	nearBits            = 11
	// nearKnown is the share of the latest input, nearMemory bytes of it, that
	// must have been matched. A byte found pays for looking at nearWorth others;
	// while nothing is left of that, nearMost bytes at most, one time in
	// nearProbe is tried.
	nearKnown, nearMemory          = 0.5, 1 << 20
	nearWorth, nearMost, nearProbe = 64, 1 << 20, 32
)

// near finds short repeats that no anchor leads to: bytes inserted or removed
// leave what is around them a little further on than it was, and records that
// are changed one by one keep what lies between them, too little for an anchor.
type near struct {
	old    [2 * nearOld]byte // of both places
	n      int               // bytes of it
	places [2]run            // their diag is position - index in old
	first  int               // bytes of the first place
	table  [1 << nearBits]int16
}

// slot is where in the table a word is. A word that is one byte eight times is
// none to look for: there are many of it where there is one.
func (n *near) slot(x uint64) *int16 {
	return &n.table[x*0x9e3779b97f4a7c15>>(64-nearBits)]
}

func flat(x uint64) bool { return x == x<<8|x>>56 }

// add adds the size bytes, at most nearOld, from pos on of r as place k; the first
// comes first. Those beyond the segment are left out.
func (n *near) add(k int, h *History, r Ring, pos uint64, size int) {
	seg, at, mu := h.source(r).segment(pos)
	if seg == nil {
		return
	}
	got := copy(n.old[n.n:][:size], seg[at:])
	mu.RUnlock()
	n.places[k] = run{ring: r, diag: pos - uint64(n.n), long: 1}
	for i := n.n; i+8 <= n.n+got; i += nearStep {
		if x := load64(n.old[:], i); !flat(x) {
			*n.slot(x) = int16(i + 1)
		}
	}
	n.n += got
	if k == 0 {
		n.first = n.n
	}
}

// find returns the first position of src from at on, before to, whose word is in
// one of the places, and the run that it hints at.
func (n *near) find(src []byte, at, to int) (i int, u run, ok bool) {
	for ; at+8 <= to; at++ {
		x := load64(src, at)
		k := int(*n.slot(x)) - 1
		if k < 0 || load64(n.old[:], k) != x {
			continue
		}
		u = n.places[0]
		if k >= n.first {
			u = n.places[1]
		}
		u.diag += uint64(k) - uint64(at)
		return at, u, true
	}
	return at, u, false
}

// fill looks for the pending literals in front of next (if that is empty, of
// next.to) where the last run would be by now and in front of next's source,
// and emits what it finds. It is only asked where most is matched. With lines it
// does nothing; see behindEdit.
func (m *matcher) fill(next stretch) {
	to := next.from
	if to-m.lit < nearLeast || m.lines || m.known < nearKnown || !m.worth() {
		return
	}
	behind := m.run.long > 0 && m.filled <= m.lit
	before := next.len() > 0 && next.ring != Zeros
	if before && m.run.ring == next.ring && m.run.diag == next.diag {
		if to-m.lit <= editGap {
			return // an edit in place, which is sent as differences
		}
		before = !behind
	}
	if m.near == nil {
		m.near = new(near)
	}
	if behind && to-m.lit > nearSpan {
		m.search(m.lit+nearSpan, true, false, &next)
		behind = false
	}
	if behind || before {
		m.search(to, behind, before, &next)
	}
	m.filled = to
}

// search emits what is found of the pending literals before to, the last
// nearSpan of them: behind the last run, before next, or both.
func (m *matcher) search(to int, behind, before bool, next *stretch) {
	n, from := m.near, max(m.lit, to-nearSpan)
	n.n, n.first = 0, 0
	clear(n.table[:])
	if behind {
		m.place(0, m.run, from, to)
	}
	if before {
		m.place(1, run{ring: next.ring, diag: next.diag}, from, to)
	}
	m.credit -= to - from
	for at := from; ; {
		i, u, ok := n.find(m.src, at, to)
		if !ok {
			return
		}
		at = i + 1
		s := m.probe(u, i)
		if s.to = min(s.to, to); s.len() >= nearLeast {
			m.emit(s)
			m.credit = min(m.credit+nearWorth*s.len(), nearMost)
			at = s.to
		}
	}
}

// place adds as place k what is around src[from:to] if u goes on there.
func (m *matcher) place(k int, u run, from, to int) {
	pos := u.diag + uint64(from)
	back := min(pos-min(pos, m.low[u.ring]), nearSlack)
	m.near.add(k, m.h, u.ring, pos-back, int(back)+to-from+nearSlack)
}

// worth says whether near has earned another look, or may try one.
func (m *matcher) worth() bool {
	if m.credit > 0 {
		return true
	}
	m.passed++
	return m.passed%nearProbe == 0
}

// recall notes how much of the block was matched.
func (m *matcher) recall() {
	matched, zeros := covered(m.tokens)
	if n := float64(len(m.src) - zeros); n > 0 {
		m.known += (float64(matched)/n - m.known) * min(1, n/nearMemory)
	}
}
