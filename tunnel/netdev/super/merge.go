package super

import (
	"bytes"
	"encoding/binary"
)

const (
	// MaxBatch is the most packets a Merger takes at once.
	MaxBatch = 128
	// maxDatagrams is the most datagrams the kernel takes in one super-packet
	// (UDP_MAX_SEGMENTS; older kernels have 64).
	maxDatagrams = 64
	// maxHeaders bounds the headers of what is merged: Ethernet with two tags,
	// IPv6, TCP with all its options.
	maxHeaders = etherLen + 2*tagLen + ip6Len + 60
	// flowSlots is the size of the table of flows; a power of two.
	flowSlots = 256
)

// Join says what a Merger joins.
type Join uint8

// TCP and datagrams, TCP only, nothing.
const (
	JoinAll Join = iota
	JoinTCP
	JoinNothing
)

// Merger joins the packets of a batch. Packets of one flow leave in the order
// they came; a packet that cannot be joined to the one before it in its flow
// begins anew. It is not safe for concurrent use; the zero value is ready.
type Merger struct {
	link    Link
	join    Join
	packets [MaxBatch]member
	groups  [MaxBatch]group
	n, out  int
	// flows are the newest group of each flow, by hash, plus one. A collision
	// costs a merge, not the order.
	flows [flowSlots]uint8
}

// member is a packet in a group.
type member struct {
	packet []byte
	layout
	next uint8 // the following member plus one; 0: the last
}

// group is what becomes one packet.
type group struct {
	first, last uint8 // members
	count       int
	size        int // what the first carries
	total       int // what all carry
	open        bool
	headers     [HeaderLen + maxHeaders]byte
}

// Reset forgets the batch and says what the next one's packets begin with, and
// which to join.
func (m *Merger) Reset(link Link, join Join) {
	clear(m.packets[:m.n]) // hold on to nothing that was lent
	m.link, m.join, m.n, m.out = link, join, 0, 0
	m.flows = [flowSlots]uint8{}
}

// Add takes in a packet, which it borrows until Reset. No more than MaxBatch
// may be added.
func (m *Merger) Add(p []byte) {
	i := uint8(m.n)
	m.n++
	e := &m.packets[i]
	e.packet = p
	if m.join == JoinNothing || len(p) > MaxPacket {
		m.begin(i, false)
		return
	}
	var ok bool
	if e.layout, ok = locate(p, m.link); !ok {
		// A fragment, for one, may belong to any flow: let none pass it.
		m.flows = [flowSlots]uint8{}
		m.begin(i, false)
		return
	}
	slot := &m.flows[e.hash()]
	joins := (e.proto == protoTCP || m.join == JoinAll) && e.joinable()
	if g := int(*slot) - 1; g >= 0 && joins && m.groups[g].open && m.follows(&m.groups[g], e) {
		m.extend(&m.groups[g], i)
		return
	}
	m.begin(i, joins)
	*slot = uint8(m.out)
}

// begin starts a group.
func (m *Merger) begin(i uint8, open bool) {
	g := &m.groups[m.out]
	m.out++
	e := &m.packets[i]
	g.first, g.last, g.count = i, i, 1
	if g.open = open; open {
		g.size = e.end - e.body
		g.total = g.size
		g.open = !e.pushes()
	}
}

// extend appends a packet to a group. A shorter one ends it, and so does PSH:
// the receiver is to have the bytes now.
func (m *Merger) extend(g *group, i uint8) {
	m.packets[g.last].next = i + 1
	g.last = i
	g.count++
	n := m.packets[i].end - m.packets[i].body
	g.total += n
	g.open = n == g.size && !m.packets[i].pushes()
}

// hash returns the slot of the packet's flow.
func (e *member) hash() uint8 {
	p := e.packet
	h := binary.BigEndian.Uint32(p[e.l4:]) // ports
	if e.v6 {
		h ^= binary.BigEndian.Uint32(p[e.ip+20:]) ^ binary.BigEndian.Uint32(p[e.ip+36:])
	} else {
		h ^= binary.BigEndian.Uint32(p[e.ip+12:]) ^ binary.BigEndian.Uint32(p[e.ip+16:])
	}
	h ^= uint32(e.proto)
	return uint8((h * 0x9e3779b1) >> 24)
}

// pushes reports whether nothing may follow the packet in its group.
func (e *member) pushes() bool {
	return e.proto == protoTCP && e.packet[e.l4+tcpFlagsAt]&pushFlag != 0
}

