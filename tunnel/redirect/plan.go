package redirect

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"stitch/tunnel/config"
)

// Metrics and rule priorities of the agent.
const (
	// guardMetric is behind every route anybody sets on purpose.
	guardMetric = 4000000
	// The order of the ip rules: errors for this host's own split connections,
	// what skips all the others, transparent sockets, held SYNs, the links.
	priorityError   = config.RulePriority
	priorityReverse = config.RulePriority + 1
	priorityLocal   = config.RulePriority + 2
	priorityHold    = config.RulePriority + 3
	priorityLinks   = config.RulePriority + 10
	priorityEnd     = config.RulePriority + 99
)

var (
	anyV4 = netip.MustParsePrefix("0.0.0.0/0")
	anyV6 = netip.MustParsePrefix("::/0")
)

// planner holds what Plan's steps share.
type planner struct {
	cfg     *config.Config
	links   []namedLink // by number
	byName  map[string]namedLink
	owners  map[string]Owner
	streams bool
	out     Desired
}

type namedLink struct {
	LinkInfo
	name string
}

// Plan returns the kernel state for a configuration, its links and who owns
// which workload; with streams also the interception of TCP. It is pure: the
// same arguments give the same text and the same order. Names in cfg must have
// passed config.Load (New checks them again).
func Plan(cfg *config.Config, links Links, owners []Owner, streams bool) Desired {
	p := &planner{cfg: cfg, byName: make(map[string]namedLink), owners: make(map[string]Owner), streams: streams}
	for name, l := range links {
		p.byName[name] = namedLink{l, name}
		p.links = append(p.links, p.byName[name])
	}
	slices.SortFunc(p.links, func(a, b namedLink) int { return cmp.Compare(a.Number, b.Number) })
	for _, w := range cfg.Workloads {
		p.owners[w.Name] = Owner{Workload: w.Name, Site: w.Site}
	}
	for _, o := range owners {
		p.owners[o.Workload] = o
	}
	p.rules()
	p.guards()
	p.linkRoutes()
	p.segments()
	p.workloads()
	p.sources()
	p.out.Nft = p.nftRules()
	return p.out
}

// rules plans the ip rules, the tables of the links and that of transparent
// sockets. The default route of the hold table is HoldRoute's.
func (p *planner) rules() {
	p.reverse("lo", 0, 0)
	p.reverse(config.HoldDevice, config.MarkHold, config.MarkHold)
	for _, l := range p.links {
		p.reverse(l.Device, uint32(l.Number)<<config.MarkLink, config.MarkLinkMask)
	}
	for _, v6 := range []bool{false, true} {
		if p.streams {
			p.rule(priorityError, v6, config.MarkError, config.MarkError, config.TableLocal)
			p.rule(priorityLocal, v6, config.MarkLocal, config.MarkLocal, config.TableLocal)
			p.rule(priorityHold, v6, config.MarkHold, config.MarkHold, config.TableHold)
			p.route(Route{Table: config.TableLocal, Dst: all(v6), Kind: RouteLocal, Device: "lo"})
		}
		for _, l := range p.links {
			table := config.TableLink + l.Number
			p.rule(priorityLinks, v6, uint32(l.Number)<<config.MarkLink, config.MarkLinkMask, table)
			p.route(Route{Table: table, Dst: all(v6), Device: l.Device})
			p.route(Route{Table: table, Dst: all(v6), Kind: RouteUnreachable, Metric: guardMetric, Guard: true})
		}
	}
	p.out.Rules = append(p.out.Rules, Rule{Kind: RuleNop, Priority: priorityEnd})
}

// reverse plans the exception for the reverse-path check of IPv4, which looks
// up the way back as if it came in by the device a packet is about to leave by
// ("lo" when it stays here), with the packet's own mark where src_valid_mark is
// set: the mark, followed backwards, would call every marked packet a martian.
func (p *planner) reverse(iif string, mark, mask uint32) {
	p.out.Rules = append(p.out.Rules, Rule{Kind: RuleGoto, Priority: priorityReverse, Iif: iif, Mark: mark, Mask: mask, Goto: priorityEnd})
}

func (p *planner) rule(priority int, v6 bool, mark, mask uint32, table int) {
	p.out.Rules = append(p.out.Rules, Rule{Priority: priority, IPv6: v6, Mark: mark, Mask: mask, Table: table})
}

// guards plans the refusals behind every route into a link, whether or not the
// link exists yet.
func (p *planner) guards() {
	for _, peer := range p.cfg.Peers {
		for _, dst := range peer.Subnets {
			p.guard(dst)
		}
	}
}

func (p *planner) guard(dst netip.Prefix) {
	p.route(Route{Dst: dst.Masked(), Kind: RouteUnreachable, Metric: guardMetric, Guard: true})
}

// linkRoutes plans addresses, settings and routes of the links.
func (p *planner) linkRoutes() {
	for _, l := range p.links {
		remote := host(l.Remote)
		p.out.Addrs = append(p.out.Addrs, Addr{Device: l.Device, Prefix: host(l.Local)})
		p.route(Route{Dst: remote, Device: l.Device, Src: l.Local, MTU: l.InnerMTU, Window: window(p.peer(l.name).Rate, l.InnerMTU)})
		p.guard(remote)
		for _, dst := range p.peer(l.name).Subnets {
			p.route(Route{Dst: dst.Masked(), Device: l.Device, OwnSource: true})
		}
		conf := "net/ipv4/conf/" + l.Device + "/"
		p.out.Sysctls = append(p.out.Sysctls,
			Sysctl{Path: conf + "rp_filter", Value: "2"},
			Sysctl{Path: conf + "forwarding", Value: "1"})
	}
}

