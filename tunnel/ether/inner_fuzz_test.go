package ether

import (
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"stitch/tunnel/config"
)

// FuzzInner holds the filters against gopacket: what it finds in a frame that
// we let cross must not be what stays at a site, and where both read an
// address it is the same.
func FuzzInner(f *testing.F) {
	for _, v := range filterVectors() {
		if len(v.frame) < 512 {
			f.Add(v.frame)
		}
	}
	for _, frame := range agentVectors() {
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		filter := newFilter(testBasic, []config.MAC{macOwn}, []Workload{
			{MAC: macVM, IP: vmIP, At: Local}, {MAC: macVM, IP: netip.MustParseAddr(vmGUA), At: Local},
		})
		h, in, r := filter.inspect(frame)
		if r != Carried || h.snap || h.foreign || in.agent { // gopacket does not look at SNAP codes
			return
		}
		p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
		inner := false
		for _, l := range p.Layers() {
			switch l := l.(type) {
			case *layers.ARP:
				sameARP(t, &in, l)
			case *layers.IPv4:
				if inner {
					return // tunnelled: not of this network
				}
				inner = true
				sameAddress(t, in.from, l.SrcIP)
			case *layers.IPv6:
				if inner {
					return
				}
				inner = true
				sameAddress(t, in.from, l.SrcIP)
			case *layers.UDP:
				if d := l.DstPort; in.from.Is4() && (d == 67 || d == 68) || in.from.Is6() && (d == 546 || d == 547) {
					t.Fatalf("DHCP crossed: %x", frame)
				}
				return
			case *layers.ICMPv6:
				sameICMP6(t, &h, &in, p, l)
				return
			}
		}
	})
}

func sameAddress(t *testing.T, got netip.Addr, want []byte) {
	t.Helper()
	if a, ok := netip.AddrFromSlice(want); ok && got.IsValid() && got != a {
		t.Fatalf("address %v, gopacket %v", got, a)
	}
}

// sameARP checks ARP that crossed.
func sameARP(t *testing.T, in *info, l *layers.ARP) {
	sender, _ := netip.AddrFromSlice(l.SourceProtAddress)
	target, _ := netip.AddrFromSlice(l.DstProtAddress)
	switch {
	case !in.control:
		t.Fatal("ARP was not seen")
	case sender == gateway || target == gateway:
		t.Fatal("ARP about the gateway crossed")
	case sender == vmIP && config.MAC(l.SourceHwAddress) != macVM:
		t.Fatal("ARP with a workload's address crossed")
	case in.ip.IsValid() && in.ip != sender, in.wants.IsValid() && (in.wants != target || l.Operation != layers.ARPRequest):
		t.Fatalf("%+v, gopacket %v asks for %v", in, sender, target)
	}
}

// sameICMP6 checks ICMPv6 that crossed.
func sameICMP6(t *testing.T, h *header, in *info, p gopacket.Packet, l *layers.ICMPv6) {
	switch typ := l.TypeCode.Type(); typ {
	case layers.ICMPv6TypeRouterAdvertisement, layers.ICMPv6TypeRedirect:
		t.Fatalf("%v crossed", l.TypeCode)
	case layers.ICMPv6TypeNeighborSolicitation, layers.ICMPv6TypeNeighborAdvertisement:
		if p.Layer(layers.LayerTypeIPv6Fragment) != nil {
			t.Fatal("neighbour discovery in a fragment crossed")
		}
	}
	if ns, ok := p.Layer(layers.LayerTypeICMPv6NeighborSolicitation).(*layers.ICMPv6NeighborSolicitation); ok {
		target, _ := netip.AddrFromSlice(ns.TargetAddress)
		if !in.control || target == linkLocal(macGW) || in.wants.IsValid() && in.wants != target {
			t.Fatalf("%+v, gopacket asks for %v", in, target)
		}
	}
	if na, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement); ok {
		target, _ := netip.AddrFromSlice(na.TargetAddress)
		if !in.control || in.advert && in.ip != target || in.advert && in.router != na.Router() {
			t.Fatalf("%+v, gopacket %v", in, na)
		}
		if target == netip.MustParseAddr(vmGUA) && h.src != macVM {
			t.Fatal("an advertisement of a workload's address crossed")
		}
	}
}
