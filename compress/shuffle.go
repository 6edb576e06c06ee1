package compress

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Guest memory and programs hold tables: arrays of integers and pointers whose
// neighbours are alike in some of their bytes. zstd looks for strings and finds
// little in them. Such a piece of the literals is shuffled, as HDF5 and Blosc
// call it: seen as words of 4, 8 or 16 bytes, of which first all first bytes
// come, then all second ones, and so on, each less the one before it.

const (
	// piece is how many literals are shuffled or not together.
	piece = 2 << 10
	// A piece is judged by sampleRun bytes out of sampleStep. It is a table if
	// so many more bytes of the sample are like the one a word before than are
	// zero or like the one before: those zstd sees itself.
	sampleRun, sampleStep = 64, 256
	sampled               = piece / sampleStep * sampleRun
	alikeMore             = sampled / 4
)

// width is how a piece is shuffled: 0 not at all, else in words of 2<<width bytes.
type width uint8

const widthBits = 2

func (w width) bytes() int { return 2 << w }

// widths are those of all pieces of a section, widthBits each, from the lowest
// bits of the first byte on; none if nothing is shuffled.
type widths []byte

// widthsLen is the bytes of the widths of n literals; what is left over behind the
// last whole piece is never shuffled.
func widthsLen(n int) int { return (n/piece*widthBits + 7) / 8 }

// pieces is how many of n literals' pieces have a width.
func (ws widths) pieces(n int) int {
	if len(ws) == 0 {
		return 0
	}
	return n / piece
}

func (ws widths) at(i int) width {
	return width(ws[i*widthBits/8] >> (i * widthBits % 8) & (1<<widthBits - 1))
}

// cutWidths returns the widths of a section of n literals and the rest of it.
func cutWidths(section []byte, n int) (ws widths, rest []byte, err error) {
	if len(section) == 0 || section[0] != shuffled {
		return nil, section, nil
	}
	k := widthsLen(n)
	if k == 0 || len(section) < 1+k {
		return nil, nil, fmt.Errorf("%w: %d bytes of a section with widths, want %d of these", ErrCorrupt, len(section), k)
	}
	ws, rest = section[1:1+k], section[1+k:]
	if used := n / piece * widthBits % 8; used > 0 && ws[k-1]>>used != 0 {
		return nil, nil, fmt.Errorf("%w: widths of more pieces than there are", ErrCorrupt)
	}
	return ws, rest, nil
}

// appendWidths appends the widths of src's pieces to dst, and says whether one is
// not 0.
func appendWidths(dst, src []byte) (out []byte, any bool) {
	at := len(dst)
	for range widthsLen(len(src)) {
		dst = append(dst, 0)
	}
	for i := range len(src) / piece {
		if w := tableOf((*[piece]byte)(src[i*piece:])); w > 0 {
			any = true
			dst[at+i*widthBits/8] |= byte(w) << (i * widthBits % 8)
		}
	}
	return dst, any
}

// tableOf says how p is best shuffled.
func tableOf(p *[piece]byte) (best width) {
	var alike [4]int // to the byte a word before, by width; [0]: to the one before
	zero := 0
	for from := 16; from < piece; from += sampleStep {
		for i := from; i < from+sampleRun; i += 8 {
			x := load64(p, i)
			zero += zeroBytes(x)
			alike[0] += zeroBytes(x ^ load64(p, i-1))
			for w := width(1); w < 4; w++ {
				alike[w] += zeroBytes(x ^ load64(p, i-w.bytes()))
			}
		}
	}
	least := max(zero, alike[0]) + alikeMore
	for w := width(1); w < 4; w++ {
		if alike[w] > least {
			best, least = w, alike[w]
		}
	}
	return best
}

func load64(p *[piece]byte, i int) uint64 { return binary.LittleEndian.Uint64(p[i:]) }

// zeroBytes is how many of x's bytes are zero.
func zeroBytes(x uint64) int {
	const low = 0x7f7f7f7f7f7f7f7f
	return 8 - bits.OnesCount64(((x&low)+low|x)&^uint64(low))
}

// shuffle sets dst to src, shuffled in words of w.
func shuffle(dst, src *[piece]byte, w width) {
	out := 0
	for j := range w.bytes() {
		var last byte
		for i := j; i < piece; i += w.bytes() {
			c := src[i]
			dst[out] = c - last
			last = c
			out++
		}
	}
}

// unshuffle is its inverse.
func unshuffle(dst, src *[piece]byte, w width) {
	in := 0
	for j := range w.bytes() {
		var last byte
		for i := j; i < piece; i += w.bytes() {
			last += src[in]
			dst[i] = last
			in++
		}
	}
}
