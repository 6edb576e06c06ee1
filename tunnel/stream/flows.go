package stream

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"stitch/tunnel/config"
)

// maxTracked bounds the entries of the kernel's table that one list looks at.
const maxTracked = 1 << 17

// Reason says why a connection across a link is carried as packets and not as a
// stream, or as a stream whose bytes stay as they are. The numbers are part of
// what `stitch flows` shows: they keep their meaning.
type Reason int

// The reasons; Reasons explains them.
const (
	NotTCP Reason = 1 + iota
	Mobile
	NoStreamRule
	RuleOff
	BegunThere
	PeerUnreachable
	TooManyStreams
	TooManyHeld
	NoDialRule
	OtherDomain
	PeerFailed
	NotAgent
	BegunEarlier
	FromEdge
	Encrypted
	RuleAccelerates
	SegmentAway
	Tagged
	NotNeighbours
	MemoryShort
	OutOfResources
)

// Explanation is what a Reason means and what can be done about it.
type Explanation struct {
	Reason Reason `json:"reason"`
	Why    string `json:"why"`
	Advice string `json:"advice"`
}

// Reasons explains every Reason, in the order of their numbers.
func Reasons() []Explanation {
	return []Explanation{
		{NotTCP, "only TCP is carried as streams", "nothing: it crosses encrypted, with its own timing"},
		{Mobile, "one end is a workload or service, which may move", "nothing: as packets it survives the move"},
		{NoStreamRule, "no [[stream]] rule covers where it goes", "add the address and port to a [[stream]] rule here and to a [[dial]] rule at the peer"},
		{RuleOff, "its [[stream]] rule says optimize = \"off\"", "write \"full\", \"compress\" or \"accelerate\" if that was not intended"},
		{BegunThere, "it was begun at the other site, whose rules decide", "run `stitch flows` there"},
		{PeerUnreachable, "the peer's stream process was not reachable when it began", "look at the peer's agent (`stitch status`); later connections are optimised"},
		{TooManyStreams, "as many streams as are allowed were open here when it began", "raise the limit of descriptors (systemd: LimitNOFILE=)"},
		{TooManyHeld, "too many connections were being opened when it began", "nothing, if it was a burst: later connections are optimised"},
		{NoDialRule, "no [[dial]] rule at the peer covers where it goes", "add a [[dial]] rule at the peer with the address, the port and the same domain"},
		{OtherDomain, "the [[dial]] rule at the peer names another domain than the [[stream]] rule here", "write the same domain in both files"},
		{PeerFailed, "the peer could not open a stream when it began", "look at the peer's log and at its number of streams (`stitch status --json`)"},
		{NotAgent, "the peer is plain WireGuard without a stream process", "install stitch there if its connections are to be optimised"},
		{BegunEarlier, "a rule covers it, but it began before this stream process, or its reason is no longer known", "nothing: later connections are optimised; a long one can be closed and opened anew"},
		{FromEdge, "it begins on this edge host itself: only what is forwarded is split", "nothing, or begin it at another host of the site"},
		{Encrypted, "what is sent from here is TLS or SSH, which neither repeats nor compresses: only its TCP is accelerated", "nothing: what is encrypted is never opened"},
		{RuleAccelerates, "its [[stream]] rule says optimize = \"accelerate\": only its TCP is accelerated", "write \"full\" or \"compress\" if that was not intended"},
		{SegmentAway, "the link process did not take it out of its segment when it began", "look at the log of the agent; later connections are optimised"},
		{Tagged, "its frames are of a VLAN: only the untagged network of a segment is looked into", "nothing: it crosses as frames"},
		{NotNeighbours, "its ends are not two hosts of the segment's subnet", "cover routed connections by a [[stream]] rule without a segment"},
		{MemoryShort, "memory was short here when it began", "give the host, or the unit (systemd: MemoryMax=), more memory, or [history] less"},
		{OutOfResources, "descriptors, ports or sockets had run out here when it began", "raise the limit that the alarm in `stitch status` names"},
	}
}

