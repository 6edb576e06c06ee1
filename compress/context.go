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

// zstdMagic begins a frame. No zstd block begins with these bytes, so a
// section that does begins a new context.
const zstdMagic = 0xfd2fb528

// Encoder carries the context of one stream from block to block: one zstd
// frame without end, flushed behind each block. It holds the stream's last
// bytes, so it belongs to one stream until it is given back. It is not safe
// for concurrent use.
type Encoder struct {
	zstd  *zstd.Encoder
	level Level
	out   []byte
}

// Level is what the encoder was taken for.
func (e *Encoder) Level() Level { return e.level }

// Append appends src (borrowed, at most MaxBlock bytes) as the next section of
// the context: at most 3 bytes for each 128 KiB more than src, and 16 for the
// context's first.
func (e *Encoder) Append(dst, src []byte) []byte {
	e.out = dst
	_, err := e.zstd.Write(src)
	if err == nil {
		err = e.zstd.Flush()
	}
	if err != nil {
		panic(err) // the sink does not fail
	}
	dst, e.out = e.out, nil
	return dst
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
	if err := d.begin(src); err != nil {
		return dst, err
	}
	start := len(dst)
	dst = slices.Grow(dst, n)[:start+n]
	d.in.rest = src
	_, err := io.ReadFull(d.zstd, dst[start:])
	if left := len(d.in.rest); err != nil || left > 0 {
		d.in.rest, d.begun = nil, false
		return dst[:start], fmt.Errorf("%w: context: %d bytes left (%v)", ErrCorrupt, left, err)
	}
	return dst, nil
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