// joinable reports whether the packet may be part of a super-packet: nothing
// in it would get lost, and its checksum is right, since a joined one gets a
// new checksum.
func (e *member) joinable() bool {
	p := e.packet
	if e.end != len(p) || e.body >= e.end || !e.v6 && e.l4 != e.ip+ip4Len {
		return false
	}
	h := p[e.l4:]
	if e.proto == protoTCP {
		if h[tcpFlagsAt]&^pushFlag != ackFlag || h[12]&15 != 0 || h[18] != 0 || h[19] != 0 {
			return false
		}
	} else if int(binary.BigEndian.Uint16(h[4:])) != len(h) || h[udpSumOffset] == 0 && h[udpSumOffset+1] == 0 {
		return false
	}
	if !e.v6 && fold(sum(p[e.ip:e.l4], 0)) != 0xffff {
		return false
	}
	return fold(sum(h, e.pseudo(p, len(h)))) == 0xffff
}

// follows reports whether e continues the group.
func (m *Merger) follows(g *group, e *member) bool {
	f := &m.packets[g.first]
	n := e.end - e.body
	if e.ip != f.ip || e.v6 != f.v6 || e.proto != f.proto || e.body != f.body ||
		n > g.size || f.end+g.total-g.size+n-f.ip > maxIPLen || !sameNetwork(f, e, g.count) {
		return false
	}
	a, b := f.packet[f.l4:f.body], e.packet[e.l4:e.body]
	if e.proto == protoUDP {
		return g.count < maxDatagrams && bytes.Equal(a[:4], b[:4])
	}
	// Ports, acknowledgement, window and options are equal, and so are the
	// flags but for PSH, which were looked at before.
	return bytes.Equal(a[:4], b[:4]) && bytes.Equal(a[8:12], b[8:12]) && bytes.Equal(a[14:16], b[14:16]) &&
		bytes.Equal(a[tcpLen:], b[tcpLen:]) &&
		binary.BigEndian.Uint32(b[4:]) == binary.BigEndian.Uint32(a[4:])+uint32(g.total)
}

// sameNetwork reports whether the headers of e in front of the transport
// header are those of f with its count-th successor's differences only. The
// kernel, when it cuts again, counts the identification of IPv4 up; where
// fragmentation is forbidden it has no meaning (RFC 6864) and may be equal.
func sameNetwork(f, e *member, count int) bool {
	a, b := f.packet[:f.l4], e.packet[:e.l4]
	if !bytes.Equal(a[:f.ip], b[:f.ip]) {
		return false
	}
	a, b = a[f.ip:], b[f.ip:]
	if f.v6 {
		return bytes.Equal(a[:4], b[:4]) && bytes.Equal(a[6:], b[6:])
	}
	first, id, bits := binary.BigEndian.Uint16(a[4:]), binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
	return bytes.Equal(a[:2], b[:2]) && bytes.Equal(a[6:10], b[6:10]) && bytes.Equal(a[12:], b[12:]) &&
		(id == first+uint16(count) || id == first && bits&dontFragment != 0)
}

// Groups returns how many packets are to be written.
func (m *Merger) Groups() int { return m.out }

// Count returns how many packets the g-th of them is made of.
func (m *Merger) Count(g int) int { return m.groups[g].count }

// Pieces appends to dst the pieces of the g-th packet, header first. They are
// valid until Reset.
func (m *Merger) Pieces(g int, dst [][]byte) [][]byte {
	r := &m.groups[g]
	f := &m.packets[r.first]
	if r.count == 1 {
		Header{}.Put(r.headers[:])
		return append(dst, r.headers[:HeaderLen], f.packet)
	}
	dst = append(dst, m.joined(r, f), f.packet[f.body:])
	for i := f.next; i != 0; i = m.packets[i-1].next {
		e := &m.packets[i-1]
		dst = append(dst, e.packet[e.body:])
	}
	return dst
}

// Alone appends to dst the pieces of the i-th packet that the g-th is made of,
// as it came.
func (m *Merger) Alone(g, i int, dst [][]byte) [][]byte {
	r := &m.groups[g]
	e := &m.packets[r.first]
	for ; i > 0; i-- {
		e = &m.packets[e.next-1]
	}
	Header{}.Put(r.headers[:])
	return append(dst, r.headers[:HeaderLen], e.packet)
}

// joined returns the headers of a group of several packets.
func (m *Merger) joined(r *group, f *member) []byte {
	b := r.headers[:HeaderLen+f.body]
	p := b[HeaderLen:]
	copy(p, f.packet)
	h := Header{Partial: true, Kind: UDP, Size: uint16(r.size), Start: uint16(f.l4), Offset: udpSumOffset, headers: uint16(f.body)}
	end := f.body + r.total
	f.setLength(p, end)
	if f.proto == protoTCP {
		h.Kind, h.Offset = TCP4, tcpSumOffset
		if f.v6 {
			h.Kind = TCP6
		}
		p[f.l4+tcpFlagsAt] |= m.packets[r.last].packet[f.l4+tcpFlagsAt] & pushFlag
	} else {
		binary.BigEndian.PutUint16(p[f.l4+4:], uint16(end-f.l4))
	}
	binary.BigEndian.PutUint16(p[f.l4+int(h.Offset):], fold(f.pseudo(p, end-f.l4)))
	h.Put(b)
	return b
}
