package block

import (
	"cmp"
	"errors"
	"maps"
	"math"
	"slices"

	"stitch/compress"
	"stitch/dedupe"
	"stitch/tunnel/stream/field"
)

// ErrContext is returned for the state of an encoder or decoder in the middle of a
// compressor's context, which is megabytes and the compressor's own.
var ErrContext = errors.New("block: a compressor's context is not part of a state")

// maxExtent is the most positions that a Writer has and has not filled.
const maxExtent = 1 << 20

// EncoderState is an Encoder between two blocks as a value of plain data: what
// ResumeEncoder, also that of another process, goes on from. Not in it is what an
// Encoder learns about speed: how hard to compress, and whether matching pays.
type EncoderState struct {
	state   state
	opaque  uint64
	bulk    int
	barred  bool
	framing framing
	model   *model
	doubt   doubt
	writer  *dedupe.WriterState // nil without a history
	count   Stats
}

// DecoderState is a Decoder between two bodies, as EncoderState.
type DecoderState struct {
	state   state
	next    uint64
	framing framing
	model   *model
	missing bool
	wantLen int
	nack    nack
	held    []held
	spares  []held
	count   Stats
}

// State returns the encoder's state. Nothing else may be going on, and afterwards
// only Stats and Close are allowed. ErrContext before Leave; ErrStale and
// dedupe.ErrGone if the stream cannot go on anyway.
func (e *Encoder) State() (*EncoderState, error) {
	if e.context != nil {
		return nil, ErrContext
	}
	s := &EncoderState{
		state: e.state, opaque: e.opaque.Load(), bulk: e.bulk, barred: e.barred.Load(),
		framing: e.framing, model: e.model.clone(), doubt: e.doubt, count: e.count.load(),
	}
	if e.w == nil {
		return s, nil
	}
	w, err := e.w.State()
	if err != nil {
		return nil, err
	}
	s.writer = &w
	return s, nil
}

// ResumeEncoder returns an encoder that goes on with s, of which it keeps the
// blocks; see NewEncoder. The history is the one s is from, or what another process
// has of it after Continue; and connID and the options are the same. ErrCorrupt for a
// state of a connection with a history if there is none, or without if there is one.
func ResumeEncoder(h *dedupe.History, connID uint64, o Options, s *EncoderState) (*Encoder, error) {
	if (h != nil && o.Mode == Full) != (s.writer != nil) {
		return nil, ErrCorrupt
	}
	e := newEncoder(connID, o)
	if s.writer != nil {
		e.attach(h, h.Resume(*s.writer, o.writer()))
	}
	e.state, e.bulk, e.framing, e.model = s.state, s.bulk, s.framing, s.model.clone()
	e.opaque.Store(s.opaque)
	e.barred.Store(s.barred)
	repairs := e.doubt.repairs
	e.doubt = s.doubt
	e.doubt.repairs = repairs
	e.sparse.Store(e.doubt.sparse())
	e.count.store(&s.count)
	return e, nil
}

// Sent is how many application bytes the encoder has taken.
func (s *EncoderState) Sent() uint64 { return s.state.off }

// Kept is how many blocks are kept until they are acknowledged.
func (s *EncoderState) Kept() int {
	if s.writer == nil {
		return 0
	}
	return len(s.writer.Kept)
}

// State returns the decoder's state; afterwards only Stats and Close are allowed.
// ErrContext while Carries.
func (d *Decoder) State() (*DecoderState, error) {
	if d.context != nil {
		return nil, ErrContext
	}
	return &DecoderState{
		state: d.state, next: d.next, framing: d.framing, model: d.model.clone(),
		missing: d.missing, wantLen: d.wantLen, nack: d.nack, held: slices.Clone(d.held),
		spares: slices.SortedFunc(maps.Values(d.spares), func(a, b held) int {
			return cmp.Compare(a.header.block.Seq, b.header.block.Seq)
		}),
		count: d.count.load(),
	}, nil
}

// ResumeDecoder returns a decoder that goes on with s, whose blocks it keeps; see
// ResumeEncoder.
func ResumeDecoder(h *dedupe.History, connID uint64, shop *Shop, s *DecoderState) *Decoder {
	d := NewDecoder(h, connID, shop)
	d.state, d.next, d.framing, d.model = s.state, s.next, s.framing, s.model.clone()
	d.missing, d.wantLen, d.nack, d.held = s.missing, s.wantLen, s.nack, slices.Clone(s.held)
	for _, b := range s.spares {
		if d.spares == nil {
			d.spares = make(map[uint64]held)
		}
		d.spares[b.header.block.Seq] = b
	}
	for _, bs := range [][]held{s.held, s.spares} {
		for i := range bs {
			d.heldBytes += heldCost + bs[i].header.n
		}
	}
	d.count.store(&s.count)
	return d
}

