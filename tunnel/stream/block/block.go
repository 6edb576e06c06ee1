// Package block turns pieces of a stream into blocks: deduplicated against a
// history, compressed, checked; and back.
package block

import (
	"errors"

	"stitch/dedupe"
)

// MaxBlock is the most application bytes in one block.
const MaxBlock = 256 << 10

// MaxFrame is the most bytes of an encoded block, an ack or a nack body.
const MaxFrame = MaxBlock + MaxBlock/1024 + 64

var (
	// ErrMiss is returned when a block refers to bytes this side does not
	// hold. Deliver the bytes returned with it, send AppendNack, go on
	// reading: later blocks given to Decode are kept (it returns no bytes and
	// no error) until the resent one arrives, which then returns them all.
	ErrMiss = errors.New("block: source bytes not held; send the nack")
	// ErrCorrupt is returned for a body that breaks the format or its
	// checksum; the connection must be reset.
	ErrCorrupt = errors.New("block: corrupt body; reset the connection")
	// ErrStale is returned when the history was emptied since the encoder or
	// decoder was made; the connection must be reset.
	ErrStale = errors.New("block: history was restarted; reset the connection")
)

// Effort is how much processor time to spend on compression.
type Effort uint8

// The efforts: S2, zstd fastest, zstd default.
const (
	Fast Effort = iota
	Balanced
	Strong
)

// Stats counts bytes since creation.
type Stats struct {
	In      int64 `json:"in"`      // encoder: application bytes; decoder: body bytes
	Out     int64 `json:"out"`     // encoder: body bytes; decoder: application bytes
	Matched int64 `json:"matched"` // application bytes taken from the history
	Zero    int64 `json:"zero"`    // application bytes in runs of zeros
	Literal int64 `json:"literal"` // application bytes carried themselves
	Resent  int64 `json:"resent"`  // blocks sent (encoder) or asked for (decoder) again
}

// Encoder encodes the sending direction of one connection. Append is for one
// goroutine; Ack, Resend, Stats and Close may run beside it.
type Encoder struct{ stats Stats }

// NewEncoder returns an encoder; the peer's decoder must get the same connID.
// h may be nil: then blocks are only compressed.
func NewEncoder(h *dedupe.History, connID uint64) *Encoder { return &Encoder{} }

// Append encodes src (1 to MaxBlock bytes, borrowed) and appends the body to dst.
func (e *Encoder) Append(dst, src []byte, effort Effort) []byte { return append(dst, src...) }

// Ack takes the peer's acknowledgement body (borrowed).
func (e *Encoder) Ack(body []byte) error { return nil }

// Resend appends the raw body of the block the nack asks for.
func (e *Encoder) Resend(dst, nack []byte) ([]byte, error) { return dst, ErrCorrupt }

// Close releases what is kept. Idempotent.
func (e *Encoder) Close() {}

// Stats returns the counters.
func (e *Encoder) Stats() Stats { return e.stats }

// Decoder decodes the receiving direction of one connection. It is not safe
// for concurrent use, but for Stats.
type Decoder struct{ stats Stats }

// NewDecoder returns a decoder; see NewEncoder.
func NewDecoder(h *dedupe.History, connID uint64) *Decoder { return &Decoder{} }

// Decode decodes body (borrowed) and appends the application's bytes to dst.
// The returned bytes are good and in order even with ErrMiss.
func (d *Decoder) Decode(dst, body []byte) (out []byte, err error) { return append(dst, body...), nil }

// AppendAck appends the acknowledgement of everything decoded so far. Send it
// after each Decode, or after several.
func (d *Decoder) AppendAck(dst []byte) []byte { return append(dst, 0) }

// AppendNack appends the request for the missing block; only after ErrMiss.
func (d *Decoder) AppendNack(dst []byte) []byte { return append(dst, 0) }

// Close releases what is kept. Idempotent.
func (d *Decoder) Close() {}

// Stats returns the counters.
func (d *Decoder) Stats() Stats { return d.stats }
