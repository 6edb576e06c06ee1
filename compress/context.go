package compress

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"
)

// Window is how far back the blocks of one context may refer.
const Window = 8 << 20

const (
	// zstdMagic begins a frame. No zstd block begins with these bytes, so a
	// section that does begins a new context.
	zstdMagic = 0xfd2fb528
	// shuffled begins a section with shuffled pieces: neither a frame nor a
	// zstd block (of type 3) begins with this byte.
	shuffled = 0x06
)

// Encoder carries the context of one stream from block to block: one zstd
// frame without end, flushed behind each block. It holds the stream's last
// bytes, so it belongs to one stream until it is given back. It is not safe
// for concurrent use.
type Encoder struct {
	zstd  *zstd.Encoder
	level Level
	out   []byte
	table [piece]byte
}

// Level is what the encoder was taken for.
func (e *Encoder) Level() Level { return e.level }

// Append appends src (borrowed, at most MaxBlock bytes) as the next section of
// the context: at most 3 bytes for each 128 KiB more than src, and 16 for the
// context's first.
func (e *Encoder) Append(dst, src []byte) []byte {
	e.out = dst
	e.write(src)
	e.flush()
	dst, e.out = e.out, nil
	return dst
}

// AppendShuffled is Append that shuffles what looks like a table: at most 70
// bytes for each 128 KiB more than src. What is shuffled has zstd blocks of its
// own behind the others, as its bytes are of another kind.
func (e *Encoder) AppendShuffled(dst, src []byte) []byte {
	start := len(dst)
	out, any := appendWidths(append(dst, shuffled), src)
	if !any {
		return e.Append(dst, src)
	}
	ws := widths(out[start+1:])
	e.out = out
	plain := 0 // where a run of plain pieces begins
	for i := range ws.pieces(len(src)) {
		if ws.at(i) > 0 {
			e.write(src[plain : i*piece])
			plain = (i + 1) * piece
		}
	}
	e.write(src[plain:])
	e.flush()
	for i := range ws.pieces(len(src)) {
		if w := ws.at(i); w > 0 {
			shuffle(&e.table, (*[piece]byte)(src[i*piece:]), w)
			e.write(e.table[:])
		}
	}
	e.flush()
	dst, e.out = e.out, nil
	return dst
}

func (e *Encoder) write(b []byte) {
	if _, err := e.zstd.Write(b); err != nil {
		panic(err) // the sink does not fail
	}
}

func (e *Encoder) flush() {
	if err := e.zstd.Flush(); err != nil {
		panic(err)
	}
}

// Write takes what the zstd encoder writes.
func (e *Encoder) Write(b []byte) (int, error) {
	e.out = append(e.out, b...)
	return len(b), nil
}

// Decoder is the other end of an Encoder. It is not safe for concurrent use.
type Decoder struct {
	zstd  *zstd.Decoder
	in    section
	begun bool
	table [piece]byte
}

// section is the bytes a Decoder may read; asking for more is an error.
type section struct{ rest []byte }

