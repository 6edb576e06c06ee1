package super

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

var update = flag.Bool("update", false, "rewrite the golden file")

// shape is the outside of a test packet; gopacket builds it.
type shape struct {
	link    Link
	tags    []uint16
	v6, udp bool
	id      uint16
	seq     uint32
	flags   string // of S A P F C E
	options []byte // of TCP, a multiple of four bytes
	port    uint16
	fixed   bool // leave the checksums to the caller
}

func (s shape) String() string {
	name := map[Link]string{IP: "ip", Ethernet: "ether"}[s.link] + strings.Repeat("-tag", len(s.tags))
	name += map[bool]string{false: "-4", true: "-6"}[s.v6] + map[bool]string{false: "-tcp", true: "-udp"}[s.udp]
	return name
}

// shapes are all combinations of link, tags, IP and transport.
func shapes() (all []shape) {
	for _, link := range []Link{IP, Ethernet} {
		for _, tags := range [][]uint16{nil, {5}, {5, 6}} {
			for i := range 4 {
				if link == Ethernet || tags == nil {
					all = append(all, shape{link: link, tags: tags, v6: i&1 != 0, udp: i&2 != 0, id: 0xfffe, seq: 0xfffffff0, flags: "AP", port: 7})
				}
			}
		}
	}
	return all
}

// build returns the packet with the payload, lengths and checksums right.
func (s shape) build(t testing.TB, payload []byte) []byte {
	t.Helper()
	var all []gopacket.SerializableLayer
	ethertype := layers.EthernetTypeIPv4
	if s.v6 {
		ethertype = layers.EthernetTypeIPv6
	}
	if s.link == Ethernet {
		outer := ethertype
		if len(s.tags) > 0 {
			outer = layers.EthernetTypeDot1Q
		}
		all = append(all, &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: outer})
		for i, id := range s.tags {
			next := ethertype
			if i+1 < len(s.tags) {
				next = layers.EthernetTypeDot1Q
			}
			all = append(all, &layers.Dot1Q{VLANIdentifier: id, Type: next})
		}
	}
	proto := layers.IPProtocolTCP
	if s.udp {
		proto = layers.IPProtocolUDP
	}
	ip4 := &layers.IPv4{Version: 4, TTL: 64, TOS: 8, Id: s.id, Flags: layers.IPv4DontFragment, Protocol: proto, SrcIP: net.IP{10, 1, 0, 11}, DstIP: net.IP{10, 1, 0, 12}}
	ip6 := &layers.IPv6{Version: 6, HopLimit: 64, FlowLabel: 77, NextHeader: proto, SrcIP: net.ParseIP("fd00:1::11"), DstIP: net.ParseIP("fd00:1::12")}
	var network gopacket.NetworkLayer = ip4
	if s.v6 {
		network = ip6
		all = append(all, ip6)
	} else {
		all = append(all, ip4)
	}
	if s.udp {
		u := &layers.UDP{SrcPort: 4000, DstPort: layers.UDPPort(s.port)}
		u.SetNetworkLayerForChecksum(network)
		all = append(all, u)
	} else {
		c := &layers.TCP{SrcPort: 4000, DstPort: layers.TCPPort(s.port), Seq: s.seq, Ack: 99, Window: 500,
			SYN: strings.Contains(s.flags, "S"), ACK: strings.Contains(s.flags, "A"), PSH: strings.Contains(s.flags, "P"),
			FIN: strings.Contains(s.flags, "F"), CWR: strings.Contains(s.flags, "C"), ECE: strings.Contains(s.flags, "E")}
		if s.options != nil {
			c.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKind(s.options[0]), OptionLength: uint8(len(s.options)), OptionData: s.options[2:]}}
		}
		c.SetNetworkLayerForChecksum(network)
		all = append(all, c)
	}
	buf := gopacket.NewSerializeBuffer()
	all = append(all, gopacket.Payload(payload))
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	p := slices.Clone(buf.Bytes())
	if l, ok := locate(p, s.link); ok {
		return p[:l.end] // gopacket pads frames to 60 bytes
	}
	return p
}

// super returns a super-packet and its header as the kernel hands it over:
// the checksum field has the pseudo-header's share.
func (s shape) super(t testing.TB, payload []byte, size int) ([]byte, Header) {
	p := s.build(t, payload)
	l, ok := locate(p, s.link)
	if !ok {
		t.Fatal("own packet does not parse")
	}
	h := Header{Partial: true, Kind: TCP4, Size: uint16(size), Start: uint16(l.l4), Offset: tcpSumOffset, headers: uint16(l.body)}
	switch {
	case s.udp:
		h.Kind, h.Offset = UDP, udpSumOffset
	case s.v6:
		h.Kind = TCP6
	}
	at := l.l4 + int(h.Offset)
	word := fold(l.pseudo(p, l.end-l.l4))
	p[at], p[at+1] = byte(word>>8), byte(word)
	return p, h
}

