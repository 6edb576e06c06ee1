package config

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// segments checks every [[segment]].
func (l *loader) segments() {
	if l.tooMany("segment", len(l.raw.Segment), maxList) {
		return
	}
	u := uses{l, map[string]string{}}
	for i, r := range l.raw.Segment {
		path := at("segment", i)
		s := Segment{Bridge: r.Bridge, Home: r.Home}
		if r.ID == nil {
			l.missing(path + ".id")
		}
		s.ID = uint16(l.number(path+".id", r.ID, 0, 1, 65535))
		if s.ID != 0 {
			u.once(path+".id", fmt.Sprintf("id %d", s.ID), "every segment has its own")
		}
		l.bridge(path+".bridge", r.Bridge, u)
		l.segmentNet(path, r, &s)
		l.segmentSites(path, r, &s)
		s.BroadcastLimit = int(l.number(path+".broadcast_limit", r.BroadcastLimit, defaultBroadcastLimit, 1, maxBroadcastLimit))
		s.MoveLimit = int(l.number(path+".move_limit", r.MoveLimit, DefaultMoveLimit, 2, maxMoveLimit))
		l.segmentPolicy(path, r, &s)
		l.cfg.Segments = append(l.cfg.Segments, s)
	}
}

// bridge checks the name of the LAN bridge of a segment.
func (l *loader) bridge(path, name string, u uses) {
	switch {
	case name == "":
		l.missing(path)
	case !deviceForm.MatchString(name):
		l.problem(path, "%s is not an interface name of at most 15 characters", quote(name))
	default:
		u.once(path, "bridge "+name, "two segments on one bridge are a loop")
	}
}

// segmentNet checks the addresses of a segment.
func (l *loader) segmentNet(path string, r rawSegment, s *Segment) {
	var err error
	if r.Subnet == "" {
		l.missing(path + ".subnet")
	} else if s.Subnet, err = parsePrefix(r.Subnet); l.check(path+".subnet", err) {
		l.segmentSubnet(path+".subnet", s.Subnet, r.Home)
	}
	if r.Gateway == "" {
		l.missing(path + ".gateway")
	} else if s.Gateway, err = parseHostAddr(r.Gateway); l.check(path+".gateway", err) && s.Subnet.IsValid() {
		l.check(path+".gateway", hostIn(s.Gateway, s.Subnet))
	}
	if r.GatewayMAC == "" {
		l.missing(path + ".gateway_mac")
	} else {
		s.GatewayMAC, err = parseUnicastMAC(r.GatewayMAC)
		l.check(path+".gateway_mac", err)
	}
}

// segmentSubnet refuses a subnet that is another segment's or another site's.
func (l *loader) segmentSubnet(path string, subnet netip.Prefix, home string) {
	if !subnet.Addr().Is4() || subnet.Bits() > 30 {
		l.problem(path, "%v: a segment needs an IPv4 prefix of /30 or shorter", subnet)
		return
	}
	for i, o := range l.cfg.Segments {
		if o.Subnet.IsValid() && o.Subnet.Overlaps(subnet) {
			l.problem(path, "%v overlaps %v of segment %d (line %d): every segment has its own", subnet, o.Subnet, o.ID, l.lineOf(at("segment", i)))
		}
	}
	for _, c := range l.claims() {
		if c.prefix.Overlaps(subnet) && c.site != home {
			l.problem(path, "%v overlaps %v of site %s (line %d), but home is %s: a prefix belongs to one site", subnet, c.prefix, quote(c.site), l.lineOf(c.path), quote(home))
		} else if c.prefix.Overlaps(subnet) && c.prefix.Bits() > subnet.Bits() {
			l.problem(path, "%v is wider than %v of its home (line %d): widen that one", subnet, c.prefix, l.lineOf(c.path))
		}
	}
	for i, p := range l.cfg.Peers {
		if e, err := netip.ParseAddrPort(p.Endpoint); err == nil && subnet.Contains(e.Addr()) {
			l.problem(path, "the endpoint of peer %s (line %d) is inside %v: a tunnel cannot carry itself", quote(p.Name), l.lineOf(at("peer", i)+".endpoint"), subnet)
		}
	}
}

