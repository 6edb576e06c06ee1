package ether

import (
	"net/netip"
	"slices"
	"testing"

	"stitch/tunnel/config"
)

const (
	hostLL  = "fe80::ff:fe00:aa" // of macA
	hostGUA = "fd00:1::aa"
	vmGUA   = "fd00:1::50"
	allHost = "ff02::1"
)

var (
	ip10     = netip.MustParseAddr("10.1.0.10")
	ip11     = netip.MustParseAddr("10.1.0.11")
	noIP     = netip.IPv4Unspecified()
	macOwn   = testMAC("e1")
	gwLL     = linkLocal(macGW).String()
	groupMAC = testMAC("01:00:5e:00:00:05")
	v6Group  = testMAC("33:33:00:00:00:01")
)

func v4(proto byte, flags uint16, payload ...byte) []byte {
	return eth(macB, macA, typeIPv4, ipv4Packet(proto, flags, payload...)...)
}

// from4 makes a frame of mac with an IPv4 packet from ip.
func from4(mac config.MAC, ip netip.Addr) []byte {
	p := ipv4Packet(6, 0, 1, 2, 3, 4)
	copy(p[12:], ip.AsSlice())
	return eth(macB, mac, typeIPv4, p...)
}

func v6(next byte, payload ...byte) []byte {
	return eth(v6Group, macA, typeIPv6, ipv6Packet(hostLL, allHost, next, payload...)...)
}

// ext makes an 8-byte extension header.
func ext(next byte, rest ...byte) []byte {
	return append([]byte{next, 0, 0, 0, 0, 0, 0, 0}, rest...)
}

func frag(next byte, offset byte, rest ...byte) []byte {
	return append([]byte{next, 0, 0, offset << 3, 0, 0, 0, 1}, rest...)
}

func chain(n int, last byte, payload ...byte) []byte {
	p := payload
	for i := range n {
		next := byte(60)
		if i == 0 {
			next = last
		}
		p = ext(next, p...)
	}
	return p
}

type vector struct {
	name  string
	frame []byte
	want  Reason
}

func filterVectors() []vector {
	ra := nd(ndRouter, 0, "::", config.MAC{})
	raFrame := v6(protoICMP6, ra...)
	ask := arpFrame(broadcast, macA, arpRequest, macA, ip10, config.MAC{}, ip11)
	return slices.Concat(linkVectors(ask), stackVectors(ask, raFrame), arpVectors(), ipVectors(ra), ndVectors())
}

func linkVectors(ask []byte) []vector {
	return []vector{
		{"empty", nil, Runt},
		{"13 bytes", ask[:13], Runt},
		{"longest", eth(macB, macA, 0x88b5, make([]byte, MaxFrame-headerLen)...), Carried},
		{"header only", eth(macB, macA, 0x88b5), Carried},
		{"source multicast", data(macB, groupMAC), BadSource},
		{"source broadcast", data(macB, broadcast), BadSource},
		{"source zero", data(macB, config.MAC{}), BadSource},
		{"source own", data(macB, macOwn), OwnMAC},
		{"to own", data(macOwn, macA), OwnMAC},
		{"source gateway", data(macB, macGW), GatewayMAC},
		{"source gateway, broadcast", data(broadcast, macGW), GatewayMAC},
		{"to gateway", data(macGW, macA), GatewayMAC},
		{"first reserved", data(testMAC("01:80:c2:00:00:00"), macA), Reserved},
		{"pause address", data(testMAC("01:80:c2:00:00:01"), macA), Reserved},
		{"LLDP address", data(testMAC("01:80:c2:00:00:0e"), macA), Reserved},
		{"GVRP address", data(testMAC("01:80:c2:00:00:21"), macA), Reserved},
		{"behind reserved", data(testMAC("01:80:c2:00:00:30"), macA), Carried},
		{"CDP address", data(testMAC("01:00:0c:cc:cc:cc"), macA), Discovery},
		{"PVST address", data(testMAC("01:00:0c:cc:cc:cd"), macA), Discovery},
		{"UplinkFast address", data(testMAC("01:00:0c:cd:cd:cd"), macA), Discovery},
		{"LLDP to a host", eth(macB, macA, typeLLDP, 0), Discovery},
		{"802.1X to a host", eth(macB, macA, typeEAPOL, 0), PortAuth},
		{"802.1X preauth", eth(macB, macA, typePreauth, 0), PortAuth},
		{"LACP to a host", eth(macB, macA, typeSlow, 1), SlowProtocol},
		{"pause to a host", eth(macB, macA, typePause, 0, 1), SlowProtocol},
		{"unknown EtherType", eth(broadcast, macA, 0x88b5, 1), Carried},
		{"MACsec", eth(macB, macA, 0x88e5, 1), Carried},
		{"BPDU address and LLC", eth(testMAC("01:80:c2:00:00:00"), macA, 3, 0x42, 0x42, 3), Reserved},
		{"BPDU to a host", eth(macB, macA, 3, 0x42, 0x42, 3), STP},
		{"BPDU to a group", eth(broadcast, macA, 7, 0x42, 0x42, 3, 0, 0, 2, 2), STP},
		{"BPDU with group bit", eth(broadcast, macA, 3, 0x43, 0x42, 3), STP},
		{"BPDU behind VLAN 0", tagged(eth(broadcast, macA, 3, 0x42, 0x42, 3), 0x8100, 0), STP},
		{"LLC to a host", eth(macB, macA, 4, 0xf0, 0xf0, 3, 0), Carried},
		{"LLC to a group", eth(broadcast, macA, 4, 0xf0, 0xf0, 3, 0), LLC},
	}
}

