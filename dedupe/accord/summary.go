package accord

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// Segment is the bytes that one digest stands for.
	Segment = 1 << 20
	// MaxSize is the largest ring that a summary can describe.
	MaxSize = 64 << 30
	// MaxLen bounds a summary's bytes.
	MaxLen = 50_000

	version   = 1
	headerLen = 4 + 8 + 2*32 + 2*24
	maxPos    = 1 << 56 // so that a peer's claim leaves room to go on
	block     = 64      // segments of the coarsest group; all layouts align to it
	singles   = 256
	eights    = 192 * 8
)

// ErrSummary is returned for bytes that are not a summary of this version.
var ErrSummary = errors.New("accord: not a summary that this release understands")

// Digest is the first half of a SHA-256. Zero means absent.
type Digest [16]byte

// Identity says whose history it is.
type Identity struct {
	Store      [16]byte // random for each store on disk; zero: memory only
	Instance   uint64   // random for each process life, not 0
	Generation uint64   // rises with each opening of the store
}

// Ring describes one direction.
type Ring struct {
	Epoch      uint64 // of the side that sends; 0: mirrors nothing
	Head, Tail uint64 // positions in [Tail, Head) may be held
	// Sums are the digests that the layout asks for; see the package doc.
	Sums []Digest
}

// Summary is what one side tells the other.
type Summary struct {
	Size           uint64 // bytes of each ring
	Self, Peer     Identity
	Sent, Received Ring
}

// NewRing describes a ring; digest gives a segment's, zero if it is absent. A
// longer ring than MaxSize loses its oldest part.
func NewRing(epoch, head, tail uint64, digest func(segment uint64) Digest) Ring {
	head = min(head, maxPos)
	tail = min(max(tail, head-min(head, MaxSize)), head)
	r := Ring{Epoch: epoch, Head: head, Tail: tail}
	l := r.layout()
	if l.first == l.end {
		return r
	}
	var leaves [block]Digest
	for b := l.first; b < l.end; b += block {
		level := l.level(b)
		for i := range leaves {
			leaves[i] = Digest{}
			if seg := b + uint64(i); seg < l.end && (seg+1)*Segment > tail {
				leaves[i] = digest(seg)
			}
		}
		n := min(block, l.end-b)
		if level > 0 {
			n = block >> (3 * level)
		}
		r.Sums = append(r.Sums, fold(leaves[:], level)[:n]...)
	}
	return r
}

// layout is where each granularity begins, in segments.
type layout struct{ first, eight, single, end uint64 }

func (r *Ring) layout() layout {
	l := layout{first: r.Tail / Segment / block * block, end: (r.Head + Segment - 1) / Segment}
	if r.Tail == r.Head {
		l.first = l.end
	}
	l.single = max(l.first, (l.end-min(l.end, singles))/block*block)
	l.eight = max(l.first, l.single-min(l.single, eights))
	return l
}

// level is how coarse the block at b is named: 8^level segments a sum.
func (l *layout) level(b uint64) int {
	switch {
	case b >= l.single:
		return 0
	case b >= l.eight:
		return 1
	}
	return 2
}

// count is the number of sums.
func (l *layout) count() int {
	return int((l.eight-l.first)/block + (l.single-l.eight)/8 + (l.end - l.single))
}

// at returns the sums of the block at b, folded to level, which is not finer
// than what the ring has.
func (r *Ring) at(l *layout, b uint64, level int) []Digest {
	var from, n uint64
	have := l.level(b)
	switch have {
	case 0:
		from, n = (l.eight-l.first)/block+(l.single-l.eight)/8+(b-l.single), min(block, l.end-b)
	case 1:
		from, n = (l.eight-l.first)/block+(b-l.eight)/8, block/8
	default:
		from, n = (b-l.first)/block, 1
	}
	sums := r.Sums[from : from+n]
	if have == 0 && level > 0 && n < block {
		sums = append(make([]Digest, 0, block), sums...)[:block]
	}
	return fold(sums, level-have)
}

// fold makes sums coarser by a number of levels.
func fold(sums []Digest, levels int) []Digest {
	for ; levels > 0; levels-- {
		out := make([]Digest, len(sums)/8)
		for i := range out {
			out[i] = sum([8]Digest(sums[8*i:]))
		}
		sums = out
	}
	return sums
}

func sum(children [8]Digest) Digest {
	if children == [8]Digest{} {
		return Digest{}
	}
	var b [8 * 16]byte
	for i := range children {
		copy(b[16*i:], children[i][:])
	}
	h := sha256.Sum256(b[:])
	return Digest(h[:16])
}

// Append appends the wire form.
func (s *Summary) Append(b []byte) []byte {
	b = append(b, version, 0, 0, 0)
	b = binary.BigEndian.AppendUint64(b, s.Size)
	for _, id := range [2]*Identity{&s.Self, &s.Peer} {
		b = append(b, id.Store[:]...)
		b = binary.BigEndian.AppendUint64(b, id.Instance)
		b = binary.BigEndian.AppendUint64(b, id.Generation)
	}
	rings := [2]*Ring{&s.Sent, &s.Received}
	for _, r := range rings {
		b = binary.BigEndian.AppendUint64(b, r.Epoch)
		b = binary.BigEndian.AppendUint64(b, r.Head)
		b = binary.BigEndian.AppendUint64(b, r.Tail)
	}
	for _, r := range rings {
		for i := range r.Sums {
			b = append(b, r.Sums[i][:]...)
		}
	}
	return b
}

// Parse reads the wire form; the length must be exact.
func Parse(b []byte) (*Summary, error) {
	switch {
	case len(b) < headerLen || len(b) > MaxLen:
		return nil, fmt.Errorf("%w: %d bytes", ErrSummary, len(b))
	case b[0] != version:
		return nil, fmt.Errorf("%w: version %d, want %d", ErrSummary, b[0], version)
	}
	s := &Summary{Size: binary.BigEndian.Uint64(b[4:])}
	at := 12
	for _, id := range [2]*Identity{&s.Self, &s.Peer} {
		copy(id.Store[:], b[at:])
		id.Instance = binary.BigEndian.Uint64(b[at+16:])
		id.Generation = binary.BigEndian.Uint64(b[at+24:])
		at += 32
	}
	rings := [2]*Ring{&s.Sent, &s.Received}
	want := headerLen
	for _, r := range rings {
		r.Epoch = binary.BigEndian.Uint64(b[at:])
		r.Head = binary.BigEndian.Uint64(b[at+8:])
		r.Tail = binary.BigEndian.Uint64(b[at+16:])
		at += 24
		if r.Head > maxPos || r.Tail > r.Head || r.Head-r.Tail > MaxSize {
			return nil, fmt.Errorf("%w: positions %d to %d", ErrSummary, r.Tail, r.Head)
		}
		l := r.layout()
		want += 16 * l.count()
	}
	if len(b) != want || s.Self.Instance == 0 || s.Sent.Epoch == 0 || s.Size == 0 || s.Size > maxPos {
		return nil, fmt.Errorf("%w: %d bytes instead of %d, or no identity", ErrSummary, len(b), want)
	}
	for _, r := range rings {
		l := r.layout()
		r.Sums = make([]Digest, l.count())
		for i := range r.Sums {
			at += copy(r.Sums[i][:], b[at:])
		}
	}
	return s, nil
}
