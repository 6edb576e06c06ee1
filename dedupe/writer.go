package dedupe

import (
	"slices"
	"sync"
)

// maxExtent is the largest extent, and in small rings 1/16 of what is in memory.
const maxExtent = 1 << 20

// Span is a stretch of a ring.
type Span struct {
	Pos uint64
	Len int
}

// Block is what a Writer makes of a block: where it lies in the ring and what
// it consists of.
type Block struct {
	Seq      uint64  // of this connection, from 0
	Spans    [2]Span // where the block lies; the second may be empty
	TxHead   uint64  // both rings' heads as the Writer saw them
	RxHead   uint64
	Tokens   []Token // lent until the next Put
	Matched  int     // bytes covered by tokens, without zeros
	ZeroRuns int     // bytes covered by tokens of zeros
}

// Writer is the sending direction of one connection: it gives blocks their
// place in the history, matches them, and remembers them until acknowledged.
// Put is for one goroutine at a time; Acked, Drop, Again and Close may run
// beside it.
type Writer struct {
	h     *History
	gen   uint64
	owner uint32
	match matcher
	next  uint64 // rest of the current extent
	end   uint64
	grow  int // size of the next extent

	mu     sync.Mutex
	sent   []record // unacknowledged, in order; guarded by mu
	first  uint64   // Seq of sent[0]
	closed bool
}

// record is an unacknowledged block. Its bytes are in the ring or, when those
// places are about to be reused, aside.
type record struct {
	spans   [2]Span
	aside   []byte
	matched bool // it has tokens
}

func (r *record) len() int { return r.spans[0].Len + r.spans[1].Len }

// WriterOptions narrow which bytes a Writer may refer to; the zero value
// allows every legal source. They guard against what sizes tell: see "Which
// sources are legal" in the package documentation.
type WriterOptions struct {
	// Lines lets a reference to other connections' bytes cover only whole
	// 64-byte lines of the source.
	Lines bool
	// Alone allows only the connection's own bytes.
	Alone bool
}

// NewWriter returns the Writer of a new connection. Close it.
func (h *History) NewWriter(o WriterOptions) *Writer {
	h.life.RLock()
	defer h.life.RUnlock()
	w := &Writer{h: h, gen: h.gen, owner: h.owners.Add(1), grow: pageSize}
	w.match = newMatcher(h, w.owner, o)
	h.alloc.Lock()
	defer h.alloc.Unlock()
	h.retained[w] = struct{}{}
	return w
}

// Put matches src (1 to MaxBlock bytes, borrowed) against the history, stores
// it there, and keeps it until acknowledged: by reference to the ring, copied
// aside only when the ring comes round. How much may be unacknowledged is the
// caller's to bound. After the History was emptied it returns ErrStale and has
// done nothing.
func (w *Writer) Put(src []byte) (Block, error) {
	w.h.life.RLock()
	defer w.h.life.RUnlock()
	if w.gen != w.h.gen {
		return Block{}, ErrStale
	}
	b := Block{Spans: w.place(len(src))}
	w.match.match(src)
	w.store(src, b.Spans)
	if w.match.safe() {
		b.Tokens = w.match.tokens
		b.Matched, b.ZeroRuns = covered(b.Tokens)
	}
	b.Seq = w.retain(src, b.Spans, b.Matched > 0)
	w.remember(src, b.Spans)
	b.TxHead, b.RxHead = w.h.tx.head.Load(), w.h.rx.head.Load()
	return b, nil
}

// Plant stores src (as Put's) without matching it and returns the block,
// without tokens, for the peer's Reader.Put: seeding, when both sides hold the
// same bytes already and only their digest crosses. Like any block it becomes
// a source when acknowledged, and is kept for Again until then.
func (w *Writer) Plant(src []byte) (Block, error) {
	x := w.h.index
	return w.plant(src, func(as []anchor) []anchor { return x.scan(as, src, 0, len(src)) })
}

// Skim is Plant for bytes that must not wait for being looked at: of each 4 KiB
// the anchors of 256 bytes are found only, so that a long repeat of them is
// found later and a short one mostly not.
func (w *Writer) Skim(src []byte) (Block, error) {
	x := w.h.index
	return w.plant(src, func(as []anchor) []anchor { return x.stripes(as, src, 0, len(src)) })
}

