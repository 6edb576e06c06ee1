package stream

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// synPacket builds a SYN with gopacket; change may spoil the layers.
func synPacket(t testing.TB, k tuple, payload []byte, change func(*layers.IPv4, *layers.IPv6, *layers.TCP)) []byte {
	t.Helper()
	ip4 := &layers.IPv4{Version: 4, TTL: 63, Protocol: layers.IPProtocolTCP, SrcIP: k.src.Addr().AsSlice(), DstIP: k.dst.Addr().AsSlice(), Flags: layers.IPv4DontFragment}
	ip6 := &layers.IPv6{Version: 6, HopLimit: 63, NextHeader: layers.IPProtocolTCP, SrcIP: k.src.Addr().AsSlice(), DstIP: k.dst.Addr().AsSlice()}
	tcp := &layers.TCP{SrcPort: layers.TCPPort(k.src.Port()), DstPort: layers.TCPPort(k.dst.Port()), Seq: 0xfffffff0, SYN: true, Window: 64240,
		Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 180}}, {OptionType: layers.TCPOptionKindNop}}}
	if change != nil {
		change(ip4, ip6, tcp)
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	var ip gopacket.SerializableLayer = ip4
	tcp.SetNetworkLayerForChecksum(ip4)
	if k.dst.Addr().Is6() {
		ip = ip6
		tcp.SetNetworkLayerForChecksum(ip6)
	}
	if err := gopacket.SerializeLayers(buf, opts, ip, tcp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

func TestParseSYN(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, payload := range [][]byte{nil, []byte("odd"), make([]byte, 1000)} {
			k := testTuple(v6)
			got, err := parseSYN(synPacket(t, k, payload, nil))
			if want := (syn{k, 0xfffffff0, 0xfffffff1 + uint32(len(payload))}); err != nil || got != want {
				t.Errorf("%+v, %v; want %+v", got, err, want)
			}
		}
		// ECN negotiation is a SYN like any other.
		if _, err := parseSYN(synPacket(t, testTuple(v6), nil, func(_ *layers.IPv4, _ *layers.IPv6, p *layers.TCP) { p.ECE, p.CWR = true, true })); err != nil {
			t.Error("ECN:", err)
		}
	}
}

func TestParseSYNRefuses(t *testing.T) {
	type change = func(*layers.IPv4, *layers.IPv6, *layers.TCP)
	for name, c := range map[string]change{
		"FIN":         func(_ *layers.IPv4, _ *layers.IPv6, p *layers.TCP) { p.FIN = true },
		"RST":         func(_ *layers.IPv4, _ *layers.IPv6, p *layers.TCP) { p.RST = true },
		"ACK":         func(_ *layers.IPv4, _ *layers.IPv6, p *layers.TCP) { p.ACK = true },
		"XMAS":        func(_ *layers.IPv4, _ *layers.IPv6, p *layers.TCP) { p.FIN, p.URG, p.PSH = true, true, true },
		"nothing":     func(_ *layers.IPv4, _ *layers.IPv6, p *layers.TCP) { p.SYN = false },
		"port 0":      func(_ *layers.IPv4, _ *layers.IPv6, p *layers.TCP) { p.DstPort = 0 },
		"from port 0": func(_ *layers.IPv4, _ *layers.IPv6, p *layers.TCP) { p.SrcPort = 0 },
		"fragment":    func(ip *layers.IPv4, _ *layers.IPv6, _ *layers.TCP) { ip.Flags = layers.IPv4MoreFragments },
		"last piece":  func(ip *layers.IPv4, _ *layers.IPv6, _ *layers.TCP) { ip.FragOffset = 3 },
		"source route": func(ip *layers.IPv4, _ *layers.IPv6, _ *layers.TCP) {
			ip.Options = []layers.IPv4Option{{OptionType: 131, OptionLength: 8, OptionData: make([]byte, 6)}}
		},
		"UDP":        func(ip *layers.IPv4, _ *layers.IPv6, _ *layers.TCP) { ip.Protocol = layers.IPProtocolUDP },
		"loopback":   func(ip *layers.IPv4, _ *layers.IPv6, _ *layers.TCP) { ip.SrcIP = []byte{127, 0, 0, 1} },
		"link-local": func(ip *layers.IPv4, _ *layers.IPv6, _ *layers.TCP) { ip.DstIP = []byte{169, 254, 1, 1} },
		"multicast":  func(ip *layers.IPv4, _ *layers.IPv6, _ *layers.TCP) { ip.DstIP = []byte{224, 0, 0, 1} },
		"broadcast":  func(ip *layers.IPv4, _ *layers.IPv6, _ *layers.TCP) { ip.DstIP = []byte{255, 255, 255, 255} },
		"to itself":  func(ip *layers.IPv4, _ *layers.IPv6, _ *layers.TCP) { ip.DstIP = ip.SrcIP },
	} {
		if _, err := parseSYN(synPacket(t, testTuple(false), nil, c)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	hop := func(_ *layers.IPv4, ip *layers.IPv6, _ *layers.TCP) { ip.NextHeader = layers.IPProtocolIPv6HopByHop }
	if _, err := parseSYN(synPacket(t, testTuple(true), nil, hop)); err == nil {
		t.Error("an extension header is taken")
	}
}

// TestParseSYNBits: no packet with one bit wrong is taken as the same SYN,
// and every bit that a checksum covers is checked.
func TestParseSYNBits(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		good := synPacket(t, testTuple(v6), []byte("early data"), nil)
		for n := range good {
			if _, err := parseSYN(good[:n]); err == nil {
				t.Errorf("first %d of %d bytes are taken", n, len(good))
			}
		}
		if _, err := parseSYN(append(bytes.Clone(good), 0)); err == nil {
			t.Error("a byte more is taken")
		}
		for bit := range len(good) * 8 {
			bad := bytes.Clone(good)
			bad[bit/8] ^= 1 << (bit % 8)
			covered := !v6 || bit/8 >= 4 && bit/8 != 7 // not class, flow label, hop limit
			if _, err := parseSYN(bad); covered && err == nil {
				t.Errorf("IPv6 %v: bit %d of byte %d turned is taken", v6, bit%8, bit/8)
			}
		}
	}
}

// TestReplies builds the same packets with gopacket and reads ours with it.
func TestReplies(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		k := testTuple(v6)
		packet := synPacket(t, k, make([]byte, 1200), nil)
		s, err := parseSYN(packet)
		if err != nil {
			t.Fatal(err)
		}
		back := tuple{src: k.dst, dst: k.src}
		want := synPacket(t, back, nil, func(ip4 *layers.IPv4, ip6 *layers.IPv6, p *layers.TCP) {
			ip4.TTL, ip6.HopLimit = replyTTL, replyTTL
			p.SYN, p.RST, p.ACK, p.Seq, p.Ack, p.Window, p.Options = false, true, true, 0, s.next, 0, nil
		})
		if got := buildReply(nil, s, packet, RefusedByServer); !bytes.Equal(got, want) {
			t.Errorf("RST\n%x\nwant\n%x", got, want)
		}
		for kind, code := range map[Refusal][2]byte{HostUnreachable: {1, 3}, NetUnreachable: {0, 0}, Prohibited: {13, 1}} {
			want := code[0]
			if v6 {
				want = code[1]
			}
			checkUnreachable(t, buildReply(nil, s, packet, kind), s, packet, want)
		}
		for _, kind := range []Refusal{0, TimedOut, Denied, Unable} {
			if got := buildReply(nil, s, packet, kind); got != nil {
				t.Errorf("%v is answered with %x", kind, got)
			}
		}
	}
}

func checkUnreachable(t *testing.T, got []byte, s syn, packet []byte, code byte) {
	t.Helper()
	first, most := gopacket.LayerType(layers.LayerTypeIPv4), 576
	if s.dst.Addr().Is6() {
		first, most = layers.LayerTypeIPv6, 1280
	}
	p := gopacket.NewPacket(got, first, gopacket.Default)
	if p.ErrorLayer() != nil || len(got) > most {
		t.Fatalf("%d bytes: %v", len(got), p.ErrorLayer())
	}
	flow := p.NetworkLayer().NetworkFlow()
	if flow.Src().String() != s.dst.Addr().String() || flow.Dst().String() != s.src.Addr().String() {
		t.Errorf("from %v to %v", flow.Src(), flow.Dst())
	}
	var icmp, quoted []byte
	if ip, ok := p.NetworkLayer().(*layers.IPv4); ok {
		icmp, quoted = ip.Payload, ip.Payload[8:]
		if checksum(ip.Contents, 0) != 0 || checksum(icmp, 0) != 0 || icmp[0] != 3 {
			t.Errorf("bad checksum or type: %x", got)
		}
	} else {
		ip := p.NetworkLayer().(*layers.IPv6)
		icmp, quoted = ip.Payload, ip.Payload[8:]
		if icmp[0] != 1 || checksum(icmp, pseudoSum(s.dst.Addr(), s.src.Addr(), protoICMPv6, len(icmp))) != 0 {
			t.Errorf("bad checksum or type: %x", got)
		}
	}
	if icmp[1] != code || !bytes.HasPrefix(packet, quoted) || len(quoted) < 48 {
		t.Errorf("code %d (want %d), %d bytes quoted", icmp[1], code, len(quoted))
	}
}

func TestGoldenReplies(t *testing.T) {
	for name, v6 := range map[string]bool{"4": false, "6": true} {
		packet := synPacket(t, testTuple(v6), nil, nil)
		s, err := parseSYN(packet)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "rst"+name, buildReply(nil, s, packet, RefusedByServer))
		golden(t, "unreachable"+name, buildReply(nil, s, packet, HostUnreachable))
	}
}

