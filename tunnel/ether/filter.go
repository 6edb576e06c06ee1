package ether

import (
	"net/netip"
	"slices"

	"stitch/tunnel/config"
)

// filter holds what stays at a site. It is the same for both directions: the
// far agent should have dropped these frames, but a hostile one would not.
type filter struct {
	vlans      [4096 / 64]uint64 // bit set: the VLAN crosses
	types      []uint16          // what crosses besides IP and ARP, sorted; empty: any
	pass       config.Pass
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
	// ip is the address that the source MAC has, if the frame says so: ARP,
	// neighbour discovery.
	ip netip.Addr
	// advert: ip was advertised (RFC 4861), by a router if router is set.
	advert, router bool
	// wants is the address that an ARP request or neighbour solicitation of ip
	// asks for.
	wants netip.Addr
	// agent: a message between agents.
	agent bool
	// from and to are the addresses of an IP packet.
	from, to netip.Addr
}

func newFilter(seg config.Segment, own []config.MAC, static []Workload) filter {
	f := filter{
		types: seg.EtherTypes, pass: seg.Pass,
		gateway: seg.Gateway, gatewayMAC: seg.GatewayMAC,
		own:       slices.Clone(own),
		workloads: make(map[netip.Addr]config.MAC, len(static)),
	}
	for _, v := range seg.VLANs {
		f.vlans[v/64] |= 1 << (v % 64)
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
		r = f.vlan(&h)
	}
	if r == Carried {
		r = f.addresses(&h)
	}
	if r != Carried {
		return h, info{}, r
	}
	in, r := f.protocol(&h)
	return h, in, r
}

// vlan judges the tags: the untagged network and the listed VLANs cross. Behind
// a priority tag there must not be another VLAN, because receivers differ on
// which of the two they see.
func (f *filter) vlan(h *header) Reason {
	const reserved = 4095
	switch {
	case h.vlan|h.inner == 0:
		return Carried
	case h.vlan >= reserved || h.inner >= reserved || f.vlans[h.vlan/64]>>(h.vlan%64)&1 == 0:
		return VLAN
	}
	return Carried
}

func (f *filter) addresses(h *header) Reason {
	switch {
	case group(h.src) || h.src == config.MAC{}:
		return BadSource
	case h.src == f.gatewayMAC || h.dst == f.gatewayMAC:
		return GatewayMAC
	case slices.Contains(f.own, h.src) || slices.Contains(f.own, h.dst):
		return OwnMAC
	case reserved(h.dst) && !(f.pass.SpanningTree && h.dsap == stpSAP):
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
		return info{}, f.listed(config.LLC, unknownGroup(h.dst))
	}
	switch h.etherType {
	case 0:
		return info{}, f.llc(h)
	case typeARP, typeRARP:
		return f.arp(h)
	case typeIPv4:
		return f.ipv4(h)
	case typeIPv6:
		return f.ipv6(h)
	case typeLLDP:
		return info{}, Discovery
	case typeEAPOL, typePreauth:
		return info{}, PortAuth
	case typeSlow, typePause:
		return info{}, SlowProtocol
	case typeExtended:
		if isAgent(h.payload) {
			return info{agent: true}, Carried
		}
	}
	return info{}, f.listed(h.etherType, Carried)
}

// listed returns r, or EtherType if there is a list of what crosses and typ is
// not in it.
func (f *filter) listed(typ uint16, r Reason) Reason {
	if len(f.types) > 0 && !slices.Contains(f.types, typ) {
		return EtherType
	}
	return r
}

// stpSAP is the LLC address of the spanning tree protocol.
const stpSAP = 0x42

// llc judges 802.2 other than SNAP.
func (f *filter) llc(h *header) Reason {
	switch {
	case h.dsap != stpSAP:
		return f.listed(config.LLC, unknownGroup(h.dst))
	case f.pass.SpanningTree:
		return Carried
	}
	return STP
}

// unknownGroup refuses protocols that cannot be told apart when they are sent
// to a group: there they may well be a link protocol.
func unknownGroup(dst config.MAC) Reason {
	if group(dst) {
		return LLC
	}
	return Carried
}

// isGateway reports whether a, in h, is an address of the gateway. The gateway
// and the workloads are of the untagged network; a VLAN may use their addresses
// for others.
func (f *filter) isGateway(h *header, a netip.Addr) bool {
	return h.vlan == 0 && (a == f.gateway || a == f.gatewayLL)
}

// spoofed reports whether a, in h, is the address of a workload with another
// MAC than m.
func (f *filter) spoofed(h *header, a netip.Addr, m config.MAC) bool {
	if h.vlan != 0 || len(f.workloads) == 0 {
		return false
	}
	owner, ok := f.workloads[a]
	return ok && owner != m
}

// source judges the source address of an IP packet: those of the gateway and
// of workloads go with their MAC.
func (f *filter) source(h *header, a netip.Addr) Reason {
	if f.isGateway(h, a) || f.spoofed(h, a, h.src) {
		return SpoofedIP
	}
	return Carried
}
