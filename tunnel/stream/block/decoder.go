package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"

	"stitch/compress"
	"stitch/dedupe"
)

// Decoder decodes the receiving direction of one connection. It is not safe
// for concurrent use, but for Stats.
type Decoder struct {
	r      *dedupe.Reader // nil without a history
	shop   *Shop
	connID uint64
	state  state // after the last body that arrived
	closed bool
	count  counters

	// After the last block that was decoded:
	next    uint64 // seq of the next one
	good    uint64 // how many were decoded as they were first sent
	model   *model // nil before the first tokens
	framing framing
	context *compress.Decoder

	// During a repair: what is missing, and later bodies, in order.
	missing   bool
	wantLen   int // application bytes of the missing block
	nack      nack
	held      []held
	spares    map[uint64]held // resent before they were asked for, by seq
	heldBytes int             // application bytes and heldCost of each
}

// NewDecoder returns a decoder; see NewEncoder. A decoder without a history
// refuses blocks that use one. Without a Shop it has its own.
func NewDecoder(h *dedupe.History, connID uint64, shop *Shop) *Decoder {
	d := &Decoder{connID: connID, shop: shop.orOwn()}
	if h != nil {
		d.r = h.NewReader()
	}
	return d
}

// Decode decodes body (borrowed) and appends the application's bytes to dst:
// at most MaxBlock, or during a repair none (the body is kept) or, when the
// resent block arrives, that one and everything kept behind it, at most
// MaxHeld more. The returned bytes are good and in order also with ErrMiss.
// Any other error is the end of the connection: ErrCorrupt, ErrStale, or
// net.ErrClosed after Close.
func (d *Decoder) Decode(dst, body []byte) (out []byte, err error) {
	if d.closed {
		return dst, net.ErrClosed
	}
	if isIdle(body) {
		return dst, d.idle()
	}
	h, at, ok := parseHeader(body, &d.state)
	if !ok || h.place != placeNone && d.r == nil {
		return dst, ErrCorrupt
	}
	d.count.in.Add(int64(len(body)))
	if h.resent {
		return d.repair(dst, &h, body[at:])
	}
	d.state.advance(&h)
	if d.missing {
		return dst, d.hold(&h, body[at:])
	}
	return d.decode(dst, &h, body[at:])
}

// repair takes a resent block and what was kept behind it; one that was not asked
// for is kept in case that it will be wanted.
func (d *Decoder) repair(dst []byte, h *header, rest []byte) ([]byte, error) {
	seq := h.block.Seq
	if d.missing && seq > d.next && seq < d.state.seq+maxEarly {
		return dst, d.spare(h, rest)
	}
	if !d.missing || seq != d.next || h.n != d.wantLen {
		return dst, fmt.Errorf("%w: block %d resent, want %d", ErrCorrupt, seq, d.next)
	}
	dst, err := d.decode(dst, h, rest)
	if err != nil {
		return dst, err
	}
	return d.unhold(dst)
}

// heldCost is what keeping a block takes beside its bytes.
const heldCost = 256

// held is a block that arrived behind a missing one: its header and the rest
// of its body, from the sum on.
type held struct {
	header header
	rest   []byte
}

func (d *Decoder) hold(h *header, rest []byte) error {
	if err := d.reserve(h.n); err != nil {
		return err
	}
	d.held = append(d.held, held{*h, slices.Clone(rest)})
	return nil
}

// reserve accounts for a block of n bytes that is kept.
func (d *Decoder) reserve(n int) error {
	if d.heldBytes+heldCost+n > MaxHeld {
		return fmt.Errorf("%w: more than %d bytes behind a missing block", ErrCorrupt, MaxHeld)
	}
	d.heldBytes += heldCost + n
	return nil
}

// maxEarly bounds how far a block may be resent ahead of itself: its sender may
// have encoded it and not yet sent.
const maxEarly = 16

// spare keeps a resent block that comes before it is missed.
func (d *Decoder) spare(h *header, rest []byte) error {
	if _, twice := d.spares[h.block.Seq]; twice {
		return fmt.Errorf("%w: block %d resent twice", ErrCorrupt, h.block.Seq)
	}
	if err := d.reserve(h.n); err != nil {
		return err
	}
	if d.spares == nil {
		d.spares = make(map[uint64]held)
	}
	d.spares[h.block.Seq] = held{*h, slices.Clone(rest)}
	return nil
}

