package ether

import (
	"encoding/binary"
	"net/netip"
	"time"
)

const (
	// maxQueries is how many unknown hosts are looked for in a second.
	maxQueries = 20
	// queryGap is the least time between two queries for one host.
	queryGap = time.Second
	// querySlots is how many hosts the gap is remembered for.
	querySlots = 64
)

// queries bounds the search for hosts that frames are sent to and that are not
// in the table, as after a restart: their neighbours have their MAC and do not
// ask.
type queries struct {
	subnet netip.Prefix
	limit  limiter
	slots  [querySlots]struct {
		key key
		at  time.Duration
	}
	sent uint64
}

// allow reports whether k may be looked for now.
func (q *queries) allow(now time.Duration, k key) bool {
	s := &q.slots[(k^k>>24)%querySlots]
	if s.key == k && now-s.at < queryGap || !q.limit.allow(now) {
		return false
	}
	s.key, s.at = k, now
	q.sent++
	return true
}

// query returns a frame for all peers that finds the unknown destination of h,
// nil for none: if it is known which address it has, the request that the
// sender would make for it, answered by the host itself; else a question to the
// agents.
func (s *Switch) query(now time.Duration, h *header, in *info) []byte {
	k := keyOf(h.dst, h.vlan)
	if !s.queries.allow(now, k) {
		return nil
	}
	switch {
	case h.inner != 0 || !in.to.IsValid() || in.to.IsMulticast():
	case in.to.Is4():
		return s.queries.appendARP(nil, h, in)
	case onLink(in.from, in.to):
		return appendSolicitation(nil, h, in)
	}
	if s.agents.loop.id == 0 {
		return nil
	}
	return s.askFrame(k)
}

// appendARP appends the ARP request of the sender of h for the address in.to.
// It gives the sender's address only if that is certainly its own, else it is a
// probe (RFC 5227), which teaches nobody anything.
func (q *queries) appendARP(dst []byte, h *header, in *info) []byte {
	var from [4]byte
	if q.subnet.Contains(in.from) {
		from = in.from.As4()
	}
	to := in.to.As4()
	dst = append(dst, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	dst = append(dst, h.src[:]...)
	dst = append(appendTag(dst, h.vlan), 8, 6, 0, 1, 8, 0, 6, 4, 0, arpRequest)
	dst = append(dst, h.src[:]...)
	dst = append(dst, from[:]...)
	dst = append(dst, 0, 0, 0, 0, 0, 0)
	dst = append(dst, to[:]...)
	return append(dst, make([]byte, minPayload-arpLen)...)
}

// onLink reports whether two IPv6 addresses are likely of one network.
func onLink(a, b netip.Addr) bool {
	x, y := a.As16(), b.As16()
	return [8]byte(x[:8]) == [8]byte(y[:8])
}

// appendSolicitation appends the neighbour solicitation of the sender of h for
// the address in.to.
func appendSolicitation(dst []byte, h *header, in *info) []byte {
	const size = ndLen + 8
	from, to := in.from.As16(), in.to.As16()
	group := [16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: to[13], 14: to[14], 15: to[15]}
	dst = append(dst, 0x33, 0x33, 0xff, to[13], to[14], to[15])
	dst = append(dst, h.src[:]...)
	dst = append(appendTag(dst, h.vlan), 0x86, 0xdd)
	dst = append(dst, 0x60, 0, 0, 0, 0, size, protoICMP6, 255)
	dst = append(dst, from[:]...)
	dst = append(dst, group[:]...)
	start := len(dst)
	dst = append(dst, ndSolicit, 0, 0, 0, 0, 0, 0, 0)
	dst = append(dst, to[:]...)
	dst = append(dst, 1, 1)
	dst = append(dst, h.src[:]...)
	binary.BigEndian.PutUint16(dst[start+2:], icmp6Checksum(dst[start-32:start], dst[start:]))
	return dst
}
