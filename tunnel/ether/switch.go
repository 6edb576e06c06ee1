package ether

import (
	"cmp"
	"net/netip"
	"time"

	"stitch/tunnel/config"
)

const (
	// moveHold is how long a MAC must have been at its place, or silent on the
	// LAN, before a data frame moves it: longer than what is still under way
	// from before a move.
	moveHold = 500 * time.Millisecond
	// announceGap is the least time between two reports of a MAC that has not
	// moved.
	announceGap = 100 * time.Millisecond
)

// Switch decides what happens to each frame of a segment. It has no goroutine,
// clock or socket; every method takes the time as now, measured from any fixed
// origin and never going back. It is not safe for concurrent use.
type Switch struct {
	filter
	table   *table
	segment uint16
	// sent limits frames to the peers; received[i] frames from Place i+1.
	sent     limits
	received []limits
	// strangers limits reports of MACs that are no workload's.
	strangers limiter
	lan       counts
	link      counts
	reported  uint64
	reply     []byte // the buffer of Verdict.Reply
	queries   queries
	agents    agents
	vlanList  []uint16
}

// limits are the buckets of one direction: announcements of workloads, other
// ARP and neighbour discovery, and the rest.
type limits struct{ workloads, arp, broadcast limiter }

// counts are the frames of one direction by what became of them.
type counts [numReasons]uint64

// Verdict is what to do with a frame.
type Verdict struct {
	// Drop is Carried, or why the frame is dropped.
	Drop Reason
	// To is where a carried frame goes: Local, one peer, or All peers.
	To Place
	// Announce is to be reported, whatever Drop is; Kind "" is nothing.
	Announce Announcement
	// Froze is set when this frame was the move that froze its source.
	Froze bool
	// Disputed is the address that MACs have claimed by turns too often; it is
	// not answered for any more. Invalid: none.
	Disputed netip.Addr
	// Reply is a frame for the LAN if Drop is Answered; valid until the next
	// FromLAN.
	Reply []byte
	// Query is a frame for all peers that looks for an unknown destination; nil:
	// none.
	Query []byte
	// Source is the frame's source address, for what is said about it.
	Source config.MAC
}

// talks reports whether there is something to tell besides the frame's way.
func (v *Verdict) talks() bool {
	return v.Froze || v.Disputed.IsValid() || v.Announce.Kind != ""
}

// Workload is a machine whose place is configured and claimed, not learnt.
type Workload struct {
	MAC config.MAC
	// IP may be invalid; see StaticMAC.
	IP netip.Addr
	At Place
}

// NewSwitch returns the switch of a segment with that many peers, at most 254;
// they are Place 1 to peers. own are the MACs of this edge besides the
// gateway's.
func NewSwitch(seg config.Segment, peers int, own []config.MAC, static []Workload) *Switch {
	one := newLimiter(seg.BroadcastLimit)
	l := limits{one, one, one}
	s := &Switch{
		filter: newFilter(seg, own, static), table: newTable(peers, cmp.Or(seg.MoveLimit, config.DefaultMoveLimit)), segment: seg.ID,
		sent: l, received: make([]limits, peers), strangers: l.arp,
		queries: queries{subnet: seg.Subnet, limit: newLimiter(maxQueries)}, vlanList: seg.VLANs,
	}
	for i := range s.received {
		s.received[i] = l
	}
	for _, w := range static {
		// As if it had been there for long, with no sign of life.
		e := s.table.workload(-ageing, keyOf(w.MAC, 0), w.At)
		if e != nil && w.IP.IsValid() {
			s.table.bindWorkload(e, w.IP)
		}
	}
	return s
}

// FromLAN decides on a frame read from the LAN. It borrows frame.
func (s *Switch) FromLAN(now time.Duration, frame []byte) Verdict {
	h, in, r := s.inspect(frame)
	v := Verdict{Drop: r, Source: h.src}
	switch {
	case r != Carried:
	case in.agent:
		v.Drop = AgentMessage
		s.agentFromLAN(now, &h)
	case s.agents.loop.blocked:
		v.Drop = Looped
	default:
		s.learn(now, &h, &in, Local, &v)
	}
	if v.Drop == Carried {
		v.To, v.Drop = s.route(now, &h)
	}
	if v.Drop == UnknownUnicast || v.Drop == LocalDestination && s.silent(now, &h) {
		v.Query = s.query(now, &h, &in)
	}
	if v.Drop == Carried && v.To == All && in.wants.IsValid() {
		s.answer(now, frame, &h, &in, &v)
	}
	if v.Drop == Carried && v.To == All {
		v.Drop = s.take(now, &s.sent, &h, &in, len(frame))
		if v.Drop == LimitARP && in.kind != "" {
			s.news(&h)
		}
	}
	s.lan[v.Drop]++
	return v
}