// segmentSites checks where a segment is.
func (l *loader) segmentSites(path string, r rawSegment, s *Segment) {
	if len(r.Peers) == 0 {
		l.missing(path + ".peers")
	}
	if l.tooMany(path+".peers", len(r.Peers), MaxPeers) {
		return
	}
	for i, name := range r.Peers {
		if l.peer(at(path+".peers", i), name) == nil {
			continue
		}
		if slices.Contains(s.Peers, name) {
			l.problem(at(path+".peers", i), "%s is listed twice: keep one", quote(name))
			continue
		}
		s.Peers = append(s.Peers, name)
	}
	switch {
	case r.Home == "":
		l.missing(path + ".home")
	case r.Home != l.cfg.Site && !slices.Contains(r.Peers, r.Home):
		l.problem(path+".home", "%s is neither this site nor one of the segment's peers: add it to peers, or correct it", quote(r.Home))
	}
}

// segmentPolicy checks what crosses besides the default.
func (l *loader) segmentPolicy(path string, r rawSegment, s *Segment) {
	if l.tooMany(path+".vlans", len(r.VLANs), maxList) || l.tooMany(path+".ether_types", len(r.EtherTypes), maxList) {
		return
	}
	for i, v := range r.VLANs {
		first, last, err := parseVLANs(v)
		if l.check(at(path+".vlans", i), err) {
			for id := first; id <= last; id++ {
				s.VLANs = append(s.VLANs, id)
			}
		}
	}
	for i, text := range r.EtherTypes {
		typ, err := parseEtherType(text)
		if l.check(at(path+".ether_types", i), err) {
			s.EtherTypes = append(s.EtherTypes, typ)
		}
	}
	s.VLANs, s.EtherTypes = sortedSet(s.VLANs), sortedSet(s.EtherTypes)
	for i, name := range r.Pass {
		switch name {
		case "dhcp":
			s.Pass.DHCP = true
		case "router-adverts":
			s.Pass.RouterAdverts = true
		case "spanning-tree":
			s.Pass.SpanningTree = true
		default:
			l.problem(at(path+".pass", i), "%s is not one of \"dhcp\", \"router-adverts\" and \"spanning-tree\"", quote(name))
		}
	}
}

// sortedSet sorts list and drops what is in it twice.
func sortedSet(list []uint16) []uint16 {
	slices.Sort(list)
	return slices.Compact(list)
}

// hostIn checks that a is the address of a host in an IPv4 subnet.
func hostIn(a netip.Addr, subnet netip.Prefix) error {
	if !subnet.Contains(a) {
		return fmt.Errorf("%v is not inside the segment's subnet %v: use an address of it", a, subnet)
	}
	b := a.As4()
	host := binary.BigEndian.Uint32(b[:]) & (1<<(32-subnet.Bits()) - 1)
	if host == 0 || host == 1<<(32-subnet.Bits())-1 {
		return fmt.Errorf("%v is the network or broadcast address of %v: use one between", a, subnet)
	}
	return nil
}

// workloads checks every [[workload]].
func (l *loader) workloads() {
	if l.tooMany("workload", len(l.raw.Workload), maxWorkloads) {
		return
	}
	u := uses{l, map[string]string{}}
	for _, s := range l.cfg.Segments {
		u.by["mac "+s.GatewayMAC.String()] = "the gateway's"
		u.by["ip "+s.Gateway.String()] = "the gateway's"
	}
	for i, r := range l.raw.Workload {
		path := at("workload", i)
		w := Workload{Name: r.Name, Site: r.Site}
		if r.Name == "" {
			l.missing(path + ".name")
		} else if l.check(path+".name", parseName(r.Name)) {
			u.once(path+".name", "name "+r.Name, "workloads need different names")
		}
		var err error
		if r.MAC == "" {
			l.missing(path + ".mac")
		} else if w.MAC, err = parseUnicastMAC(r.MAC); l.check(path+".mac", err) {
			u.once(path+".mac", "mac "+w.MAC.String(), "correct one of them")
		}
		if r.IP == "" {
			l.missing(path + ".ip")
		} else if w.IP, err = parseHostAddr(r.IP); l.check(path+".ip", err) {
			u.once(path+".ip", "ip "+w.IP.String(), "correct one of them")
		}
		l.workloadPlace(path, r, &w)
		l.cfg.Workloads = append(l.cfg.Workloads, w)
	}
}

// workloadPlace checks the segment and the site of a workload.
func (l *loader) workloadPlace(path string, r rawWorkload, w *Workload) {
	if r.Segment == nil {
		l.missing(path + ".segment")
		return
	}
	i := slices.IndexFunc(l.cfg.Segments, func(s Segment) bool { return int64(s.ID) == *r.Segment })
	if i < 0 {
		l.problem(path+".segment", "there is no segment %d: add a [[segment]] with that id", *r.Segment)
		return
	}
	s := l.cfg.Segments[i]
	w.Segment = s.ID
	if w.IP.IsValid() && s.Subnet.IsValid() && s.Subnet.Addr().Is4() {
		l.check(path+".ip", hostIn(w.IP, s.Subnet))
	}
	switch {
	case r.Site == "":
		l.missing(path + ".site")
	case r.Site != l.cfg.Site && !slices.Contains(s.Peers, r.Site):
		l.problem(path+".site", "%s is neither this site nor a peer of segment %d: correct it", quote(r.Site), s.ID)
	}
}

