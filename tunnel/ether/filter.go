package ether

import (
	"net/netip"
	"slices"

	"stitch/tunnel/config"
)

// filter holds what stays at a site. It is the same for both directions: the
// far agent should have dropped these frames, but a hostile one would not.
type filter struct {
	gateway    netip.Addr
	gatewayLL  netip.Addr // IPv6 link-local address made from gatewayMAC
	gatewayMAC config.MAC
	own        []config.MAC
	workloads  map[netip.Addr]config.MAC
}

// info is what a frame that may cross says.
type info struct {
	// control: ARP, RARP or neighbour discovery.
	control bool
	// kind is the kind of announcement, empty if it is none.
	kind string
	// ip is the address that the source MAC has, if the frame says so.
	ip netip.Addr
}

func newFilter(seg config.Segment, own []config.MAC, static []Workload) filter {
	f := filter{
		gateway:    seg.Gateway,
		gatewayMAC: seg.GatewayMAC,
		own:        slices.Clone(own),
		workloads:  make(map[netip.Addr]config.MAC, len(static)),
	}
	if seg.GatewayMAC != (config.MAC{}) {
		f.gatewayLL = linkLocal(seg.GatewayMAC)
	}
	for _, w := range static {
		if w.IP.IsValid() {
			f.workloads[w.IP] = w.MAC
		}
	}
	return f
}

// linkLocal returns the IPv6 link-local address that m yields (RFC 4291).
func linkLocal(m config.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80,
		8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// inspect parses frame and says whether it may cross at all.
func (f *filter) inspect(frame []byte) (header, info, Reason) {
	h, r := parse(frame)
	if r == Carried {
		r = f.addresses(&h)
	}
	if r != Carried {
		return h, info{}, r
	}
	in, r := f.protocol(&h)
	return h, in, r
}

func (f *filter) addresses(h *header) Reason {
	switch {
	case group(h.src) || h.src == config.MAC{}:
		return BadSource
	case h.src == f.gatewayMAC || h.dst == f.gatewayMAC:
		return GatewayMAC
	case slices.Contains(f.own, h.src) || slices.Contains(f.own, h.dst):
		return OwnMAC
	case reserved(h.dst):
		return Reserved
	case ciscoGroup(h.dst):
		return Discovery
	}
	return Carried
}

func (f *filter) protocol(h *header) (info, Reason) {
	switch {
	case h.cisco:
		return info{}, Discovery
	case h.foreign:
		return info{}, unknownGroup(h.dst)
	}
	switch h.etherType {
	case 0:
		return info{}, llc(h)
	case typeARP, typeRARP:
		return f.arp(h)
	case typeIPv4:
		return info{}, ipv4(h.payload)
	case typeIPv6:
		return f.ipv6(h)
	case typeLLDP:
		return info{}, Discovery
	case typeEAPOL, typePreauth:
		return info{}, PortAuth
	case typeSlow, typePause:
		return info{}, SlowProtocol
	}
	return info{}, Carried
}

// llc judges 802.2 other than SNAP.
func llc(h *header) Reason {
	if h.dsap == 0x42 {
		return STP
	}
	return unknownGroup(h.dst)
}

// unknownGroup refuses protocols that cannot be told apart when they are sent
// to a group: there they may well be a link protocol.
func unknownGroup(dst config.MAC) Reason {
	if group(dst) {
		return LLC
	}
	return Carried
}

// isGateway reports whether a is an address of the gateway.
func (f *filter) isGateway(a netip.Addr) bool { return a == f.gateway || a == f.gatewayLL }

// spoofed reports whether a is the address of a workload with another MAC.
func (f *filter) spoofed(a netip.Addr, m config.MAC) bool {
	owner, ok := f.workloads[a]
	return ok && owner != m
}
