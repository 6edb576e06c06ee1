package ether

import (
	"encoding/binary"
	"net/netip"

	"stitch/tunnel/config"
)

const (
	arpLen      = 28
	arpRequest  = 1
	arpReply    = 2
	rarpRequest = 3
	rarpReply   = 4
)

// arp judges ARP and RARP, and finds announcements.
func (f *filter) arp(h *header) (info, Reason) {
	p := h.payload
	if len(p) < arpLen || [6]byte(p[:6]) != [6]byte{0, 1, 8, 0, 6, 4} {
		return info{}, BadARP
	}
	op := binary.BigEndian.Uint16(p[6:])
	reverse := h.etherType == typeRARP
	if reverse && op != rarpRequest && op != rarpReply ||
		!reverse && op != arpRequest && op != arpReply {
		return info{}, BadARP
	}
	sha, tha := config.MAC(p[8:14]), config.MAC(p[18:24])
	spa, tpa := netip.AddrFrom4([4]byte(p[14:18])), netip.AddrFrom4([4]byte(p[24:28]))
	switch {
	case f.isGateway(h, spa) || f.isGateway(h, tpa) || sha == f.gatewayMAC || reverse && tha == f.gatewayMAC:
		return info{}, GatewayARP
	case f.spoofed(h, spa, sha):
		return info{}, SpoofedARP
	}
	in := info{control: true}
	if sha != h.src {
		return in, Carried
	}
	if !spa.IsUnspecified() {
		in.ip = spa
	}
	switch {
	case op == rarpRequest && tha == sha:
		in.kind = KindRARP
	case reverse || !in.ip.IsValid():
	case spa == tpa:
		in.kind = KindGARP
	case op == arpRequest:
		in.wants = tpa
	}
	return in, Carried
}

const (
	protoICMP6    = 58
	protoUDP      = 17
	protoTCP      = 6
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	// maxExtensions bounds the IPv6 extension headers looked through; RFC 8200
	// has seven, in an order of its own.
	maxExtensions = 8
)

// ipv4 judges an IPv4 packet; what follows its total length is padding.
func (f *filter) ipv4(h *header) (info, Reason) {
	p := h.payload
	if len(p) < ipv4HeaderLen || p[0]>>4 != 4 {
		return info{}, BadIP
	}
	ihl, total := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
	if ihl < ipv4HeaderLen || total < ihl || total > len(p) {
		return info{}, BadIP
	}
	in := info{from: netip.AddrFrom4([4]byte(p[12:16])), to: netip.AddrFrom4([4]byte(p[16:20]))}
	first := binary.BigEndian.Uint16(p[6:])&0x1fff == 0
	if p[9] == protoUDP && first {
		if r := f.dhcp(p[ihl:total], 67); r != Carried {
			return info{}, r
		}
	}
	return in, f.source(h, in.from)
}

// dhcp judges a UDP header: server and client have the ports port and port+1.
// Only the destination counts, a sender may use any port.
func (f *filter) dhcp(udp []byte, port uint16) Reason {
	if len(udp) < 8 {
		return BadIP
	}
	if to := binary.BigEndian.Uint16(udp[2:]); !f.pass.DHCP && (to == port || to == port+1) {
		return DHCP
	}
	return Carried
}

// ipv6 judges an IPv6 packet, looking through its extension headers as far as
// a first fragment must show them (RFC 7112).
func (f *filter) ipv6(h *header) (info, Reason) {
	p := h.payload
	if len(p) < ipv6HeaderLen || p[0]>>4 != 6 {
		return info{}, BadIP
	}
	size := int(binary.BigEndian.Uint16(p[4:]))
	if size > len(p)-ipv6HeaderLen {
		return info{}, BadIP
	}
	in := info{from: netip.AddrFrom16([16]byte(p[8:24])), to: netip.AddrFrom16([16]byte(p[24:40]))}
	in, r := f.upper(h, in, p[6], p[ipv6HeaderLen:ipv6HeaderLen+size])
	if r == Carried {
		r = f.source(h, netip.AddrFrom16([16]byte(p[8:24])))
	}
	return in, r
}

