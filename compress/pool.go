package compress

import (
	"fmt"
	"slices"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// Pool encodes and decodes blocks with a fixed number of zstd encoders and
// decoders, made when first needed and shared by everyone who holds the Pool.
// It is safe for concurrent use; a caller beyond the number waits for a free
// one, so memory is bounded: for each of the width about 4 MiB a level, and
// for each context about 22 MiB here and 9 MiB at the peer.
type Pool struct {
	levels  [levels]func() *zstd.Encoder // of single blocks; nil: not zstd
	decoder func() *zstd.Decoder

	mu                 sync.Mutex
	contexts           int // the most encoders in use at once
	encoding, decoding int
	encoders           []*Encoder // idle
	decoders           []*Decoder
}

// NewPool returns a pool of the given width (how many calls may run at once),
// at least 1, and with at most so many contexts.
func NewPool(width, contexts int) *Pool {
	width = max(width, 1)
	p := &Pool{contexts: contexts}
	for l := Balanced; l < levels; l++ {
		p.levels[l] = sync.OnceValue(func() *zstd.Encoder { return newEncoder(width, l, MaxBlock) })
	}
	p.decoder = sync.OnceValue(func() *zstd.Decoder { return newDecoder(width, MaxBlock) })
	return p
}

// newEncoder returns an encoder of single blocks, if the window is MaxBlock,
// or of a context. A context gets twice its window, else the window would be
// moved for every 128 KiB.
func newEncoder(width int, l Level, window int) *zstd.Encoder {
	speed := map[Level]zstd.EncoderLevel{
		Balanced: zstd.SpeedFastest, Strong: zstd.SpeedDefault, Extreme: zstd.SpeedBetterCompression,
	}[l]
	single := window == MaxBlock
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(speed),
		zstd.WithEncoderConcurrency(width),
		zstd.WithWindowSize(window),
		zstd.WithLowerEncoderMem(single),
		zstd.WithSingleSegment(single),
		zstd.WithEncoderCRC(false))
	if err != nil {
		panic(err) // only wrong options fail
	}
	return e
}

func newDecoder(width int, window uint64) *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(width),
		zstd.WithDecoderMaxMemory(window),
		zstd.WithDecoderMaxWindow(window),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err) // only wrong options fail
	}
	return d
}

// Encode appends src encoded at level l to dst and says with which codec. It
// borrows src; no block depends on another. When the level does not save at least 1/32 it appends src
// itself as Raw, so never more than MaxLen(len(src)) bytes. src longer than
// MaxBlock is stored.
func (p *Pool) Encode(dst, src []byte, l Level) ([]byte, Codec) {
	if l == Store || len(src) > MaxBlock || len(src) < 16 {
		return append(dst, src...), Raw
	}
	start := len(dst)
	dst = slices.Grow(dst, ScratchLen(len(src)))
	codec := Zstd
	switch l {
	case Fast:
		codec = S2
		enc := s2.Encode(dst[start:start:cap(dst)][:s2.MaxEncodedLen(len(src))], src)
		dst = dst[:start+len(enc)]
	default:
		dst = p.levels[l]().EncodeAll(src, dst)
	}
	if len(dst)-start > len(src)-len(src)>>5 {
		return append(dst[:start], src...), Raw
	}
	return dst, codec
}

// Decode appends the n bytes that src (borrowed) must decode to. Before it
// allocates, it checks n against MaxBlock and what src itself claims against
// n. On error dst is returned as it was.
func (p *Pool) Decode(dst, src []byte, c Codec, n int) ([]byte, error) {
	if n < 0 || n > MaxBlock {
		return dst, ErrTooLarge
	}
	switch c {
	case Raw:
		if len(src) != n {
			return dst, ErrCorrupt
		}
		return append(dst, src...), nil
	case S2:
		return decodeS2(dst, src, n)
	case Zstd:
		return p.decodeZstd(dst, src, n)
	}
	return dst, fmt.Errorf("%w: unknown codec %d", ErrCorrupt, c)
}

func decodeS2(dst, src []byte, n int) ([]byte, error) {
	claimed, err := s2.DecodedLen(src)
	if err != nil || claimed != n {
		return dst, fmt.Errorf("%w: s2 length %d, want %d", ErrCorrupt, claimed, n)
	}
	start := len(dst)
	dst = slices.Grow(dst, n)
	if _, err := s2.Decode(dst[start:start+n:start+n], src); err != nil {
		return dst[:start], fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return dst[:start+n], nil
}

func (p *Pool) decodeZstd(dst, src []byte, n int) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(src); err != nil {
		return dst, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if h.Skippable || !h.HasFCS || h.FrameContentSize != uint64(n) || h.DictionaryID != 0 {
		return dst, fmt.Errorf("%w: zstd frame of %d bytes, want %d", ErrCorrupt, h.FrameContentSize, n)
	}
	if h.WindowSize > MaxBlock {
		return dst, ErrTooLarge
	}
	start := len(dst)
	dst = slices.Grow(dst, n)
	out, err := p.decoder().DecodeAll(src, dst[start:start:start+n])
	if err != nil || len(out) != n {
		return dst[:start], fmt.Errorf("%w: zstd gave %d bytes, want %d (%v)", ErrCorrupt, len(out), n, err)
	}
	return dst[:start+n], nil
}
