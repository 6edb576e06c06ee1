package stream

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"sync"
	"syscall"

	"stitch/dedupe"
)

const (
	// pieceSize is what one digest of a seed stands for.
	pieceSize = 1 << 20
	// maxPieces bounds what a domain remembers of files: 64 GiB of them, in
	// some 6 MiB.
	maxPieces = 64 << 10
	// maxSpans bounds the stretches of a history that a piece lies in; it has
	// two for each of its blocks at most.
	maxSpans = 2 * pieceSize / dedupe.MaxBlock
)

// digest is the SHA-256 of a piece.
type digest [sha256.Size]byte

// place is where a piece can be read again.
type place struct {
	file   string
	offset int64
	size   int
}

// pieces remembers the pieces of the files that were named here for seeding.
// Safe for concurrent use.
type pieces struct {
	mu      sync.Mutex
	known   map[digest]place
	planted map[digest]struct{} // into the history of gen
	gen     int
}

// add remembers a piece; false: there is no room for more.
func (p *pieces) add(d digest, at place) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil {
		p.known = make(map[digest]place)
	}
	if _, ok := p.known[d]; !ok && len(p.known) >= maxPieces {
		return false
	}
	p.known[d] = at
	return true
}

// prune forgets the pieces of files that are no longer there, or too short for
// them; it returns how many.
func (p *pieces) prune() (forgotten int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	size := make(map[string]int64)
	for d, at := range p.known {
		n, ok := size[at.file]
		if !ok {
			if fi, err := os.Stat(at.file); err == nil && fi.Mode().IsRegular() {
				n = fi.Size()
			}
			size[at.file] = n
		}
		if at.offset+int64(at.size) > n {
			delete(p.known, d)
			forgotten++
		}
	}
	return forgotten
}

// all returns what is remembered, and set replaces it.
func (p *pieces) all() map[digest]place {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.known)
}

func (p *pieces) set(known map[digest]place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known = known
}

// pieceState is what one side says of a piece that the other one has.
type pieceState byte

const (
	pieceUnknown pieceState = iota // no file here has it
	pieceKnown                     // a file here has it
	piecePlanted                   // the history has it already
)

// state returns what is known of a piece under the epochs of gen, and where it
// can be read again if it is.
func (p *pieces) state(d digest, gen int) (pieceState, place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.known[d]
	if !ok {
		return pieceUnknown, at
	}
	if _, ok := p.planted[d]; ok && p.gen == gen {
		return piecePlanted, at
	}
	return pieceKnown, at
}

// plant records that the history of gen has a piece.
func (p *pieces) plant(d digest, gen int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gen != gen || p.planted == nil {
		p.gen, p.planted = gen, make(map[digest]struct{})
	}
	p.planted[d] = struct{}{}
}

// errChanged is returned when a file no longer has the piece it had.
var errChanged = errors.New("stream: the file has changed since it was named for seeding")

// read reads a piece again into buf, which has room for it, and holds it
// against its digest.
func (at place) read(d digest, buf []byte) ([]byte, error) {
	f, err := openRegular(at.file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buf = buf[:at.size]
	if _, err := f.ReadAt(buf, at.offset); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if sha256.Sum256(buf) != d {
		return nil, errChanged
	}
	return buf, nil
}

// openRegular opens a regular file; nothing here may wait on a pipe.
func openRegular(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// cut calls each for every piece of a file with its digest; a piece of zeros,
// which costs nothing anyway, has ok false.
func cut(ctx context.Context, name string, each func(d digest, at place, ok bool) error) error {
	f, err := openRegular(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, pieceSize)
	for offset := int64(0); ; offset += pieceSize {
		n, err := io.ReadFull(f, buf)
		if n == 0 || ctx.Err() != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return cmpErr(ctx.Err(), err)
		}
		d := digest(sha256.Sum256(buf[:n]))
		if err := each(d, place{name, offset, n}, !zero(buf[:n])); err != nil {
			return err
		}
	}
}

// zero reports whether all bytes are zero.
func zero(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// planting is the body of PLANT: where piece Index of the last OFFER lies in
// the sender's history, and the heads it saw.
type planting struct {
	Index          int
	TxHead, RxHead uint64
	Spans          []dedupe.Span
}

// add appends a block's stretches, joined to the last one where they go on.
func (p *planting) add(b *dedupe.Block) {
	p.TxHead, p.RxHead = b.TxHead, b.RxHead
	for _, s := range b.Spans {
		if last := len(p.Spans) - 1; s.Len > 0 && last >= 0 && p.Spans[last].Pos+uint64(p.Spans[last].Len) == s.Pos {
			p.Spans[last].Len += s.Len
		} else if s.Len > 0 {
			p.Spans = append(p.Spans, s)
		}
	}
}

// append appends the body.
func (p *planting) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(p.Index))
	b = binary.AppendUvarint(b, p.TxHead)
	b = binary.AppendUvarint(b, p.RxHead)
	for _, s := range p.Spans {
		b = binary.AppendUvarint(b, p.TxHead-s.Pos)
		b = binary.AppendUvarint(b, uint64(s.Len))
	}
	return b
}

// parsePlanting reads the body of PLANT; its stretches hold at most a piece.
func parsePlanting(b []byte) (p planting, err error) {
	bad := fmt.Errorf("%w: PLANT of %d bytes", errFrame, len(b))
	if len(b) < 2 {
		return p, bad
	}
	p.Index = int(binary.BigEndian.Uint16(b))
	b = b[2:]
	number := func(most uint64) uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > most {
			b, err = nil, bad
			return 0
		}
		b = b[n:]
		return v
	}
	const most = 1 << 60
	p.TxHead, p.RxHead = number(most), number(most)
	rest := uint64(pieceSize)
	for err == nil && len(b) > 0 {
		back := number(p.TxHead)
		n := number(min(back, rest))
		if n == 0 || len(p.Spans) == maxSpans {
			return planting{}, bad
		}
		rest -= n
		p.Spans = append(p.Spans, dedupe.Span{Pos: p.TxHead - back, Len: int(n)})
	}
	if err == nil && len(p.Spans) == 0 {
		err = bad
	}
	if err != nil {
		return planting{}, err
	}
	return p, nil
}

// blocks cuts a piece into blocks as a Reader takes them, and calls put for
// each. The stretches must be as long as the piece.
func (p *planting) blocks(piece []byte, put func([]byte, *dedupe.Block) error) error {
	total := 0
	for _, s := range p.Spans {
		total += s.Len
	}
	if total != len(piece) {
		return fmt.Errorf("%w: %d bytes planted for a piece of %d", errFrame, total, len(piece))
	}
	for _, s := range p.Spans {
		for s.Len > 0 {
			n := min(s.Len, dedupe.MaxBlock)
			b := dedupe.Block{TxHead: p.TxHead, RxHead: p.RxHead}
			b.Spans[0] = dedupe.Span{Pos: s.Pos, Len: n}
			if !b.Valid() {
				return fmt.Errorf("%w: PLANT outside of a history", errFrame)
			}
			if err := put(piece[:n], &b); err != nil {
				return err
			}
			piece, s = piece[n:], dedupe.Span{Pos: s.Pos + uint64(n), Len: s.Len - n}
		}
	}
	return nil
}