// Flow is one connection that crosses a link.
type Flow struct {
	Peer string `json:"peer"`
	// Segment is that of both hosts; 0: the connection is routed.
	Segment uint16 `json:"segment,omitempty"`
	// Proto is the IP protocol, Src who began it.
	Proto uint8          `json:"proto"`
	Src   netip.AddrPort `json:"src"`
	Dst   netip.AddrPort `json:"dst"`
	// Side is "near" (it was begun here) or "far".
	Side string `json:"side"`
	// Carried is "full", "compress" or "accelerate" for a stream, or "packets".
	// The last two have a Reason.
	Carried string `json:"carried"`
	Reason  Reason `json:"reason,omitempty"`
	Domain  string `json:"domain,omitempty"`
	// Class is that of what leaves here; empty: it is in none.
	Class string `json:"class,omitempty"`
	// BytesOut are original bytes from hosts here, BytesIn to them; WireOut and
	// WireIn what they took on the link, for streams. 0 also means not known.
	BytesOut int64 `json:"bytes_out"`
	BytesIn  int64 `json:"bytes_in"`
	WireOut  int64 `json:"wire_out,omitempty"`
	WireIn   int64 `json:"wire_in,omitempty"`
	// Of streams: the age in seconds (also of what hosts of a segment began), "open", "half-closed", "closing" or "reset",
	// and where it began whether that was "early" or "faithful".
	Age       float64 `json:"age_s,omitempty"`
	State     string  `json:"state,omitempty"`
	Handshake string  `json:"handshake,omitempty"`
}

// FlowList is a list of flows.
type FlowList struct {
	Flows []Flow `json:"flows"`
	// Omitted is how many there are besides.
	Omitted int `json:"omitted"`
	// Incomplete says why connections carried as packets may be missing.
	Incomplete string        `json:"incomplete,omitempty"`
	Reasons    []Explanation `json:"reasons"`
}

// Flows lists the connections that cross the links, at most so many: streams
// first, then those with the most bytes. Of what hosts of a stretched segment send
// each other only what a rule is about is listed, as frames for ten minutes from its
// begin, since its end is not seen. Safe at any time.
func (p *Proxy) Flows(most int) FlowList {
	list := FlowList{Reasons: Reasons(), Flows: []Flow{}}
	streams := make(map[tuple]bool)
	for _, q := range p.peers {
		list.Flows = append(list.Flows, q.flows(streams)...)
	}
	for _, f := range p.passedFrames.flows(streams, time.Now()) {
		f.Class = p.policy.className(p.policy.class(f.Peer, f.Segment, f.Src, f.Dst))
		list.Flows = append(list.Flows, f)
	}
	site, own, seen := p.routes(), once(p.cfg.Net.Own), 0
	err := p.cfg.Net.Tracked(func(c Tracked) bool {
		if seen++; seen > maxTracked {
			list.Incomplete = fmt.Sprintf("the kernel tracks more than %d connections", maxTracked)
			return false
		}
		t := tuple{src: c.Src, dst: c.Dst}
		// What is or was split is known above, or has ended.
		if streams[t] && c.Proto == protoTCP || c.Mark&config.MarkSplit != 0 {
			return true
		}
		p.mu.Lock()
		why, undecided := p.passings.known[t], c.Proto == protoTCP && p.table.Split(t)
		p.mu.Unlock()
		if undecided { // or decided since the kernel was asked
			return true
		}
		if f, ok := p.policy.packetFlow(c, p.linkPeer(c.Mark), why, site); ok {
			if f.Side == "near" && (f.Reason == NoStreamRule || f.Reason == RuleOff || f.Reason == BegunEarlier) && own(c.Src.Addr()) {
				f.Reason = FromEdge
			}
			list.Flows = append(list.Flows, f)
		}
		return true
	})
	if err != nil {
		list.Incomplete = "the kernel's list of connections: " + err.Error()
	}
	slices.SortStableFunc(list.Flows, func(a, b Flow) int {
		return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(b.BytesIn+b.BytesOut, a.BytesIn+a.BytesOut))
	})
	if extra := len(list.Flows) - most; extra > 0 {
		list.Flows, list.Omitted = list.Flows[:most], extra
	}
	return list
}

