package block

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"stitch/compress"
	"stitch/dedupe"
)

// Version is the version of the format; both ends must have the same.
const Version = 1

// MaxBlock is the most application bytes in one block.
const MaxBlock = dedupe.MaxBlock

// MaxHeader is the most bytes a body is longer than its application bytes.
const MaxHeader = 64

// MaxFrame is the most bytes of an encoded block, an ack or a nack body.
const MaxFrame = MaxBlock + MaxBlock/1024 + MaxHeader

// Room is the free capacity dst needs for Append or Finish not to allocate: more
// than MaxFrame, because a compressor at work may need more than it leaves.
func Room() int { return MaxHeader + compress.ScratchLen(MaxBlock) }

// MaxHeld is the most application bytes a Decoder keeps undecoded during a
// repair. A peer that sends more than this ahead of its credit is cut off; so
// the credit must be smaller.
const MaxHeld = 256 << 20

var (
	// ErrMiss is returned when a block refers to bytes this side does not
	// hold. Deliver the bytes returned with it, send AppendNack, go on
	// reading: later blocks given to Decode are kept (it returns no bytes and
	// no error) until the resent one arrives, which then returns them all.
	ErrMiss = errors.New("block: source bytes not held; send the nack")
	// ErrLate is the ErrMiss for bytes that are held, on a disk that has not given
	// them in time. The nack blames no source, so they stay in use.
	ErrLate = fmt.Errorf("%w: they are held on disk and did not come in time", ErrMiss)
	// ErrCorrupt is returned for a body that breaks the format, its order or
	// its checksum; the connection must be reset.
	ErrCorrupt = errors.New("block: corrupt body; reset the connection")
	// ErrStale is returned when the history was emptied since the encoder or
	// decoder was made; the connection must be reset.
	ErrStale = dedupe.ErrStale
)

// Mode says which parts of the codec a connection uses.
type Mode uint8

// The modes.
const (
	Full     Mode = iota // history and compression
	Compress             // compression only
	Store                // neither: the bytes are framed and checked
)

// Options say how an Encoder works. The zero value uses everything.
type Options struct {
	Mode Mode
	// Lines and Alone keep what other connections sent from showing in the
	// sizes of this one's blocks; see dedupe.WriterOptions.
	Lines, Alone bool
	// Tables lets literals that are tables be shuffled. A peer of a release
	// without it takes such blocks for corrupt.
	Tables bool
	// Repairs lets ResendBehind send blocks that were not asked for. A peer of a
	// release without it takes such blocks for corrupt.
	Repairs bool
	// Clock tells the time from any beginning, for measuring the compressors.
	// Nil: nothing is measured and the level is fixed.
	Clock func() time.Duration
	// Floor is how many bytes of input a second the encoder keeps up when the
	// link's rate is unknown. 0 means 100e6.
	Floor float64
	// Shop gives the working memory; nil: one of its own.
	Shop *Shop
}

// writer is what of it concerns the history.
func (o *Options) writer() dedupe.WriterOptions {
	return dedupe.WriterOptions{Lines: o.Lines, Alone: o.Alone}
}

// Share is what one codec did: literals in, bytes of bodies out.
type Share struct {
	In  int64 `json:"in"`
	Out int64 `json:"out"`
}

// Mix says how much each codec carried.
type Mix struct {
	Raw  Share `json:"raw"`
	S2   Share `json:"s2"`
	Zstd Share `json:"zstd"`
	// Carried is zstd that goes on from the stream's blocks before.
	Carried Share `json:"zstd_carried"`
}

// Stats counts since creation.
type Stats struct {
	In      int64 `json:"in"`      // encoder: application bytes; decoder: body bytes
	Out     int64 `json:"out"`     // encoder: body bytes; decoder: application bytes
	Matched int64 `json:"matched"` // application bytes taken from the history
	Zero    int64 `json:"zero"`    // application bytes in runs of zeros
	Literal int64 `json:"literal"` // application bytes carried themselves
	Resent  int64 `json:"resent"`  // blocks sent again (encoder), missed (decoder)
	Mix     Mix   `json:"mix"`     // encoder: how the literals were carried
}

// counters is Stats that may be read while it grows.
type counters struct {
	in, out, matched, zero, literal, resent atomic.Int64
	mix                                     [4]struct{ in, out atomic.Int64 } // by codec
}

func (c *counters) add(in, out, matched, zero, literal int) {
	c.in.Add(int64(in))
	c.out.Add(int64(out))
	c.matched.Add(int64(matched))
	c.zero.Add(int64(zero))
	c.literal.Add(int64(literal))
}

// used notes that codec made in bytes of literals or tokens into out.
func (c *counters) used(codec compress.Codec, in, out int) {
	c.mix[codec].in.Add(int64(in))
	c.mix[codec].out.Add(int64(out))
}

func (c *counters) share(codec compress.Codec) Share {
	m := &c.mix[codec]
	return Share{In: m.in.Load(), Out: m.out.Load()}
}

func (c *counters) load() Stats {
	return Stats{
		In: c.in.Load(), Out: c.out.Load(),
		Matched: c.matched.Load(), Zero: c.zero.Load(), Literal: c.literal.Load(), Resent: c.resent.Load(),
		Mix: Mix{Raw: c.share(compress.Raw), S2: c.share(compress.S2), Zstd: c.share(compress.Zstd), Carried: c.share(compress.Carried)},
	}
}

// Shop is what many encoders and decoders share: idle working memory and idle
// compressors, and nothing of anyone's data. It is safe for concurrent use.
type Shop struct {
	codecs  *compress.Pool
	scratch sync.Pool
	works   sync.Pool
}

// maxContexts is how many streams of a Shop may have a compressor's context at
// once; see Encoder.Idle.
const maxContexts = 8

// NewShop returns a Shop in which width calls of a compressor may run at once;
// more wait. Its memory is taken when first needed: about 12 MiB for each, and
// 22 MiB for each of at most 8 bulk streams' contexts (9 MiB at the receiving
// end). Both ends of a link should have a Shop for each other, since a peer may
// use all the contexts there are.
func NewShop(width int) *Shop {
	return &Shop{
		codecs:  compress.NewPool(width, maxContexts),
		scratch: sync.Pool{New: func() any { return new(scratch) }},
		works:   sync.Pool{New: func() any { return new(Work) }},
	}
}

// orOwn returns s, or a Shop of width 1 if there is none.
func (s *Shop) orOwn() *Shop {
	if s == nil {
		return NewShop(1)
	}
	return s
}

// scratch is the working memory of one call.
type scratch struct {
	lits    []byte
	tokens  []dedupe.Token
	patched []bool         // by token
	sources []dedupe.Token // tokens, patched ones with what is in front of them
	coder   rangeDecoder
}

func (s *Shop) get() *scratch  { return s.scratch.Get().(*scratch) }
func (s *Shop) put(b *scratch) { s.scratch.Put(b) }
