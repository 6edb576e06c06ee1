package compress

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/s2"
)

// Codec names how a block is encoded. The values are wire values.
type Codec uint8

// The codecs.
const (
	Raw     Codec = 0 // the bytes themselves
	S2      Codec = 1 // one S2 block, without stream framing
	Zstd    Codec = 2 // one zstd frame with its content size, without checksum
	Carried Codec = 3 // whole zstd blocks that go on in the stream's frame
)

// String returns the codec's name.
func (c Codec) String() string {
	switch c {
	case Raw:
		return "raw"
	case S2:
		return "s2"
	case Zstd:
		return "zstd"
	case Carried:
		return "zstd carried"
	}
	return fmt.Sprintf("codec(%d)", uint8(c))
}

// Level is a codec and how hard it tries.
type Level uint8

// The levels, from cheap to strong. Speeds are of one core on guest memory.
const (
	Store    Level = iota // raw
	Fast                  // S2, about 700 MB/s
	Balanced              // zstd fastest, about 240 MB/s
	Strong                // zstd default, about 200 MB/s
	Extreme               // zstd better, about 95 MB/s
)

// levels is how many there are. klauspost's strongest level has produced wrong
// output in several releases and is none of them.
const levels = 5

// MaxBlock is the most bytes a block may decode to. It bounds the window and
// so the memory of every encoder and decoder.
const MaxBlock = 1 << 20

var (
	// ErrCorrupt is returned for a block that does not decode to exactly the
	// length its framing promised.
	ErrCorrupt = errors.New("compress: corrupt block")
	// ErrTooLarge is returned when more than MaxBlock decoded bytes, or a
	// window larger than that, is asked for; nothing has been allocated.
	ErrTooLarge = errors.New("compress: block larger than allowed")
)

// MaxLen is the most bytes Pool.Encode may append for n bytes: n, as it falls
// back to Raw. It needs the capacity of ScratchLen while at work.
func MaxLen(n int) int { return n }

// ScratchLen is the free capacity dst needs for Pool.Encode of n bytes not to
// allocate.
func ScratchLen(n int) int {
	return max(s2.MaxEncodedLen(n), n+n>>8+64)
}