// plant stores src and indexes the anchors that find appends.
func (w *Writer) plant(src []byte, find func([]anchor) []anchor) (Block, error) {
	w.h.life.RLock()
	defer w.h.life.RUnlock()
	if w.gen != w.h.gen {
		return Block{}, ErrStale
	}
	b := Block{Spans: w.place(len(src))}
	w.store(src, b.Spans)
	b.Seq = w.retain(src, b.Spans, false)
	m := &w.match
	m.anchors = find(m.anchors[:0])
	w.h.insert(m.anchors, Sent, b.Spans)
	b.TxHead, b.RxHead = w.h.tx.head.Load(), w.h.rx.head.Load()
	return b, nil
}

// Peek fills dst with the bytes at pos of r, if all of them are held and the
// block of the last Put may refer to them; else it returns false. It is for the
// goroutine of Put.
func (w *Writer) Peek(dst []byte, r Ring, pos uint64) bool {
	w.h.life.RLock()
	defer w.h.life.RUnlock()
	m := &w.match
	if w.gen != w.h.gen || pos < m.low[r] || pos >= maxPos {
		return false
	}
	ring := w.h.source(r)
	return ring.forward(pos, len(dst), m.good[r]) == len(dst) && ring.read(dst, pos)
}

func covered(ts []Token) (matched, zeros int) {
	for i := range ts {
		if ts[i].Ring == Zeros {
			zeros += ts[i].Len
		} else {
			matched += ts[i].Len
		}
	}
	return matched, zeros
}

// place takes n positions: the rest of the extent, then a new one. A rest that
// has grown old while the connection was idle is given up: it would be recycled
// soon, and guard has passed it.
func (w *Writer) place(n int) (s [2]Span) {
	if w.next+w.h.tx.mem/2 < w.h.tx.head.Load() {
		w.next = w.end
	}
	rest := int(w.end - w.next)
	if rest >= n {
		s[0] = Span{w.next, n}
		w.next += uint64(n)
		return s
	}
	size := max(w.grow, (n-rest+pageSize-1)/pageSize*pageSize)
	w.grow = min(2*size, maxExtent, int(w.h.tx.mem/16))
	pos := w.h.extent(size, w.owner)
	switch {
	case rest == 0 || pos == w.end:
		s[0] = Span{pos - uint64(rest), n}
	default:
		s[0], s[1] = Span{w.next, rest}, Span{pos, n - rest}
	}
	w.next, w.end = pos+uint64(n-rest), pos+uint64(size)
	return s
}

func (w *Writer) store(src []byte, spans [2]Span) {
	tx := w.h.tx
	filled := func(page uint64, _, to int) {
		tx.update(page, w.owner, func(o word) word { return newWord(w.owner, o.acked(), to) })
	}
	for _, s := range spans {
		tx.write(s.Pos, src[:s.Len], filled)
		src = src[s.Len:]
	}
}

// remember puts the block's anchors into the index, except where the block
// repeats bytes that will stay findable for long.
func (w *Writer) remember(src []byte, spans [2]Span) {
	m := &w.match
	m.anchors = w.h.refresh(m.anchors, src, m.tokens, false)
	w.h.insert(m.anchors, Sent, spans)
}

// retain keeps src until it is acknowledged. If others have taken so many
// positions since src got its own that guard has passed it, it is kept aside
// from the start; guard comes later or has said so, as both hold mu.
func (w *Writer) retain(src []byte, spans [2]Span, matched bool) (seq uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	seq = w.first + uint64(len(w.sent))
	if w.closed {
		return seq
	}
	r := record{spans: spans, matched: matched}
	if spans[0].Pos < w.h.guarded.Load() {
		r.aside = slices.Clone(src)
	}
	w.sent = append(w.sent, r)
	return seq
}