func (s *section) Read(b []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// Append appends the n bytes that src (borrowed) must decode to, as the next
// section of the context or the first of a new one. On error dst is returned
// as it was, and the Decoder is good only for a new context. Whether the bytes
// are right is for the caller's checksum to say.
func (d *Decoder) Append(dst, src []byte, n int) ([]byte, error) {
	if n <= 0 || n > MaxBlock {
		return dst, ErrTooLarge
	}
	ws, src, err := cutWidths(src, n)
	if err != nil {
		return dst, err
	}
	if err := d.begin(src); err != nil {
		return dst, err
	}
	start := len(dst)
	dst = slices.Grow(dst, n)[:start+n]
	d.in.rest = src
	err = d.fill(dst[start:], ws)
	if left := len(d.in.rest); err != nil || left > 0 {
		d.in.rest, d.begun = nil, false
		return dst[:start], fmt.Errorf("%w: context: %d bytes left (%v)", ErrCorrupt, left, err)
	}
	return dst, nil
}

// fill decodes into dst: the plain pieces, then the shuffled ones.
func (d *Decoder) fill(dst []byte, ws widths) error {
	plain := 0 // where a run of plain pieces begins
	for i := range ws.pieces(len(dst)) {
		if ws.at(i) > 0 {
			if _, err := io.ReadFull(d.zstd, dst[plain:i*piece]); err != nil {
				return err
			}
			plain = (i + 1) * piece
		}
	}
	if _, err := io.ReadFull(d.zstd, dst[plain:]); err != nil {
		return err
	}
	for i := range ws.pieces(len(dst)) {
		if w := ws.at(i); w > 0 {
			if _, err := io.ReadFull(d.zstd, d.table[:]); err != nil {
				return err
			}
			unshuffle((*[piece]byte)(dst[i*piece:]), &d.table, w)
		}
	}
	return nil
}

// begin notices the beginning of a context and checks what it asks for.
func (d *Decoder) begin(src []byte) error {
	if len(src) < 4 || binary.LittleEndian.Uint32(src) != zstdMagic {
		if !d.begun {
			return fmt.Errorf("%w: no context to go on from", ErrCorrupt)
		}
		return nil
	}
	var h zstd.Header
	if err := h.Decode(src); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if h.HasFCS || h.HasCheckSum || h.DictionaryID != 0 {
		return fmt.Errorf("%w: not a context", ErrCorrupt)
	}
	if h.WindowSize > Window {
		return ErrTooLarge
	}
	if err := d.zstd.Reset(&d.in); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	d.begun = true
	return nil
}

// Encoder takes an encoder for a new context at level l, Balanced or more; nil
// if as many are in use as there may be. Give it back with Release.
func (p *Pool) Encoder(l Level) *Encoder {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.encoding == p.contexts {
		return nil
	}
	p.encoding++
	return p.take(l)
}

// Renew takes back e, which must not be nil, and returns an encoder for a new
// context at level l in its place. There always is one: the peer has a decoder
// for whoever had a context once, so nobody else may have it meanwhile.
func (p *Pool) Renew(e *Encoder, l Level) *Encoder {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.encoders = append(p.encoders, e)
	return p.take(l)
}

// take returns an idle encoder or a new one, with p.mu held.
func (p *Pool) take(l Level) *Encoder {
	last := len(p.encoders) - 1
	i := slices.IndexFunc(p.encoders, func(e *Encoder) bool { return e.level == l })
	if i < 0 {
		if p.encoding+last+1 > p.contexts { // forget one of another level
			p.encoders = p.encoders[:last]
		}
		return newContext(l)
	}
	e := p.encoders[i]
	p.encoders[i] = p.encoders[last]
	p.encoders = p.encoders[:last]
	e.zstd.Reset(e)
	return e
}

func newContext(l Level) *Encoder {
	e := &Encoder{level: l, zstd: newEncoder(1, l, Window)}
	e.zstd.Reset(e)
	return e
}

// Release takes back an encoder. Nil does nothing.
func (p *Pool) Release(e *Encoder) {
	if e == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.encoding--
	p.encoders = append(p.encoders, e)
}

// Decoder takes a decoder for a peer's context; nil if four times as many are
// in use as the peer may have at once: some may be on their way to their end.
// Give it back with ReleaseDecoder.
func (p *Pool) Decoder() *Decoder {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.decoding == 4*p.contexts {
		return nil
	}
	p.decoding++
	if last := len(p.decoders) - 1; last >= 0 {
		d := p.decoders[last]
		p.decoders = p.decoders[:last]
		return d
	}
	return &Decoder{zstd: newDecoder(1, Window)}
}

// ReleaseDecoder takes back a decoder. Nil does nothing.
func (p *Pool) ReleaseDecoder(d *Decoder) {
	if d == nil {
		return
	}
	d.begun = false
	p.mu.Lock()
	defer p.mu.Unlock()
	p.decoding--
	if len(p.decoders) < p.contexts {
		p.decoders = append(p.decoders, d)
	}
}
