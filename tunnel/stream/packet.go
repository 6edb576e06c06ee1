package stream

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

const (
	protoTCP    = 6
	protoICMP   = 1
	protoICMPv6 = 58
	ip4Header   = 20
	ip6Header   = 40
	tcpHeader   = 20
	// maxSYN bounds a held packet: a SYN with all options and early data.
	maxSYN = 2048
	// replyTTL is the hop limit of the packets made here.
	replyTTL = 64

	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// errNotSYN is returned for a packet that is not one plain, whole, correctly
// checksummed TCP SYN.
var errNotSYN = errors.New("stream: not a plain SYN")

// tuple names a connection by the client's address and the server's.
type tuple struct {
	src, dst netip.AddrPort
	// segment is that of both; 0: the connection is routed.
	segment uint16
}

// syn is what is needed of a client's SYN.
type syn struct {
	tuple
	// seq is its sequence number, next the one after everything it carries.
	seq, next uint32
}

// parseSYN reads an IPv4 or IPv6 packet that must be a TCP SYN and nothing
// odd: no fragment, no IP options or extension headers, no address that cannot
// be a host's, right lengths and checksums. It borrows p.
func parseSYN(p []byte) (syn, error) {
	if len(p) < 1 || len(p) > maxSYN {
		return syn{}, errNotSYN
	}
	var s syn
	var segment []byte
	var ok bool
	switch p[0] >> 4 {
	case 4:
		s.tuple, segment, ok = parseIPv4(p)
	case 6:
		s.tuple, segment, ok = parseIPv6(p)
	}
	if !ok || !hostAddr(s.src.Addr()) || !hostAddr(s.dst.Addr()) || s.src.Addr() == s.dst.Addr() {
		return syn{}, errNotSYN
	}
	if !s.parseTCP(segment) {
		return syn{}, errNotSYN
	}
	return s, nil
}

// parseIPv4 returns the addresses and the TCP segment.
func parseIPv4(p []byte) (tuple, []byte, bool) {
	if len(p) < ip4Header+tcpHeader || p[0] != 0x45 ||
		int(binary.BigEndian.Uint16(p[2:])) != len(p) ||
		binary.BigEndian.Uint16(p[6:])&0x3fff != 0 || // more fragments, offset
		p[9] != protoTCP || checksum(p[:ip4Header], 0) != 0 {
		return tuple{}, nil, false
	}
	src, dst := netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
	return tuple{src: netip.AddrPortFrom(src, 0), dst: netip.AddrPortFrom(dst, 0)}, p[ip4Header:], true
}

// parseIPv6 returns the addresses and the TCP segment.
func parseIPv6(p []byte) (tuple, []byte, bool) {
	if len(p) < ip6Header+tcpHeader || int(binary.BigEndian.Uint16(p[4:])) != len(p)-ip6Header || p[6] != protoTCP {
		return tuple{}, nil, false
	}
	src, dst := netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
	if src.Is4In6() || dst.Is4In6() {
		return tuple{}, nil, false
	}
	return tuple{src: netip.AddrPortFrom(src, 0), dst: netip.AddrPortFrom(dst, 0)}, p[ip6Header:], true
}

// parseTCP fills ports and sequence numbers from the segment.
func (s *syn) parseTCP(seg []byte) bool {
	header := int(seg[12]>>4) * 4
	if header < tcpHeader || header > len(seg) || seg[13]&(flagSYN|flagACK|flagRST|flagFIN) != flagSYN {
		return false
	}
	if checksum(seg, pseudoSum(s.src.Addr(), s.dst.Addr(), protoTCP, len(seg))) != 0 {
		return false
	}
	sport, dport := binary.BigEndian.Uint16(seg), binary.BigEndian.Uint16(seg[2:])
	if sport == 0 || dport == 0 {
		return false
	}
	s.src, s.dst = netip.AddrPortFrom(s.src.Addr(), sport), netip.AddrPortFrom(s.dst.Addr(), dport)
	s.seq = binary.BigEndian.Uint32(seg[4:])
	s.next = s.seq + 1 + uint32(len(seg)-header)
	return true
}

// hostAddr reports whether a can be the address of a routed host.
func hostAddr(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() &&
		!a.IsLinkLocalUnicast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// pseudoSum is the unfolded sum of the TCP or ICMPv6 pseudo-header.
func pseudoSum(src, dst netip.Addr, proto byte, n int) uint32 {
	return sum16(dst.AsSlice(), sum16(src.AsSlice(), uint32(proto)+uint32(n)))
}

// sum16 adds b as big-endian 16-bit words; at most 64 KiB, so it cannot overflow.
func sum16(b []byte, sum uint32) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

// checksum is the Internet checksum (RFC 1071) of b on top of an initial sum:
// 0 over bytes that contain a right checksum.
func checksum(b []byte, initial uint32) uint16 {
	sum := sum16(b, initial)
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// buildRST appends the packet a refusing server would send to the client.
func buildRST(b []byte, s syn) []byte {
	b, seg := appendIP(b, s.dst.Addr(), s.src.Addr(), protoTCP, tcpHeader)
	binary.BigEndian.PutUint16(seg, s.dst.Port())
	binary.BigEndian.PutUint16(seg[2:], s.src.Port())
	binary.BigEndian.PutUint32(seg[8:], s.next)
	seg[12], seg[13] = tcpHeader/4<<4, flagRST|flagACK
	binary.BigEndian.PutUint16(seg[16:], checksum(seg, pseudoSum(s.dst.Addr(), s.src.Addr(), protoTCP, len(seg))))
	return b
}

// buildUnreachable appends the ICMP or ICMPv6 error for kind about the SYN
// packet, as if the server's host had sent it; nil if kind has none.
func buildUnreachable(b []byte, s syn, packet []byte, kind Refusal) []byte {
	v6 := s.dst.Addr().Is6()
	typ, code, ok := unreachableCode(kind, v6)
	if !ok {
		return nil
	}
	proto, most := byte(protoICMP), 576-ip4Header-8
	if v6 {
		proto, most = protoICMPv6, 1280-ip6Header-8
	}
	quoted := packet[:min(len(packet), most)]
	b, msg := appendIP(b, s.dst.Addr(), s.src.Addr(), proto, 8+len(quoted))
	msg[0], msg[1] = typ, code
	copy(msg[8:], quoted)
	var initial uint32
	if v6 {
		initial = pseudoSum(s.dst.Addr(), s.src.Addr(), protoICMPv6, len(msg))
	}
	binary.BigEndian.PutUint16(msg[2:], checksum(msg, initial))
	return b
}

// unreachableCode gives ICMP type and code (RFC 792, 1812, 4443).
func unreachableCode(kind Refusal, v6 bool) (typ, code byte, ok bool) {
	switch {
	case kind == HostUnreachable && v6:
		return 1, 3, true
	case kind == NetUnreachable && v6:
		return 1, 0, true
	case kind == Prohibited && v6:
		return 1, 1, true
	case kind == HostUnreachable:
		return 3, 1, true
	case kind == NetUnreachable:
		return 3, 0, true
	case kind == Prohibited:
		return 3, 13, true
	}
	return 0, 0, false
}

// appendIP appends an IP header and n zero bytes of payload and returns both
// the packet and the payload in it.
func appendIP(b []byte, src, dst netip.Addr, proto byte, n int) (packet, payload []byte) {
	start := len(b)
	if dst.Is4() {
		b = append(b, make([]byte, ip4Header+n)...)
		h := b[start:]
		h[0], h[6], h[8], h[9] = 0x45, 0x40, replyTTL, proto
		binary.BigEndian.PutUint16(h[2:], uint16(ip4Header+n))
		copy(h[12:], src.AsSlice())
		copy(h[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(h[10:], checksum(h[:ip4Header], 0))
		return b, h[ip4Header:]
	}
	b = append(b, make([]byte, ip6Header+n)...)
	h := b[start:]
	h[0], h[6], h[7] = 0x60, proto, replyTTL
	binary.BigEndian.PutUint16(h[4:], uint16(n))
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	return b, h[ip6Header:]
}

// buildReply appends the answer the client gets for a refusal; nil means that
// it gets none.
func buildReply(b []byte, s syn, packet []byte, kind Refusal) []byte {
	if kind == RefusedByServer {
		return buildRST(b, s)
	}
	return buildUnreachable(b, s, packet, kind)
}
