package ether

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"stitch/tunnel/config"
)

// Addresses used throughout the tests.
var (
	macA      = testMAC("aa")
	macB      = testMAC("bb")
	macVM     = testMAC("50")
	macGW     = config.MAC{0x02, 0x53, 0x54, 0, 1, 0}
	broadcast = config.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

	gateway   = netip.MustParseAddr("10.1.0.1")
	vmIP      = netip.MustParseAddr("10.1.0.50")
	testBasic = config.Segment{ID: 100, Gateway: gateway, GatewayMAC: macGW}
)

// testMAC reads a short name: two hex digits, "ff" broadcast, "gw", or a whole
// address.
func testMAC(s string) config.MAC {
	switch {
	case s == "ff":
		return broadcast
	case s == "gw":
		return macGW
	case len(s) == 2:
		s = "02:00:00:00:00:" + s
	}
	m, err := config.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

// eth makes a frame of an EtherType (or 802.3 length) and its payload.
func eth(dst, src config.MAC, typ uint16, payload ...byte) []byte {
	b := slices.Concat(dst[:], src[:])
	return append(binary.BigEndian.AppendUint16(b, typ), payload...)
}

// tagged puts VLAN tags (TPID, TCI each) behind the addresses of frame.
func tagged(frame []byte, tags ...uint16) []byte {
	var b []byte
	for _, t := range tags {
		b = binary.BigEndian.AppendUint16(b, t)
	}
	return slices.Concat(frame[:12], b, frame[12:])
}

// snap wraps the frame's type and payload in 802.2 SNAP with a right length.
func snap(frame []byte, oui ...byte) []byte {
	body := slices.Concat([]byte{0xaa, 0xaa, 3}, oui, frame[12:])
	return slices.Concat(frame[:12], binary.BigEndian.AppendUint16(nil, uint16(len(body))), body)
}

func arpFrame(dst, src config.MAC, op uint16, sha config.MAC, spa netip.Addr, tha config.MAC, tpa netip.Addr) []byte {
	typ := uint16(typeARP)
	if op >= rarpRequest {
		typ = typeRARP
	}
	p := []byte{0, 1, 8, 0, 6, 4}
	p = binary.BigEndian.AppendUint16(p, op)
	p = slices.Concat(p, sha[:], spa.AsSlice(), tha[:], tpa.AsSlice())
	return eth(dst, src, typ, p...)
}

func garp(mac config.MAC, ip netip.Addr) []byte {
	return arpFrame(broadcast, mac, arpRequest, mac, ip, config.MAC{}, ip)
}

func rarp(mac config.MAC) []byte { return appendRARP(nil, mac, 0) }

func data(dst, src config.MAC) []byte { return eth(dst, src, 0x88b5, 1, 2, 3) }

func ipv4Packet(proto byte, flags uint16, payload ...byte) []byte {
	p := make([]byte, 20)
	p[0], p[8], p[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(p[2:], uint16(20+len(payload)))
	binary.BigEndian.PutUint16(p[6:], flags)
	return append(p, payload...)
}

func ipv6Packet(src, dst string, next byte, payload ...byte) []byte {
	p := make([]byte, 8, 40+len(payload))
	p[0], p[6], p[7] = 0x60, next, 255
	binary.BigEndian.PutUint16(p[4:], uint16(len(payload)))
	s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	return slices.Concat(p, s[:], d[:], payload)
}

func udp(src, dst uint16) []byte {
	p := binary.BigEndian.AppendUint16(nil, src)
	p = binary.BigEndian.AppendUint16(p, dst)
	return append(p, 0, 8, 0, 0)
}

// nd makes a neighbour discovery message with a link-layer option (type 1 for
// solicitations, 2 for advertisements) unless mac is zero.
func nd(typ, flags byte, target string, mac config.MAC) []byte {
	t := netip.MustParseAddr(target).As16()
	p := slices.Concat([]byte{typ, 0, 0, 0, flags, 0, 0, 0}, t[:])
	if mac != (config.MAC{}) {
		p = slices.Concat(p, []byte{typ - ndRouter, 1}, mac[:])
	}
	return p
}

// fromHex decodes hex with any spaces.
func fromHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