// stackVectors are the headers of VU#855201: the same message in wrappings
// that a filter may not see through but a receiver may.
func stackVectors(ask, ra []byte) []vector {
	gw := arpFrame(broadcast, macA, arpReply, macA, gateway, macB, ip11)
	badLength := snap(ra, 0, 0, 0)
	badLength[13]--
	longLength := snap(ra, 0, 0, 0)
	longLength[13]++
	return []vector{
		{"priority tag", tagged(ask, 0x8100, 0xe000), Carried},
		{"two priority tags", tagged(ask, 0x88a8, 0, 0x8100, 0), Carried},
		{"three tags", tagged(ask, 0x88a8, 0, 0x8100, 0, 0x8100, 0), Encapsulation},
		{"VLAN 1", tagged(ask, 0x8100, 1), VLAN},
		{"VLAN 4095", tagged(ask, 0x8100, 0x0fff), VLAN},
		{"VLAN 7 in VLAN 0", tagged(ask, 0x88a8, 0, 0x8100, 7), VLAN},
		{"old QinQ tag", tagged(ask, 0x9100, 5), VLAN},
		{"tag cut off", eth(broadcast, macA, 0x8100, 0, 0), Malformed},
		{"tag without type", eth(broadcast, macA, 0x8100, 0, 0, 8), Malformed},
		{"RA", ra, RouterAdvert},
		{"RA, VLAN 0", tagged(ra, 0x8100, 0), RouterAdvert},
		{"RA, VLAN 0 twice", tagged(ra, 0x8100, 0, 0x8100, 0), RouterAdvert},
		{"RA, VLAN 0 three times", tagged(ra, 0x8100, 0, 0x8100, 0, 0x8100, 0), Encapsulation},
		{"RA, SNAP", snap(ra, 0, 0, 0), RouterAdvert},
		{"RA, bridge-tunnel SNAP", snap(ra, 0, 0, 0xf8), RouterAdvert},
		{"RA, VLAN 0 and SNAP", tagged(snap(ra, 0, 0, 0), 0x8100, 0), RouterAdvert},
		{"RA, SNAP and VLAN 0", snap(tagged(ra, 0x8100, 0), 0, 0, 0), Encapsulation},
		{"RA, SNAP in SNAP", snap(snap(ra, 0, 0, 0), 0, 0, 0), Malformed},
		{"RA, SNAP, length too short", badLength, Malformed},
		{"RA, SNAP, length too long", longLength, Malformed},
		{"LLC, length 1500", eth(macB, macA, 1500, append([]byte{0xf0, 0xf0, 3}, make([]byte, 1497)...)...), Carried},
		{"LLC, length 1501", eth(macB, macA, 1501, append([]byte{0xf0, 0xf0, 3}, make([]byte, 1498)...)...), Malformed},
		{"RA, length 1501", eth(v6Group, macA, 1501, make([]byte, 1600)...), Malformed},
		{"RA, length 1535", eth(v6Group, macA, 1535, make([]byte, 1600)...), Malformed},
		{"length 0", eth(v6Group, macA, 0, make([]byte, 46)...), Malformed},
		{"length 2", eth(v6Group, macA, 2, make([]byte, 46)...), Malformed},
		{"SNAP cut off", eth(macB, macA, 7, 0xaa, 0xaa, 3, 0, 0, 0, 8), Malformed},
		{"SNAP, odd control", eth(macB, macA, 9, 0xaa, 0xaa, 0, 0, 0, 0, 0x86, 0xdd, 0), Encapsulation},
		{"SNAP, one side", eth(macB, macA, 9, 0xab, 0x42, 3, 0, 0, 0, 0x86, 0xdd, 0), Encapsulation},
		{"SNAP, Cisco", eth(macB, macA, 8, 0xaa, 0xaa, 3, 0, 0, 0x0c, 0x20, 0), Discovery},
		{"SNAP, AppleTalk to a group", eth(broadcast, macA, 8, 0xaa, 0xaa, 3, 8, 0, 7, 0x80, 0x9b), LLC},
		{"SNAP, AppleTalk to a host", eth(macB, macA, 8, 0xaa, 0xaa, 3, 8, 0, 7, 0x80, 0x9b), Carried},
		{"padded LLC", eth(macB, macA, 3, append([]byte{0xf0, 0xf0, 3}, make([]byte, 43)...)...), Carried},
		{"ARP of the gateway, SNAP", snap(gw, 0, 0, 0), GatewayARP},
		{"ARP of the gateway, VLAN 0", tagged(gw, 0x8100, 0), GatewayARP},
	}
}

