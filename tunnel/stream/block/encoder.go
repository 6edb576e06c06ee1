package block

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"sync/atomic"

	"stitch/compress"
	"stitch/dedupe"
)

// Encoder encodes the sending direction of one connection. Match and Finish
// are for one goroutine each, Append for one instead of both; SetLink, Ack,
// Resend, Stats and Close may run beside them.
type Encoder struct {
	w      *dedupe.Writer // nil without a history
	shop   *Shop
	connID uint64
	slack  uint64 // how far a block's heads may lag
	level  compress.Level
	closed atomic.Bool
	opaque atomic.Uint64 // 1 + the number of blocks before Opaque; 0: not called
	count  counters

	state state         // of Match
	gate  compress.Gate // of Finish
}

// NewEncoder returns an encoder; the peer's decoder must get the same connID.
// Without a history (h is nil, or the mode does not use it) nothing is kept
// and there is nothing to acknowledge. Close it.
func NewEncoder(h *dedupe.History, connID uint64, o Options) *Encoder {
	e := &Encoder{connID: connID, shop: o.Shop.orOwn(), level: compress.Strong}
	if o.Mode == Store {
		e.level = compress.Store
	}
	if h != nil && o.Mode == Full {
		e.w = h.NewWriter(dedupe.WriterOptions{Lines: o.Lines, Alone: o.Alone})
		e.slack = uint64(h.Size()) / 64
	}
	return e
}

// SetLink tells how many bytes a second the connection to the peer takes now;
// 0 if unknown.
func (e *Encoder) SetLink(bytesPerSecond float64) {}

// Opaque says that what follows is encrypted: from the next block on the bytes
// are framed and checked only. Call it where Match may be called.
func (e *Encoder) Opaque() { e.opaque.CompareAndSwap(0, e.state.seq+1) }

// Append encodes src (1 to MaxBlock bytes, borrowed) and appends the body, at
// most len(src) + len(src)/1024 + MaxHeader bytes, to dst. It keeps what
// Resend needs until Ack: how many bytes may be unacknowledged is the caller's
// credit to bound. When the history has been emptied, the block is sent
// without it. It panics if src is empty or too long.
func (e *Encoder) Append(dst, src []byte) []byte { return e.Finish(dst, e.Match(src)) }

// Work is a block between Match and Finish.
type Work struct {
	src  []byte // borrowed
	h    header
	lits []byte // literals, if there are tokens
	cols []byte // token section

	opaque bool
}

// Match does the first half of Append: it finds src in the history and puts it
// there. src stays borrowed until Finish. The caller bounds how many Works
// wait: each holds up to MaxBlock bytes.
func (e *Encoder) Match(src []byte) *Work {
	if len(src) == 0 || len(src) > MaxBlock {
		panic("block: Append of no bytes or more than MaxBlock")
	}
	w := e.shop.works.Get().(*Work)
	w.src, w.h, w.cols = src, header{n: len(src), off: e.state.off}, w.cols[:0]
	h := &w.h
	w.opaque = e.opaque.Load() > 0
	if e.w != nil && !w.opaque {
		var err error
		if h.block, err = e.w.Put(src); err == nil {
			h.setPlace(&e.state, e.slack)
		}
	}
	h.block.Seq = e.state.seq
	e.columns(w)
	e.state.advance(h)
	return w
}

// columns makes the token section and the literals. Tokens that take more
// bytes than they save are not used.
func (e *Encoder) columns(w *Work) {
	h := &w.h
	tokens := h.block.Tokens
	h.block.Tokens = nil // lent until the next Put
	if len(tokens) == 0 {
		return
	}
	course := e.state.course
	if course.isRun(tokens, h.n, h.off) {
		h.tokens, h.form, w.lits = 1, formRun, w.lits[:0]
		return
	}
	w.cols = e.state.course.appendTokens(w.cols, tokens, h.n, h.off)
	if len(w.cols) > h.block.Matched+h.block.ZeroRuns {
		w.cols, h.block.Matched, h.block.ZeroRuns, e.state.course = w.cols[:0], 0, 0, course
		return
	}
	h.tokens = len(tokens)
	w.lits = gather(w.lits[:0], w.src, tokens)
}

