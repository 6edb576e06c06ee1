package config

import (
	"cmp"
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