func arpVectors() []vector {
	long := arpFrame(broadcast, macA, arpRequest, macA, ip10, config.MAC{}, ip11)
	infiniband := slices.Clone(long)
	infiniband[15] = 32
	longHW := slices.Clone(long)
	longHW[18] = 8
	swapped := arpFrame(broadcast, macA, rarpRequest, macA, noIP, macA, noIP)
	swapped[12], swapped[13] = 0x08, 0x06
	return []vector{
		{"ARP request", long, Carried},
		{"ARP reply", arpFrame(macB, macA, arpReply, macA, ip10, macB, ip11), Carried},
		{"ARP probe", arpFrame(broadcast, macA, arpRequest, macA, noIP, config.MAC{}, ip11), Carried},
		{"gratuitous ARP", garp(macA, ip10), Carried},
		{"RARP", rarp(macA), Carried},
		{"RARP reply", arpFrame(macB, macA, rarpReply, macA, ip10, macB, ip11), Carried},
		{"ARP cut off", long[:headerLen+27], BadARP},
		{"ARP, other hardware", infiniband, BadARP},
		{"ARP, other length", longHW, BadARP},
		{"ARP, inverse", arpFrame(broadcast, macA, 8, macA, ip10, macB, ip11), BadARP},
		{"RARP operation in ARP", swapped, BadARP},
		{"asks for the gateway", arpFrame(broadcast, macA, arpRequest, macA, ip10, config.MAC{}, gateway), GatewayARP},
		{"gateway asks", arpFrame(broadcast, macA, arpRequest, macA, gateway, config.MAC{}, ip10), GatewayARP},
		{"reply as the gateway", arpFrame(macB, macA, arpReply, macA, gateway, macB, ip11), GatewayARP},
		{"gratuitous as the gateway", garp(macA, gateway), GatewayARP},
		{"gateway's MAC inside", arpFrame(broadcast, macA, arpRequest, macGW, ip10, config.MAC{}, ip11), GatewayARP},
		{"RARP for the gateway's MAC", arpFrame(broadcast, macA, rarpRequest, macA, noIP, macGW, noIP), GatewayARP},
		{"workload's address, other MAC", arpFrame(broadcast, macA, arpReply, macA, vmIP, macB, ip11), SpoofedARP},
		{"workload's GARP, other MAC", garp(macA, vmIP), SpoofedARP},
		{"workload's GARP", garp(macVM, vmIP), Carried},
	}
}