// Decoded is how many application bytes the decoder has returned.
func (s *DecoderState) Decoded() uint64 {
	n := s.state.off
	if !s.missing {
		return n
	}
	n -= uint64(s.wantLen)
	for i := range s.held {
		n -= uint64(s.held[i].header.n)
	}
	return n
}

// Missing says whether a repair is under way.
func (s *DecoderState) Missing() bool { return s.missing }

// Fields shows the state's fields.
func (s *EncoderState) Fields(c field.Coder) {
	s.state.fields(c)
	c.Number(&s.opaque, s.state.seq+1)
	field.Int(c, &s.bulk, math.MaxInt64)
	c.Flag(&s.barred)
	s.framing.fields(c)
	modelFields(c, &s.model)
	field.Int(c, &s.doubt.level, trusting+maxSparse)
	c.Number(&s.doubt.good, calm)
	c.Number(&s.doubt.last, s.state.seq)
	c.Number(&s.doubt.flight, s.state.seq)
	history := s.writer != nil
	if c.Flag(&history); history {
		if s.writer == nil {
			s.writer = new(dedupe.WriterState)
		}
		writerFields(c, s.writer)
		blocks := s.state.seq
		if s.opaque > 0 {
			blocks = s.opaque - 1
		}
		c.Check(s.writer.First+uint64(len(s.writer.Kept)) == blocks)
	}
	s.count.fields(c)
	c.Check(uint64(s.count.In) == s.state.off)
}

// Fields shows the state's fields.
func (s *DecoderState) Fields(c field.Coder) {
	s.state.fields(c)
	c.Number(&s.next, s.state.seq)
	s.framing.fields(c)
	modelFields(c, &s.model)
	if c.Flag(&s.missing); s.missing {
		field.Int(c, &s.wantLen, MaxBlock)
		s.nack.fields(c)
		field.List(c, &s.held, func(h *held) { h.fields(c) })
		field.List(c, &s.spares, func(h *held) { h.fields(c) })
	}
	s.count.fields(c)
	c.Check(s.sound())
}

// sound says whether the blocks that wait for a missing one are those behind it, and
// what they take is within the bounds.
func (s *DecoderState) sound() bool {
	total, seq, bytes := 0, s.next, uint64(0)
	if s.missing {
		seq, bytes = seq+1, uint64(s.wantLen)
	}
	for i := range s.held {
		h := &s.held[i].header
		total += heldCost + h.n
		bytes += uint64(h.n)
		if h.n > 0 { // else it ends a context
			if h.block.Seq != seq || h.resent {
				return false
			}
			seq++
		}
	}
	for i := range s.spares {
		h := &s.spares[i].header
		total += heldCost + h.n
		if !h.resent || h.block.Seq <= s.next || h.block.Seq >= s.state.seq+maxEarly ||
			i > 0 && h.block.Seq <= s.spares[i-1].header.block.Seq {
			return false
		}
	}
	return seq == s.state.seq && bytes <= s.state.off && total <= MaxHeld &&
		s.Decoded() == uint64(s.count.Out) && (!s.missing || s.wantLen > 0 && s.nack.seq == s.next)
}

func (s *state) fields(c field.Coder) {
	for _, v := range []*uint64{&s.seq, &s.off, &s.end, &s.txHead, &s.rxHead} {
		c.Number(v, maxNumber)
	}
	c.Check(s.end <= s.txHead)
}

func (f *framing) fields(c field.Coder) {
	if c.Flag(&f.known); f.known {
		field.Int(c, &f.next, 8+pageSize)
		c.Number(&f.word, math.MaxUint64)
	}
	field.Int(c, &f.wait, 63)
	field.Int(c, &f.skip, 63)
}

func writerFields(c field.Coder, s *dedupe.WriterState) {
	c.Number(&s.Instance, math.MaxUint64)
	field.Int(c, &s.Owner, math.MaxUint32)
	c.Number(&s.Next, maxNumber)
	c.Number(&s.End, maxNumber)
	c.Check(s.Next <= s.End && s.End-s.Next <= maxExtent)
	field.Int(c, &s.Grow, maxExtent)
	c.Number(&s.First, maxNumber)
	field.List(c, &s.Kept, func(k *dedupe.Kept) {
		spansFields(c, &k.Spans)
		c.Bytes(&k.Data, MaxBlock)
		c.Check(len(k.Data) > 0 && k.Spans[0].Len+k.Spans[1].Len == len(k.Data))
		c.Flag(&k.Matched)
	})
}

func spansFields(c field.Coder, spans *[2]dedupe.Span) {
	for i := range spans {
		c.Number(&spans[i].Pos, maxNumber)
		field.Int(c, &spans[i].Len, MaxBlock)
	}
}

