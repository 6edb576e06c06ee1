package ether

import (
	"bytes"
	"encoding/binary"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev/super"
)

// EtherTypes that are looked at.
const (
	typeIPv4     = 0x0800
	typeARP      = 0x0806
	typeRARP     = 0x8035
	typeIPv6     = 0x86dd
	typePause    = 0x8808
	typeSlow     = 0x8809
	typeEAPOL    = 0x888e
	typePreauth  = 0x88c7
	typeLLDP     = 0x88cc
	minEtherType = 0x0600 // below: an 802.3 length
	maxLength    = 1500   // largest 802.3 length; up to minEtherType: undefined
)

const (
	headerLen = 14
	tagLen    = 4
	maxTags   = 2
	// minPadded is the size up to which an 802.3 frame may be padded: the 60
	// bytes that Ethernet asks for and the tags.
	minPadded = 60 + maxTags*tagLen
)

// header is the outside of a frame.
type header struct {
	dst, src config.MAC
	// vlan is that of the outer tag and inner that of the second one; 0: none,
	// or a priority tag.
	vlan, inner uint16
	// etherType is what payload is, found behind tags and SNAP; 0: LLC other
	// than SNAP, with payload behind the LLC header.
	etherType uint16
	// dsap is the LLC destination without its group bit; 0 if not LLC.
	dsap byte
	// cisco: SNAP with Cisco's code; etherType is theirs.
	cisco bool
	// foreign: SNAP with another vendor's code.
	foreign bool
	// snap: etherType was found in SNAP.
	snap    bool
	payload []byte
}

// parse reads the headers of frame, which may be a super-frame; payload
// aliases it.
func parse(frame []byte) (header, Reason) {
	if len(frame) < headerLen {
		return header{}, Runt
	}
	if len(frame) > super.MaxPacket {
		return header{}, TooLong
	}
	h := header{dst: config.MAC(frame[:6]), src: config.MAC(frame[6:12])}
	at := 12
	typ := binary.BigEndian.Uint16(frame[at:])
	for tags := 0; isTag(typ); tags++ {
		if tags == maxTags {
			return h, Encapsulation
		}
		if len(frame) < at+tagLen+2 {
			return h, Malformed
		}
		if vlan := binary.BigEndian.Uint16(frame[at+2:]) & 0x0fff; tags == 0 {
			h.vlan = vlan
		} else {
			h.inner = vlan
		}
		at += tagLen
		typ = binary.BigEndian.Uint16(frame[at:])
	}
	h.payload = frame[at+2:]
	if typ >= minEtherType {
		h.etherType = typ
		return h, Carried
	}
	return h, h.parseLLC(int(typ), len(frame))
}

func isTag(typ uint16) bool {
	switch typ {
	case 0x8100, 0x88a8, 0x9100, 0x9200, 0x9300:
		return true
	}
	return false
}

// parseLLC reads the 802.2 header in h.payload of a frame of the given size.
// Only padding may follow length: implementations differ on whether they
// believe the length, and a filter must see what the receiver sees.
func (h *header) parseLLC(length, size int) Reason {
	if length < 3 || length > maxLength || length > len(h.payload) {
		return Malformed
	}
	if length < len(h.payload) && size > minPadded {
		return Malformed
	}
	p := h.payload[:length]
	dsap, ssap := p[0]&^1, p[1]&^1
	if dsap == 0xaa || ssap == 0xaa {
		return h.parseSNAP(p)
	}
	h.dsap, h.payload = dsap, p[3:]
	return Carried
}

func (h *header) parseSNAP(p []byte) Reason {
	if p[0] != 0xaa || p[1] != 0xaa || p[2] != 3 {
		return Encapsulation
	}
	if len(p) < 8 {
		return Malformed
	}
	oui := uint32(p[3])<<16 | uint32(p[4])<<8 | uint32(p[5])
	typ := binary.BigEndian.Uint16(p[6:])
	h.payload = p[8:]
	switch oui {
	case 0, 0x0000f8: // RFC 1042 and its bridge-tunnel variant: an EtherType
		if isTag(typ) {
			return Encapsulation
		}
		if typ < minEtherType {
			return Malformed
		}
		h.etherType, h.snap = typ, true
	case 0x00000c:
		h.cisco = true
	default:
		h.foreign = true
	}
	return Carried
}

// alike reports whether two frames are packets of TCP over IP, without options
// or extension headers, in the same Ethernet and VLAN headers and between the
// same addresses: then nothing that decides on one tells it from the other.
// Before may be nil.
func alike(before, frame []byte) bool {
	at := headerLen
	if len(before) < at || len(frame) < at {
		return false
	}
	if isTag(binary.BigEndian.Uint16(frame[12:])) {
		at += tagLen
	}
	if len(before) < at+ipv4HeaderLen || len(frame) < at+ipv4HeaderLen || !bytes.Equal(before[:at], frame[:at]) {
		return false
	}
	typ := binary.BigEndian.Uint16(frame[at-2:])
	before, frame = before[at:], frame[at:]
	switch {
	case typ == typeIPv4 && before[0] == 0x45 && frame[0] == 0x45 && before[9] == protoTCP && frame[9] == protoTCP:
		total := int(binary.BigEndian.Uint16(frame[2:]))
		return total >= ipv4HeaderLen && total <= len(frame) && bytes.Equal(before[12:20], frame[12:20])
	case typ == typeIPv6 && len(before) >= ipv6HeaderLen && len(frame) >= ipv6HeaderLen && before[0]>>4 == 6 && frame[0]>>4 == 6 &&
		before[6] == protoTCP && frame[6] == protoTCP:
		size := int(binary.BigEndian.Uint16(frame[4:]))
		return size <= len(frame)-ipv6HeaderLen && bytes.Equal(before[8:40], frame[8:40])
	}
	return false
}

// group reports whether m is a multicast or the broadcast address.
func group(m config.MAC) bool { return m[0]&1 != 0 }

// reserved reports whether m is one of 01:80:c2:00:00:00 to 2f: bridges, link
// protocols and their registration protocols.
func reserved(m config.MAC) bool {
	return [5]byte(m[:5]) == [5]byte{0x01, 0x80, 0xc2, 0, 0} && m[5] < 0x30
}

// ciscoGroup reports whether m is a group address of Cisco's link protocols.
func ciscoGroup(m config.MAC) bool {
	p := [5]byte(m[:5])
	return p == [5]byte{0x01, 0x00, 0x0c, 0xcc, 0xcc} || p == [5]byte{0x01, 0x00, 0x0c, 0xcd, 0xcd}
}
