package stream

import (
	"net/netip"

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

// rule returns the first stream rule for a connection; ok is false if it must
// not be split.
func (p *policy) rule(t tuple) (r config.StreamRule, ok bool) {
	if p.mobile[t.src.Addr()] || p.mobile[t.dst.Addr()] {
		return r, false
	}
	for _, r := range p.cfg.Streams {
		if matches(r.To, r.Ports, t.dst) {
			return r, true
		}
	}
	return r, false
}

// mayDial reports whether the peer may have us connect from t.src to t.dst:
// the destination is listed for it, the source is a host of its site, and
// neither is a workload.
func (p *policy) mayDial(peer string, t tuple) bool {
	if !hostAddr(t.src.Addr()) || !hostAddr(t.dst.Addr()) || t.src.Port() == 0 ||
		t.src.Addr().Is4() != t.dst.Addr().Is4() ||
		p.mobile[t.src.Addr()] || p.mobile[t.dst.Addr()] {
		return false
	}
	return p.fromPeer(peer, t.src.Addr()) && p.listed(peer, t.dst)
}

func (p *policy) fromPeer(peer string, src netip.Addr) bool {
	for _, q := range p.cfg.Peers {
		if q.Name == peer {
			return contains(q.Subnets, src)
		}
	}
	return false
}

func (p *policy) listed(peer string, dst netip.AddrPort) bool {
	for _, d := range p.cfg.Dials {
		if d.Peer == peer && matches(d.To, d.Ports, dst) {
			return true
		}
	}
	return false
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
