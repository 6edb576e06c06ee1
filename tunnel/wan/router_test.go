package wan

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// twoPorts is a table with overlapping prefixes.
func twoPorts(t testing.TB) router {
	t.Helper()
	r, err := newRouter([]Port{
		{"a", "a", MAC{2, 0, 0, 0, 0, 0xa0}, MAC{2, 0, 0, 0, 0, 0xa1},
			[]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00:a::/32")}},
		{"b", "b", MAC{2, 0, 0, 0, 0, 0xb0}, MAC{2, 0, 0, 0, 0, 0xb1},
			[]netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("fd00:b::/32")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// build serialises layers into a buffer with room to grow.
func build(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return append(make([]byte, 0, frameSize), buf.Bytes()...)
}

func hw(b byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, b} }

// ip4 is a UDP packet to dst, in a frame from host a to MAC mac.
func ip4(t testing.TB, mac byte, dst string, payload int) []byte {
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: 17, SrcIP: net.IP{10, 0, 0, 1}, DstIP: net.ParseIP(dst).To4()}
	udp := &layers.UDP{SrcPort: 1, DstPort: 2}
	_ = udp.SetNetworkLayerForChecksum(ip)
	return build(t, &layers.Ethernet{SrcMAC: hw(0xa1), DstMAC: hw(mac), EthernetType: layers.EthernetTypeIPv4},
		ip, udp, gopacket.Payload(make([]byte, payload)))
}

// solicit is a neighbour solicitation.
func solicit(t testing.TB, src, target string) []byte {
	ip := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: net.ParseIP(src), DstIP: net.ParseIP("ff02::1:ff00:1")}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(135, 0)}
	_ = icmp.SetNetworkLayerForChecksum(ip)
	return build(t, &layers.Ethernet{SrcMAC: hw(0xa1), DstMAC: net.HardwareAddr{0x33, 0x33, 0xff, 0, 0, 1}, EthernetType: layers.EthernetTypeIPv6},
		ip, icmp, &layers.ICMPv6NeighborSolicitation{TargetAddress: net.ParseIP(target)})
}

// arp is an ARP request.
func arp(t testing.TB, asker, target string) []byte {
	return build(t, &layers.Ethernet{SrcMAC: hw(0xa1), DstMAC: net.HardwareAddr{255, 255, 255, 255, 255, 255}, EthernetType: layers.EthernetTypeARP},
		&layers.ARP{AddrType: 1, Protocol: 0x800, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
			SourceHwAddress: hw(0xa1), SourceProtAddress: net.ParseIP(asker).To4(),
			DstHwAddress: make([]byte, 6), DstProtAddress: net.ParseIP(target).To4()})
}

func TestRoute(t *testing.T) {
	r := twoPorts(t)
	ip6 := build(t, &layers.Ethernet{SrcMAC: hw(0xa1), DstMAC: hw(0xa0), EthernetType: layers.EthernetTypeIPv6},
		&layers.IPv6{Version: 6, SrcIP: net.ParseIP("fd00:a::1"), DstIP: net.ParseIP("fd00:b::1"), NextHeader: 59}, gopacket.Payload("1234"))
	short := ip4(t, 0xa0, "10.9.0.1", 100)
	for name, tc := range map[string]struct {
		in    int
		frame []byte
		act   action
		out   int
		size  int
	}{
		"longest prefix": {0, ip4(t, 0xa0, "10.9.0.1", 100), forward, 1, 128},
		"other way":      {1, ip4(t, 0xb0, "10.1.0.1", 0), forward, 0, 28},
		"ipv6":           {0, ip6, forward, 1, 44},
		"padding cut":    {0, append(ip4(t, 0xa0, "10.9.0.1", 0), make([]byte, 18)...), forward, 1, 28},
		"hairpin":        {1, ip4(t, 0xb0, "10.9.0.1", 0), stray, 0, 0},
		"no prefix":      {0, ip4(t, 0xa0, "11.0.0.1", 0), stray, 0, 0},
		"not our mac":    {0, ip4(t, 0xcc, "10.9.0.1", 0), stray, 0, 0},
		"cut short":      {0, short[:len(short)-1], stray, 0, 0},
		"empty":          {0, nil, stray, 0, 0},
		"header only":    {0, short[:14], stray, 0, 0},
		"arp gateway":    {0, arp(t, "10.0.0.1", "10.0.0.254"), answer, 0, 0},
		"arp gratuitous": {0, arp(t, "10.0.0.1", "10.0.0.1"), stray, 0, 0},
		"arp probe":      {0, arp(t, "0.0.0.0", "10.0.0.1"), stray, 0, 0},
		"nd gateway":     {0, solicit(t, "fe80::1", "fe80::2"), answer, 0, 0},
		"nd own address": {0, solicit(t, "fe80::1", "fe80::1"), stray, 0, 0},
		"nd DAD":         {0, solicit(t, "::", "fe80::1"), stray, 0, 0},
		"unknown protocol": {0, build(t, &layers.Ethernet{SrcMAC: hw(0xa1), DstMAC: hw(0xa0), EthernetType: 0x88cc}, gopacket.Payload("lldp")),
			stray, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			act, out, sent, size := r.route(tc.in, tc.frame)
			if act != tc.act || act == forward && (out != tc.out || size != tc.size) {
				t.Fatalf("action %d out %d size %d, want %d %d %d", act, out, size, tc.act, tc.out, tc.size)
			}
			if act != forward {
				return
			}
			if len(sent) != 14+size || !bytes.Equal(sent[:6], r.ports[out].Host[:]) || !bytes.Equal(sent[6:12], r.ports[out].MAC[:]) {
				t.Errorf("sent %x", sent[:14])
			}
		})
	}
}

