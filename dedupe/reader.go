package dedupe

import "time"

// zeroBlock is never written.
var zeroBlock [MaxBlock]byte

// Reader is the receiving direction of one connection: it resolves tokens and
// stores what was received. It is not safe for concurrent use.
type Reader struct {
	h       *History
	gen     uint64
	good    prefix // of rx
	anchors []anchor
	until   time.Time // the end of waiting for the disk in this Rebuild; zero: not begun
}

const (
	// patience is how long one Rebuild waits for the disk; then the block is
	// missed and comes again without references.
	patience = 100 * time.Millisecond
	// silence is how long a disk may take for any answer at all. Then what it holds
	// counts as lost, or each block would wait for it.
	silence = 2 * time.Second
)

// NewReader returns the Reader of a new connection.
func (h *History) NewReader() *Reader {
	h.life.RLock()
	defer h.life.RUnlock()
	return &Reader{h: h, gen: h.gen, good: h.rx.held}
}

// Rebuild appends to dst what tokens and lits (both borrowed) stand for; it may
// wait for the disk for up to a tenth of a second. The
// tokens' rings are as the peer sees them: Sent is our rx. The caller has
// checked that the tokens take no more literals than there are and that the
// whole is at most MaxBlock. ErrGone if we do not hold all of a source, and
// then miss is its token; ErrLate if the disk has not given it in time; ErrStale
// after the History was emptied. On error dst is returned as it was.
func (r *Reader) Rebuild(dst []byte, tokens []Token, lits []byte) (out []byte, miss int, err error) {
	r.h.life.RLock()
	defer r.h.life.RUnlock()
	if r.gen != r.h.gen {
		return dst, 0, ErrStale
	}
	out, r.until = dst, time.Time{}
	for i := range tokens {
		t := &tokens[i]
		out = append(out, lits[:t.Lit]...)
		lits = lits[t.Lit:]
		out = append(out, zeroBlock[:t.Len]...)
		if t.Ring == Zeros {
			continue
		}
		if err := r.copy(out[len(out)-t.Len:], t); err != nil {
			return dst, i, err
		}
	}
	return append(out, lits...), 0, nil
}

// copy fills dst with t's source; ErrGone or ErrLate if it cannot.
func (r *Reader) copy(dst []byte, t *Token) error {
	ring, good := r.h.tx, prefix(sentPrefix)
	if t.Ring == Sent {
		ring, good = r.h.rx, r.good
	}
	if t.Pos > maxPos {
		return ErrGone
	}
	read := func() bool { return ring.forward(t.Pos, t.Len, good) == t.Len && ring.read(dst, t.Pos) }
	if read() {
		return nil
	}
	if ring.tier == nil {
		return ErrGone
	}
	if r.until.IsZero() {
		r.until = time.Now().Add(patience)
	}
	if ring.tier.await(t.Pos, t.Len, r.until) && read() {
		return nil
	}
	if ring.tier.late(t.Pos, t.Len, ring.forward(t.Pos, t.Len, good) == t.Len) {
		return ErrLate
	}
	return ErrGone
}

// sentPrefix lets the peer refer to whatever we have put into tx.
func sentPrefix(_ uint64, w word) int { return w.filled() }

// held is how much of pos's page has been received in its lap.
func (r *ring) held(pos uint64, w word) int {
	if w.tag() != r.lap(pos) {
		return 0
	}
	return w.filled()
}

// Put stores a block that was decoded from b (all but Seq is used) and makes
// it a source. Blocks of one connection come in order. src is borrowed and as
// long as the spans; b is Valid. ErrStale after the History was emptied,
// ErrAhead if the peer has another history in mind than ours.
func (r *Reader) Put(src []byte, b *Block) error {
	r.h.life.RLock()
	defer r.h.life.RUnlock()
	if r.gen != r.h.gen {
		return ErrStale
	}
	if b.RxHead > r.h.tx.head.Load() {
		return ErrAhead
	}
	rx := r.h.rx
	rx.raise(b.TxHead)
	filled := func(page uint64, from, to int) {
		p, lap := rx.wordAt(page), rx.lap(page)
		if w := word(p.Load()); from == 0 || w.tag() == lap && w.filled() >= from {
			p.Store(uint64(newWord(lap, 0, to)))
		}
	}
	rest := src
	for _, s := range b.Spans {
		rx.write(s.Pos, rest[:s.Len], filled)
		rest = rest[s.Len:]
	}
	r.anchors = r.h.refresh(r.anchors[:0], src, b.Tokens, true)
	r.h.insert(r.anchors, Received, b.Spans)
	return nil
}

// Valid says whether a block from the wire has a place a ring can have.
func (b *Block) Valid() bool {
	for _, s := range b.Spans {
		if s.Len < 0 || s.Len > MaxBlock || s.Pos > maxPos || s.Pos+uint64(s.Len) > b.TxHead {
			return false
		}
	}
	return b.TxHead <= maxPos && b.RxHead <= maxPos && b.Spans[0].Len+b.Spans[1].Len <= MaxBlock
}