// unhold ends a repair and decodes what was kept, up to the next miss.
func (d *Decoder) unhold(dst []byte) ([]byte, error) {
	d.missing = false
	kept := d.held
	for i := range kept {
		h := &kept[i].header
		d.heldBytes -= heldCost + h.n
		var err error
		if h.n == 0 {
			err = d.idle()
		} else {
			dst, err = d.decode(dst, h, kept[i].rest)
		}
		if err != nil {
			d.held = slices.Delete(kept, 0, i+1)
			return dst, err
		}
	}
	d.held = nil
	return dst, nil
}

// decode decodes block d.next; rest is its body from the sum on. A miss is made
// good at once if the block was resent before.
func (d *Decoder) decode(dst []byte, h *header, rest []byte) ([]byte, error) {
	out, err := d.attempt(dst, h, rest)
	spare, ok := d.spares[h.block.Seq]
	if !ok {
		return out, err
	}
	delete(d.spares, h.block.Seq)
	d.heldBytes -= heldCost + spare.header.n
	if !errors.Is(err, ErrMiss) || spare.header.n != h.n {
		return out, err
	}
	d.missing = false
	return d.attempt(dst, &spare.header, spare.rest)
}

// attempt decodes block d.next.
func (d *Decoder) attempt(dst []byte, h *header, rest []byte) ([]byte, error) {
	s := d.shop.get()
	defer d.shop.put(s)
	start := len(dst)
	want := binary.LittleEndian.Uint64(rest)
	out, err := d.rebuild(dst, h, rest[sumLen:], s)
	if err != nil {
		return dst, err
	}
	app := out[start:]
	before := d.framing
	if h.resent || !d.framing.known {
		d.framing.follow(app)
	} else {
		d.framing.join(app, s.lits, literals{tokens: s.tokens, patched: s.patched})
	}
	if h.sum(app, d.connID) != want {
		d.framing = before
		if len(s.tokens) == 0 && h.lits == compress.Raw {
			return dst, fmt.Errorf("%w: checksum", ErrCorrupt)
		}
		return dst, d.miss(h, s.tokens)
	}
	h.block.Tokens = s.tokens
	if h.place != placeNone {
		if err := d.r.Put(app, &h.block); err != nil {
			return dst, err
		}
	}
	d.next++
	if !h.resent {
		d.good++
	}
	d.tally(h)
	return out, nil
}

// rebuild appends the application's bytes, not yet checked, and leaves the
// tokens in s. The sections go on from those of the block before: they are
// read before anything can be found missing.
func (d *Decoder) rebuild(dst []byte, h *header, sections []byte, s *scratch) ([]byte, error) {
	s.tokens, s.patched, s.sources = s.tokens[:0], s.patched[:0], s.sources[:0]
	if h.form == formNone && (h.resent || !d.framing.known) {
		return d.expand(dst, sections, h, h.n)
	}
	lits, differences, err := h.n, 0, error(nil)
	if h.form != formNone {
		if lits, differences, err = d.tokens(h, sections[:h.section], s); err != nil {
			return dst, err
		}
	}
	if s.lits, err = d.expand(s.lits[:0], sections[h.section:], h, lits); err != nil {
		return dst, err
	}
	if h.form == formNone {
		return append(dst, s.lits...), nil
	}
	start := len(dst)
	out, missed, err := d.r.Rebuild(slices.Grow(dst, h.n), s.patches(), s.lits[differences:])
	switch {
	case errors.Is(err, dedupe.ErrGone):
		return dst, d.miss(h, s.sources[missed:missed+1])
	case errors.Is(err, dedupe.ErrLate):
		_ = d.miss(h, nil)
		return dst, ErrLate
	}
	if err == nil {
		s.lits = s.edit(out[start:])
	}
	return out, err
}

// patches makes s.sources of the tokens: a patched one brings what stands in
// front of its source.
func (s *scratch) patches() []dedupe.Token {
	for i := range s.tokens {
		t := s.tokens[i]
		if s.patched[i] {
			t = patch(&t)
		}
		s.sources = append(s.sources, t)
	}
	return s.sources
}

