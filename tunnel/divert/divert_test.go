package divert

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"reflect"
	"testing"

	"stitch/tunnel/config"
)

var (
	client, server       = netip.MustParseAddrPort("10.1.0.11:40000"), netip.MustParseAddrPort("10.1.0.12:4000")
	client6, server6     = netip.MustParseAddrPort("[fd00:1::11]:40000"), netip.MustParseAddrPort("[fd00:1::12]:4000")
	clientMAC, serverMAC = config.MAC{2, 0x53, 0x54, 1, 0, 0x11}, config.MAC{2, 0x53, 0x54, 1, 0, 0x12}
)

// testFlow is that of the client's site.
func testFlow() Flow {
	return Flow{Segment: 100, Peer: "dc2", Local: client, Remote: server, LocalMAC: clientMAC, RemoteMAC: serverMAC}
}

// ipPacket returns an IP packet without checksums.
func ipPacket(src, dst netip.Addr, proto byte, body []byte) []byte {
	if src.Is4() {
		h := make([]byte, ip4Header)
		h[0], h[8], h[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(h[2:], uint16(ip4Header+len(body)))
		copy(h[12:], src.AsSlice())
		copy(h[16:], dst.AsSlice())
		return append(h, body...)
	}
	h := make([]byte, ip6Header)
	h[0], h[6], h[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(body)))
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	return append(h, body...)
}

// tcpSegment returns a TCP header without checksum.
func tcpSegment(src, dst netip.AddrPort, flags byte) []byte {
	seg := make([]byte, tcpHeader)
	binary.BigEndian.PutUint16(seg, src.Port())
	binary.BigEndian.PutUint16(seg[2:], dst.Port())
	seg[12], seg[13] = tcpHeader/4<<4, flags
	return seg
}

// ether puts a packet into a frame.
func ether(dst, src config.MAC, packet []byte, tags ...byte) []byte {
	b := append(append(append([]byte(nil), dst[:]...), src[:]...), tags...)
	if packet[0]>>4 == 6 {
		b = binary.BigEndian.AppendUint16(b, typeIPv6)
	} else {
		b = binary.BigEndian.AppendUint16(b, typeIPv4)
	}
	return append(b, packet...)
}

// tcpFrame is a frame of a connection, from src.
func tcpFrame(src, dst netip.AddrPort, flags byte) []byte {
	from, to := clientMAC, serverMAC
	if src == server || src == server6 {
		from, to = to, from
	}
	return ether(to, from, ipPacket(src.Addr(), dst.Addr(), protoTCP, tcpSegment(src, dst, flags)))
}

func TestParseTCP(t *testing.T) {
	whole := tcpFrame(client, server, flagSYN)
	fragment, other, long := bytes.Clone(whole), bytes.Clone(whole), bytes.Clone(whole)
	fragment[etherHeader+6] = 0x20
	other[etherHeader+9] = 17
	long[etherHeader] = 0x4f // options that are not there
	extension := tcpFrame(client6, server6, flagSYN)
	extension[etherHeader+6] = 0
	for name, c := range map[string]struct {
		frame []byte
		ok    bool
	}{
		"IPv4": {whole, true}, "IPv6": {tcpFrame(client6, server6, flagSYN), true},
		"a fragment": {fragment, false}, "UDP": {other, false}, "options cut off": {long, false}, "IPv6 with an extension header": {extension, false},
		"a tag": {ether(serverMAC, clientMAC, whole[etherHeader:], 0x81, 0, 0, 10), false},
		"empty": {nil, false}, "no IP": {whole[:etherHeader], false}, "no TCP": {whole[:etherHeader+ip4Header+tcpHeader-1], false},
	} {
		p, ok := parseTCP(c.frame)
		if ok != c.ok || ok && (!p.bareSYN() || p.src.Port() != 40000 || p.dst.Port() != 4000) {
			t.Errorf("%s: %+v, %v", name, p, ok)
		}
	}
	for flags, want := range map[byte]bool{flagSYN: true, flagSYN | 0xc0: true, flagSYN | flagACK: false, flagACK: false, flagSYN | flagRST: false, flagSYN | flagFIN: false} {
		if p, _ := parseTCP(tcpFrame(client, server, flags)); p.bareSYN() != want {
			t.Errorf("flags %#x begin a connection: %v", flags, p.bareSYN())
		}
	}
}