// FuzzSYN compares the parser with gopacket's and with its own builder.
func FuzzSYN(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		f.Add(synPacket(f, testTuple(v6), nil, nil))
		f.Add(synPacket(f, testTuple(v6), []byte("data"), nil))
	}
	f.Add([]byte{0x45, 0, 0, 20})
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := parseSYN(fixChecksums(in))
		if err != nil {
			return
		}
		in = fixChecksums(in)
		first := gopacket.LayerType(layers.LayerTypeIPv4)
		if in[0]>>4 == 6 {
			first = layers.LayerTypeIPv6
		}
		tcp, ok := gopacket.NewPacket(in, first, gopacket.NoCopy).Layer(layers.LayerTypeTCP).(*layers.TCP)
		if !ok { // gopacket is stricter about option lengths, which we carry unread
			return
		}
		if uint16(tcp.SrcPort) != s.src.Port() || uint16(tcp.DstPort) != s.dst.Port() || tcp.Seq != s.seq ||
			!tcp.SYN || tcp.ACK || tcp.RST || tcp.FIN || s.next != s.seq+1+uint32(len(tcp.Payload)) {
			t.Fatalf("%+v from %+v", s, tcp)
		}
		rst := buildReply(nil, s, in, RefusedByServer)
		if _, err := parseSYN(rst); err == nil {
			t.Fatal("a reset is taken for a SYN")
		}
		checkUnreachableLength(t, buildReply(nil, s, in, NetUnreachable))
	})
}

func checkUnreachableLength(t *testing.T, p []byte) {
	if len(p) > 1280 || p[0]>>4 == 4 && int(binary.BigEndian.Uint16(p[2:])) != len(p) {
		t.Fatalf("unreachable of %d bytes", len(p))
	}
}

// fixChecksums makes a mutated packet's checksums right, so that the fuzzer
// gets past them. It returns a copy.
func fixChecksums(in []byte) []byte {
	p := bytes.Clone(in)
	switch {
	case len(p) >= 40 && p[0] == 0x45:
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], checksum(p[:20], 0))
		src, dst := netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
		fixTCP(p[20:], src, dst)
	case len(p) >= 60 && p[0]>>4 == 6:
		fixTCP(p[40:], netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40])))
	}
	return p
}

func fixTCP(seg []byte, src, dst netip.Addr) {
	seg[16], seg[17] = 0, 0
	binary.BigEndian.PutUint16(seg[16:], checksum(seg, pseudoSum(src, dst, protoTCP, len(seg))))
}