// edit adds the differences to a block of sources and returns the literals
// behind them.
func (s *scratch) edit(app []byte) []byte {
	differences := s.lits
	for i := range s.tokens {
		t := &s.tokens[i]
		if s.patched[i] {
			for k := range app[:t.Lit] {
				app[k] += differences[k]
			}
			differences = differences[t.Lit:]
		}
		app = app[t.Lit+t.Len:]
	}
	return differences
}

// tokens leaves the tokens in s and returns how many literals there are and
// how many of these are differences.
func (d *Decoder) tokens(h *header, section []byte, s *scratch) (lits, differences int, err error) {
	if d.model == nil {
		d.model = newModel()
	}
	if h.form == formRun {
		s.tokens, s.patched = append(s.tokens, d.model.run(h.n, h.off)), append(s.patched, false)
		return 0, 0, nil
	}
	var ok bool
	s.coder.begin(section)
	if lits, differences, ok = d.model.parse(s, h.n, h.off); !ok {
		return 0, 0, fmt.Errorf("%w: tokens", ErrCorrupt)
	}
	return lits, differences, nil
}

// expand appends the n literal bytes.
func (d *Decoder) expand(dst, section []byte, h *header, n int) (out []byte, err error) {
	if h.lits == compress.Carried {
		if d.context == nil {
			d.context = d.shop.codecs.Decoder()
		}
		if d.context == nil {
			return dst, fmt.Errorf("%w: too many contexts", ErrCorrupt)
		}
		out, err = d.context.Append(dst, section, n)
	} else {
		out, err = d.shop.codecs.Decode(dst, section, h.lits, n)
	}
	if err != nil {
		return dst, fmt.Errorf("%w: literals: %w", ErrCorrupt, err)
	}
	return out, nil
}

// isIdle says whether body only ends the compressor's context.
func isIdle(body []byte) bool {
	return len(body) == 2 && body[0] == byte(compress.Carried) && body[1] == 0
}

// idle gives up the context: at once, or in its turn behind what is kept.
func (d *Decoder) idle() error {
	if d.missing {
		return d.hold(&header{}, nil)
	}
	if d.context == nil {
		return fmt.Errorf("%w: no context to end", ErrCorrupt)
	}
	d.shop.codecs.ReleaseDecoder(d.context)
	d.context = nil
	return nil
}

// miss begins a repair: block d.next is wanted again; bad could not be used. It
// returns ErrMiss.
func (d *Decoder) miss(h *header, bad []dedupe.Token) error {
	d.missing, d.wantLen = true, h.n
	d.nack = nack{seq: h.block.Seq}
	for i := range bad {
		d.nack.add(&bad[i])
	}
	d.count.resent.Add(1)
	return ErrMiss
}

func (d *Decoder) tally(h *header) {
	matched, zeros := 0, 0
	for i := range h.block.Tokens {
		if t := &h.block.Tokens[i]; t.Ring == dedupe.Zeros {
			zeros += t.Len
		} else {
			matched += t.Len
		}
	}
	d.count.add(0, h.n, matched, zeros, h.n-matched-zeros)
}

// AppendAck appends the acknowledgement of everything decoded so far. Send it
// after each Decode, or after several: it frees the peer's memory and lets its
// other connections refer to these bytes.
func (d *Decoder) AppendAck(dst []byte) []byte { return binary.AppendUvarint(dst, d.next) }

// Good is how many blocks were decoded as they were first sent, so far: while it
// grows the two histories have something in common.
func (d *Decoder) Good() uint64 { return d.good }

// Missing says whether a block is missing: a repair is under way.
func (d *Decoder) Missing() bool { return d.missing }

// Carries says whether a compressor's context goes on in the next block.
func (d *Decoder) Carries() bool { return d.context != nil }

// AppendNack appends the request for the missing block, once after each
// ErrMiss. It appends nothing when no block is missing.
func (d *Decoder) AppendNack(dst []byte) []byte {
	if !d.missing {
		return dst
	}
	return d.nack.append(dst)
}

// Close releases what is kept. Idempotent.
func (d *Decoder) Close() {
	d.closed = true
	d.held, d.spares = nil, nil
	d.shop.codecs.ReleaseDecoder(d.context)
	d.context = nil
}

// Stats returns the counters.
func (d *Decoder) Stats() Stats { return d.count.load() }
