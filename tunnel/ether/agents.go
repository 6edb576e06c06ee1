package ether

import (
	"encoding/binary"
	"slices"
	"time"

	"stitch/tunnel/config"
)

// The format of messages between agents; see the package documentation.
const (
	typeExtended = 0x88b7
	agentVersion = 1
	agentLen     = 18
	maxHave      = 170 // hosts in one message, which fits any path MTU of ours
)

const (
	msgProbe = 1
	msgAsk   = 2
	msgHave  = 3
)

const (
	flagBlocked = 1 // of a probe
	flagLast    = 1 // of have
	flagNews    = 2 // of have
)

var (
	agentCode  = [5]byte{0x02, 0x53, 0x54, 0, 1}
	agentGroup = config.MAC{0x03, 0x53, 0x54, 0, 0, 1}
)

// agentMsg is the fixed part of a message; rest aliases the frame.
type agentMsg struct {
	kind    byte
	flags   byte
	segment uint16
	id      uint64
	rest    []byte
}

// isAgent reports whether the payload of an extended EtherType is ours.
func isAgent(p []byte) bool { return len(p) >= len(agentCode) && [5]byte(p[:5]) == agentCode }

// parseAgent reads a message of ours.
func parseAgent(p []byte) (m agentMsg, ok bool) {
	if len(p) < agentLen || p[5] != agentVersion {
		return m, false
	}
	return agentMsg{
		kind: p[6], flags: p[7], segment: binary.BigEndian.Uint16(p[8:]),
		id: binary.BigEndian.Uint64(p[10:]), rest: p[agentLen:],
	}, true
}

// appendFrame appends the frame of m, in a VLAN unless that is 0.
func (m agentMsg) appendFrame(dst []byte, vlan uint16) []byte {
	dst = append(dst, agentGroup[:]...)
	dst = append(dst, 0xf2, byte(m.id>>32), byte(m.id>>24), byte(m.id>>16), byte(m.id>>8), byte(m.id))
	dst = appendTag(dst, vlan)
	dst = binary.BigEndian.AppendUint16(dst, typeExtended)
	dst = append(dst, agentCode[:]...)
	dst = append(dst, agentVersion, m.kind, m.flags)
	dst = binary.BigEndian.AppendUint16(dst, m.segment)
	dst = binary.BigEndian.AppendUint64(dst, m.id)
	return append(dst, m.rest...)
}

// appendTag appends a VLAN tag unless vlan is 0.
func appendTag(dst []byte, vlan uint16) []byte {
	if vlan == 0 {
		return dst
	}
	return append(dst, 0x81, 0, byte(vlan>>8), byte(vlan))
}

// Outgoing is a frame that the switch itself sends.
type Outgoing struct {
	// To is Local (into the LAN), one peer, or All peers.
	To    Place
	Frame []byte
}

const (
	// askEvery is how often a peer is asked for its hosts until it answers, and
	// askAnew how often after that.
	askEvery = 2 * time.Second
	askAnew  = time.Minute
	// soon is when the next of many frames leave.
	soon = 5 * time.Millisecond
	// maxNews bounds the hosts whose announcement did not cross.
	maxNews = maxLearned
	// maxOutbox bounds the frames that wait to be sent.
	maxOutbox = 4096
)

// agents is what a switch exchanges with the other agents of its segment: loop
// probes, and which hosts are where. With id 0 it is silent.
type agents struct {
	loop guard
	// nextAsk is when each peer is asked for all its hosts.
	nextAsk []time.Duration
	// full limits the whole tables given to each peer, one the single hosts.
	full, one []limiter
	outbox    []Outgoing
	// news are hosts that announced themselves on the LAN beyond the limit, arrived
	// those of peers that the LAN's bridge is to hear of, limited by bridge.
	news, arrived []key
	bridge        limiter
}

// Guard turns on what agents tell each other: loop probes, and which hosts are
// where. id is a random number that tells this port from every other one.
func (s *Switch) Guard(id uint64) {
	s.agents = agents{loop: guard{id: id, vlans: s.vlanList}, bridge: s.strangers}
	for range s.received {
		s.agents.nextAsk = append(s.agents.nextAsk, 0)
		s.agents.full = append(s.agents.full, newLimiter(1))
		s.agents.one = append(s.agents.one, newLimiter(maxQueries))
	}
}

// Due appends to dst the frames that the switch itself sends now, at most room
// and a few, and returns with them the time until it has more; wait if that is
// sooner.
func (s *Switch) Due(now time.Duration, dst []Outgoing, room int, wait time.Duration) ([]Outgoing, time.Duration) {
	a := &s.agents
	if a.loop.id == 0 {
		return dst, wait
	}
	if a.loop.tick(now) {
		dst = a.loop.appendProbes(dst, s.segment)
	}
	wait = min(wait, a.loop.next-now)
	for i := range a.nextAsk {
		if now >= a.nextAsk[i] {
			a.nextAsk[i] = now + askEvery
			dst = append(dst, Outgoing{Place(i + 1), s.askFrame(0)})
		}
		wait = min(wait, a.nextAsk[i]-now)
	}
	for hosts := range slices.Chunk(a.news, maxHave) {
		s.have(All, hosts, flagNews)
	}
	a.news = a.news[:0]
	n := min(max(room-len(dst), 0), len(a.outbox))
	dst = append(dst, a.outbox[:n]...)
	a.outbox = append(a.outbox[:0], a.outbox[n:]...)
	for n = 0; n < len(a.arrived) && len(dst) < room && a.bridge.allow(now); n++ {
		k := a.arrived[n]
		dst = append(dst, Outgoing{Local, appendRARP(nil, k.mac(), k.vlan())})
	}
	a.arrived = append(a.arrived[:0], a.arrived[n:]...)
	if len(a.outbox)+len(a.arrived) > 0 {
		wait = min(wait, soon)
	}
	return dst, wait
}

