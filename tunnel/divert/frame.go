package divert

import (
	"encoding/binary"
	"net/netip"

	"stitch/tunnel/config"
)

const (
	etherHeader = 14
	typeIPv4    = 0x0800
	typeIPv6    = 0x86dd
	ip4Header   = 20
	ip6Header   = 40
	tcpHeader   = 20
	icmpHeader  = 8
	protoICMP   = 1
	protoTCP    = 6
	protoICMPv6 = 58
	// fragmentBits of an IPv4 header: more fragments, and the offset.
	fragmentBits = 0x3fff

	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// packet is what is needed of a TCP frame.
type packet struct {
	src, dst netip.AddrPort
	flags    byte
}

// bareSYN reports whether it begins a connection.
func (p packet) bareSYN() bool {
	return p.flags&(flagSYN|flagACK|flagRST|flagFIN) == flagSYN
}

// parseTCP reads an untagged frame; false if it is not TCP, or a fragment, or has
// IPv6 extension headers.
func parseTCP(frame []byte) (packet, bool) {
	src, dst, proto, body := parseIP(frame)
	if proto != protoTCP || len(body) < tcpHeader {
		return packet{}, false
	}
	return packet{
		src:   netip.AddrPortFrom(src, binary.BigEndian.Uint16(body)),
		dst:   netip.AddrPortFrom(dst, binary.BigEndian.Uint16(body[2:])),
		flags: body[13],
	}, true
}

// untag returns a frame without its one VLAN tag; nil: it has none. It copies.
func untag(frame []byte) []byte {
	const tag = 4
	if len(frame) < etherHeader+tag {
		return nil
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x8100, 0x88a8:
		return append(append(make([]byte, 0, len(frame)-tag), frame[:12]...), frame[12+tag:]...)
	}
	return nil
}

// parseError reads an ICMP error about a TCP packet and returns that one's ends.
func parseError(frame []byte) (src, dst netip.AddrPort, ok bool) {
	_, _, proto, body := parseIP(frame)
	v6 := proto == protoICMPv6
	if len(body) < icmpHeader || proto != protoICMP && !v6 || !isError(body[0], v6) {
		return src, dst, false
	}
	a, b, proto, quoted := parseHeader(body[icmpHeader:], v6)
	if proto != protoTCP || len(quoted) < 4 {
		return src, dst, false
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(quoted)), netip.AddrPortFrom(b, binary.BigEndian.Uint16(quoted[2:])), true
}

// isError says which types of ICMP quote a packet that went wrong.
func isError(typ byte, v6 bool) bool {
	if v6 {
		return typ >= 1 && typ <= 4
	}
	return typ == 3 || typ == 11 || typ == 12
}

// parseIP reads an untagged frame's IP header; the body is nil if it has none.
func parseIP(frame []byte) (src, dst netip.Addr, proto byte, body []byte) {
	if len(frame) < etherHeader {
		return src, dst, 0, nil
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case typeIPv4:
		return parseHeader(frame[etherHeader:], false)
	case typeIPv6:
		return parseHeader(frame[etherHeader:], true)
	}
	return src, dst, 0, nil
}

// parseHeader reads an IP header and returns what it carries, which may be cut
// short.
func parseHeader(p []byte, v6 bool) (src, dst netip.Addr, proto byte, body []byte) {
	switch {
	case v6 && len(p) >= ip6Header && p[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40])), p[6], p[ip6Header:]
	case v6 || len(p) < ip4Header || p[0]>>4 != 4 || binary.BigEndian.Uint16(p[6:])&fragmentBits != 0:
		return src, dst, 0, nil
	}
	n := int(p[0]&15) * 4
	if n < ip4Header || n > len(p) {
		return src, dst, 0, nil
	}
	return netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20])), p[9], p[n:]
}

// dstMAC and srcMAC are those of a frame, which has an Ethernet header.
func dstMAC(frame []byte) config.MAC { return config.MAC(frame[0:6]) }
func srcMAC(frame []byte) config.MAC { return config.MAC(frame[6:12]) }

// setMACs writes both.
func setMACs(frame []byte, dst, src config.MAC) {
	copy(frame[0:6], dst[:])
	copy(frame[6:12], src[:])
}