func TestParseError(t *testing.T) {
	quote := func(src, dst netip.AddrPort, proto, typ byte, n int) []byte {
		inner := ipPacket(src.Addr(), dst.Addr(), protoTCP, tcpSegment(src, dst, flagSYN))
		return ether(clientMAC, serverMAC, ipPacket(dst.Addr(), src.Addr(), proto, append([]byte{typ, 1, 0, 0, 0, 0, 0, 0}, inner[:n]...)))
	}
	for name, c := range map[string]struct {
		frame []byte
		ok    bool
	}{
		"unreachable": {quote(client, server, protoICMP, 3, 28), true}, "time exceeded": {quote(client, server, protoICMP, 11, 28), true},
		"IPv6": {quote(client6, server6, protoICMPv6, 1, 48), true}, "an echo": {quote(client, server, protoICMP, 8, 28), false},
		"no ports": {quote(client, server, protoICMP, 3, 23), false}, "a neighbour solicitation": {quote(client6, server6, protoICMPv6, 135, 48), false},
		"TCP": {tcpFrame(client, server, flagSYN), false}, "empty": {nil, false},
	} {
		src, dst, ok := parseError(c.frame)
		if ok != c.ok || ok && (src.Port() != 40000 || dst.Port() != 4000) {
			t.Errorf("%s: %v to %v, %v", name, src, dst, ok)
		}
	}
}

// TestMessages holds that every message comes back as it was, and that none that is
// cut short, or longer, is taken.
func TestMessages(t *testing.T) {
	f := testFlow()
	f6 := f
	f6.Local, f6.Remote = client6, server6
	for _, f := range []Flow{f, f6} {
		b := appendAdd(nil, 77, &f)[1:]
		if n, got, err := parseAdd(b); err != nil || n != 77 || got != f {
			t.Errorf("%+v became %+v, %v", f, got, err)
		}
		for i := range b {
			if _, _, err := parseAdd(b[:i]); err == nil {
				t.Errorf("%d of %d bytes were taken", i, len(b))
			}
		}
		if _, _, err := parseAdd(append(b, 0)); err == nil {
			t.Error("a longer message was taken")
		}
	}
	offers := []offer{{100, 1500}, {7, 9000}}
	if got, err := parseHello(appendHello(nil, offers)[1:]); err != nil || !reflect.DeepEqual(got, offers) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseHello([]byte{version + 1}); err == nil {
		t.Error("another version was taken")
	}
	frame := tcpFrame(client, server, flagSYN)
	b := appendFrame(nil, msgSYN, 100, "dc2", frame)[1:]
	if p, got, err := parseFrame(b); err != nil || p != (place{100, "dc2"}) || !bytes.Equal(got, frame) {
		t.Errorf("%v %x, %v", p, got, err)
	}
	if _, _, err := parseFrame(b[:6+etherHeader-1]); err == nil {
		t.Error("half an Ethernet header was taken")
	}
	if _, _, err := parseFrame(append(b, make([]byte, maxFrame)...)); err == nil {
		t.Error("a frame that is too long was taken")
	}
	if n, taken, err := parseAdded(appendAdded(nil, 3, true)[1:]); err != nil || n != 3 || !taken {
		t.Errorf("%d %v %v", n, taken, err)
	}
}

func FuzzMessage(f *testing.F) {
	flow := testFlow()
	f.Add(appendAdd(nil, 1, &flow)[1:])
	f.Add(appendHello(nil, []offer{{100, 1500}})[1:])
	f.Add(appendFrame(nil, msgSYN, 100, "dc2", tcpFrame(client6, server6, flagSYN))[1:])
	f.Add(tcpFrame(client, server, flagSYN))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, flow, err := parseAdd(b); err == nil && !bytes.Equal(appendAdd(nil, n, &flow)[1:], b) {
			t.Errorf("%x became %+v", b, flow)
		}
		if p, frame, err := parseFrame(b); err == nil && !bytes.Equal(appendFrame(nil, msgPass, p.segment, p.peer, frame)[1:], b) {
			t.Errorf("%x became %+v and %x", b, p, frame)
		}
		if offers, err := parseHello(b); err == nil && !bytes.Equal(appendHello(nil, offers)[1:], b) {
			t.Errorf("%x became %v", b, offers)
		}
		if p, ok := parseTCP(b); ok && (!p.src.IsValid() || p.src.Addr().Is4() != p.dst.Addr().Is4()) {
			t.Errorf("%x became %+v", b, p)
		}
		if src, dst, ok := parseError(b); ok && src.Addr().Is4() != dst.Addr().Is4() {
			t.Errorf("%x became %v to %v", b, src, dst)
		}
	})
}
