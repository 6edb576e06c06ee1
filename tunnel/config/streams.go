package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

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

// history checks what the codec may keep and where.
func (l *loader) history() {
	h := &l.cfg.History
	h.Size = l.size("history.size", l.raw.History.Size, defaultHistory, maxHistory)
	h.Dir = l.raw.History.Dir
	whole := h.Size
	if h.Dir != "" {
		l.historyDir(h.Dir)
		whole = min(h.Size, defaultMemory)
	}
	h.Memory = l.size("history.memory", l.raw.History.Memory, whole, maxHistory)
	switch {
	case h.Memory > h.Size:
		l.problem("history.memory", "%s is more than the whole history: raise size or leave memory out", quote(l.raw.History.Memory))
	case h.Memory < h.Size && h.Dir == "":
		l.problem("history.memory", "%s is less than size, and there is no dir for the rest: add %s", quote(l.raw.History.Memory), example(place{key: "history.dir"}))
	}
	if l.raw.History.KeyFile == "" {
		return
	}
	h.Key = l.keyFile("history.key_file", l.raw.History.KeyFile)
	if h.Dir == "" {
		l.problem("history.key_file", "encrypts what is kept in dir, and there is none: add %s", example(place{key: "history.dir"}))
	}
}

// size reads a size; def stands for a missing one.
func (l *loader) size(path, text string, def, most int64) int64 {
	if text == "" {
		return def
	}
	n, err := ParseSize(text)
	if l.check(path, err) && (n < minHistory || n > most) {
		l.problem(path, "%s is out of range: use \"1MiB\" to \"64GiB\"", quote(text))
	}
	return n
}

// historyDir checks the directory of the kept histories.
func (l *loader) historyDir(dir string) {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || strings.ContainsFunc(dir, isControl) || dir == "/" {
		l.problem("history.dir", "%s is not a plain absolute path such as /var/lib/stitch/dc1", quote(dir))
	}
}

// domains checks every [[domain]].
func (l *loader) domains() {
	if l.tooMany("domain", len(l.raw.Domain), maxDomains) {
		return
	}
	u := uses{l, map[string]string{}}
	for i, r := range l.raw.Domain {
		path := at("domain", i)
		if r.Name == "" {
			l.missing(path + ".name")
			continue
		}
		if !l.check(path+".name", parseName(r.Name)) {
			continue
		}
		u.once(path+".name", "domain "+r.Name, "say it once")
		if r.Tenants != "" && r.Tenants != "one" && r.Tenants != "many" {
			l.problem(path+".tenants", "%s is unknown: write \"one\" or \"many\"", quote(r.Tenants))
		}
		l.cfg.Domains = append(l.cfg.Domains, Domain{Name: r.Name, ManyTenants: r.Tenants == "many"})
	}
}

// domain checks that a rule's domain is one of the file.
func (l *loader) domain(path, name string) {
	known := func(d Domain) bool { return d.Name == name }
	if name == "" || slices.ContainsFunc(l.cfg.Domains, known) {
		return
	}
	if len(l.cfg.Domains) == 0 {
		l.problem(path, "there is no domain %s: add a [[domain]] table with that name", quote(name))
		return
	}
	var names []string
	for _, d := range l.cfg.Domains {
		names = append(names, d.Name)
	}
	l.problem(path, "there is no domain %s: %s", quote(name), suggest(name, names, "domains"))
}

// optimize checks what a rule asks for; only a whole optimisation has a use
// for a domain.
func (l *loader) optimize(path string, r rawStream) Optimize {
	o := Optimize(cmp.Or(r.Optimize, string(Full)))
	if !slices.Contains([]Optimize{Full, Compress, Accelerate, Off}, o) {
		l.problem(path+".optimize", "%s is unknown: write \"full\", \"compress\", \"accelerate\" or \"off\"", quote(r.Optimize))
	} else if o != Full && r.Domain != "" {
		l.problem(path+".domain", "a domain shares a history, which optimize = %s does not use: remove one of the two", quote(r.Optimize))
	}
	return o
}

// streams checks every [[stream]].
func (l *loader) streams() {
	if l.tooMany("stream", len(l.raw.Stream), maxList) {
		return
	}
	for i, r := range l.raw.Stream {
		path := at("stream", i)
		s := StreamRule{Peer: r.Peer, Domain: r.Domain, Handshake: Handshake(cmp.Or(r.Handshake, string(Faithful)))}
		p := l.peer(path+".peer", r.Peer)
		if r.Segment != nil {
			s.Segment, s.To = l.onSegment(path, r.Peer, r.Segment, r.To)
		} else if s.To = l.targets(path+".to", r.To); p != nil {
			l.within(path+".to", s.To, append(l.homedAt(p.Name), p.Subnets...), "peer "+quote(p.Name))
		}
		s.Ports = l.ports(path+".ports", r.Ports)
		s.Optimize = l.optimize(path, r)
		s.Class, s.Share, s.Mark = l.shares(path, r.Class, r.Share, p)
		l.domain(path+".domain", r.Domain)
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
		p := l.peer(path+".peer", r.Peer)
		d := DialRule{Peer: r.Peer, Domain: r.Domain}
		if r.Segment != nil {
			d.Segment, d.To = l.onSegment(path, r.Peer, r.Segment, r.To)
		} else {
			d.To = l.targets(path+".to", r.To)
			ours := slices.Clone(l.cfg.Subnets)
			for _, s := range l.cfg.Segments {
				ours = append(ours, s.Subnet)
			}
			l.within(path+".to", d.To, ours, "this site")
		}
		d.Ports = l.ports(path+".ports", r.Ports)
		d.Class, d.Share, d.Mark = l.shares(path, r.Class, r.Share, p)
		l.domain(path+".domain", r.Domain)
		l.cfg.Dials = append(l.cfg.Dials, d)
	}
}

// onSegment reads what a rule says about the hosts of a segment: its id, and
// where a connection may go; without that to all of the segment's subnet. IPv6
// prefixes are not checked: a segment has no IPv6 subnet of its own.
func (l *loader) onSegment(path, peer string, id *int64, to []string) (uint16, []netip.Prefix) {
	n := uint16(l.number(path+".segment", id, 0, 1, 65535))
	i := slices.IndexFunc(l.cfg.Segments, func(s Segment) bool { return s.ID == n })
	switch {
	case n == 0:
		return 0, nil
	case i < 0:
		l.problem(path+".segment", "there is no segment %d: add a [[segment]] with that id, or leave segment out if the connections are routed", n)
		return 0, nil
	}
	s := l.cfg.Segments[i]
	if peer != "" && !slices.Contains(s.Peers, peer) {
		l.problem(path+".segment", "segment %d is not stretched to %s: add it to the segment's peers, or correct one of the two", n, quote(peer))
	}
	if len(to) == 0 {
		return n, []netip.Prefix{s.Subnet}
	}
	prefixes := l.prefixes(path+".to", to)
	for _, p := range prefixes {
		if p.Addr().Is4() && s.Subnet.IsValid() && (p.Bits() < s.Subnet.Bits() || !s.Subnet.Contains(p.Addr())) {
			l.problem(path+".to", "%v is not inside %v, the subnet of segment %d: narrow it, or leave segment out if the connections are routed", p, s.Subnet, n)
		}
	}
	return n, prefixes
}