// upper judges what follows the header of an IPv6 packet, of type next.
func (f *filter) upper(h *header, in info, next byte, body []byte) (info, Reason) {
	fragment := false
	for range maxExtensions {
		n := extensionLen(next, body)
		switch {
		case next == protoICMP6:
			return f.icmp6(h, in, body, fragment)
		case next == protoUDP:
			return in, f.dhcp(body, 546)
		case n == 0:
			return in, Carried
		case n > len(body):
			return in, BadIP
		case next == 44 && binary.BigEndian.Uint16(body[2:])>>3 != 0:
			return in, Carried // not the first: harmless without it
		}
		fragment = fragment || next == 44
		next, body = body[0], body[n:]
	}
	return in, BadIP
}

// extensionLen returns the length of the extension header of type next at the
// start of p, 0 if next is none, more than len(p) if it is cut off.
func extensionLen(next byte, p []byte) int {
	const cut = MaxFrame + 1
	switch next {
	case 0, 43, 51, 60, 135, 139, 140:
		if len(p) < 8 {
			return cut
		}
		if next == 51 {
			return max(8, (int(p[1])+2)*4)
		}
		return (int(p[1]) + 1) * 8
	case 44:
		if len(p) < 8 {
			return cut
		}
		return 8
	}
	return 0
}

const (
	ndSolicitRouter = 133
	ndRouter        = 134
	ndSolicit       = 135
	ndAdvertise     = 136
	ndRedirect      = 137
	ndLen           = 24
)

// icmp6 judges an ICMPv6 message.
func (f *filter) icmp6(h *header, in info, p []byte, fragment bool) (info, Reason) {
	if len(p) < 4 {
		return info{}, BadIP
	}
	if fragment && p[0] >= ndSolicitRouter && p[0] <= ndRedirect {
		return info{}, FragmentedND
	}
	switch p[0] {
	case ndRouter:
		if f.pass.RouterAdverts {
			return info{control: true}, Carried
		}
		return info{}, RouterAdvert
	case ndRedirect:
		return info{}, Redirect
	case ndSolicitRouter:
		return info{control: true}, Carried
	case ndSolicit, ndAdvertise:
		return f.neighbour(h, p)
	}
	return in, Carried
}

// neighbour judges a neighbour solicitation or advertisement.
func (f *filter) neighbour(h *header, p []byte) (info, Reason) {
	if len(p) < ndLen {
		return info{}, BadIP
	}
	ip := h.payload
	src, target := netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(p[8:24]))
	lladdr, ok := linkLayerOption(p[ndLen:], h.src)
	switch {
	case !ok:
		return info{}, BadIP
	case f.isGateway(h, src) || f.isGateway(h, target) || lladdr == f.gatewayMAC:
		return info{}, GatewayND
	}
	claimed := src
	if p[0] == ndAdvertise {
		claimed = target
	}
	if f.spoofed(h, claimed, lladdr) || f.spoofed(h, claimed, h.src) {
		return info{}, SpoofedARP
	}
	in := info{control: true}
	if lladdr != h.src || claimed.IsUnspecified() {
		return in, Carried
	}
	in.ip = claimed
	if ip[7] != 255 {
		return in, Carried // not from this network: no host believes it
	}
	const router, solicited = 0x80, 0x40
	switch {
	case p[0] == ndSolicit:
		in.wants = target
	case p[4]&solicited == 0 && group(h.dst):
		in.kind = KindNA
		fallthrough
	default:
		in.advert, in.router = true, p[4]&router != 0
	}
	return in, Carried
}

// linkLayerOption returns the link-layer address in neighbour discovery
// options, absent if there is none; false if the options are cut short or name
// more than one.
func linkLayerOption(p []byte, absent config.MAC) (addr config.MAC, ok bool) {
	addr = absent
	for found := false; len(p) > 0; {
		if len(p) < 8 {
			return addr, false
		}
		n := int(p[1]) * 8
		if n == 0 || n > len(p) {
			return addr, false
		}
		if p[0] == 1 || p[0] == 2 {
			if found {
				return addr, false
			}
			addr, found = config.MAC(p[2:8]), true
		}
		p = p[n:]
	}
	return addr, true
}
