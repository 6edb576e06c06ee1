package pack

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zeebo/xxh3"

	"stitch/compress"
	"stitch/tunnel/netdev/super"
	"stitch/tunnel/wg/pack/history"
)

var (
	// ErrFormat is returned for a unit that breaks the format.
	ErrFormat = errors.New("pack: malformed unit")
	// ErrMissing is returned for a unit that refers to what is not in the history.
	ErrMissing = errors.New("pack: unit refers to what is missing")
)

// Unit is a super-packet that came in.
type Unit struct {
	Packet  []byte
	Header  super.Header
	Link    super.Link
	Segment uint16
}

// Unpacker reads units. It is not safe for concurrent use.
type Unpacker struct {
	pool     *compress.Pool
	past     *history.Receiver
	literals []byte
}

// NewUnpacker returns an Unpacker that decompresses with pool. Without a history
// (nil) it takes no units that have to do with one.
func NewUnpacker(pool *compress.Pool, past *history.Receiver) *Unpacker {
	return &Unpacker{pool: pool, past: past}
}

// Note takes in a message, which it borrows, if it is the note that Pack made in
// place of a unit. What follows is then to be shown to Saw.
func (u *Unpacker) Note(msg []byte) bool {
	if u.past == nil || len(msg) != noteAt+history.NoteLen || msg[0] != noteKind || msg[1]|msg[2]|msg[3] != 0 {
		return false
	}
	n, ok := history.ParseNote(msg[noteAt:])
	if ok {
		u.past.Watch(n)
	}
	return ok
}

// Watching reports whether Saw has any use.
func (u *Unpacker) Watching() bool { return u.past != nil && u.past.Watching() }

// Saw takes what the history wants of a packet that crossed as it is, and
// borrows it.
func (u *Unpacker) Saw(packet []byte, link super.Link, segment uint16) {
	ip, tcp, body, end, ok := super.TCP(packet, link)
	if !ok || body == end {
		return
	}
	flow := history.Flow(segment, packet[ip:], packet[tcp:])
	u.past.Saw(flow, binary.BigEndian.Uint32(packet[tcp+4:]), packet[body:end])
}

// Unpack reads a unit, which it borrows, and appends its super-packet to dst,
// which should have room for super.MaxPacket bytes. What the packet is remains to
// be seen by super.Splitter; into how many it is cut is bounded. After ErrFormat
// and ErrMissing nothing was appended.
func (u *Unpacker) Unpack(dst, unit []byte) (Unit, error) {
	if len(unit) <= HeaderLen {
		return Unit{}, ErrFormat
	}
	codec, flags := compress.Codec(unit[0]), unit[1]
	size, n := binary.BigEndian.Uint16(unit[4:]), binary.BigEndian.Uint32(unit[8:])
	known := codec == compress.S2 || codec == compress.Zstd || codec == compress.Raw && flags&flagPast != 0
	if !known || size < MinSize || n > super.MaxPacket {
		return Unit{}, ErrFormat
	}
	at := len(dst)
	body := unit[HeaderLen:]
	var e extension
	var err error
	if flags != 0 {
		if e, body, err = u.extension(flags, body, int(n)); err != nil {
			return Unit{}, err
		}
	}
	if dst, err = u.plain(dst, body, codec, int(n), &e); errors.Is(err, ErrMissing) {
		return Unit{}, err
	} else if err != nil {
		return Unit{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	r := Unit{Packet: dst[at:], Segment: binary.BigEndian.Uint16(unit[2:])}
	if xxh3.Hash(r.Packet) != binary.BigEndian.Uint64(unit[12:]) {
		return Unit{}, u.wrong(&e)
	}
	if r.Segment != 0 {
		r.Link = super.Ethernet
	}
	r.Header = super.Header{Partial: true, Kind: super.TCPKind(r.Packet, r.Link), Size: size, Start: binary.BigEndian.Uint16(unit[6:]), Offset: tcpSum}
	if r.Header.Kind == super.None {
		return Unit{}, ErrFormat
	}
	if e.noted {
		u.past.Watch(e.note)
	}
	if u.Watching() {
		u.Saw(r.Packet, r.Link, r.Segment)
	}
	return r, nil
}

// extension is the part of a unit about the history.
type extension struct {
	epoch, base uint32
	tokens      []byte
	covered     int // bytes that are in the history
	note        history.Note
	noted       bool
}

// extension reads it and returns what follows.
func (u *Unpacker) extension(flags byte, b []byte, n int) (e extension, rest []byte, err error) {
	if u.past == nil || flags&^flagNote != flagPast || len(b) < pastLen {
		return e, nil, ErrFormat
	}
	e.epoch, e.base = binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	k := binary.BigEndian.Uint32(b[8:])
	b = b[pastLen:]
	if uint64(k) > uint64(len(b)) {
		return e, nil, ErrFormat
	}
	e.tokens, b = b[:k], b[k:]
	var ok bool
	if e.covered, ok = history.Covered(e.tokens, n); !ok {
		return e, nil, ErrFormat
	}
	if e.noted = flags&flagNote != 0; e.noted {
		if e.note, ok = history.ParseNote(b); !ok {
			return e, nil, ErrFormat
		}
		b = b[history.NoteLen:]
	}
	return e, b, nil
}

// plain appends the super-packet of a unit.
func (u *Unpacker) plain(dst, b []byte, codec compress.Codec, n int, e *extension) (_ []byte, err error) {
	if len(e.tokens) == 0 {
		return u.pool.Decode(dst, b, codec, n)
	}
	if u.literals, err = u.pool.Decode(u.literals[:0], b, codec, n-e.covered); err != nil {
		return dst, err
	}
	if !u.past.Enter(e.epoch) {
		return dst, ErrMissing
	}
	dst, ok := u.past.Expand(dst, e.tokens, u.literals, e.base)
	if !ok {
		return dst, ErrMissing
	}
	return dst, nil
}

// wrong returns the error of a unit whose checksum is. If it refers to the
// history, then the two ends have different ones: the sender is told.
func (u *Unpacker) wrong(e *extension) error {
	if len(e.tokens) == 0 {
		return ErrFormat
	}
	u.past.Doubt(e.tokens, e.base)
	return ErrMissing
}