func ipVectors(ra []byte) []vector {
	short := v4(6, 0, 1, 2, 3, 4)
	short[headerLen+3]++
	version := v4(6, 0, 1)
	version[headerLen] = 0x55
	ihl := v4(6, 0, 1)
	ihl[headerLen] = 0x44
	v6short := v6(59, 1, 2)
	v6short[headerLen+5]++
	return []vector{
		{"IPv4", v4(6, 0, 1, 2, 3, 4), Carried},
		{"IPv4, padded", append(v4(6, 0, 1), 0, 0, 0), Carried},
		{"IPv4, longer than the frame", short, BadIP},
		{"IPv4, version 5", version, BadIP},
		{"IPv4, short header", ihl, BadIP},
		{"IPv4, header cut off", eth(macB, macA, typeIPv4, 0x45), BadIP},
		{"DHCP request", v4(protoUDP, 0, udp(68, 67)...), DHCP},
		{"DHCP answer", v4(protoUDP, 0, udp(67, 68)...), DHCP},
		{"DHCP from any port, don't fragment", v4(protoUDP, 0x4000, udp(9999, 67)...), DHCP},
		{"DHCP, more fragments", v4(protoUDP, 0x2000, udp(68, 67)...), DHCP},
		{"UDP", v4(protoUDP, 0, udp(67, 69)...), Carried},
		{"UDP header cut off", v4(protoUDP, 0, 0, 68, 0, 67), BadIP},
		{"later fragment", v4(protoUDP, 1, 0, 68, 0, 67), Carried},
		{"from a workload's address", from4(macA, vmIP), SpoofedIP},
		{"from a workload's address, VLAN 0", tagged(from4(macA, vmIP), 0x8100, 0), SpoofedIP},
		{"from the workload", from4(macVM, vmIP), Carried},
		{"from the gateway's address", from4(macA, gateway), SpoofedIP},
		{"from a workload's address, IPv6", eth(macB, macA, typeIPv6, ipv6Packet(vmGUA, hostGUA, 6, 1)...), SpoofedIP},
		{"echo from the gateway's address, IPv6", eth(macB, macA, typeIPv6, ipv6Packet(gwLL, hostGUA, protoICMP6, 128, 0, 0, 0)...), SpoofedIP},
		{"IPv6 nothing", v6(59), Carried},
		{"IPv6 TCP", v6(6, 1), Carried},
		{"IPv6 ESP", v6(50, 1), Carried},
		{"IPv6, longer than the frame", v6short, BadIP},
		{"IPv6, header cut off", eth(macB, macA, typeIPv6, 0x60), BadIP},
		{"IPv6, version 4", eth(macB, macA, typeIPv6, ipv4Packet(6, 0, make([]byte, 40)...)...), BadIP},
		{"DHCPv6 solicit", v6(protoUDP, udp(546, 547)...), DHCP},
		{"DHCPv6 reply", v6(protoUDP, udp(547, 546)...), DHCP},
		{"DHCPv6 behind options", v6(60, ext(protoUDP, udp(546, 547)...)...), DHCP},
		{"UDP over IPv6", v6(protoUDP, udp(546, 5353)...), Carried},
		{"MLD report", v6(0, ext(protoICMP6, 143, 0, 0, 0)...), Carried},
		{"echo", v6(protoICMP6, 128, 0, 0, 0), Carried},
		{"ICMPv6 cut off", v6(protoICMP6, 128), BadIP},
		{"RA behind hop-by-hop", v6(0, ext(protoICMP6, ra...)...), RouterAdvert},
		{"RA behind seven headers", v6(60, chain(7, protoICMP6, ra...)...), RouterAdvert},
		{"RA behind eight headers", v6(60, chain(8, protoICMP6, ra...)...), BadIP},
		{"RA behind authentication", v6(51, append([]byte{protoICMP6, 4}, append(make([]byte, 22), ra...)...)...), RouterAdvert},
		{"redirect", v6(protoICMP6, ndRedirect, 0, 0, 0), Redirect},
		{"options cut off", v6(60, protoICMP6, 3, 0, 0, 0, 0, 0, 0), BadIP},
		{"options of one byte", v6(60, protoICMP6), BadIP},
		{"RA in a first fragment", v6(44, frag(protoICMP6, 0, ra...)...), FragmentedND},
		{"RA in a fragment behind options", v6(60, ext(44, frag(60, 0, ext(protoICMP6, ra...)...)...)...), FragmentedND},
		{"first fragment hides the type", v6(44, frag(60, 0, protoICMP6, 9, 0, 0, 0, 0, 0, 0)...), BadIP},
		{"first fragment without type", v6(44, frag(protoICMP6, 0)...), BadIP},
		{"later fragment of anything", v6(44, frag(protoICMP6, 1, ra...)...), Carried},
		{"fragmented echo", v6(44, frag(protoICMP6, 0, 128, 0, 0, 0)...), Carried},
	}
}

