package divert

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"stitch/tunnel/config"
)

// version is that of the messages.
const version = 1

// kind is a message's type.
type kind uint8

const (
	msgHello  kind = 1
	msgSYN    kind = 2
	msgAdded  kind = 3
	msgMoved  kind = 4
	msgPassed kind = 5
	msgDevice kind = 16
	msgAdd    kind = 17
	msgRemove kind = 18
	msgLAN    kind = 19
	msgPass   kind = 20
)

const (
	// maxFrame bounds the frames in messages: a SYN, or the answer to one.
	maxFrame = 4 << 10
	// maxMessage holds every message.
	maxMessage = maxFrame + 512
	maxName    = 32
)

// errMessage is wrapped by every error about bytes that are no valid message.
var errMessage = errors.New("divert: bad message")

// Flow is a TCP connection between a host of this LAN and one at a peer.
type Flow struct {
	Segment uint16
	Peer    string
	// Local is the host of this LAN, whoever began the connection.
	Local, Remote       netip.AddrPort
	LocalMAC, RemoteMAC config.MAC
}

// key names a flow within its segment.
type key struct{ local, remote netip.AddrPort }

func (f *Flow) key() key { return key{f.Local, f.Remote} }

// place is where a host or frame belongs: a segment and a peer.
type place struct {
	segment uint16
	peer    string
}

// appendPlace appends a segment and a peer.
func appendPlace(b []byte, segment uint16, peer string) []byte {
	b = binary.BigEndian.AppendUint16(b, segment)
	peer = peer[:min(len(peer), maxName)]
	return append(append(b, byte(len(peer))), peer...)
}

// parsePlace reads what appendPlace wrote, and returns the rest.
func parsePlace(b []byte) (p place, rest []byte, err error) {
	if len(b) < 3 || int(b[2]) > maxName || len(b) < 3+int(b[2]) {
		return p, nil, errMessage
	}
	n := 3 + int(b[2])
	return place{binary.BigEndian.Uint16(b), string(b[3:n])}, b[n:], nil
}

// append appends the flow.
func (f *Flow) append(b []byte) []byte {
	b = appendPlace(b, f.Segment, f.Peer)
	for _, h := range []struct {
		at  netip.AddrPort
		mac config.MAC
	}{{f.Local, f.LocalMAC}, {f.Remote, f.RemoteMAC}} {
		addr := h.at.Addr().AsSlice()
		b = append(append(b, byte(len(addr))), addr...)
		b = append(binary.BigEndian.AppendUint16(b, h.at.Port()), h.mac[:]...)
	}
	return b
}

// parseFlow reads a flow that must be all of b.
func parseFlow(b []byte) (f Flow, err error) {
	p, b, err := parsePlace(b)
	if err != nil {
		return f, err
	}
	f.Segment, f.Peer = p.segment, p.peer
	if f.Local, f.LocalMAC, b, err = parseHost(b); err != nil {
		return f, err
	}
	if f.Remote, f.RemoteMAC, b, err = parseHost(b); err != nil {
		return f, err
	}
	if len(b) != 0 || f.Local.Addr().Is4() != f.Remote.Addr().Is4() {
		return f, errMessage
	}
	return f, nil
}

// parseHost reads an address, a port and a MAC.
func parseHost(b []byte) (at netip.AddrPort, mac config.MAC, rest []byte, err error) {
	if len(b) == 0 || b[0] != 4 && b[0] != 16 || len(b) < 1+int(b[0])+2+6 {
		return at, mac, nil, errMessage
	}
	n := 1 + int(b[0])
	addr, _ := netip.AddrFromSlice(b[1:n])
	if addr.Is4In6() {
		return at, mac, nil, errMessage
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[n:])), config.MAC(b[n+2 : n+8]), b[n+8:], nil
}

// Why a SYN that a rule is about was passed.
const (
	// PassedByRule: the rule, or that one end is a workload.
	PassedByRule byte = iota
	// PassedTagged: the frame is of a VLAN.
	PassedTagged
	// PassedCrowded: there was no room for it on the way to the stream process.
	PassedCrowded
)

// appendPassed appends a PASSED message; the SYN is from src to dst.
func appendPassed(b []byte, why byte, f *Flow) []byte {
	return f.append(append(b, byte(msgPassed), why))
}

// appendFrame appends a SYN, LAN or PASS message.
func appendFrame(b []byte, k kind, segment uint16, peer string, frame []byte) []byte {
	return append(appendPlace(append(b, byte(k)), segment, peer), frame...)
}

// parseFrame reads the body of one; the frame is part of b.
func parseFrame(b []byte) (place, []byte, error) {
	p, frame, err := parsePlace(b)
	if err != nil || len(frame) < etherHeader || len(frame) > maxFrame {
		return p, nil, errMessage
	}
	return p, frame, nil
}

// appendAdd appends an ADD message.
func appendAdd(b []byte, number uint64, f *Flow) []byte {
	return f.append(binary.BigEndian.AppendUint64(append(b, byte(msgAdd)), number))
}

// parseAdd reads the body of one.
func parseAdd(b []byte) (number uint64, f Flow, err error) {
	if len(b) < 8 {
		return 0, f, errMessage
	}
	f, err = parseFlow(b[8:])
	return binary.BigEndian.Uint64(b), f, err
}

// appendAdded appends an ADDED message.
func appendAdded(b []byte, number uint64, taken bool) []byte {
	b = binary.BigEndian.AppendUint64(append(b, byte(msgAdded)), number)
	if taken {
		return append(b, 1)
	}
	return append(b, 0)
}

// parseAdded reads the body of one.
func parseAdded(b []byte) (number uint64, taken bool, err error) {
	if len(b) != 9 {
		return 0, false, errMessage
	}
	return binary.BigEndian.Uint64(b), b[8] == 1, nil
}

// offer is a segment in a HELLO.
type offer struct {
	segment uint16
	mtu     uint16
}

// appendHello appends a HELLO message.
func appendHello(b []byte, offers []offer) []byte {
	b = append(b, byte(msgHello), version)
	for _, o := range offers {
		b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, o.segment), o.mtu)
	}
	return b
}

// parseHello reads the body of one.
func parseHello(b []byte) (offers []offer, err error) {
	if len(b) < 1 || b[0] != version || len(b)%4 != 1 {
		return nil, errMessage
	}
	for b = b[1:]; len(b) > 0; b = b[4:] {
		offers = append(offers, offer{binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])})
	}
	return offers, nil
}