func (m *nack) fields(c field.Coder) {
	c.Number(&m.seq, maxNumber)
	field.Int(c, &m.count, maxBad)
	for i := range m.bad[:m.count] {
		b := &m.bad[i]
		field.Int(c, &b.ring, uint64(dedupe.Received))
		c.Number(&b.span.Pos, maxNumber)
		field.Int(c, &b.span.Len, MaxBlock)
	}
}

func (b *held) fields(c field.Coder) {
	h := &b.header
	field.Int(c, &h.n, MaxBlock)
	if h.n == 0 {
		return // it ends a context
	}
	field.Int(c, &h.lits, uint64(compress.Carried))
	field.Int(c, &h.form, uint64(formRun))
	field.Int(c, &h.place, uint64(placeTwo))
	c.Flag(&h.resent)
	c.Number(&h.off, maxNumber)
	c.Number(&h.block.Seq, maxNumber)
	spansFields(c, &h.block.Spans)
	c.Number(&h.block.TxHead, maxNumber)
	c.Number(&h.block.RxHead, maxNumber)
	field.Int(c, &h.section, MaxFrame)
	c.Bytes(&b.rest, MaxFrame)
	c.Check(len(b.rest)-sumLen >= h.section && h.sound())
}

// sound says whether parseHeader makes such headers.
func (h *header) sound() bool {
	b := &h.block
	spans := b.Spans[0].Len + b.Spans[1].Len
	switch {
	case !h.allowed() || !b.Valid():
		return false
	case h.place == placeNone:
		return spans == 0
	case h.place != placeTwo:
		return spans == h.n && b.Spans[1].Len == 0
	}
	return spans == h.n && b.Spans[0].Len > 0
}

// probs are all the probabilities of a model.
func (m *model) probs(dst []*prob) []*prob {
	all := func(ps []prob) {
		for i := range ps {
			dst = append(dst, &ps[i])
		}
	}
	of := func(n *number) {
		all(n.width[:])
		for i := range n.high {
			all(n.high[i][:])
			all(n.low[i][:])
		}
	}
	of(&m.count)
	for i := range m.kinds {
		all(m.kinds[i][:])
	}
	all(m.ends[:])
	dst = append(dst, &m.patch)
	all(m.sign[:])
	for _, ns := range [][]number{m.lit[:], m.length[:], m.far[:]} {
		for i := range ns {
			of(&ns[i])
		}
	}
	return dst
}

func (m *model) clone() *model {
	if m == nil {
		return nil
	}
	c := *m
	return &c
}

// modelFields shows a model, or that there is none. Most of the probabilities are
// those of a new model; the others are shown with how many of these are in front.
func modelFields(c field.Coder, m **model) {
	is := *m != nil
	if c.Flag(&is); !is {
		return
	}
	if *m == nil {
		*m = newModel()
	}
	for i := range (*m).recent {
		u := &(*m).recent[i]
		field.Int(c, &u.ring, uint64(dedupe.Received))
		c.Number(&u.diag, math.MaxUint64)
	}
	c.Number(&(*m).kind, kindCount-1)
	var fresh prob
	fresh.reset()
	ps := (*m).probs(nil)
	for c.OK() {
		skip := slices.IndexFunc(ps, func(p *prob) bool { return *p != fresh })
		if skip < 0 {
			skip = len(ps)
		}
		field.Int(c, &skip, uint64(len(ps)))
		if ps = ps[skip:]; len(ps) == 0 {
			return
		}
		field.Int(c, &ps[0].fast, math.MaxUint16)
		field.Int(c, &ps[0].slow, math.MaxUint16)
		ps = ps[1:]
	}
}

func (s *Stats) fields(c field.Coder) {
	for _, v := range []*int64{
		&s.In, &s.Out, &s.Matched, &s.Zero, &s.Literal, &s.Resent,
		&s.Mix.Raw.In, &s.Mix.Raw.Out, &s.Mix.S2.In, &s.Mix.S2.Out,
		&s.Mix.Zstd.In, &s.Mix.Zstd.Out, &s.Mix.Carried.In, &s.Mix.Carried.Out,
	} {
		field.Int(c, v, math.MaxInt64)
	}
}

// store sets counters that nobody else knows yet.
func (c *counters) store(s *Stats) {
	c.in.Store(s.In)
	c.out.Store(s.Out)
	c.matched.Store(s.Matched)
	c.zero.Store(s.Zero)
	c.literal.Store(s.Literal)
	c.resent.Store(s.Resent)
	for codec, v := range map[compress.Codec]Share{compress.Raw: s.Mix.Raw, compress.S2: s.Mix.S2, compress.Zstd: s.Mix.Zstd, compress.Carried: s.Mix.Carried} {
		c.mix[codec].in.Store(v.In)
		c.mix[codec].out.Store(v.Out)
	}
}