func ndVectors() []vector {
	from := func(src string, msg []byte) []byte {
		return eth(v6Group, macA, typeIPv6, ipv6Packet(src, allHost, protoICMP6, msg...)...)
	}
	two := append(nd(ndAdvertise, 0, hostGUA, macA), 2, 1, 1, 2, 3, 4, 5, 6)
	return []vector{
		{"router solicitation", v6(protoICMP6, ndSolicitRouter, 0, 0, 0, 0, 0, 0, 0), Carried},
		{"solicitation", from(hostLL, nd(ndSolicit, 0, hostGUA, macA)), Carried},
		{"address detection", from("::", nd(ndSolicit, 0, hostGUA, config.MAC{})), Carried},
		{"advertisement", from(hostLL, nd(ndAdvertise, 0x60, hostGUA, macA)), Carried},
		{"solicitation cut off", from(hostLL, nd(ndSolicit, 0, hostGUA, config.MAC{})[:23]), BadIP},
		{"option of length 0", from(hostLL, append(nd(ndSolicit, 0, hostGUA, config.MAC{}), 1, 0, 0, 0, 0, 0, 0, 0)), BadIP},
		{"option cut off", from(hostLL, append(nd(ndSolicit, 0, hostGUA, config.MAC{}), 1, 1, 0)), BadIP},
		{"option too long", from(hostLL, append(nd(ndSolicit, 0, hostGUA, config.MAC{}), 1, 2, 0, 0, 0, 0, 0, 0)), BadIP},
		{"two addresses", from(hostLL, two), BadIP},
		{"asks for the gateway, v6", from(hostLL, nd(ndSolicit, 0, gwLL, macA)), GatewayND},
		{"gateway asks, v6", from(gwLL, nd(ndSolicit, 0, hostGUA, macA)), GatewayND},
		{"gateway's detection", from("::", nd(ndSolicit, 0, gwLL, config.MAC{})), GatewayND},
		{"advertises the gateway", from(hostLL, nd(ndAdvertise, 0x20, gwLL, macA)), GatewayND},
		{"advertises the gateway's MAC", from(hostLL, nd(ndAdvertise, 0x20, hostGUA, macGW)), GatewayND},
		{"advertises a workload", from(hostLL, nd(ndAdvertise, 0x20, vmGUA, macA)), SpoofedARP},
		{"advertises a workload's MAC from another", from(hostLL, nd(ndAdvertise, 0x20, vmGUA, testMAC("51"))), SpoofedARP},
		{"advertises a workload, its MAC, other option", eth(v6Group, macVM, typeIPv6,
			ipv6Packet(hostLL, allHost, protoICMP6, nd(ndAdvertise, 0x20, vmGUA, macA)...)...), SpoofedARP},
		{"solicits as a workload", from(vmGUA, nd(ndSolicit, 0, hostGUA, macA)), SpoofedARP},
	}
}

// TestFilters sends every vector both ways through a fresh switch. Whatever
// the filter lets pass is sent to a MAC known at the other side, so that the
// table does not hide it.
func TestFilters(t *testing.T) {
	seen := map[Reason]bool{}
	for _, v := range filterVectors() {
		seen[v.want] = true
		t.Run(v.name, func(t *testing.T) {
			for _, fromLAN := range []bool{true, false} {
				if got := bothWays(v.frame, fromLAN); got != v.want {
					t.Errorf("from LAN %v: %v, want %v", fromLAN, got, v.want)
				}
			}
		})
	}
	for r := Carried; r <= GatewayND; r++ {
		if !seen[r] && r != EtherType && r != TooLong { // TestPolicy and TestTooLong have them
			t.Errorf("no vector for %v", r)
		}
	}
}

