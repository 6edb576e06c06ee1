package block

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"

	"stitch/compress"
	"stitch/dedupe"
)

// MaxBlock is the most application bytes in one block.
const MaxBlock = dedupe.MaxBlock

// MaxHeader is the most bytes a body is longer than its application bytes.
const MaxHeader = 64

// MaxFrame is the most bytes of an encoded block, an ack or a nack body.
const MaxFrame = MaxBlock + MaxBlock/1024 + MaxHeader

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
	// ErrCorrupt is returned for a body that breaks the format, its order or
	// its checksum; the connection must be reset.
	ErrCorrupt = errors.New("block: corrupt body; reset the connection")
	// ErrStale is returned when the history was emptied since the encoder or
	// decoder was made; the connection must be reset.
	ErrStale = dedupe.ErrStale
)

// Effort is how much processor time to spend on compression.
type Effort uint8

// The efforts: S2, zstd fastest, zstd default, none.
const (
	Fast Effort = iota
	Balanced
	Strong
	Off // matching only
)

func (e Effort) level() compress.Level {
	switch e {
	case Fast:
		return compress.Fast
	case Balanced:
		return compress.Balanced
	case Strong:
		return compress.Strong
	}
	return compress.Store
}

// Stats counts since creation.
type Stats struct {
	In      int64 `json:"in"`      // encoder: application bytes; decoder: body bytes
	Out     int64 `json:"out"`     // encoder: body bytes; decoder: application bytes
	Matched int64 `json:"matched"` // application bytes taken from the history
	Zero    int64 `json:"zero"`    // application bytes in runs of zeros
	Literal int64 `json:"literal"` // application bytes carried themselves
	Resent  int64 `json:"resent"`  // blocks sent again (encoder), missed (decoder)
}

// counters is Stats that may be read while it grows.
type counters struct {
	in, out, matched, zero, literal, resent atomic.Int64
}

func (c *counters) add(in, out, matched, zero, literal int) {
	c.in.Add(int64(in))
	c.out.Add(int64(out))
	c.matched.Add(int64(matched))
	c.zero.Add(int64(zero))
	c.literal.Add(int64(literal))
}

func (c *counters) load() Stats {
	return Stats{c.in.Load(), c.out.Load(), c.matched.Load(), c.zero.Load(), c.literal.Load(), c.resent.Load()}
}

// scratch is the working memory of one call.
type scratch struct {
	lits, cols, comp []byte
	tokens           []dedupe.Token
}

// workshop is what all encoders and decoders of the process share: idle
// working memory and idle compressors, and nothing of anyone's data.
type workshop struct {
	codecs  *compress.Pool
	scratch sync.Pool
}

var shop = &workshop{
	codecs:  compress.NewPool(runtime.GOMAXPROCS(0)),
	scratch: sync.Pool{New: func() any { return new(scratch) }},
}

func (w *workshop) get() *scratch  { return w.scratch.Get().(*scratch) }
func (w *workshop) put(s *scratch) { w.scratch.Put(s) }
