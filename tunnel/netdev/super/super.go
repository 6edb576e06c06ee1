// Package super cuts super-packets into packets and joins packets into
// super-packets.
//
// With segmentation offload the kernel hands over up to 64 KiB of one TCP or
// UDP flow behind a single set of headers, and takes such packets. A header of
// ten bytes (struct virtio_net_hdr of the virtio specification, section
// 5.1.6) in front of each says how it is to be cut. That is where the speed
// of a TUN or TAP comes from: one system call and one walk through the
// kernel's stack for some forty packets.
//
// A Splitter yields the packets of a super-packet: of TCP shorter ones than
// the kernel had in mind if those would not fit, of UDP exactly the datagrams
// that were sent. A Merger does the reverse for packets of one flow that
// follow each other. Cutting what a Merger joined gives the same packets.
// Both know Ethernet, with up to two VLAN tags, and bare IP, and allocate
// nothing.
//
// This package is pure.
package super

import (
	"encoding/binary"
	"errors"
)

// HeaderLen is the length of the header in front of each packet.
const HeaderLen = 10

// MaxPacket is the longest super-packet: 64 KiB of IP behind an Ethernet
// header with two tags.
const MaxPacket = 1<<16 - 1 + etherLen + 2*tagLen

// ErrHeader is returned for a packet that contradicts its header.
var ErrHeader = errors.New("super: packet and header do not fit together")

// Kind says how a super-packet is to be cut.
type Kind uint8

// The kinds, with the numbers of VIRTIO_NET_HDR_GSO_*.
const (
	None Kind = 0 // one packet
	TCP4 Kind = 1
	TCP6 Kind = 4
	UDP  Kind = 5 // datagrams, VIRTIO_NET_HDR_GSO_UDP_L4
)

// Link says what a packet begins with.
type Link uint8

// The links: IP of a TUN, Ethernet of a TAP.
const (
	IP Link = iota
	Ethernet
)

// Header is what the kernel says about a packet.
type Header struct {
	// Partial: the checksum of the bytes from Start on is not complete; the
	// field at Start+Offset holds the pseudo-header's share.
	Partial bool
	Kind    Kind
	// Size is how much each packet but the last carries behind its headers.
	Size          uint16
	Start, Offset uint16
	// length of the headers; a hint for the kernel.
	headers uint16
}

const (
	flagPartial   = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	tcpSumOffset  = 16
	udpSumOffset  = 6
	protoTCP      = 6
	protoUDP      = 17
	etherLen      = 14
	tagLen        = 4
	ip4Len        = 20
	ip6Len        = 40
	tcpLen        = 20
	udpLen        = 8
	dontFragment  = 0x4000
	fragmentBits  = 0x3fff // more fragments, and the offset
	maxIPLen      = 1<<16 - 1
	finFlag       = 0x01
	synFlag       = 0x02
	pushFlag      = 0x08
	ackFlag       = 0x10
	reducedFlag   = 0x80 // CWR
	tcpFlagsAt    = 13
	etherTypeIPv4 = 0x0800
	etherTypeIPv6 = 0x86dd
)

// ParseHeader reads the header in the first HeaderLen bytes of b. It is
// ErrHeader for kinds that are not offered to the kernel.
func ParseHeader(b []byte) (Header, error) {
	h := Header{
		Partial: b[0]&flagPartial != 0, Kind: Kind(b[1]),
		headers: binary.NativeEndian.Uint16(b[2:]), Size: binary.NativeEndian.Uint16(b[4:]),
		Start: binary.NativeEndian.Uint16(b[6:]), Offset: binary.NativeEndian.Uint16(b[8:]),
	}
	switch h.Kind {
	case None, TCP4, TCP6, UDP:
		return h, nil
	}
	return Header{}, ErrHeader
}

// Put writes h into the first HeaderLen bytes of b.
func (h Header) Put(b []byte) {
	_ = b[HeaderLen-1]
	b[0], b[1] = 0, byte(h.Kind)
	if h.Partial {
		b[0] = flagPartial
	}
	binary.NativeEndian.PutUint16(b[2:], h.headers)
	binary.NativeEndian.PutUint16(b[4:], h.Size)
	binary.NativeEndian.PutUint16(b[6:], h.Start)
	binary.NativeEndian.PutUint16(b[8:], h.Offset)
}