// askFrame asks where a host is, or with 0 for all hosts.
func (s *Switch) askFrame(k key) []byte {
	rest := binary.BigEndian.AppendUint64(nil, uint64(k))
	return agentMsg{kind: msgAsk, segment: s.segment, id: s.agents.loop.id, rest: rest}.appendFrame(nil, 0)
}

// agentFromLAN takes a message that came from the LAN: probes only.
func (s *Switch) agentFromLAN(now time.Duration, h *header) {
	m, ok := parseAgent(h.payload)
	if !ok || m.kind != msgProbe || s.agents.loop.id == 0 {
		return
	}
	if s.agents.loop.heard(now, m.id, m.segment, m.flags&flagBlocked != 0) {
		s.table.flush()
	}
}

// agentFromPeer takes a message of the peer at place from.
func (s *Switch) agentFromPeer(now time.Duration, from Place, h *header) {
	m, ok := parseAgent(h.payload)
	if !ok || m.segment != s.segment || s.agents.loop.id == 0 {
		return
	}
	switch m.kind {
	case msgAsk:
		s.asked(now, from, m.rest)
	case msgHave:
		s.told(now, from, &m)
	}
}

// asked puts the answer to a question of a peer into the outbox.
func (s *Switch) asked(now time.Duration, from Place, p []byte) {
	if len(p) < 8 || s.agents.loop.blocked {
		return
	}
	k := key(binary.BigEndian.Uint64(p))
	if k != 0 {
		if e := s.table.get(now, k); e != nil && e.place == Local && s.agents.one[from-1].allow(now) {
			s.have(from, []key{k}, 0)
		}
		return
	}
	if !s.agents.full[from-1].allow(now) {
		return
	}
	var hosts []key
	for k, e := range s.table.byMAC {
		if e.place == Local && !e.expired(now) {
			hosts = append(hosts, k)
		}
	}
	for len(hosts) > maxHave {
		s.have(from, hosts[:maxHave], 0)
		hosts = hosts[maxHave:]
	}
	s.have(from, hosts, flagLast)
}

// have tells the peer at place to which hosts are here.
func (s *Switch) have(to Place, hosts []key, flags byte) {
	if len(s.agents.outbox) >= maxOutbox {
		return // the peer asks again
	}
	rest := []byte{byte(len(hosts))}
	for _, k := range hosts {
		rest = binary.BigEndian.AppendUint64(rest, uint64(k))
	}
	m := agentMsg{kind: msgHave, flags: flags, segment: s.segment, id: s.agents.loop.id, rest: rest}
	s.agents.outbox = append(s.agents.outbox, Outgoing{to, m.appendFrame(nil, 0)})
}

// news notes that a host announced itself and that this did not cross.
func (s *Switch) news(h *header) {
	if a := &s.agents; a.loop.id != 0 && len(a.news) < maxNews {
		a.news = append(a.news, keyOf(h.src, h.vlan))
	}
}

// told learns the hosts that a peer has. News are announcements; but a list of
// what it has moves none: a host that is believed elsewhere may have moved
// since the peer saw it.
func (s *Switch) told(now time.Duration, from Place, m *agentMsg) {
	if m.flags&flagLast != 0 {
		s.agents.nextAsk[from-1] = now + askAnew
	}
	if len(m.rest) == 0 || s.agents.loop.blocked {
		return
	}
	p := m.rest[1:]
	for range min(int(m.rest[0]), len(p)/8) {
		k := key(binary.BigEndian.Uint64(p))
		p = p[8:]
		h := header{src: k.mac(), vlan: k.vlan()}
		if s.vlan(&h) == Carried && s.addresses(&h) == Carried {
			s.toldOf(now, from, &h, m.flags&flagNews != 0)
		}
	}
}

// toldOf learns the source of h. When it has moved, the LAN's bridge has to know;
// it hears no more of this than a peer could broadcast.
func (s *Switch) toldOf(now time.Duration, from Place, h *header, news bool) {
	e := s.table.get(now, keyOf(h.src, h.vlan))
	if e != nil && (!news || e.place == from) {
		return
	}
	var v Verdict
	s.learn(now, h, &info{kind: KindRARP}, from, &v)
	if a := &s.agents; e != nil && v.Drop == Carried && len(a.arrived) < maxNews {
		a.arrived = append(a.arrived, keyOf(h.src, h.vlan))
	}
}
