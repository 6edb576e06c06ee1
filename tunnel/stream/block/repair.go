package block

import (
	"fmt"
	"net"

	"stitch/dedupe"
)

// Ack takes the peer's acknowledgement body (borrowed). Saying the same or
// less again does no harm. ErrCorrupt if it is no number or acknowledges what
// was never sent; net.ErrClosed after Close.
func (e *Encoder) Ack(body []byte) error {
	if e.closed.Load() {
		return net.ErrClosed
	}
	r := reader{buf: body}
	n := r.number(1 << 60)
	if r.bad || r.at != len(body) {
		return ErrCorrupt
	}
	if e.w == nil {
		return nil
	}
	if before := e.opaque.Load(); before > 0 {
		n = min(n, before-1) // later blocks are not kept
	}
	if err := e.w.Acked(n); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	e.doubt.acked(n)
	e.sparse.Store(e.doubt.sparse())
	return nil
}

// Resend appends the raw body of the block that nack (borrowed) asks for, and
// takes the sources the peer could not use out of use; a nack that names none only
// came too late for the peer's disk. On an error the
// connection must be reset: ErrCorrupt for a nack that breaks the format,
// dedupe.ErrGone for a block not kept, net.ErrClosed after Close.
func (e *Encoder) Resend(dst, nack []byte) ([]byte, error) {
	if e.closed.Load() {
		return dst, net.ErrClosed
	}
	m, ok := parseNack(nack)
	if !ok || e.w == nil {
		return dst, ErrCorrupt
	}
	dst, _, err := e.again(dst, m.seq)
	if err != nil {
		return dst, err
	}
	e.renew.Store(true)
	if m.count == 0 {
		e.doubt.late(e.w.Next())
		return dst, nil
	}
	around := e.doubt.missed(e.w.Next())
	e.sparse.Store(e.doubt.sparse())
	for _, bad := range m.bad[:m.count] {
		e.w.Drop(bad.ring, bad.span, around)
		if around == everything {
			e.w.Drop(1-bad.ring, dedupe.Span{Len: 1}, around)
		}
	}
	return dst, nil
}

// ResendBehind is called with a nack before Resend. When the histories differ in
// more than one place, the blocks that are on their way behind the wanted one
// would miss too, and each of them take a round trip: it calls send with their
// raw bodies (lent), to be sent before Resend's, up to maxBehind bytes of them.
// Usually there are none. On an error the connection must be reset.
func (e *Encoder) ResendBehind(nack []byte, send func(body []byte)) error {
	m, ok := parseNack(nack)
	if !ok || e.w == nil || e.closed.Load() || !e.doubt.spreads(m.seq) {
		return nil // what is wrong with it is Resend's to say
	}
	var body []byte
	for total, seqs := 0, e.w.Matched(nil, m.seq+1); len(seqs) > 0 && total < maxBehind; seqs = seqs[1:] {
		var n int
		var err error
		if body, n, err = e.again(body[:0], seqs[0]); err != nil {
			return err
		}
		send(body)
		total += n
	}
	return nil
}

// again appends the raw body of block seq, of n bytes.
func (e *Encoder) again(dst []byte, seq uint64) (out []byte, n int, err error) {
	s := e.shop.get()
	defer e.shop.put(s)
	h := header{resent: true, place: placeOne}
	if s.lits, h.block, err = e.w.Again(s.lits[:0], seq); err != nil {
		return dst, 0, err
	}
	h.n = len(s.lits)
	if h.block.Spans[1].Len > 0 {
		h.place = placeTwo
	}
	start := len(dst)
	dst = e.plain(dst, s.lits, &h)
	e.count.resent.Add(1)
	e.count.out.Add(int64(len(dst) - start))
	return dst, h.n, nil
}

// doubt is how far an encoder mistrusts what the peer's history is said to hold.
// Each nack adds to it, and many good blocks take from it. One nack is about the
// sources it names, which may be a damaged page; after several in a short time the
// histories are not a pair, and ever more of them is no longer used. Pure; not safe
// for concurrent use.
type doubt struct {
	repairs bool   // the peer takes blocks resent before it has asked for them
	level   int    // nacks, less what good blocks took
	good    uint64 // blocks since the level last changed
	last    uint64 // blocks acknowledged
	flight  uint64 // blocks below it were encoded before the last nack
}

const (
	// maxBehind is the most bytes of one ResendBehind, but for a block.
	maxBehind = 8 << 20
	// calm is how many good blocks take as much doubt as a nack adds.
	calm = 64
	// everything is more than a ring has, and trusting the greatest level at which
	// giving that up should have helped.
	everything = 1 << 40
	trusting   = 4
	// maxSparse bounds how seldom a block refers to the history, as a power of two.
	maxSparse = 6
)

// acked takes how many blocks the peer has decoded.
func (d *doubt) acked(n uint64) {
	if n <= d.last {
		return
	}
	d.good, d.last = d.good+n-d.last, n
	if d.good >= calm {
		d.good, d.level = 0, max(d.level-1, 0)
	}
}

// spreads says whether a nack for block seq means that blocks behind it will miss
// too: it is not the first nack about what was under way.
func (d *doubt) spreads(seq uint64) bool {
	return d.repairs && (seq < d.flight || d.level >= 2)
}

// late notes a nack that blames no source.
func (d *doubt) late(next uint64) { d.flight = next }

// missed notes a nack; next is the block that is encoded next. It returns how much
// around the named sources is not to be used any more.
func (d *doubt) missed(next uint64) (around uint64) {
	d.flight, d.good = next, 0
	d.level = min(d.level+1, trusting+maxSparse)
	switch d.level {
	case 1:
		return 0
	case 2:
		return 16 << 20
	case 3:
		return 1 << 30
	}
	return everything
}

// sparse is how seldom a block may refer to the history: one of 2 to that power. When
// all of it has been given up, and blocks miss all the same, their sources are newer than
// that and older than what the peer still has when they arrive: other streams push
// them out of a history that is too small for what is under way. Then most blocks cross cold,
// so that some of them arrive.
func (d *doubt) sparse() uint32 { return uint32(max(d.level-trusting, 0)) }
