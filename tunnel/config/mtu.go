package config

import (
	"net"
	"net/netip"
)

// The arithmetic of what fits into what. From the outside in:
//
//	underlay MTU  1500  1500  9000
//	IP              20    40    20   IPv4 or IPv6 of the underlay
//	UDP              8     8     8
//	WireGuard       32    32    32   type, receiver, counter and the AEAD tag
//	inner MTU     1440  1420  8940   an IP packet of the link
//	carrier         28    28    28   what is not a plain IP packet, see package carrier
//	frame         1412  1392  8912   an Ethernet frame without FCS, in one part
//
// A larger frame crosses in equal parts, so two of them for 1514 or 1522
// bytes. TCP's segments are what is left of a packet without IP and TCP header.
const (
	udpHeader       = 8
	wireguardHeader = 32
	// CarrierHeader is the IPv4 carrier header plus our own 8 bytes in front
	// of what the link carries that is not a plain IP packet.
	CarrierHeader = 20 + 8
	tcpHeader     = 20
	// LANMTU is what a packet of a LAN has at most unless its hosts use jumbo
	// frames.
	LANMTU = 1500
	// MinIPv6MTU is what a link must carry to carry IPv6 (RFC 8200).
	MinIPv6MTU = 1280
	// MinUnderlayMTU is what the path between two edges must carry. Every path
	// that carries IPv6 does, and hardly one of IPv4 does not.
	MinUnderlayMTU = MinIPv6MTU
	// MinInnerMTU is the inner MTU over any such path.
	MinInnerMTU = MinUnderlayMTU - 40 - udpHeader - wireguardHeader
	// MaxControl is the most bytes of a control datagram: it fits into one
	// packet of any link.
	MaxControl = MinInnerMTU - CarrierHeader
)

// ipHeader is the length of an IP header without options.
func ipHeader(ipv6 bool) int {
	if ipv6 {
		return 40
	}
	return 20
}

// InnerMTU returns the largest IP packet that fits into one datagram of a link
// over an underlay with the given MTU.
func InnerMTU(underlay int, ipv6 bool) int {
	return underlay - ipHeader(ipv6) - udpHeader - wireguardHeader
}

// InnerMTU returns the largest IP packet that fits into one datagram of the link
// to p. A peer whose endpoint is not a literal IPv4 address may be reached over
// IPv6.
func (p *Peer) InnerMTU() int {
	host, _, _ := net.SplitHostPort(p.Endpoint)
	a, err := netip.ParseAddr(host)
	return InnerMTU(p.UnderlayMTU, err != nil || a.Unmap().Is6())
}

// TUNMTU returns the MTU of the TUN of a link with the given inner MTU. What is
// longer is the kernel's to fragment, or to answer that it is too big. Packets
// of connections that were opened before a move are up to LANMTU long, and have
// to cross, in parts if need be. A stock peer knows no parts.
func TUNMTU(inner int, stock bool) int {
	if stock {
		return inner
	}
	return max(LANMTU, inner)
}

// MaxFrame returns the longest Ethernet frame, without FCS, that fits into one
// datagram of a link with the given inner MTU.
func MaxFrame(inner int) int { return inner - CarrierHeader }

// MSS returns the largest TCP segment, without options, in an IP packet of mtu
// bytes.
func MSS(mtu int, ipv6 bool) int { return mtu - ipHeader(ipv6) - tcpHeader }