// Acked takes the peer's word that it has stored the first n blocks: they
// become sources for every connection, and are no longer kept. ErrAck if so
// many were never put. Saying it again does no harm.
func (w *Writer) Acked(n uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || n <= w.first {
		return nil
	}
	done := n - w.first
	if done > uint64(len(w.sent)) {
		return ErrAck
	}
	for i := range w.sent[:done] {
		w.release(&w.sent[i])
	}
	rest := copy(w.sent, w.sent[done:])
	clear(w.sent[rest:])
	w.sent, w.first = w.sent[:rest], n
	return nil
}

// release marks a block's pages as acknowledged.
func (w *Writer) release(r *record) {
	tx := w.h.tx
	for _, s := range r.spans {
		eachPage(s.Pos, s.Len, func(page uint64, from, to int) {
			if page < tx.resident() {
				return // what the disk has was written without it
			}
			tx.update(page, w.owner, func(o word) word {
				if from > o.acked() {
					return o // dropped before: stays out
				}
				return newWord(w.owner, to, o.filled())
			})
		})
		if s.Len > 0 {
			tx.tier.mark(s.Pos)
			tx.tier.mark(s.Pos + uint64(s.Len) - 1)
		}
	}
}

// Again appends the bytes of unacknowledged block seq to dst and returns the
// block, without tokens. ErrGone if it is acknowledged or was never put.
func (w *Writer) Again(dst []byte, seq uint64) ([]byte, Block, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if seq < w.first || seq-w.first >= uint64(len(w.sent)) {
		return dst, Block{}, ErrGone
	}
	r := &w.sent[seq-w.first]
	b := Block{Seq: seq, Spans: r.spans, TxHead: w.h.tx.head.Load(), RxHead: w.h.rx.head.Load()}
	if r.aside != nil {
		return append(dst, r.aside...), b, nil
	}
	dst, err := w.h.tx.appendSpans(dst, r.spans)
	return dst, b, err
}

// Next is the Seq of the next block.
func (w *Writer) Next() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.first + uint64(len(w.sent))
}

// Matched appends to dst the unacknowledged blocks from seq on that refer to
// older bytes: those that a peer whose history is not ours cannot decode.
func (w *Writer) Matched(dst []uint64, seq uint64) []uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.sent {
		if n := w.first + uint64(i); n >= seq && w.sent[i].matched {
			dst = append(dst, n)
		}
	}
	return dst
}

// Drop takes a stretch that the peer could not use out of the legal sources:
// Sent means our tx, which the peer mirrors; Received its own. So are around
// bytes in front of it and behind it, as far as there are any.
func (w *Writer) Drop(r Ring, s Span, around uint64) {
	if r > Received || s.Len <= 0 || s.Len > MaxBlock || s.Pos > maxPos {
		return
	}
	ring := w.h.source(r)
	from := max(s.Pos-min(s.Pos, around), ring.tail())
	to := min(s.Pos+uint64(s.Len)+min(around, maxPos), ring.head.Load())
	for page := from / pageSize * pageSize; page < to; page += pageSize {
		p := ring.wordAt(page)
		old := word(p.Load())
		if page < ring.tail() || r == Received && old.tag() != ring.lap(page) {
			continue
		}
		p.CompareAndSwap(uint64(old), uint64(newWord(0, 0, 0)))
		ring.tier.mark(page)
	}
}

// copyAside saves what lies below limit; called by guard, before it is lost.
func (w *Writer) copyAside(limit uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.sent {
		r := &w.sent[i]
		if r.aside != nil || r.spans[0].Pos >= limit {
			continue
		}
		b, err := w.h.tx.appendSpans(make([]byte, 0, r.len()), r.spans)
		if err == nil {
			r.aside = b
		}
	}
}

// Close forgets the unacknowledged blocks; what was acknowledged stays in the
// history. Idempotent.
func (w *Writer) Close() {
	w.h.alloc.Lock()
	delete(w.h.retained, w)
	w.h.alloc.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed, w.sent = true, nil
}

// appendSpans appends the bytes of spans; ErrGone, and dst as it was, if they
// are no longer all held.
func (r *ring) appendSpans(dst []byte, spans [2]Span) ([]byte, error) {
	out := dst
	for _, s := range spans {
		at := len(out)
		out = append(out, zeroBlock[:s.Len]...)
		if !r.read(out[at:], s.Pos) {
			return dst, ErrGone
		}
	}
	return out, nil
}