// TestPolicy sends frames through segments that carry more or less than the
// default.
func TestPolicy(t *testing.T) {
	ask := arpFrame(broadcast, macA, arpRequest, macA, ip10, config.MAC{}, ip11)
	gw := arpFrame(broadcast, macA, arpRequest, macA, ip10, config.MAC{}, gateway)
	ra := v6(protoICMP6, nd(ndRouter, 0, "::", config.MAC{})...)
	bpdu := eth(testMAC("01:80:c2:00:00:00"), macA, 3, stpSAP, stpSAP, 3)
	vlans := config.Segment{VLANs: []uint16{10, 4094}}
	types := config.Segment{EtherTypes: []uint16{0x88f7}}
	llc := config.Segment{EtherTypes: []uint16{config.LLC}}
	for _, c := range []struct {
		name  string
		seg   config.Segment
		frame []byte
		want  Reason
	}{
		{"listed VLAN", vlans, tagged(ask, 0x8100, 10), Carried},
		{"listed VLAN with priority", vlans, tagged(ask, 0x8100, 0xe000|4094), Carried},
		{"listed service VLAN", vlans, tagged(ask, 0x88a8, 10, 0x8100, 77), Carried},
		{"listed inner VLAN only", vlans, tagged(ask, 0x88a8, 77, 0x8100, 10), VLAN},
		{"inner VLAN behind a priority tag", vlans, tagged(ask, 0x8100, 0, 0x8100, 10), VLAN},
		{"untagged beside VLANs", vlans, ask, Carried},
		{"unlisted VLAN", vlans, tagged(ask, 0x8100, 11), VLAN},
		{"VLAN 4095 inside", vlans, tagged(ask, 0x88a8, 10, 0x8100, 4095), VLAN},
		{"gateway's address in a VLAN is another's", vlans, tagged(gw, 0x8100, 10), Carried},
		{"gateway's MAC in a VLAN", vlans, tagged(data(broadcast, macGW), 0x8100, 10), GatewayMAC},
		{"workload's address in a VLAN", vlans, tagged(from4(macA, vmIP), 0x8100, 10), Carried},
		{"RA in a VLAN", vlans, tagged(ra, 0x8100, 10), RouterAdvert},
		{"BPDU in a VLAN", vlans, tagged(bpdu, 0x8100, 10), Reserved},
		{"listed type", types, eth(macB, macA, 0x88f7, 1), Carried},
		{"ARP is always listed", types, ask, Carried},
		{"IP is always listed", types, v4(6, 0, 1, 2, 3, 4), Carried},
		{"unlisted type", types, data(macB, macA), EtherType},
		{"unlisted type in SNAP", types, snap(data(macB, macA), 0, 0, 0), EtherType},
		{"LLC not listed", types, eth(macB, macA, 4, 0xf0, 0xf0, 3, 0), EtherType},
		{"foreign SNAP not listed", types, eth(macB, macA, 8, 0xaa, 0xaa, 3, 8, 0, 7, 0x80, 0x9b), EtherType},
		{"LLC listed", llc, eth(macB, macA, 4, 0xf0, 0xf0, 3, 0), Carried},
		{"LLDP is never listed", config.Segment{EtherTypes: []uint16{typeLLDP}}, eth(macB, macA, typeLLDP, 0), Discovery},
		{"DHCP passes", config.Segment{Pass: config.Pass{DHCP: true}}, v4(protoUDP, 0, udp(68, 67)...), Carried},
		{"DHCPv6 passes", config.Segment{Pass: config.Pass{DHCP: true}}, v6(protoUDP, udp(546, 547)...), Carried},
		{"RA passes", config.Segment{Pass: config.Pass{RouterAdverts: true}}, ra, Carried},
		{"RA does not pass with DHCP", config.Segment{Pass: config.Pass{DHCP: true}}, ra, RouterAdvert},
		{"BPDU passes", config.Segment{Pass: config.Pass{SpanningTree: true}}, bpdu, Carried},
		{"pause does not pass with BPDU", config.Segment{Pass: config.Pass{SpanningTree: true}}, data(testMAC("01:80:c2:00:00:01"), macA), Reserved},
	} {
		c.seg.Gateway, c.seg.GatewayMAC = gateway, macGW
		f := newFilter(c.seg, nil, []Workload{{MAC: macVM, IP: vmIP}})
		if _, _, got := f.inspect(c.frame); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// bothWays returns the verdict on frame in one direction.
func bothWays(frame []byte, fromLAN bool) Reason {
	s := NewSwitch(testBasic, 1, []config.MAC{macOwn}, []Workload{
		{MAC: macVM, IP: vmIP, At: Local},
		{MAC: macVM, IP: netip.MustParseAddr(vmGUA), At: Local},
	})
	if fromLAN {
		s.FromPeer(0, 1, data(broadcast, macB))
		return s.FromLAN(0, frame).Drop
	}
	s.FromLAN(0, data(broadcast, macB))
	if v := s.FromPeer(0, 1, frame); v.Drop != Owned && v.Drop != Late {
		return v.Drop
	}
	return Carried // the table's reasons have tests of their own
}

// TestAnnouncements says which frames announce their source, and what address
// they give it.
func TestAnnouncements(t *testing.T) {
	na := func(dst config.MAC, hops, flags byte, target string, mac config.MAC) []byte {
		b := eth(dst, macA, typeIPv6, ipv6Packet(hostLL, allHost, protoICMP6, nd(ndAdvertise, flags, target, mac)...)...)
		b[headerLen+7] = hops
		return b
	}
	v6IP := netip.MustParseAddr(hostGUA)
	for _, c := range []struct {
		name  string
		frame []byte
		want  info
	}{
		{"RARP", rarp(macA), info{control: true, kind: KindRARP}},
		{"RARP for another", arpFrame(broadcast, macA, rarpRequest, macA, noIP, macB, noIP), info{control: true}},
		{"RARP by another", arpFrame(broadcast, macA, rarpRequest, macB, noIP, macB, noIP), info{control: true}},
		{"RARP reply", arpFrame(broadcast, macA, rarpReply, macA, noIP, macA, noIP), info{control: true}},
		{"GARP request", garp(macA, ip10), info{control: true, kind: KindGARP, ip: ip10}},
		{"GARP reply", arpFrame(broadcast, macA, arpReply, macA, ip10, macA, ip10), info{control: true, kind: KindGARP, ip: ip10}},
		{"GARP, VLAN 0 and SNAP", tagged(snap(garp(macA, ip10), 0, 0, 0), 0x8100, 0), info{control: true, kind: KindGARP, ip: ip10}},
		{"GARP for another", arpFrame(broadcast, macA, arpRequest, macB, ip10, config.MAC{}, ip10), info{control: true}},
		{"GARP of no address", garp(macA, noIP), info{control: true}},
		{"request", arpFrame(broadcast, macA, arpRequest, macA, ip10, config.MAC{}, ip11), info{control: true, ip: ip10, wants: ip11}},
		{"unsolicited advertisement", na(v6Group, 255, 0x20, hostGUA, macA), info{control: true, kind: KindNA, ip: v6IP, advert: true}},
		{"without option", na(v6Group, 255, 0x20, hostGUA, config.MAC{}), info{control: true, kind: KindNA, ip: v6IP, advert: true}},
		{"routed advertisement", na(v6Group, 254, 0x20, hostGUA, macA), info{control: true, ip: v6IP}},
		{"solicited advertisement", na(v6Group, 255, 0x60, hostGUA, macA), info{control: true, ip: v6IP, advert: true}},
		{"advertisement to a host", na(macB, 255, 0xa0, hostGUA, macA), info{control: true, ip: v6IP, advert: true, router: true}},
		{"advertisement for another", na(v6Group, 255, 0x20, hostGUA, macB), info{control: true}},
		{"solicitation", v6(protoICMP6, nd(ndSolicit, 0, hostGUA, macA)...), info{control: true, ip: netip.MustParseAddr(hostLL), wants: v6IP}},
		{"address detection", eth(v6Group, macA, typeIPv6, ipv6Packet("::", allHost, protoICMP6, nd(ndSolicit, 0, hostGUA, config.MAC{})...)...), info{control: true}},
		{"ARP probe", arpFrame(broadcast, macA, arpRequest, macA, noIP, config.MAC{}, ip11), info{control: true}},
		{"data", data(macB, macA), info{}},
	} {
		f := newFilter(testBasic, nil, nil)
		if _, in, r := f.inspect(c.frame); in != c.want || r != Carried {
			t.Errorf("%s: %+v %v, want %+v", c.name, in, r, c.want)
		}
	}
}
