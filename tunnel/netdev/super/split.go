package super

import "encoding/binary"

// Splitter cuts one super-packet after the other. It is not safe for
// concurrent use; the zero value has nothing to cut.
type Splitter struct {
	layout
	packet []byte // as it was handed over; the headers are the template
	kind   Kind
	size   int // what each packet but the last carries
	pos    int // offset of what is next; len(packet): all done
	seq    uint32
	id     uint16
}

// Start begins with a packet, which it borrows, and may write to, until the
// last Next. TCP is cut into packets of at most max bytes, those of the link
// included, also when the kernel meant longer ones; a packet that is none of
// TCP's is not cut to max. After ErrHeader there is nothing to cut.
func (s *Splitter) Start(packet []byte, h Header, link Link, max int) error {
	*s = Splitter{kind: h.Kind}
	if h.Kind == None {
		return s.single(packet, h)
	}
	l, err := h.layout(packet, link)
	if err != nil {
		return err
	}
	size := int(h.Size)
	if h.Kind != UDP {
		size = min(size, max-l.body)
	}
	if size <= 0 {
		return ErrHeader
	}
	s.layout, s.packet, s.size, s.pos = l, packet, size, l.body
	if h.Kind != UDP {
		s.seq = binary.BigEndian.Uint32(packet[l.l4+4:])
	}
	if !l.v6 {
		s.id = binary.BigEndian.Uint16(packet[l.ip+4:])
	}
	return nil
}

// single takes a packet that is not to be cut, and completes its checksum.
func (s *Splitter) single(packet []byte, h Header) error {
	if h.Partial && !Complete(packet, h) || len(packet) == 0 {
		return ErrHeader
	}
	s.packet = packet
	return nil
}

// Complete writes the checksum of a packet whose Header says Partial. False
// means that the field is outside the packet.
func Complete(packet []byte, h Header) bool {
	start, at := int(h.Start), int(h.Start)+int(h.Offset)
	if at+2 > len(packet) {
		return false
	}
	sum := ^fold(sum(packet[start:], 0))
	if sum == 0 && h.Offset == udpSumOffset {
		sum = 0xffff // of UDP, 0 means none
	}
	binary.BigEndian.PutUint16(packet[at:], sum)
	return true
}

// layout checks a super-packet against its header. Where the transport header
// begins is the kernel's word: there may be extension headers before it. How
// long it is is not: of forwarded packets the kernel's hint is too long.
func (h *Header) layout(p []byte, link Link) (l layout, err error) {
	ip, v6, ok := network(p, link)
	l = layout{ip: ip, v6: v6, l4: int(h.Start), end: len(p), proto: protoTCP}
	if h.Kind == UDP {
		l.proto = protoUDP
	}
	if !ok || !h.Partial || v6 && h.Kind == TCP4 || !v6 && h.Kind == TCP6 || len(p)-ip > maxIPLen || len(p) < ip+ip4Len {
		return l, ErrHeader
	}
	if v6 {
		ok = l.l4 >= ip+ip6Len && int(binary.BigEndian.Uint16(p[ip+4:])) == len(p)-ip-ip6Len
	} else {
		ok = l.l4 == ip+int(p[ip]&15)*4 && l.l4 >= ip+ip4Len && p[ip+9] == l.proto && int(binary.BigEndian.Uint16(p[ip+2:])) == len(p)-ip
	}
	if !ok || !l.transport(p) || l.body >= l.end {
		return l, ErrHeader
	}
	return l, nil
}

// Len returns the length of the next packet; 0 means that there is none.
func (s *Splitter) Len() int {
	switch {
	case s.pos >= len(s.packet):
		return 0
	case s.kind == None:
		return len(s.packet)
	}
	return s.body + min(s.size, len(s.packet)-s.pos)
}

// Count returns how many packets are left.
func (s *Splitter) Count() int {
	left := len(s.packet) - s.pos
	if s.kind == None {
		return min(left, 1)
	}
	return (left + s.size - 1) / s.size
}

// Size returns what each packet but the last carries behind its headers.
func (s *Splitter) Size() int { return s.size }

// Offsets returns where the IP header, the transport header and what that
// carries begin in a super-packet; zeros if it is a packet that is not cut.
func (s *Splitter) Offsets() (ip, transport, body int) { return s.ip, s.l4, s.body }

// Next writes the next packet to dst, which must have room for Len bytes.
func (s *Splitter) Next(dst []byte) {
	if s.kind == None {
		copy(dst, s.packet)
		s.pos = len(s.packet)
		return
	}
	n := min(s.size, len(s.packet)-s.pos)
	dst = dst[:s.body+n]
	copy(dst, s.packet[:s.body])
	copy(dst[s.body:], s.packet[s.pos:s.pos+n])
	if !s.v6 {
		binary.BigEndian.PutUint16(dst[s.ip+4:], s.id)
		s.id++
	}
	s.setLength(dst, len(dst))
	first := s.pos == s.body
	s.pos += n
	if s.kind == UDP {
		s.finishUDP(dst)
	} else {
		s.finishTCP(dst, n, first)
	}
}

// finishTCP makes the TCP header that of one packet (RFC 9293; of the ECN
// flags, CWR is the first packet's, RFC 3168).
func (s *Splitter) finishTCP(p []byte, n int, first bool) {
	h := p[s.l4:]
	binary.BigEndian.PutUint32(h[4:], s.seq)
	s.seq += uint32(n)
	if !first {
		h[tcpFlagsAt] &^= reducedFlag
	}
	if s.pos < len(s.packet) {
		h[tcpFlagsAt] &^= finFlag | pushFlag
	}
	h[tcpSumOffset], h[tcpSumOffset+1] = 0, 0
	binary.BigEndian.PutUint16(h[tcpSumOffset:], ^fold(sum(h, s.pseudo(p, len(h)))))
}

// finishUDP makes the UDP header that of one datagram.
func (s *Splitter) finishUDP(p []byte) {
	h := p[s.l4:]
	binary.BigEndian.PutUint16(h[4:], uint16(len(h)))
	h[udpSumOffset], h[udpSumOffset+1] = 0, 0
	sum := ^fold(sum(h, s.pseudo(p, len(h))))
	if sum == 0 {
		sum = 0xffff // 0 means none
	}
	binary.BigEndian.PutUint16(h[udpSumOffset:], sum)
}
