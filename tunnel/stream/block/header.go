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

	// formRun is the token form of a block that is one match in step; the
	// other forms are codecs.
	formRun = 3
	sumLen  = 8
	// maxTokenLen is the most bytes a token takes in the columns.
	maxTokenLen = 3 + 3 + binary.MaxVarintLen64
	maxNumber   = 1 << 60
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
	course course
}

// header is everything in front of the sections.
type header struct {
	lits     compress.Codec
	form     byte // of the tokens: a codec or formRun
	place    place
	resent   bool
	n        int
	off      uint64       // application bytes in front of the block
	block    dedupe.Block // without tokens
	tokens   int
	rawCols  int // bytes of the token section, decoded
	compCols int // and as sent; unused if the form is raw
}

func (h *header) flags() byte {
	f := byte(h.lits) | h.form<<tokensShift | byte(h.place)<<placeShift
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
	if h.place == placeNone || h.form == formRun {
		return dst
	}
	dst = binary.AppendUvarint(dst, uint64(h.tokens))
	if h.form != byte(compress.Raw) {
		dst = binary.AppendUvarint(dst, uint64(h.rawCols))
		dst = binary.AppendUvarint(dst, uint64(h.compCols))
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
	h.lits, h.form = compress.Codec(f&3), f>>tokensShift&3
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
	h.parseTokenCount(&r)
	ok = !r.bad && len(body)-r.at >= sumLen && h.n > 0 && h.lits <= compress.Zstd &&
		h.compCols <= len(body)-r.at-sumLen && h.allowed()
	return h, r.at, ok
}

// allowed checks which parts go together.
func (h *header) allowed() bool {
	if h.resent {
		return h.tokens == 0 && h.form == 0 && h.lits == compress.Raw && h.place != placeGoesOn
	}
	return h.place != placeNone || h.form == 0
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

func (h *header) parseTokenCount(r *reader) {
	switch {
	case h.place == placeNone:
	case h.form == formRun:
		h.tokens = 1
		r.bad = r.bad || h.n < dedupe.MinToken || h.lits != compress.Raw
	default:
		h.tokens = int(r.number(uint64(h.n / dedupe.MinToken)))
		if h.form != byte(compress.Raw) {
			h.rawCols = int(r.number(uint64(h.tokens * maxTokenLen)))
			h.compCols = int(r.number(uint64(h.rawCols)))
			r.bad = r.bad || h.rawCols < 2*h.tokens
		}
		r.bad = r.bad || h.form == byte(compress.Raw) && len(r.buf)-r.at < 2*h.tokens
	}
}

// advance moves s over a block that was not resent; the course is the tokens'.
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
