package config

// Header sizes that decide what fits into one datagram of a link.
const (
	udpHeader       = 8
	wireguardHeader = 32 // type, receiver, counter and the AEAD tag
	// CarrierHeader is the IPv4 carrier header plus our own 8 bytes in front
	// of what the link carries that is not a plain IP packet.
	CarrierHeader = 20 + 8
)

// InnerMTU returns the largest IP packet that fits into one datagram of a link
// over an underlay with the given MTU: 1440 for 1500 over IPv4, 1420 over IPv6.
func InnerMTU(underlay int, ipv6 bool) int {
	ip := 20
	if ipv6 {
		ip = 40
	}
	return underlay - ip - udpHeader - wireguardHeader
}