// once returns f, which asks only once for each address.
func once(f func(netip.Addr) bool) func(netip.Addr) bool {
	known := make(map[netip.Addr]bool)
	return func(a netip.Addr) bool {
		yes, asked := known[a]
		if !asked {
			yes = f(a)
			known[a] = yes
		}
		return yes
	}
}

// routes returns a function that says to which peer the kernel routes an
// address, and whether that one is no agent. It asks once for each address.
func (p *Proxy) routes() func(netip.Addr) (peer string, stock bool) {
	devices, known := make(map[string]string), make(map[netip.Addr]string)
	for _, l := range p.cfg.Links {
		devices[l.Device] = l.Peer
	}
	return func(a netip.Addr) (string, bool) {
		if peer, stock := p.policy.site(a); stock {
			return peer, true
		}
		peer, asked := known[a]
		if !asked {
			peer = devices[p.cfg.Net.Via(a)]
			known[a] = peer
		}
		return peer, false
	}
}

// rank puts streams before packets.
func (f *Flow) rank() int {
	if f.Carried == "packets" {
		return 1
	}
	return 0
}

// linkPeer is the peer whose link a connection is bound to by its mark; "": none.
func (p *Proxy) linkPeer(mark uint32) string {
	number := int(mark & config.MarkLinkMask >> config.MarkLink)
	for _, l := range p.cfg.Links {
		if l.Number == number {
			return l.Peer
		}
	}
	return ""
}

// packetFlow says how a tracked connection that is no stream crosses a link; ok is
// false if it crosses none. bound is the peer it is bound to by a redirection, why
// what the proxy remembers of it, site where an address is.
func (p *policy) packetFlow(c Tracked, bound string, why Reason, site func(netip.Addr) (string, bool)) (f Flow, ok bool) {
	f = Flow{Proto: c.Proto, Src: c.Src, Dst: c.Dst, Side: "near", Carried: "packets", BytesOut: int64(c.BytesOut), BytesIn: int64(c.BytesIn)}
	from, there := site(c.Src.Addr())
	to, stock := site(c.At.Addr())
	switch {
	case to != "":
		f.Peer = to
	case from != "":
		f.Peer, f.Side, stock = from, "far", there
	case bound != "":
		f.Peer = bound
		if c.Mark&config.MarkAnchored == 0 {
			f.Side = "far"
		}
	default:
		return f, false
	}
	if f.Side == "far" {
		f.BytesOut, f.BytesIn = f.BytesIn, f.BytesOut
	}
	if f.Side == "near" {
		f.Class = p.className(p.class(f.Peer, 0, c.Src, c.At))
	} else {
		f.Class = p.className(p.class(f.Peer, 0, c.At, c.Src))
	}
	rule, covered := p.covers(0, "", c.Dst)
	switch {
	case c.Proto != protoTCP:
		f.Reason = NotTCP
	case p.mobile[c.Src.Addr()] || p.mobile[c.Dst.Addr()] || p.mobile[c.At.Addr()]:
		f.Reason = Mobile
	case stock:
		f.Reason = NotAgent
	case f.Side == "far":
		f.Reason = BegunThere
	case !covered:
		f.Reason = NoStreamRule
	case rule.Optimize == config.Off:
		f.Reason = RuleOff
	default:
		f.Reason = cmp.Or(why, BegunEarlier)
	}
	return f, true
}

// site is the peer at whose site an address is, "" if none; stock: it is no agent.
func (p *policy) site(a netip.Addr) (peer string, stock bool) {
	for _, q := range p.cfg.Peers {
		if contains(q.Subnets, a) {
			return q.Name, q.Stock
		}
	}
	return "", false
}

