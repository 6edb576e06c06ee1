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

// Encoder encodes the sending direction of one connection. Append is for one
// goroutine at a time; Ack, Resend, Stats and Close may run beside it.
type Encoder struct {
	w      *dedupe.Writer // nil without a history
	connID uint64
	slack  uint64 // how far a block's heads may lag
	state  state
	gate   compress.Gate
	closed atomic.Bool
	count  counters
}

// NewEncoder returns an encoder; the peer's decoder must get the same connID.
// h may be nil: then blocks are only compressed, nothing is kept, and there is
// nothing to acknowledge. Close it.
func NewEncoder(h *dedupe.History, connID uint64) *Encoder {
	e := &Encoder{connID: connID}
	if h != nil {
		e.w = h.NewWriter(dedupe.WriterOptions{})
		e.slack = uint64(h.Size()) / 64
	}
	return e
}

// Append encodes src (1 to MaxBlock bytes, borrowed) and appends the body, at
// most len(src) + len(src)/1024 + MaxHeader bytes, to dst. It keeps what
// Resend needs until Ack: how many bytes may be unacknowledged is the caller's
// credit to bound. When the history has been emptied, the block is sent
// without it. It panics if src is empty or too long.
func (e *Encoder) Append(dst, src []byte, effort Effort) []byte {
	if len(src) == 0 || len(src) > MaxBlock {
		panic("block: Append of no bytes or more than MaxBlock")
	}
	start := len(dst)
	s := shop.get()
	defer shop.put(s)
	h := header{n: len(src), off: e.state.off}
	if e.w != nil {
		var err error
		if h.block, err = e.w.Put(src); err == nil {
			h.setPlace(&e.state, e.slack)
		}
	}
	h.block.Seq = e.state.seq
	course := e.state.course
	dst = e.body(dst, src, &h, effort.level(), s)
	b := &h.block
	if over := len(dst) - start - len(src); over > MaxHeader {
		dst = e.plain(dst[:start], src, &h)
		b.Matched, b.ZeroRuns = 0, 0
		e.state.course = course
	}
	e.state.advance(&h)
	e.count.add(len(src), len(dst)-start, b.Matched, b.ZeroRuns, len(src)-b.Matched-b.ZeroRuns)
	return dst
}

// body appends a whole body.
func (e *Encoder) body(dst, src []byte, h *header, l compress.Level, s *scratch) []byte {
	lits := src
	s.comp = s.comp[:0]
	if tokens := h.block.Tokens; len(tokens) > 0 {
		s.lits = gather(s.lits[:0], src, tokens)
		lits = s.lits
		e.tokens(h, l, s)
	}
	start := len(dst)
	dst = slices.Grow(dst, MaxHeader+len(s.comp)+compress.ScratchLen(len(lits)))
	dst = h.append(dst)
	at := len(dst)
	dst = append(dst, make([]byte, sumLen)...)
	dst = append(dst, s.comp...)
	dst = e.literals(dst, lits, h, l)
	dst[start] = h.flags()
	binary.LittleEndian.PutUint64(dst[at:], h.sum(src, e.connID))
	return dst
}

// tokens puts the token section into s.comp.
func (e *Encoder) tokens(h *header, l compress.Level, s *scratch) {
	tokens := h.block.Tokens
	h.tokens = len(tokens)
	if e.state.course.isRun(tokens, h.n, h.off) {
		h.form = formRun
		return
	}
	s.cols = e.state.course.appendTokens(s.cols[:0], tokens, h.n, h.off)
	var codec compress.Codec
	s.comp, codec = shop.codecs.Encode(s.comp, s.cols, l)
	h.form, h.rawCols, h.compCols = byte(codec), len(s.cols), len(s.comp)
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

// literals appends the literals, compressed if that is worth trying.
func (e *Encoder) literals(dst, lits []byte, h *header, l compress.Level) []byte {
	if l == compress.Store || len(lits) > 0 && !e.gate.Try(lits) {
		return append(dst, lits...)
	}
	start := len(dst)
	dst, h.lits = shop.codecs.Encode(dst, lits, l)
	if len(lits) >= 1024 {
		e.gate.Report(len(lits), len(dst)-start)
	}
	return dst
}

// plain appends src as raw literals under h.
func (e *Encoder) plain(dst, src []byte, h *header) []byte {
	h.tokens, h.rawCols, h.compCols, h.lits, h.form = 0, 0, 0, 0, 0
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
	s := shop.get()
	defer shop.put(s)
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
