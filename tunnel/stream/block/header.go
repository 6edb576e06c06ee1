package block

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"

	"stitch/compress"
	"stitch/dedupe"
)

// The flags byte: lits codec, token form, place, then single bits.
const (
	tokensShift = 2
	placeShift  = 4
	flagFull    = 1 << 6
	flagResent  = 1 << 7

	sumLen    = 8
	maxNumber = 1 << 60
)

// form says how a block's tokens are given.
type form byte

const (
	formNone  form = iota // no tokens
	formCoded             // a token section
	formRun               // the block is one match in step
)

// place says how a block's place in the history is given.
type place byte

const (
	placeNone   place = iota // no history
	placeGoesOn              // behind the connection's last block, heads known
	placeOne                 // given, one span
	placeTwo                 // given, two spans
)

// state is what both ends know from the connection's blocks so far. Resent
// blocks neither use nor change it.
type state struct {
	seq    uint64 // of the next block
	off    uint64 // application bytes in front of it
	end    uint64 // where the last block with a place ended
	txHead uint64
	rxHead uint64
}

// header is everything in front of the sections.
type header struct {
	lits    compress.Codec
	form    form
	place   place
	resent  bool
	n       int
	off     uint64       // application bytes in front of the block
	block   dedupe.Block // without tokens
	section int          // bytes of the token section
}

func (h *header) flags() byte {
	f := byte(h.lits) | byte(h.form)<<tokensShift | byte(h.place)<<placeShift
	if h.n == MaxBlock {
		f |= flagFull
	}
	if h.resent {
		f |= flagResent
	}
	return f
}

// setPlace chooses the shortest way to say where the block lies. The heads
// need not be exact: they may lag by slack.
func (h *header) setPlace(s *state, slack uint64) {
	b := &h.block
	known := max(s.txHead, b.Spans[0].Pos+uint64(h.n))
	switch {
	case b.Spans[1].Len > 0:
		h.place = placeTwo
	case b.Spans[0].Pos == s.end && b.TxHead <= known+slack && b.RxHead <= s.rxHead+slack:
		h.place = placeGoesOn
		b.TxHead, b.RxHead = known, s.rxHead
	default:
		h.place = placeOne
	}
}

// append appends the header without the sum. The flags come first and may be
// patched.
func (h *header) append(dst []byte) []byte {
	dst = append(dst, h.flags())
	if h.resent {
		dst = binary.AppendUvarint(dst, h.block.Seq)
	}
	if h.n != MaxBlock {
		dst = binary.AppendUvarint(dst, uint64(h.n))
	}
	b := &h.block
	if h.place >= placeOne {
		dst = binary.AppendUvarint(dst, b.TxHead)
		dst = binary.AppendUvarint(dst, b.TxHead-b.Spans[0].Pos)
		dst = binary.AppendUvarint(dst, b.RxHead)
	}
	if h.place == placeTwo {
		dst = binary.AppendUvarint(dst, uint64(b.Spans[0].Len))
		dst = binary.AppendUvarint(dst, b.TxHead-b.Spans[1].Pos)
	}
	if h.form == formCoded {
		dst = binary.AppendUvarint(dst, uint64(h.section))
	}
	return dst
}

// parseHeader parses body's header as it stands after s, and returns its
// length without the sum. Every number is within its bounds afterwards.
func parseHeader(body []byte, s *state) (h header, length int, ok bool) {
	if len(body) == 0 || len(body) > MaxFrame {
		return h, 0, false
	}
	f := body[0]
	r := reader{buf: body, at: 1}
	h.lits, h.form = compress.Codec(f&3), form(f>>tokensShift&3)
	h.place, h.resent = place(f>>placeShift&3), f&flagResent != 0
	h.block.Seq, h.off = s.seq, s.off
	if h.resent {
		h.block.Seq = r.number(maxNumber)
	}
	h.n = MaxBlock
	if f&flagFull == 0 {
		h.n = int(r.number(MaxBlock - 1))
	}
	h.parsePlace(&r, s)
	if h.form == formCoded {
		h.section = int(r.number(uint64(len(body))))
	}
	ok = !r.bad && len(body)-r.at-sumLen >= h.section && h.n > 0 && h.allowed()
	return h, r.at, ok
}

// allowed checks which parts go together.
func (h *header) allowed() bool {
	if h.resent {
		return h.form == formNone && h.lits == compress.Raw && h.place != placeGoesOn
	}
	switch h.form {
	case formNone:
		return true
	case formRun:
		return h.place != placeNone && h.n >= dedupe.MinToken && h.lits == compress.Raw
	}
	return h.place != placeNone && h.form == formCoded && h.section > 0
}

func (h *header) parsePlace(r *reader, s *state) {
	b := &h.block
	switch h.place {
	case placeNone:
		return
	case placeGoesOn:
		b.Spans[0] = dedupe.Span{Pos: s.end, Len: h.n}
		b.TxHead, b.RxHead = max(s.txHead, s.end+uint64(h.n)), s.rxHead
	default:
		b.TxHead = r.number(maxNumber)
		b.Spans[0] = dedupe.Span{Pos: b.TxHead - r.number(b.TxHead), Len: h.n}
		b.RxHead = r.number(maxNumber)
	}
	if h.place == placeTwo {
		b.Spans[0].Len = int(r.number(uint64(max(h.n, 1) - 1)))
		b.Spans[1] = dedupe.Span{Pos: b.TxHead - r.number(b.TxHead), Len: h.n - b.Spans[0].Len}
		r.bad = r.bad || b.Spans[0].Len == 0
	}
	r.bad = r.bad || !b.Valid()
}

// advance moves s over a block that was not resent.
func (s *state) advance(h *header) {
	s.seq++
	s.off += uint64(h.n)
	if h.place == placeNone {
		return
	}
	b := &h.block
	last := b.Spans[0]
	if b.Spans[1].Len > 0 {
		last = b.Spans[1]
	}
	s.end = last.Pos + uint64(last.Len)
	s.txHead, s.rxHead = b.TxHead, b.RxHead
}

// sum is the checksum of a block's application bytes, of what its header
// stands for (not its bytes: they depend on the state), and of the connection.
func (h *header) sum(app []byte, connID uint64) uint64 {
	b := &h.block
	var head [8 * 8]byte
	for i, v := range [8]uint64{
		b.Seq, uint64(h.n), b.Spans[0].Pos, uint64(b.Spans[0].Len),
		b.Spans[1].Pos, uint64(b.Spans[1].Len), b.TxHead, b.RxHead,
	} {
		binary.LittleEndian.PutUint64(head[8*i:], v)
	}
	return xxh3.HashSeed(app, xxh3.HashSeed(head[:], connID))
}

// reader reads numbers; bad once one is missing or out of bounds.
type reader struct {
	buf []byte
	at  int
	bad bool
}

// number reads a varint that is at most limit; 0 when bad.
func (r *reader) number(limit uint64) uint64 {
	if r.bad {
		return 0
	}
	if r.at < len(r.buf) && r.buf[r.at] < 0x80 {
		v := uint64(r.buf[r.at])
		r.at++
		if r.bad = v > limit; r.bad {
			return 0
		}
		return v
	}
	v, n := binary.Uvarint(r.buf[r.at:])
	if n <= 0 || v > limit {
		r.bad = true
		return 0
	}
	r.at += n
	return v
}