// layout is where the headers of a packet are.
type layout struct {
	// ip, l4 and body are the offsets of the IP header, of the TCP or UDP
	// header, and of what that carries; end is that of the IP packet.
	ip, l4, body, end int
	v6                bool
	proto             byte
}

// network returns the offset of the IP header and whether it is IPv6's;
// false if there is none.
func network(p []byte, link Link) (ip int, v6, ok bool) {
	if link == IP {
		return 0, len(p) > 0 && p[0]>>4 == 6, len(p) > 0 && (p[0]>>4 == 4 || p[0]>>4 == 6)
	}
	at := etherLen - 2
	for range 3 { // at most two tags
		if len(p) < at+2 {
			return 0, false, false
		}
		switch binary.BigEndian.Uint16(p[at:]) {
		case 0x8100, 0x88a8, 0x9100, 0x9200, 0x9300:
			at += tagLen
		case etherTypeIPv4:
			return at + 2, false, len(p) > at+2 && p[at+2]>>4 == 4
		case etherTypeIPv6:
			return at + 2, true, len(p) > at+2 && p[at+2]>>4 == 6
		default:
			return 0, false, false
		}
	}
	return 0, false, false
}

// TCPKind returns the kind that a TCP super-packet has by its IP version; None
// if there is no IP header.
func TCPKind(p []byte, link Link) Kind {
	switch _, v6, ok := network(p, link); {
	case !ok:
		return None
	case v6:
		return TCP6
	}
	return TCP4
}

// locate finds the TCP or UDP header of a packet that is not a fragment and
// has no IPv6 extension headers; false if there is none or it is cut short.
func locate(p []byte, link Link) (l layout, ok bool) {
	if l.ip, l.v6, ok = network(p, link); !ok {
		return l, false
	}
	ip := p[l.ip:]
	if l.v6 {
		if len(ip) < ip6Len {
			return l, false
		}
		l.l4, l.proto = l.ip+ip6Len, ip[6]
		l.end = l.l4 + int(binary.BigEndian.Uint16(ip[4:]))
	} else {
		if len(ip) < ip4Len || binary.BigEndian.Uint16(ip[6:])&fragmentBits != 0 {
			return l, false
		}
		l.l4, l.proto = l.ip+int(ip[0]&15)*4, ip[9]
		l.end = l.ip + int(binary.BigEndian.Uint16(ip[2:]))
	}
	if l.end > len(p) || l.l4 < l.ip+ip4Len {
		return l, false
	}
	ok = l.transport(p)
	return l, ok
}

// TCP returns where the headers of a TCP packet, its payload and its end are;
// false if it is none, a fragment, one with IPv6 extension headers, or cut short.
func TCP(p []byte, link Link) (ip, transport, body, end int, ok bool) {
	l, ok := locate(p, link)
	return l.ip, l.l4, l.body, l.end, ok && l.proto == protoTCP
}

// transport finds the end of the transport header.
func (l *layout) transport(p []byte) bool {
	switch {
	case l.proto == protoTCP && l.l4+tcpLen <= l.end:
		n := int(p[l.l4+12]>>4) * 4
		l.body = l.l4 + n
		return n >= tcpLen && l.body <= l.end
	case l.proto == protoUDP && l.l4+udpLen <= l.end:
		l.body = l.l4 + udpLen
		return true
	}
	return false
}

// pseudo is the sum of the pseudo-header of a packet with n bytes behind the
// IP header.
func (l *layout) pseudo(p []byte, n int) uint64 {
	if l.v6 {
		return sum(p[l.ip+8:l.ip+40], uint64(n)+uint64(l.proto))
	}
	return sum(p[l.ip+12:l.ip+20], uint64(n)+uint64(l.proto))
}

// setLength writes the length of the IP packet that ends at end, and the
// checksum of an IPv4 header.
func (l *layout) setLength(p []byte, end int) {
	if l.v6 {
		binary.BigEndian.PutUint16(p[l.ip+4:], uint16(end-l.ip-ip6Len))
		return
	}
	h := p[l.ip:l.l4]
	binary.BigEndian.PutUint16(h[2:], uint16(end-l.ip))
	h[10], h[11] = 0, 0
	binary.BigEndian.PutUint16(h[10:], ^fold(sum(h, 0)))
}