// cut returns the packets of a super-packet.
func cut(t testing.TB, p []byte, h Header, link Link, max int) (out [][]byte) {
	t.Helper()
	var s Splitter
	if err := s.Start(slices.Clone(p), h, link, max); err != nil {
		t.Fatal(err)
	}
	want := s.Count()
	for n := s.Len(); n > 0; n = s.Len() {
		b := make([]byte, n)
		s.Next(b)
		out = append(out, b)
	}
	if len(out) != want {
		t.Fatalf("%d packets, announced %d", len(out), want)
	}
	return out
}

// join returns what a Merger makes of packets.
func join(packets [][]byte, link Link) (out [][]byte, headers []Header) {
	var m Merger
	m.Reset(link, JoinAll)
	for _, p := range packets {
		m.Add(p)
	}
	for g := range m.Groups() {
		all := bytes.Join(m.Pieces(g, nil), nil)
		h, _ := ParseHeader(all)
		out, headers = append(out, all[HeaderLen:]), append(headers, h)
	}
	return out, headers
}

// valid fails unless gopacket agrees with lengths and checksums of p: it is
// built again from its own layers and must come out the same.
func valid(t *testing.T, p []byte, link Link) {
	t.Helper()
	first := gopacket.Decoder(layers.LayerTypeEthernet)
	if link == IP && p[0]>>4 == 4 {
		first = layers.LayerTypeIPv4
	} else if link == IP {
		first = layers.LayerTypeIPv6
	}
	packet := gopacket.NewPacket(p, first, gopacket.Default)
	if packet.ErrorLayer() != nil || packet.TransportLayer() == nil {
		t.Fatalf("gopacket: %v: %x", packet.ErrorLayer(), p)
	}
	switch l := packet.TransportLayer().(type) {
	case *layers.TCP:
		l.SetNetworkLayerForChecksum(packet.NetworkLayer())
	case *layers.UDP:
		l.SetNetworkLayerForChecksum(packet.NetworkLayer())
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializePacket(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, packet); err != nil {
		t.Fatal(err)
	}
	padding := make([]byte, max(0, len(buf.Bytes())-len(p)))
	if !bytes.Equal(buf.Bytes(), append(slices.Clone(p), padding...)) {
		t.Fatalf("gopacket makes\n%x of\n%x", buf.Bytes(), p)
	}
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// Golden super-packets and the packets cut of them: what two agents must agree
// on is in the packets, and a change of theirs must be seen.
func TestGolden(t *testing.T) {
	const file = "../../../testdata/wire/super.txt"
	var b strings.Builder
	b.WriteString("# Super-packets of 50 bytes, cut at 20, and what they are cut to; joined again they are the first line.\n")
	for _, s := range shapes() {
		p, h := s.super(t, pattern(50), 20)
		head := make([]byte, HeaderLen)
		h.Put(head)
		fmt.Fprintf(&b, "%v %x %x\n", s, head, p)
		for _, q := range cut(t, p, h, s.link, 1000) {
			fmt.Fprintf(&b, "  %x\n", q)
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != b.String() {
		t.Errorf("the packets differ from %s (%v); if that is intended, run with -update and read the difference", file, err)
	}
	// The header is the kernel's: byte by byte in its order on this machine.
	raw, _ := hex.DecodeString("01010000140022001000")
	if h, err := ParseHeader(raw); err != nil || h != (Header{Partial: true, Kind: TCP4, Size: 20, Start: 34, Offset: 16}) {
		t.Errorf("%+v, %v", h, err)
	}
	for _, kind := range []byte{2, 3, 6, 0x81} {
		if _, err := ParseHeader([]byte{1, kind, 9: 0}); err == nil {
			t.Errorf("kind %d is accepted", kind)
		}
	}
}

// Cutting and joining again gives the super-packet back, bit for bit, and
// every packet in between is right by gopacket's account.
func TestCutThenJoin(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range 400 {
		s := shapes()[i%len(shapes())]
		s.id, s.seq = uint16(rng.Uint32()), rng.Uint32()
		s.flags = []string{"A", "AP"}[rng.IntN(2)]
		if !s.udp && rng.IntN(2) == 0 {
			s.options = append([]byte{8, 10}, pattern(8)...)
		}
		size := 1 + rng.IntN(1500)
		limit := 64 * size // joined again in one
		if !s.udp {
			limit = 120 * size
		}
		payload := pattern(1 + rng.IntN(min(limit, 60000)))
		p, h := s.super(t, payload, size)
		packets := cut(t, p, h, s.link, 2000)
		var carried []byte
		for _, q := range packets {
			valid(t, q, s.link)
			l, _ := locate(q, s.link)
			carried = append(carried, q[l.body:]...)
		}
		if !bytes.Equal(carried, payload) {
			t.Fatalf("%v: the payload changed", s)
		}
		out, headers := join(packets, s.link)
		if len(out) != 1 || !bytes.Equal(out[0], p) && len(packets) > 1 {
			t.Fatalf("%v: %d of %d packets, size %d of %d", s, len(out), len(packets), size, len(payload))
		}
		if len(packets) > 1 && headers[0] != h {
			t.Fatalf("%v: header %+v, want %+v", s, headers[0], h)
		}
	}
}

// TCP is cut to what fits, whatever the kernel had in mind; datagrams keep
// their boundaries; flags go where they belong.
func TestCutToFit(t *testing.T) {
	s := shape{link: Ethernet, flags: "APFC", port: 7}
	p, h := s.super(t, pattern(5000), 1460)
	packets := cut(t, p, h, Ethernet, 1412)
	if len(packets) != 4 || len(packets[0]) != 1412 {
		t.Fatalf("%d packets, the first of %d bytes", len(packets), len(packets[0]))
	}
	for i, q := range packets {
		valid(t, q, Ethernet)
		want := byte(ackFlag)
		if i == 0 {
			want |= reducedFlag
		}
		if i == 3 {
			want |= finFlag | pushFlag
		}
		if q[34+tcpFlagsAt] != want {
			t.Errorf("packet %d has flags %02x, want %02x", i, q[34+tcpFlagsAt], want)
		}
	}
	s.udp = true
	p, h = s.super(t, pattern(5000), 1460)
	if packets = cut(t, p, h, Ethernet, 1412); len(packets) != 4 || len(packets[0]) != 1460+42 {
		t.Errorf("%d datagrams, the first of %d bytes", len(packets), len(packets[0]))
	}
}

func TestSingle(t *testing.T) {
	for _, s := range shapes() {
		p, h := s.super(t, pattern(100), 100)
		h.Kind = None
		out := cut(t, p, h, s.link, 40) // nothing is cut that is no super-packet
		if len(out) != 1 {
			t.Fatalf("%d packets", len(out))
		}
		valid(t, out[0], s.link)
		whole := s.build(t, pattern(100))
		if out := cut(t, whole, Header{}, s.link, 40); len(out) != 1 || !bytes.Equal(out[0], whole) {
			t.Errorf("%v: a complete packet changed", s)
		}
	}
}

func TestStartRefuses(t *testing.T) {
	for _, s := range shapes() {
		for name, spoil := range map[string]func(p *[]byte, h *Header){
			"cut off":           func(p *[]byte, h *Header) { *p = (*p)[:len(*p)-1] },
			"headers only":      func(p *[]byte, h *Header) { *p = (*p)[:h.headers] },
			"too long":          func(p *[]byte, h *Header) { *p = append(*p, 0) },
			"size 0":            func(p *[]byte, h *Header) { h.Size = 0 },
			"checksum complete": func(p *[]byte, h *Header) { h.Partial = false },
			"start early":       func(p *[]byte, h *Header) { h.Start-- },
			"start behind":      func(p *[]byte, h *Header) { h.Start = 60000 },
			"other kind":        func(p *[]byte, h *Header) { h.Kind = map[Kind]Kind{TCP4: UDP, TCP6: TCP4, UDP: TCP4}[h.Kind] },
			"empty":             func(p *[]byte, h *Header) { *p = nil },
			"no IP":             func(p *[]byte, h *Header) { clear((*p)[:20]) },
		} {
			p, h := s.super(t, pattern(100), 20)
			spoil(&p, &h)
			var c Splitter
			if err := c.Start(p, h, s.link, 1000); err == nil && !(s.v6 && name == "other kind") || err != nil && c.Len() != 0 {
				t.Errorf("%v, %s: %v, %d bytes to come", s, name, err, c.Len())
			}
		}
	}
	var c Splitter
	if err := c.Start(make([]byte, 20), Header{Partial: true, Start: 10, Offset: 9}, IP, 100); err == nil {
		t.Error("a checksum field outside the packet is accepted")
	}
}

// The sum against the textbook's.
func TestSum(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	for n := range 300 {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32()) | byte(n&1)*0xff // odd lengths: all ones, the most carries
		}
		start := uint64(rng.Uint32N(1 << 17))
		want := start
		for i := 0; i < n; i += 2 {
			want += uint64(b[i]) << 8
			if i+1 < n {
				want += uint64(b[i+1])
			}
		}
		for want > 0xffff {
			want = want>>16 + want&0xffff
		}
		if got := fold(sum(b, start)); got != uint16(want) {
			t.Errorf("%d bytes: %04x, want %04x", n, got, want)
		}
	}
}
