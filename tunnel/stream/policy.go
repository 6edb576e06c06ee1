package stream

import (
	"net/netip"
	"slices"

	"stitch/tunnel/config"
)

// policy answers from the configuration which connections are split and where
// the far agent may go. Immutable; safe for concurrent use.
type policy struct {
	cfg    *config.Config
	mobile map[netip.Addr]bool // workloads and service addresses: never split
}

func newPolicy(cfg *config.Config) *policy {
	p := &policy{cfg: cfg, mobile: make(map[netip.Addr]bool)}
	for _, w := range cfg.Workloads {
		p.mobile[w.IP] = true
	}
	for _, s := range cfg.Services {
		for _, at := range s.At {
			p.mobile[at.Addr()] = true
		}
	}
	return p
}

// rule returns the first stream rule for a routed connection; ok is false if it
// must not be split.
func (p *policy) rule(t tuple) (config.StreamRule, bool) { return p.ruleTo("", t) }

// ruleTo is rule, also for a connection to a host of the same segment at peer:
// both must be of its subnet.
func (p *policy) ruleTo(peer string, t tuple) (r config.StreamRule, ok bool) {
	if p.mobile[t.src.Addr()] || p.mobile[t.dst.Addr()] || t.segment != 0 && !p.neighbours(t) {
		return r, false
	}
	r, ok = p.covers(t.segment, peer, t.dst)
	return r, ok && r.Optimize != config.Off
}

// covers returns the first stream rule for a destination: a routed one, or in a
// segment and at peer.
func (p *policy) covers(segment uint16, peer string, dst netip.AddrPort) (r config.StreamRule, ok bool) {
	for _, r := range p.cfg.Streams {
		if r.Segment == segment && (segment == 0 || r.Peer == peer) && matches(r.To, r.Ports, dst) {
			return r, true
		}
	}
	return r, false
}

// neighbours reports whether both ends are hosts of the tuple's segment: of its
// IPv4 subnet and not the gateway, or of one IPv6 /64.
func (p *policy) neighbours(t tuple) bool {
	i := slices.IndexFunc(p.cfg.Segments, func(s config.Segment) bool { return s.ID == t.segment })
	src, dst := t.src.Addr(), t.dst.Addr()
	if i < 0 || !hostAddr(src) || !hostAddr(dst) || src == dst || src.Is4() != dst.Is4() {
		return false
	}
	if s := p.cfg.Segments[i]; src.Is4() {
		return s.Subnet.Contains(src) && s.Subnet.Contains(dst) && src != s.Gateway && dst != s.Gateway
	}
	lan, err := src.Prefix(64)
	return err == nil && lan.Contains(dst)
}

// Selector says which connections within a segment the stream plane wants, and of
// which class what leaves is. Immutable; safe for concurrent use.
type Selector struct{ p *policy }

// NewSelector returns the Selector of a configuration, which it borrows for good.
func NewSelector(cfg *config.Config) Selector { return Selector{newPolicy(cfg)} }

// Choose reports whether a rule is about a connection that a host of this LAN begins
// towards one at peer, and whether it is to be split.
func (s Selector) Choose(segment uint16, peer string, src, dst netip.AddrPort) (covered, split bool) {
	_, covered = s.p.covers(segment, peer, dst)
	if covered {
		_, split = s.p.ruleTo(peer, tuple{src: src, dst: dst, segment: segment})
	}
	return covered, split
}

// mark is that of what leaves here of a stream with a peer, one of config.Config.Marks:
// near says that it begins here.
func (p *policy) mark(peer string, near bool, t tuple) int {
	if near {
		r, _ := p.covers(t.segment, peer, t.dst)
		return r.Mark
	}
	d, _ := p.dialled(t.segment, peer, t.dst)
	return d.Mark
}

// dialled returns the first dial rule for a destination.
func (p *policy) dialled(segment uint16, peer string, dst netip.AddrPort) (d config.DialRule, ok bool) {
	for _, d := range p.cfg.Dials {
		if d.Peer == peer && d.Segment == segment && matches(d.To, d.Ports, dst) {
			return d, true
		}
	}
	return d, false
}