// gather collects the literals of src.
func gather(dst, src []byte, tokens []dedupe.Token) []byte {
	for i := range tokens {
		t := &tokens[i]
		dst = append(dst, src[:t.Lit]...)
		src = src[t.Lit+t.Len:]
	}
	return append(dst, src...)
}

// Finish does the second half of Append, in the order of Match; w must not be
// used again.
func (e *Encoder) Finish(dst []byte, w *Work) []byte {
	h, b, start := &w.h, &w.h.block, len(dst)
	s := e.shop.get()
	dst = e.body(dst, w, s)
	e.shop.put(s)
	e.count.add(h.n, len(dst)-start, b.Matched, b.ZeroRuns, h.n-b.Matched-b.ZeroRuns)
	w.src = nil
	e.shop.works.Put(w)
	return dst
}

// body appends a whole body.
func (e *Encoder) body(dst []byte, w *Work, s *scratch) []byte {
	h, lits := &w.h, w.src
	s.cols = s.cols[:0]
	if h.tokens > 0 {
		lits = w.lits
		s.cols = e.packTokens(s.cols, w)
	}
	start := len(dst)
	dst = slices.Grow(dst, MaxHeader+len(s.cols)+compress.ScratchLen(len(lits)))
	dst = h.append(dst)
	at := len(dst)
	dst = append(dst, make([]byte, sumLen)...)
	dst = append(dst, s.cols...)
	dst = e.literals(dst, lits, w)
	dst[start] = h.flags()
	binary.LittleEndian.PutUint64(dst[at:], h.sum(w.src, e.connID))
	return dst
}

// packTokens appends the token section as it is sent.
func (e *Encoder) packTokens(dst []byte, w *Work) []byte {
	h := &w.h
	if h.form == formRun {
		return dst
	}
	dst, codec := e.shop.codecs.Encode(dst, w.cols, e.level)
	h.form, h.rawCols, h.compCols = byte(codec), len(w.cols), len(dst)
	e.count.used(codec, h.rawCols, h.compCols)
	return dst
}

// literals appends the literals, compressed if that is worth trying.
func (e *Encoder) literals(dst, lits []byte, w *Work) []byte {
	start, h := len(dst), &w.h
	if w.opaque || e.level == compress.Store || len(lits) > 0 && !e.gate.Try(lits) {
		dst = append(dst, lits...)
	} else {
		dst, h.lits = e.shop.codecs.Encode(dst, lits, e.level)
		if len(lits) >= 1024 {
			e.gate.Report(len(lits), len(dst)-start)
		}
	}
	e.count.used(h.lits, len(lits), len(dst)-start)
	return dst
}

// plain appends src as raw literals under h.
func (e *Encoder) plain(dst, src []byte, h *header) []byte {
	dst = h.append(dst)
	dst = binary.LittleEndian.AppendUint64(dst, h.sum(src, e.connID))
	return append(dst, src...)
}

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
	return nil
}

// Resend appends the raw body of the block that nack (borrowed) asks for, and
// takes the sources the peer could not use out of use. On an error the
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
	s := e.shop.get()
	defer e.shop.put(s)
	var err error
	h := header{resent: true, place: placeOne}
	if s.lits, h.block, err = e.w.Again(s.lits[:0], m.seq); err != nil {
		return dst, err
	}
	for _, bad := range m.bad[:m.count] {
		e.w.Drop(bad.ring, bad.span)
	}
	h.n = len(s.lits)
	if h.block.Spans[1].Len > 0 {
		h.place = placeTwo
	}
	start := len(dst)
	dst = e.plain(dst, s.lits, &h)
	e.count.resent.Add(1)
	e.count.out.Add(int64(len(dst) - start))
	return dst, nil
}

// Close releases what is kept. Idempotent.
func (e *Encoder) Close() {
	if e.w != nil && !e.closed.Swap(true) {
		e.w.Close()
	}
	e.closed.Store(true)
}

// Stats returns the counters.
func (e *Encoder) Stats() Stats { return e.count.load() }
