package history

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

const (
	// reportKind tells a report from what else crosses as a probe.
	reportKind = 11
	// reportSpan is how many records a report is about, maxMissed how many it
	// may name besides.
	reportSpan, maxMissed = 512, 16
	reportLen             = 16 + reportSpan/8
	// maxSpan bounds the literals of a token.
	maxSpan = 1 << 17

	// NoteLen is the length of a note.
	NoteLen = 24
)

// Report is what a receiver says it holds.
type Report struct {
	Size            uint16 // of its history, in MiB
	Instance, Epoch uint32
	Top             uint32 // the latest sequence number it knows of
	Held            [reportSpan / 8]byte
	Missed          []uint32 // referred to in vain
}

func (r *Report) holds(i int) bool { return r.Held[i/8]>>(i%8)&1 != 0 }

// Append appends the message.
func (r *Report) Append(b []byte) []byte {
	b = append(b, reportKind, byte(len(r.Missed)))
	b = binary.BigEndian.AppendUint16(b, r.Size)
	b = binary.BigEndian.AppendUint32(b, r.Instance)
	b = binary.BigEndian.AppendUint32(b, r.Epoch)
	b = binary.BigEndian.AppendUint32(b, r.Top)
	b = append(b, r.Held[:]...)
	for _, seq := range r.Missed {
		b = binary.BigEndian.AppendUint32(b, seq)
	}
	return b
}

// ParseReport reads the message; false if it is none.
func ParseReport(b []byte) (Report, bool) {
	if len(b) < reportLen || b[0] != reportKind || b[1] > maxMissed || len(b) < reportLen+4*int(b[1]) {
		return Report{}, false
	}
	r := Report{
		Size: binary.BigEndian.Uint16(b[2:]), Instance: binary.BigEndian.Uint32(b[4:]),
		Epoch: binary.BigEndian.Uint32(b[8:]), Top: binary.BigEndian.Uint32(b[12:]),
		Held: [reportSpan / 8]byte(b[16:]),
	}
	for i := range int(b[1]) {
		r.Missed = append(r.Missed, binary.BigEndian.Uint32(b[reportLen+4*i:]))
	}
	return r, true
}

// Note says that a record is Len bytes of a flow, from TCP's sequence number on.
type Note struct {
	Record
	TCP  uint32
	Len  int
	Flow uint64
}

// Append appends the message.
func (n *Note) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, n.Epoch)
	b = binary.BigEndian.AppendUint32(b, n.Seq)
	b = binary.BigEndian.AppendUint32(b, n.TCP)
	b = binary.BigEndian.AppendUint32(b, uint32(n.Len))
	return binary.BigEndian.AppendUint64(b, n.Flow)
}

// ParseNote reads the message in the first NoteLen bytes of b.
func ParseNote(b []byte) (Note, bool) {
	if len(b) < NoteLen {
		return Note{}, false
	}
	n := binary.BigEndian.Uint32(b[12:])
	if n < MinRecord || n > MaxRecord {
		return Note{}, false
	}
	r := Record{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])}
	return Note{Record: r, TCP: binary.BigEndian.Uint32(b[8:]), Len: int(n), Flow: binary.BigEndian.Uint64(b[16:])}, true
}

// Flow returns the number that stands for a TCP flow in a Note: of the segment,
// the addresses, and the ports, which are the first four bytes of the TCP header.
// Flows that happen to have the same one spoil each other's records, nothing
// else.
func Flow(segment uint16, ip, tcp []byte) uint64 {
	var id [2 + 32 + 4]byte
	binary.BigEndian.PutUint16(id[:], segment)
	if ip[0]>>4 == 6 {
		copy(id[2:34], ip[8:40])
	} else {
		copy(id[2:], ip[12:20])
	}
	copy(id[34:], tcp[:4])
	return xxh3.Hash(id[:])
}

// AppendTokens appends tokens whose sequence numbers are counted back from base.
func AppendTokens(b []byte, tokens []Token, base uint32) []byte {
	for _, t := range tokens {
		b = binary.AppendUvarint(b, uint64(t.Lit))
		b = binary.AppendUvarint(b, uint64(base-t.Seq))
		b = binary.AppendUvarint(b, uint64(t.At))
		b = binary.AppendUvarint(b, uint64(t.Len))
	}
	return b
}

// next reads a token, whose sequence number is counted back from base, and
// returns what follows.
func next(b []byte, base uint32) (t Token, rest []byte, ok bool) {
	var v [4]uint64
	for i := range v {
		x, k := binary.Uvarint(b)
		if k <= 0 || x > lastSeq {
			return t, nil, false
		}
		v[i], b = x, b[k:]
	}
	if v[0] > maxSpan || v[2] > MaxRecord || v[3] < 1 || v[3] > MaxRecord {
		return t, nil, false
	}
	return Token{Lit: int(v[0]), Seq: base - uint32(v[1]), At: int(v[2]), Len: int(v[3])}, b, true
}

// Covered returns how many bytes the tokens in b take from records; false if they
// are malformed, or take more than most or more literals than there then are.
func Covered(b []byte, most int) (n int, ok bool) {
	literals := 0
	for len(b) > 0 {
		var t Token
		if t, b, ok = next(b, 0); !ok {
			return 0, false
		}
		n += t.Len
		if literals += t.Lit; n+literals > most {
			return 0, false
		}
	}
	return n, true
}

// Expand appends to dst what the tokens in b, which Covered has accepted, make of
// literals and records, and the rest of the literals. False means that a record
// is missing: then all that are will be reported, and dst is as it was.
func (r *Receiver) Expand(dst, b, literals []byte, base uint32) (_ []byte, ok bool) {
	start := len(dst)
	ok = true
	for len(b) > 0 {
		var t Token
		t, b, _ = next(b, base)
		source, there := r.Get(t.Seq, t.At, t.Len)
		if ok = ok && there; ok {
			dst = append(append(dst, literals[:t.Lit]...), source...)
			literals = literals[t.Lit:]
		}
	}
	if !ok {
		return dst[:start], false
	}
	return append(dst, literals...), true
}
