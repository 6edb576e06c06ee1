package config

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// prefixes reads a list of prefixes.
func (l *loader) prefixes(path string, text []string) []netip.Prefix {
	if l.tooMany(path, len(text), maxList) {
		return nil
	}
	var out []netip.Prefix
	for i, s := range text {
		if p, err := parsePrefix(s); l.check(at(path, i), err) {
			out = append(out, p)
		}
	}
	return out
}

// claim says that a site has a prefix.
type claim struct {
	prefix netip.Prefix
	site   string
	path   string
}

// claims lists every valid prefix of every site with its place in the file.
func (l *loader) claims() []claim {
	var out []claim
	list := func(site, path string, text []string) {
		for i, s := range text[:min(len(text), maxList)] {
			if p, err := parsePrefix(s); err == nil {
				out = append(out, claim{p, site, at(path, i)})
			}
		}
	}
	list(l.cfg.Site, "subnets", l.raw.Subnets)
	for i, r := range l.raw.Peer[:min(len(l.raw.Peer), MaxPeers)] {
		list(r.Name, at("peer", i)+".subnets", r.Subnets)
	}
	return out
}

// overlaps refuses prefixes that two sites have, prefixes said twice, and
// endpoints that would be reached through the very tunnel they carry.
func (l *loader) overlaps() {
	claims := l.claims()
	slices.SortStableFunc(claims, func(a, b claim) int {
		return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
	})
	var around claim // the widest prefix so far; sorted prefixes nest or are apart
	for _, c := range claims {
		if !around.prefix.IsValid() || !around.prefix.Overlaps(c.prefix) {
			around = c
			continue
		}
		later, earlier := c, around
		if l.lineOf(later.path) < l.lineOf(earlier.path) {
			later, earlier = earlier, later
		}
		if c.site == around.site {
			l.problem(later.path, "%v overlaps %v of the same site (line %d): keep the wider one", later.prefix, earlier.prefix, l.lineOf(earlier.path))
		} else {
			l.problem(later.path, "%v overlaps %v of site %s (line %d): a prefix belongs to one site", later.prefix, earlier.prefix, quote(earlier.site), l.lineOf(earlier.path))
		}
	}
	for i, p := range l.cfg.Peers {
		host, _, err := net.SplitHostPort(p.Endpoint)
		a, errA := netip.ParseAddr(host)
		if err != nil || errA != nil {
			continue
		}
		for _, c := range claims {
			if c.site != l.cfg.Site && c.prefix.Contains(a) {
				l.problem(at("peer", i)+".endpoint", "%v is inside %v, which goes through the tunnel of %s: a tunnel cannot carry itself, use the address outside", a, c.prefix, quote(c.site))
			}
		}
	}
}

// peer finds a peer by name for a rule; a problem if there is none or if it
// is a stock WireGuard peer.
func (l *loader) peer(path, name string) *Peer {
	if name == "" {
		l.missing(path)
		return nil
	}
	i := slices.IndexFunc(l.cfg.Peers, func(p Peer) bool { return p.Name == name })
	if i < 0 {
		l.problem(path, "there is no peer %s: %s", quote(name), suggest(name, l.peerNames(), "peers"))
		return nil
	}
	if l.cfg.Peers[i].Stock {
		l.problem(path, "peer %s is stock WireGuard: it carries packets only, remove stock or this", quote(name))
		return nil
	}
	return &l.cfg.Peers[i]
}

// peerNames lists the peers for messages.
func (l *loader) peerNames() []string {
	var out []string
	for _, p := range l.cfg.Peers[:min(len(l.cfg.Peers), 16)] {
		out = append(out, p.Name)
	}
	return out
}

// ports reads a list of ports and ranges.
func (l *loader) ports(path string, list []any) []PortRange {
	if len(list) == 0 {
		l.missing(path)
	}
	if l.tooMany(path, len(list), maxList) {
		return nil
	}
	var out []PortRange
	for i, v := range list {
		r, err := parsePort(v)
		if !l.check(at(path, i), err) {
			continue
		}
		for _, o := range out {
			if r.First <= o.Last && o.First <= r.Last {
				l.problem(at(path, i), "%s overlaps %d-%d in the same list: keep one", quote(fmt.Sprint(v)), o.First, o.Last)
				break
			}
		}
		out = append(out, r)
	}
	return out
}

// streams checks every [[stream]].
func (l *loader) streams() {
	if l.tooMany("stream", len(l.raw.Stream), maxList) {
		return
	}
	for i, r := range l.raw.Stream {
		path := at("stream", i)
		s := StreamRule{Peer: r.Peer, Handshake: Handshake(cmp.Or(r.Handshake, string(Faithful)))}
		p := l.peer(path+".peer", r.Peer)
		s.To = l.targets(path+".to", r.To)
		if p != nil {
			l.within(path+".to", s.To, append(l.homedAt(p.Name), p.Subnets...), "peer "+quote(p.Name))
		}
		s.Ports = l.ports(path+".ports", r.Ports)
		if s.Handshake != Faithful && s.Handshake != Early {
			l.problem(path+".handshake", "%s is unknown: write \"faithful\" or \"early\"", quote(r.Handshake))
		}
		l.cfg.Streams = append(l.cfg.Streams, s)
	}
}

// dials checks every [[dial]].
func (l *loader) dials() {
	if l.tooMany("dial", len(l.raw.Dial), maxList) {
		return
	}
	for i, r := range l.raw.Dial {
		path := at("dial", i)
		l.peer(path+".peer", r.Peer)
		d := DialRule{Peer: r.Peer, To: l.targets(path+".to", r.To)}
		ours := slices.Clone(l.cfg.Subnets)
		for _, s := range l.cfg.Segments {
			ours = append(ours, s.Subnet)
		}
		l.within(path+".to", d.To, ours, "this site")
		d.Ports = l.ports(path+".ports", r.Ports)
		l.cfg.Dials = append(l.cfg.Dials, d)
	}
}

// targets reads the prefixes a rule is for; there must be one.
func (l *loader) targets(path string, text []string) []netip.Prefix {
	if len(text) == 0 {
		l.missing(path)
	}
	return l.prefixes(path, text)
}

// homedAt returns the segments' subnets that are routed to a site.
func (l *loader) homedAt(site string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range l.cfg.Segments {
		if s.Home == site {
			out = append(out, s.Subnet)
		}
	}
	return out
}

// within refuses the prefixes of a rule that are not inside those of its site.
func (l *loader) within(path string, to, allowed []netip.Prefix, whose string) {
	for _, t := range to {
		inside := func(a netip.Prefix) bool { return a.Bits() <= t.Bits() && a.Contains(t.Addr()) }
		if !slices.ContainsFunc(allowed, inside) {
			l.problem(path, "%v is not inside a subnet of %s (%s): add it to its subnets, or narrow it", t, whose, listed(allowed))
		}
	}
}

// listed writes a few prefixes for a message.
func listed(ps []netip.Prefix) string {
	if len(ps) == 0 {
		return "it has none"
	}
	var out []string
	for _, p := range ps[:min(len(ps), 8)] {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}