// services checks every [[service]].
func (l *loader) services() {
	if l.tooMany("service", len(l.raw.Service), maxList*4) {
		return
	}
	u := uses{l, map[string]string{}}
	for i, r := range l.raw.Service {
		path := at("service", i)
		s := Service{Name: r.Name, Workload: r.Workload, At: map[string]netip.AddrPort{}}
		if r.Port == nil {
			l.missing(path + ".port")
		}
		s.Port = uint16(l.number(path+".port", r.Port, 0, 1, 65535))
		if r.Name == "" {
			l.missing(path + ".name")
		} else if l.check(path+".name", parseHost(r.Name)) {
			u.once(path+".name", fmt.Sprintf("name %s with port %d", r.Name, s.Port), "one entry for each port")
		}
		known := func(w rawWorkload) bool { return w.Name == r.Workload }
		if r.Workload == "" {
			l.missing(path + ".workload")
		} else if !slices.ContainsFunc(l.raw.Workload, known) {
			l.problem(path+".workload", "there is no workload %s: add a [[workload]] with that name", quote(r.Workload))
		}
		l.serviceAt(path+".at", r, &s, u)
		l.sameService(path, s)
		l.cfg.Services = append(l.cfg.Services, s)
	}
}

// serviceAt checks the virtual addresses of a service.
func (l *loader) serviceAt(path string, r rawService, s *Service, u uses) {
	if len(r.At) == 0 {
		l.missing(path)
	}
	if l.tooMany(path, len(r.At), MaxPeers+1) {
		return
	}
	for site, text := range r.At {
		key := path + "." + site
		if !l.isSite(site) {
			l.problem(key, "%s is neither this site nor a peer: %s", quote(site), suggest(site, append(l.peerNames(), l.cfg.Site), "sites"))
			continue
		}
		a, err := parseAddrPort(text)
		if err == nil {
			_, err = parseHostAddr(a.Addr().String())
		}
		if !l.check(key, err) {
			continue
		}
		u.once(key, fmt.Sprintf("%v at %s", a, site), "one virtual address and port for each service")
		s.At[site] = a
		for _, c := range l.cfg.Segments {
			if c.Subnet.IsValid() && c.Subnet.Contains(a.Addr()) {
				l.problem(key, "%v is inside segment %d: use an address the edge itself has", a, c.ID)
			}
		}
	}
}

// sameService holds two entries of one name to one address and workload,
// because DNS gives one answer for the name.
func (l *loader) sameService(path string, s Service) {
	i := slices.IndexFunc(l.cfg.Services, func(o Service) bool { return o.Name == s.Name })
	if i < 0 {
		return
	}
	o, line := l.cfg.Services[i], l.lineOf(at("service", i))
	if o.Workload != s.Workload {
		l.problem(path+".workload", "%s is workload %s in line %d: one name is one workload", quote(s.Name), quote(o.Workload), line)
	}
	for site, a := range s.At {
		if b, ok := o.At[site]; ok && a.Addr() != b.Addr() {
			l.problem(path+".at."+site, "%s has address %v there in line %d: one name is one address at a site", quote(s.Name), b.Addr(), line)
		}
	}
}

// isSite reports whether a name is this site's or a peer's.
func (l *loader) isSite(name string) bool {
	return name == l.cfg.Site || slices.ContainsFunc(l.cfg.Peers, func(p Peer) bool { return p.Name == name })
}

// dns checks [dns].
func (l *loader) dns() {
	r := l.raw.DNS
	if r == nil {
		return
	}
	d := &DNS{TTL: defaultTTL}
	if len(r.Listen) == 0 {
		l.missing("dns.listen")
	}
	if l.tooMany("dns.listen", len(r.Listen), maxList) {
		return
	}
	for i, s := range r.Listen {
		a, err := parseAddrPort(s)
		if l.check(at("dns.listen", i), err) && slices.Contains(d.Listen, a) {
			l.problem(at("dns.listen", i), "%v is listed twice: keep one", a)
		}
		d.Listen = append(d.Listen, a)
	}
	if r.TTL != "" {
		ttl, err := parseDuration(r.TTL, time.Second, time.Hour)
		l.check("dns.ttl", err)
		d.TTL = ttl
	}
	l.cfg.DNS = d
}
