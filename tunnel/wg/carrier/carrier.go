// Package carrier is the format of what crosses a link besides plain IP
// packets: Ethernet frames of segments, IP packets larger than the link,
// super-packets that were compressed (units), probes and control datagrams.
//
// WireGuard carries IP packets only, so each of these is the payload of an
// IPv4 packet between the two link addresses, protocol 97:
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------+-------+---------------+-------------------------------+
//	|   4   |   5   |       0       |         total length          |
//	+-------+-------+---------------+-------------------------------+
//	|               0               |       0x4000 (DF)             |
//	+---------------+---------------+-------------------------------+
//	|    TTL = 1    |      97       |        header checksum        |
//	+---------------+---------------+-------------------------------+
//	|                 link address of the sender                    |
//	+---------------------------------------------------------------+
//	|                link address of the receiver                   |
//	+-------+-------+-------+-------+-------------------------------+
//	|version| kind  | index | last  |            segment            |
//	+-------+-------+-------+-------+-------------------------------+
//	|                             id                                |
//	+---------------------------------------------------------------+
//	|  payload ...
//
// Numbers are big-endian. The TTL of 1 keeps a packet that reaches a kernel by
// mistake from being forwarded.
//
//   - version is 1. A receiver drops and counts any other.
//   - kind is 1 for an Ethernet frame (without FCS), 2 for an IP packet, 3 for a
//     probe, 4 for a control datagram, 5 for a unit of package pack, which is
//     only sent to who said that he takes those, 6 for a message of a train by
//     which the path is measured. Others are dropped and counted.
//   - segment is the id of the frame's segment; 0 for every other kind.
//   - index and last describe parts. A message that fits is one part: index 0,
//     last 0, id 0 unless it is a unit. A larger one is cut into last+1 parts (at most 16) of equal
//     length, the final one shorter by less than last+1 bytes; all carry the
//     same id, which a sender does not use again for 2^32 messages. Probes and
//     control datagrams are never cut; IP packets always are, since one that
//     fits crosses as it is. A unit has up to 64 parts: index and last are whole
//     bytes, the second and third behind the version, and the fourth is 0.
//
// Parts may arrive in any order. A receiver joins them when all are there,
// and forgets a message when a second has passed since its latest part and
// another message begins, or earlier when its memory is full (the one without
// news for longest first). A part whose kind, segment, last or length contradicts
// the parts already there is dropped; so is a part that is there already. A
// message that is forgotten is lost: nothing is asked for again, and a part of
// it that comes later begins another one, which is lost in its turn.
//
// What a receiver may rely on: a packet with protocol 97 that has a link
// address as source or destination is never taken from or given to the TUN
// device. See testdata/wire/carrier.txt for vectors.
//
// This package is pure.
package carrier

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

const (
	// HeaderLen is the bytes in front of the payload.
	HeaderLen = 28
	// Version is the version of the format.
	Version = 1
	// MaxParts is the most parts of one message.
	MaxParts = 16
	// MaxMessage is the most bytes of one message: a jumbo frame with tags,
	// with room to spare.
	MaxMessage = 16 << 10
	// MaxUnitParts and MaxUnit are the same of a unit.
	MaxUnitParts = 64
	MaxUnit      = 64 << 10

	protocol = 97
	ipHeader = 20
)

// Kind says what a payload is.
type Kind uint8

// The kinds of payload.
const (
	Frame   Kind = 1
	IP      Kind = 2
	Probe   Kind = 3
	Control Kind = 4
	Unit    Kind = 5
	Bench   Kind = 6
)

// limits returns the most parts and bytes of a message of the kind.
func (k Kind) limits() (parts, bytes int) {
	if k == Unit {
		return MaxUnitParts, MaxUnit
	}
	return MaxParts, MaxMessage
}

// Header is the part of the format behind the IPv4 header.
type Header struct {
	Kind    Kind
	Segment uint16
	// Index of the part, 0 to Last; Last is the number of parts minus one.
	Index, Last uint8
	// ID is common to the parts of a message.
	ID uint32
}

var (
	// ErrVersion is returned for a packet of another version of the format.
	ErrVersion = errors.New("carrier: unknown version")
	// ErrFormat is returned for a packet that breaks the format.
	ErrFormat = errors.New("carrier: malformed")
)

// Path is the pair of addresses packets cross between; it is immutable and
// may be shared.
type Path struct {
	local, remote [4]byte
	// sum is the checksum's share of everything but the total length.
	sum uint32
}