// startTime is how much a new connection between the agents sends at once on a
// link whose rate is known, instead of finding out how fast the path is: a
// quarter of what the link queues. Nobody waits behind it there.
const startTime = 50 * time.Millisecond

// window is the initial window on a link of a rate, in segments; 0: the kernel's.
func window(rate int64, mtu int) int {
	const least, most = 10, 1 << 10
	if rate == 0 {
		return 0
	}
	return min(max(int(float64(rate)/8*startTime.Seconds())/mtu, least), most)
}

// segments plans what an edge away from a segment's home needs: the gateway's
// address and MAC on the bridge, and the subnet by way of the home site.
func (p *planner) segments() {
	for _, s := range p.cfg.Segments {
		if s.Home == p.cfg.Site {
			continue
		}
		p.out.Addrs = append(p.out.Addrs, Addr{Device: s.Bridge, Prefix: host(s.Gateway)})
		p.out.MACs = append(p.out.MACs, DeviceMAC{Device: s.Bridge, MAC: s.GatewayMAC})
		p.out.Sysctls = append(p.out.Sysctls, Sysctl{Path: "net/ipv4/conf/" + s.Bridge + "/rp_filter", Value: "2"})
		p.guard(s.Subnet)
		if l, ok := p.byName[s.Home]; ok {
			p.route(Route{Dst: s.Subnet.Masked(), Device: l.Device, OwnSource: true})
		}
	}
}

// workloads plans the host route and neighbour entry of each workload.
func (p *planner) workloads() {
	for _, w := range p.cfg.Workloads {
		o := p.owners[w.Name]
		segment, local := p.segment(w.Segment)
		here := o.Site == p.cfg.Site
		if local {
			p.out.Neighs = append(p.out.Neighs, Neigh{Device: segment.Bridge, IP: w.IP, MAC: w.MAC, Here: here})
		}
		if here && local {
			p.route(Route{Dst: host(w.IP), Device: segment.Bridge})
		} else if l, ok := p.byName[o.Site]; ok && !here {
			p.route(Route{Dst: host(w.IP), Device: l.Device, OwnSource: true})
		}
	}
}

// sources says which addresses this host may use towards a peer: its own in
// the announced prefixes, but never a gateway's, which every edge holds.
func (p *planner) sources() {
	p.out.SourceIn = p.cfg.Subnets
	for _, s := range p.cfg.Segments {
		p.out.SourceNot = append(p.out.SourceNot, s.Gateway)
	}
}

// route adds a route unless it is planned already (a segment's subnet is often
// one of its home's subnets too).
func (p *planner) route(r Route) {
	if !slices.Contains(p.out.Routes, r) {
		p.out.Routes = append(p.out.Routes, r)
	}
}

func (p *planner) peer(name string) config.Peer {
	i := slices.IndexFunc(p.cfg.Peers, func(q config.Peer) bool { return q.Name == name })
	if i < 0 {
		return config.Peer{}
	}
	return p.cfg.Peers[i]
}

func (p *planner) segment(id uint16) (config.Segment, bool) {
	i := slices.IndexFunc(p.cfg.Segments, func(s config.Segment) bool { return s.ID == id })
	if i < 0 {
		return config.Segment{}, false
	}
	return p.cfg.Segments[i], true
}

func (p *planner) workload(name string) (config.Workload, bool) {
	i := slices.IndexFunc(p.cfg.Workloads, func(w config.Workload) bool { return w.Name == name })
	if i < 0 {
		return config.Workload{}, false
	}
	return p.cfg.Workloads[i], true
}

// mayBeAt reports whether a workload can be at the other end of a link: where
// its segment is stretched to. A peer there can claim the workload anyway, so
// it may send in its name, also before its claim has arrived.
func (p *planner) mayBeAt(w config.Workload, l namedLink) bool {
	if l.Stock {
		return false
	}
	s, ok := p.segment(w.Segment)
	return !ok || s.Home == l.name || slices.Contains(s.Peers, l.name)
}

// checkNames refuses names that would change the meaning of the nft text.
func checkNames(cfg *config.Config, links Links) error {
	for name, l := range links {
		if !validDevice(l.Device) || l.Number < 1 || l.Number > 255 {
			return fmt.Errorf("redirect: link %q has device %q and number %d: want a plain name and 1 to 255", name, l.Device, l.Number)
		}
		if l.Device == config.HoldDevice {
			return fmt.Errorf("redirect: the peer called %q would have the device of the stream process: rename it", name)
		}
	}
	for _, s := range cfg.Segments {
		if !validDevice(s.Bridge) {
			return fmt.Errorf("redirect: segment %d: bridge %q is not a plain device name", s.ID, s.Bridge)
		}
	}
	return nil
}

// validDevice reports whether s is a device name that needs no quoting.
func validDevice(s string) bool {
	if len(s) == 0 || len(s) > 15 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func all(v6 bool) netip.Prefix {
	if v6 {
		return anyV6
	}
	return anyV4
}