// FromPeer decides on a frame that the peer at place from sent; a carried one
// always goes to the LAN. It borrows frame.
func (s *Switch) FromPeer(now time.Duration, from Place, frame []byte) Verdict {
	v, _ := s.fromPeer(now, from, frame)
	return v
}

// fromPeer is FromPeer. It also returns whether a carried frame is to one known
// host.
func (s *Switch) fromPeer(now time.Duration, from Place, frame []byte) (v Verdict, known bool) {
	if from == Local || int(from) > len(s.received) {
		s.link[UnknownPeer]++
		return Verdict{Drop: UnknownPeer}, false
	}
	h, in, r := s.inspect(frame)
	v = Verdict{Drop: r, Source: h.src}
	switch {
	case r != Carried:
	case in.agent:
		v.Drop = AgentMessage
		s.agentFromPeer(now, from, &h)
	case s.agents.loop.blocked:
		v.Drop = Looped
	default:
		s.learn(now, &h, &in, from, &v)
	}
	if v.Drop == Carried {
		if known = s.known(now, &h); !known {
			v.Drop = s.take(now, &s.received[from-1], &h, &in, len(frame))
		}
	}
	s.link[v.Drop]++
	return v, known
}

// arrivals are frames of one peer that came together. Most are packets of a
// few connections, one after the other: what was found out about the frame
// before holds for the next one too if it is like that in all that decides.
// Nothing else may happen to the switch meanwhile.
type arrivals struct {
	*Switch
	now    time.Duration
	from   Place
	before []byte // was carried, to a known host
}

func (s *Switch) arrivals(now time.Duration, from Place) arrivals {
	return arrivals{Switch: s, now: now, from: from}
}

// again reports whether the next frame is carried as the one before it was, and
// then counts it. If not, it is to be given to judge.
func (a *arrivals) again(frame []byte) bool {
	if !alike(a.before, frame) {
		return false
	}
	a.link[Carried]++
	return true
}

// judge is FromPeer of the next frame. One that the bridge floods is charged to a
// limit, and so is the next like it.
func (a *arrivals) judge(frame []byte) Verdict {
	v, known := a.fromPeer(a.now, a.from, frame)
	a.before = nil
	if v.Drop == Carried && known {
		a.before = frame
	}
	return v
}

// known reports whether h is to one host that was seen on the LAN. The bridge
// floods frames to any other.
func (s *Switch) known(now time.Duration, h *header) bool {
	if group(h.dst) {
		return false
	}
	e := s.table.get(now, keyOf(h.dst, h.vlan))
	return e != nil && e.place == Local
}

// silent reports whether the destination of h, a host of the LAN, has not been
// heard lately. That the bridge sends a frame for it here then means that it is
// not at its port any more: it may have gone to a peer without a word.
func (s *Switch) silent(now time.Duration, h *header) bool {
	e := s.table.get(now, keyOf(h.dst, h.vlan))
	return e != nil && now-e.seen >= queryGap
}

// answer keeps a request from crossing if it is known who has the address: a
// host of the LAN answers for itself, for one at a peer the answer is made
// here.
func (s *Switch) answer(now time.Duration, frame []byte, h *header, in *info, v *Verdict) {
	n := s.table.answerable(now, h, in)
	switch {
	case n == nil:
	case n.owner.place == Local:
		v.Drop = LocalNeighbour
	default:
		s.reply = appendAnswer(s.reply[:0], frame, h, in, n)
		v.Drop, v.Reply = Answered, s.reply
	}
}

// learn takes note that the frame's source is at place at.
func (s *Switch) learn(now time.Duration, h *header, in *info, at Place, v *Verdict) {
	k := keyOf(h.src, h.vlan)
	e := s.table.get(now, k)
	moved := false
	switch {
	case e == nil:
		e = s.table.learn(now, k, at)
	case e.place == at:
		s.table.touch(now, e)
	default:
		if v.Drop = mayMove(now, e, in, at); v.Drop != Carried {
			return
		}
		v.Froze = s.table.move(now, e, at)
		moved = true
	}
	if h.inner == 0 {
		s.bind(now, e, in, v)
	}
	if at == Local && h.vlan == 0 {
		s.report(now, h, in, e, moved, v)
	}
}