// class is that of what leaves here from src to dst for a peer, one of
// config.Config.Classes: a stream rule's for where it goes, or else a dial rule's for
// where it comes from, as an answer.
func (p *policy) class(peer string, segment uint16, src, dst netip.AddrPort) int {
	if r, ok := p.covers(segment, peer, dst); ok {
		return r.Class
	}
	d, _ := p.dialled(segment, peer, src)
	return d.Class
}

// className is the name of a class; the first has none.
func (p *policy) className(class int) string {
	if class >= len(p.cfg.Classes) {
		return ""
	}
	return p.cfg.Classes[class].Name
}

// Class returns the class of what leaves for a peer as packets, one of
// config.Config.Classes, by the rule for where it goes or where it answers from;
// segment 0: it is routed.
func (s Selector) Class(peer string, segment uint16, src, dst netip.AddrPort) int {
	return s.p.class(peer, segment, src, dst)
}

// modeOf is how the streams of a rule are carried.
func modeOf(r config.StreamRule) mode {
	switch r.Optimize {
	case config.Compress:
		return modeCompress
	case config.Accelerate:
		return modeAccelerate
	}
	return modeFull
}

// use is a domain as the rules for one peer use it.
type use struct {
	name    string
	tenants bool // are many
	near    bool // streams begin here
}

// domains returns the domains that rules for a peer name, once each, in their
// order; the name of the one for rules without a domain is empty.
func (p *policy) domains(peer string) []use {
	var uses []use
	add := func(name string, near bool) {
		i := slices.IndexFunc(uses, func(u use) bool { return u.name == name })
		if i < 0 {
			i = len(uses)
			many := func(d config.Domain) bool { return d.Name == name && d.ManyTenants }
			uses = append(uses, use{name: name, tenants: slices.ContainsFunc(p.cfg.Domains, many)})
		}
		uses[i].near = uses[i].near || near
	}
	for _, r := range p.cfg.Streams {
		if r.Peer == peer && r.Optimize != config.Off {
			add(r.Domain, true)
		}
	}
	for _, r := range p.cfg.Dials {
		if r.Peer == peer {
			add(r.Domain, false)
		}
	}
	return uses
}

// mayDial says whether the peer may have us connect from t.src to t.dst on a
// connection of a domain: 0 if the destination is listed for it in that
// domain, the source is a host of its site, or both of the segment, and neither
// is a workload.
func (p *policy) mayDial(peer, domain string, t tuple) Refusal {
	if !hostAddr(t.src.Addr()) || !hostAddr(t.dst.Addr()) || t.src.Port() == 0 ||
		t.src.Addr().Is4() != t.dst.Addr().Is4() ||
		p.mobile[t.src.Addr()] || p.mobile[t.dst.Addr()] {
		return Denied
	}
	if t.segment == 0 && !p.fromPeer(peer, t.src.Addr()) || t.segment != 0 && !p.neighbours(t) {
		return Denied
	}
	return p.listed(peer, domain, t)
}

func (p *policy) fromPeer(peer string, src netip.Addr) bool {
	for _, q := range p.cfg.Peers {
		if q.Name == peer {
			return contains(q.Subnets, src)
		}
	}
	return false
}

// listed looks for a dial rule of the domain.
func (p *policy) listed(peer, domain string, t tuple) Refusal {
	kind := Denied
	for _, d := range p.cfg.Dials {
		if d.Peer != peer || d.Segment != t.segment || !matches(d.To, d.Ports, t.dst) {
			continue
		}
		if d.Domain == domain {
			return 0
		}
		kind = Mismatch
	}
	return kind
}

func matches(to []netip.Prefix, ports []config.PortRange, dst netip.AddrPort) bool {
	if !contains(to, dst.Addr()) {
		return false
	}
	for _, r := range ports {
		if r.First <= dst.Port() && dst.Port() <= r.Last {
			return true
		}
	}
	return false
}

func contains(ps []netip.Prefix, a netip.Addr) bool {
	for _, p := range ps {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