// NewPath returns the path between two different IPv4 link addresses.
func NewPath(local, remote netip.Addr) (Path, error) {
	if !local.Is4() || !remote.Is4() || local == remote {
		return Path{}, errors.New("carrier: link addresses must be two different IPv4 addresses")
	}
	p := Path{local: local.As4(), remote: remote.As4()}
	var b [HeaderLen]byte
	p.putIP(b[:], 0)
	b[2], b[3], b[10], b[11] = 0, 0, 0, 0
	for i := 0; i < ipHeader; i += 2 {
		p.sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return p, nil
}

// Put writes the header of a packet with n bytes of payload into the first
// HeaderLen bytes of b. The packet must not exceed 65,535 bytes.
func (p *Path) Put(b []byte, h Header, n int) {
	_ = b[HeaderLen-1]
	p.putIP(b, HeaderLen+n)
	b[20] = Version<<4 | byte(h.Kind)
	if h.Kind == Unit {
		b[21], b[22], b[23] = h.Index, h.Last, 0
	} else {
		b[21] = h.Index<<4 | h.Last
		binary.BigEndian.PutUint16(b[22:], h.Segment)
	}
	binary.BigEndian.PutUint32(b[24:], h.ID)
}

func (p *Path) putIP(b []byte, total int) {
	binary.BigEndian.PutUint32(b[0:], 0x45000000|uint32(total))
	binary.BigEndian.PutUint32(b[4:], 0x00004000)
	b[8], b[9] = 1, protocol
	sum := p.sum + uint32(total)
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	copy(b[12:], p.local[:])
	copy(b[16:], p.remote[:])
}

// Touches reports whether pkt is an IPv4 packet of protocol 97 with a link
// address in it: the packets that belong to the link itself and must not be
// exchanged with the TUN device.
func (p *Path) Touches(pkt []byte) bool {
	if len(pkt) < ipHeader || pkt[9] != protocol || pkt[0]>>4 != 4 {
		return false
	}
	src, dst := [4]byte(pkt[12:16]), [4]byte(pkt[16:20])
	return src == p.local || src == p.remote || dst == p.local || dst == p.remote
}

// Between reports whether pkt is an IPv4 packet from the local link address to
// the remote one, of any protocol.
func (p *Path) Between(pkt []byte) bool {
	return len(pkt) >= ipHeader && pkt[0]>>4 == 4 && [4]byte(pkt[12:16]) == p.local && [4]byte(pkt[16:20]) == p.remote
}

// Parse reads a packet that came from the peer. It is ErrFormat for whatever is
// not a valid packet from remote to local. The payload is a part of pkt.
func (p *Path) Parse(pkt []byte) (Header, []byte, error) {
	if len(pkt) <= HeaderLen || pkt[0] != 0x45 || int(binary.BigEndian.Uint16(pkt[2:])) != len(pkt) ||
		binary.BigEndian.Uint16(pkt[6:]) != 0x4000 || pkt[9] != protocol ||
		[4]byte(pkt[12:16]) != p.remote || [4]byte(pkt[16:20]) != p.local {
		return Header{}, nil, ErrFormat
	}
	if pkt[20]>>4 != Version {
		return Header{}, nil, ErrVersion
	}
	h := Header{
		Kind: Kind(pkt[20] & 15), Index: pkt[21] >> 4, Last: pkt[21] & 15,
		Segment: binary.BigEndian.Uint16(pkt[22:]), ID: binary.BigEndian.Uint32(pkt[24:]),
	}
	if h.Kind == Unit {
		h.Index, h.Last, h.Segment = pkt[21], pkt[22], uint16(pkt[23])
	}
	if !h.valid() {
		return Header{}, nil, ErrFormat
	}
	return h, pkt[HeaderLen:], nil
}

func (h Header) valid() bool {
	switch {
	case h.Kind < Frame || h.Kind > Bench, h.Index > h.Last, h.Last >= MaxUnitParts:
		return false
	case (h.Kind == Probe || h.Kind == Control) && h.Last != 0, h.Kind == IP && h.Last == 0:
		return false
	}
	return (h.Kind == Frame) == (h.Segment != 0)
}

// Split returns how many parts a message of n bytes, which is no unit, is cut
// into when a packet may have mtu bytes, and the length of every part but the
// final one. Zero parts means that it cannot be carried: empty, or too long.
func Split(n, mtu int) (parts, size int) { return Frame.Split(n, mtu) }

// Split is Split for a message of the kind.
func (k Kind) Split(n, mtu int) (parts, size int) {
	most, bytes := k.limits()
	room := mtu - HeaderLen
	if n <= 0 || n > bytes || room <= 0 {
		return 0, 0
	}
	parts = (n + room - 1) / room
	if parts > most {
		return 0, 0
	}
	return parts, (n + parts - 1) / parts
}