// bind takes note of the address that the frame says or shows e to have; e may
// be nil.
func (s *Switch) bind(now time.Duration, e *entry, in *info, v *Verdict) {
	switch {
	case e == nil:
	case in.from.IsValid():
		e.refresh(now, in.from)
	case !in.ip.IsValid():
	case in.ip.Is4() || in.advert:
		n, disputed := s.table.bind(now, e, in.ip)
		if n != nil {
			n.router = in.router
		}
		if disputed {
			v.Disputed = in.ip
		}
	default:
		e.refresh(now, in.ip)
	}
}

// mayMove judges a frame of e's MAC from another place.
func mayMove(now time.Duration, e *entry, in *info, at Place) Reason {
	switch {
	case e.flaps.frozen(now):
		return Frozen
	case in.kind != "":
		return Carried
	case now-e.since < moveHold, e.place == Local && now-e.seen < moveHold:
		return Late
	case e.workload && at != Local:
		return Owned
	}
	return Carried
}

// report fills v.Announce if what was seen on the LAN is news. e may be nil:
// an address that could not be learnt is reported when it announces itself.
func (s *Switch) report(now time.Duration, h *header, in *info, e *entry, moved bool, v *Verdict) {
	kind := in.kind
	if kind == "" && moved {
		kind = KindData
	}
	switch {
	case kind == "":
		return
	case e != nil && !moved && e.reports && now-e.announced < announceGap:
		return
	case (e == nil || !e.workload) && !s.strangers.allow(now):
		return
	}
	if e != nil {
		e.announced, e.reports = now, true
	}
	s.reported++
	v.Announce = Announcement{Segment: s.segment, MAC: h.src, IP: in.ip, Kind: kind}
}

// route says where a frame from the LAN goes.
func (s *Switch) route(now time.Duration, h *header) (Place, Reason) {
	if group(h.dst) {
		return All, Carried
	}
	e := s.table.get(now, keyOf(h.dst, h.vlan))
	switch {
	case e == nil:
		return Local, UnknownUnicast
	case e.place == Local:
		return Local, LocalDestination
	}
	return e.place, Carried
}

// take charges a frame of a size to its bucket of l. Workloads have one of their
// own for announcements, so that no storm of others' hides a move.
func (s *Switch) take(now time.Duration, l *limits, h *header, in *info, size int) Reason {
	switch {
	case in.kind != "" && s.isWorkload(now, h) && l.workloads.allow(now):
	case in.control && !l.arp.allow(now):
		return LimitARP
	case !in.control && !l.broadcast.allowN(now, 1+(size-1)/config.BroadcastUnit):
		return LimitBroadcast
	}
	return Carried
}

// isWorkload reports whether h is from a workload.
func (s *Switch) isWorkload(now time.Duration, h *header) bool {
	e := s.table.get(now, keyOf(h.src, h.vlan))
	return e != nil && e.workload
}

// Claim puts the workload mac at a place. relearn says that it is news that
// the workload is at a peer, so the LAN's bridge must learn where to send its
// frames; froze that this move froze it.
func (s *Switch) Claim(now time.Duration, mac config.MAC, at Place) (relearn, froze bool) {
	k := keyOf(mac, 0)
	known := s.table.get(now, k) != nil
	e := s.table.workload(now, k, at)
	if e == nil {
		return false, false
	}
	news := !known || e.place != at || e.claimed != at
	if e.place != at {
		froze = s.table.move(now, e, at)
	}
	e.claimed = at
	return news && at != Local, froze
}

// Tick forgets what has aged; to be called about once a second.
func (s *Switch) Tick(now time.Duration) { s.table.tick(now) }

// addTo adds what the switch counted to st; names are the peers in the order
// of their places.
func (s *Switch) addTo(st *Stats, names []string) {
	s.lan.addTo(st.FromLAN)
	s.link.addTo(st.FromLink)
	st.MACs[""] = s.table.places(Local)
	for i, name := range names {
		st.MACs[name] = s.table.places(Place(i + 1))
	}
	st.LearnRefused, st.Moves, st.Frozen = s.table.refused, s.table.moves, len(s.table.frozen)
	for _, e := range s.table.frozen[:min(len(s.table.frozen), 8)] {
		st.FrozenMACs = append(st.FrozenMACs, e.key.mac().String())
	}
	st.Queries, st.Loops, st.Loop = s.queries.sent, s.agents.loop.loops, s.Loop()
	st.Announcements, st.Addresses, st.Disputes = s.reported, len(s.table.byIP), s.table.disputes
}

// addTo adds the dropped frames to m by reason.
func (c *counts) addTo(m map[string]uint64) {
	for r := Carried + 1; r < numReasons; r++ {
		if c[r] > 0 {
			m[r.String()] += c[r]
		}
	}
}