// TestAnswers decodes the answers with somebody else's decoder.
func TestAnswers(t *testing.T) {
	r := twoPorts(t)
	_, out, sent, _ := r.route(0, arp(t, "10.0.0.1", "10.0.0.254"))
	a, ok := gopacket.NewPacket(sent, layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeARP).(*layers.ARP)
	if !ok || out != 0 || a.Operation != 2 || !bytes.Equal(a.SourceHwAddress, hw(0xa0)) || !bytes.Equal(a.SourceProtAddress, []byte{10, 0, 0, 254}) ||
		!bytes.Equal(a.DstHwAddress, hw(0xa1)) || !bytes.Equal(a.DstProtAddress, []byte{10, 0, 0, 1}) || !bytes.Equal(sent[:6], hw(0xa1)) {
		t.Errorf("ARP answer %+v", a)
	}
	_, _, sent, _ = r.route(0, solicit(t, "fe80::1", "fe80::2"))
	p := gopacket.NewPacket(sent, layers.LayerTypeEthernet, gopacket.Default)
	ip, _ := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	na, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
	if !ok || !na.TargetAddress.Equal(net.ParseIP("fe80::2")) || len(na.Options) != 1 || !bytes.Equal(na.Options[0].Data, hw(0xa0)) {
		t.Fatalf("ND answer %v", p)
	}
	icmp := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	have := icmp.Checksum
	_ = icmp.SetNetworkLayerForChecksum(ip)
	again := build(t, ip, icmp, gopacket.Payload(icmp.Payload))
	if want := uint16(again[42])<<8 | uint16(again[43]); have != want {
		t.Errorf("checksum %04x, want %04x", have, want)
	}
}

func TestRouterRefuses(t *testing.T) {
	ok := Port{"a", "a", MAC{2}, MAC{4}, nil}
	for name, ports := range map[string][]Port{
		"same name": {ok, ok}, "no name": {{Interface: "a", MAC: ok.MAC, Host: ok.Host}}, "no mac": {{Name: "a", Interface: "a"}},
		"bad prefix": {{"a", "a", ok.MAC, ok.Host, make([]netip.Prefix, 1)}},
	} {
		if _, err := newRouter(ports); err == nil {
			t.Errorf("%s accepted", name)
		}
	}
}

// FuzzRoute: no input makes it panic, and what leaves is inside the buffer.
func FuzzRoute(f *testing.F) {
	for _, seed := range [][]byte{ip4(f, 0xa0, "10.9.0.1", 9), arp(f, "10.0.0.1", "10.0.0.2"), solicit(f, "fe80::1", "fe80::2"), {}} {
		f.Add(seed)
	}
	r := twoPorts(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		frame := append(make([]byte, 0, frameSize), in[:min(len(in), frameSize)]...)
		act, out, sent, size := r.route(0, frame)
		if act == stray {
			return
		}
		if len(sent) < 14 || &sent[0] != &frame[0] || act == forward && (out != 1 || len(sent) != 14+size || len(sent) > len(frame)) {
			t.Fatalf("action %d out %d size %d sent %d of %d", act, out, size, len(sent), len(frame))
		}
	})
}

func TestRouteAllocates(t *testing.T) {
	r, frame := twoPorts(t), ip4(t, 0xa0, "10.9.0.1", 1000)
	if n := testing.AllocsPerRun(100, func() { copy(frame, []byte{2, 0, 0, 0, 0, 0xa0}); r.route(0, frame) }); n != 0 {
		t.Errorf("%v allocations a frame", n)
	}
}