// flows are the peer's open streams, which it notes in streams.
func (q *peer) flows(streams map[tuple]bool) (out []Flow) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, d := range q.domains {
		for r := range d.relays {
			streams[r.tuple] = true
			out = append(out, r.flow(q.link.Peer))
		}
	}
	return out
}

// flow describes the stream.
func (r *relay) flow(peer string) Flow {
	f := Flow{
		Peer: peer, Segment: r.segment, Proto: protoTCP, Src: r.src, Dst: r.dst, Side: "far", Carried: r.mode.String(), Domain: r.pc.domain.name,
		BytesOut: int64(r.sent.Load()), BytesIn: int64(r.received.Load()), WireOut: r.pc.out.written.Load(), WireIn: r.pc.read.Load(),
		Age: time.Since(r.began).Seconds(), State: r.stage(),
	}
	p := r.pc.domain.q.p.policy
	f.Class = p.className(p.cfg.ClassOf(p.mark(peer, r.near, r.tuple)))
	switch {
	case r.mode == modeAccelerate:
		f.Reason = RuleAccelerates
	case r.opaque.Load():
		f.Carried, f.Reason = modeAccelerate.String(), Encrypted
	}
	if r.near {
		f.Side, f.Handshake = "near", "faithful"
		if rule, _ := p.covers(r.segment, peer, r.dst); rule.Handshake == config.Early {
			f.Handshake = "early"
		}
	}
	return f
}

// stage is how far the stream's end has come.
func (r *relay) stage() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.rst || r.over && !r.clean:
		return "reset"
	case r.over || r.finSent && r.finSeen:
		return "closing"
	case r.finSent || r.finSeen:
		return "half-closed"
	}
	return "open"
}

// frameLife is how long a connection whose SYN was passed as a frame is listed: its
// end is not seen.
const frameLife = 10 * time.Minute

// latest remembers what was last noted of each of the newest tuples, so many as it
// is told. Not safe for concurrent use.
type latest[V any] struct {
	known map[tuple]V
	ring  []tuple
	next  int
}

// note takes v for t; beyond most tuples the oldest is forgotten.
func (l *latest[V]) note(t tuple, v V, most int) {
	if l.known == nil {
		l.known = make(map[tuple]V)
	}
	if _, known := l.known[t]; !known {
		if len(l.ring) < most {
			l.ring = append(l.ring, t)
		} else {
			delete(l.known, l.ring[l.next])
			l.ring[l.next] = t
			l.next = (l.next + 1) % most
		}
	}
	l.known[t] = v
}

// passedFrames remembers the latest connections within segments that a rule is about
// and that cross as frames. Safe for concurrent use.
type passedFrames struct {
	mu sync.Mutex
	latest[passedFrame]
}

type passedFrame struct {
	peer string
	why  Reason
	at   time.Time
}

// maxPassedFrames bounds them.
const maxPassedFrames = 4096

// note takes a connection that passes.
func (p *passedFrames) note(peer string, t tuple, why Reason, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.latest.note(t, passedFrame{peer, why, now}, maxPassedFrames)
}

// flows are those of the last frameLife that have not become streams since.
func (p *passedFrames) flows(streams map[tuple]bool, now time.Time) (out []Flow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for t, f := range p.known {
		if age := now.Sub(f.at); !streams[t] && age < frameLife {
			out = append(out, Flow{
				Peer: f.peer, Segment: t.segment, Proto: protoTCP, Src: t.src, Dst: t.dst, Side: "near", Carried: "packets", Reason: f.why, Age: age.Seconds(),
			})
		}
	}
	return out
}

// passings remembers why the latest maxKnown SYNs were passed: for longer than
// the SYNs themselves, since a connection may live for days. Not safe for
// concurrent use.
type passings struct{ latest[Reason] }

// note takes a SYN that is passed.
func (p *passings) note(t tuple, why Reason) { p.latest.note(t, why, maxKnown) }
