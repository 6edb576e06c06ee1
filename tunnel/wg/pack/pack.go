package pack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"time"

	"github.com/zeebo/xxh3"

	"stitch/compress"
	"stitch/tunnel/netdev/super"
)

const (
	// HeaderLen is the length of a unit's header.
	HeaderLen = 20
	// MinSize is the least that the packets of a unit but the last carry. It
	// bounds how many there are.
	MinSize = 256
	// tcpSum is where TCP's checksum is in its header.
	tcpSum = 16
	// tcpFlags is where its flags are, syn and urgent those that never are in a
	// unit.
	tcpFlags, syn, urgent = 13, 0x02, 0x20
)

// Verdict is what became of a super-packet that was offered.
type Verdict uint8

// The verdicts. All but Packed leave the super-packet to be cut.
const (
	Packed Verdict = iota
	// Passed over: what was seen of the flow before.
	Passed
	// Encrypted: it looks so.
	Encrypted
	// Small: too little was saved.
	Small
	// Lossy: it would have saved enough, but not at this loss.
	Lossy
	// Busy: compressing takes too much time.
	Busy
	// Odd: flags, sizes or a number of datagrams that units are not made of.
	Odd
	Verdicts // how many there are
)

// Offer is a TCP super-packet, as super.Splitter accepts it.
type Offer struct {
	Packet []byte // borrowed
	// Segment of an Ethernet frame; 0: an IP packet.
	Segment uint16
	// IP, Transport and Body are the offsets of the headers and of the payload.
	IP, Transport, Body int
	// It would be cut into Count packets that carry Size each.
	Size, Count int
	// Room is how many bytes of a unit fit into one datagram.
	Room int
	// Loss of the direction, 0 to 1; negative: not known.
	Loss float64
}

// Packer makes units. It is not safe for concurrent use.
type Packer struct {
	pool  *compress.Pool
	clock func() time.Duration
	gov   governor
	flows flows
}

// NewPacker returns a Packer that compresses with pool. The clock may have any
// origin and never goes back.
func NewPacker(pool *compress.Pool, clock func() time.Duration) *Packer {
	return &Packer{pool: pool, clock: clock, gov: newGovernor(clock()), flows: flows{seed: maphash.MakeSeed()}}
}

// Pack appends the unit of a super-packet to dst, if that pays; if not, it
// returns dst as it was.
func (p *Packer) Pack(dst []byte, o *Offer) ([]byte, Verdict) {
	flags := o.Packet[o.Transport+tcpFlags]
	if o.Count < 2 || o.Size < MinSize || o.Room < 1 || flags&(syn|urgent) != 0 {
		return dst, Odd
	}
	f := p.flows.of(o)
	if !f.due() {
		return dst, Passed
	}
	if looksEncrypted(o.Packet[o.Body:]) {
		f.encrypted()
		return dst, Encrypted
	}
	start := p.clock()
	level := p.gov.at(start)
	if level == compress.Store {
		return dst, Busy
	}
	unit, ok := p.encode(dst, o, level)
	end := p.clock()
	p.gov.took(end-start, end)
	k := (len(unit) - len(dst) + o.Room - 1) / o.Room
	switch most := Most(o.Count, o.Loss); {
	case !ok || k > Most(o.Count, 0):
		f.failed()
		return dst, Small
	case k > most:
		f.failed()
		return dst, Lossy
	}
	f.packed()
	return unit, Packed
}

// encode appends the unit. False means that nothing is saved.
func (p *Packer) encode(dst []byte, o *Offer, level compress.Level) ([]byte, bool) {
	at := len(dst)
	dst = slices.Grow(dst, HeaderLen+compress.ScratchLen(len(o.Packet)))[:at+HeaderLen]
	dst, codec := p.pool.Encode(dst, o.Packet, level)
	h := dst[at:]
	h[0], h[1] = byte(codec), 0
	binary.BigEndian.PutUint16(h[2:], o.Segment)
	binary.BigEndian.PutUint16(h[4:], uint16(o.Size))
	binary.BigEndian.PutUint16(h[6:], uint16(o.Transport))
	binary.BigEndian.PutUint32(h[8:], uint32(len(o.Packet)))
	binary.BigEndian.PutUint64(h[12:], xxh3.Hash(o.Packet))
	return dst, codec != compress.Raw
}

// ErrFormat is returned for a unit that breaks the format.
var ErrFormat = errors.New("pack: malformed unit")

// Unit is a super-packet that came in.
type Unit struct {
	Packet  []byte
	Header  super.Header
	Link    super.Link
	Segment uint16
}

// Unpack reads a unit, which it borrows, and appends its super-packet to dst,
// which should have room for super.MaxPacket bytes. What the packet is remains to
// be seen by super.Splitter; into how many it is cut is bounded. After
// ErrFormat nothing was appended.
func Unpack(pool *compress.Pool, dst, unit []byte) (Unit, error) {
	if len(unit) <= HeaderLen || unit[1] != 0 {
		return Unit{}, ErrFormat
	}
	codec := compress.Codec(unit[0])
	size, n := binary.BigEndian.Uint16(unit[4:]), binary.BigEndian.Uint32(unit[8:])
	if codec != compress.S2 && codec != compress.Zstd || size < MinSize || n > super.MaxPacket {
		return Unit{}, ErrFormat
	}
	at := len(dst)
	dst, err := pool.Decode(dst, unit[HeaderLen:], codec, int(n))
	if err != nil {
		return Unit{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	u := Unit{Packet: dst[at:], Segment: binary.BigEndian.Uint16(unit[2:])}
	if xxh3.Hash(u.Packet) != binary.BigEndian.Uint64(unit[12:]) {
		return Unit{}, ErrFormat
	}
	if u.Segment != 0 {
		u.Link = super.Ethernet
	}
	u.Header = super.Header{Partial: true, Kind: super.TCPKind(u.Packet, u.Link), Size: size, Start: binary.BigEndian.Uint16(unit[6:]), Offset: tcpSum}
	if u.Header.Kind == super.None {
		return Unit{}, ErrFormat
	}
	return u, nil
}
