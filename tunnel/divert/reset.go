package divert

import (
	"encoding/binary"
	"slices"
)

// resetFor returns the frame that resets the connection of a TCP frame for the host which
// sent that, as if it came from the host it was for (RFC 9293, section 3.10.7.1); nil for
// one that says nothing of what its sender expects, and for a reset.
func resetFor(frame []byte) []byte {
	_, _, proto, seg := parseIP(frame)
	if proto != protoTCP || len(seg) < tcpHeader || seg[13]&flagACK == 0 || seg[13]&flagRST != 0 {
		return nil
	}
	tcp := make([]byte, tcpHeader)
	copy(tcp[0:], seg[2:4])
	copy(tcp[2:], seg[0:2])
	copy(tcp[4:], seg[8:12])
	tcp[12], tcp[13] = tcpHeader/4<<4, flagRST
	ip := frame[etherHeader:]
	out := slices.Concat(frame[6:12], frame[0:6], frame[12:etherHeader])
	if ip[0]>>4 == 4 {
		h := make([]byte, ip4Header)
		h[0], h[6], h[8], h[9] = 0x45, 0x40, 64, protoTCP // never in parts
		binary.BigEndian.PutUint16(h[2:], ip4Header+tcpHeader)
		copy(h[12:], ip[16:20])
		copy(h[16:], ip[12:16])
		binary.BigEndian.PutUint16(h[10:], checksum(h))
		binary.BigEndian.PutUint16(tcp[16:], checksum(h[12:20], []byte{0, protoTCP, 0, tcpHeader}, tcp))
		return append(append(out, h...), tcp...)
	}
	h := make([]byte, ip6Header)
	h[0], h[5], h[6], h[7] = 0x60, tcpHeader, protoTCP, 64
	copy(h[8:], ip[24:40])
	copy(h[24:], ip[8:24])
	binary.BigEndian.PutUint16(tcp[16:], checksum(h[8:40], []byte{0, 0, 0, tcpHeader, 0, 0, 0, protoTCP}, tcp))
	return append(append(out, h...), tcp...)
}

// checksum is the Internet checksum over parts of even length.
func checksum(parts ...[]byte) uint16 {
	sum := uint32(0)
	for _, p := range parts {
		for i := 0; i+1 < len(p); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(p[i:]))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
