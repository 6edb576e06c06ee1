package redirect

import (
	_ "embed"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"text/template"

	"stitch/tunnel/config"
)

//go:embed stitch.nft.tmpl
var nftText string

var nftTemplate = template.Must(template.New("nft").Funcs(template.FuncMap{
	"elements": elements,
	"join":     func(s []string) string { return strings.Join(s, ", ") },
}).Parse(nftText))

// elements returns the elements clause of a set, nothing for an empty one
// (which nft does not parse).
func elements(es []string) string {
	if len(es) == 0 {
		return ""
	}
	return "elements = { " + strings.Join(es, ", ") + " }"
}

// nftView is what the template sees.
type nftView struct {
	Table, HoldDevice         string
	StreamPort, InterceptPort int
	Streams                   bool
	Devices, Ports            []string
	Families                  []familyView
	Links                     []linkView
	MSS4, MSS6                int // of workloads; zero: no clamp
	MarkLocal, MarkHold       string
	MarkError                 string
	MarkSplit, KeepSplit      string
	Virtual                   []string
	Rules                     []ruleView
}

// familyView holds the sets of one address family.
type familyView struct {
	V                              int
	IP, Type                       string
	Own, Workloads, Here, Services []string
}

// linkView is one link with its sets and masks.
type linkView struct {
	LinkInfo
	Mark, Keep, LinkMask           string
	Anchor, KeepAnchor, AnchorMask string
	MSS4, MSS6                     int
	Families                       []linkFamily
}

type linkFamily struct {
	V                                    int
	IP, Type                             string
	Subnets, Movers, Anchor, Fresh, Left []string
}

// ruleView is one match of a stream rule.
type ruleView struct{ Match, Verdict string }

// nftRules renders the template for a plan.
func (p *planner) nftRules() string {
	v := nftView{
		Table: config.NftTable, HoldDevice: config.HoldDevice,
		StreamPort: config.StreamPort, InterceptPort: config.InterceptPort,
		Streams: p.streams, Ports: p.ports(),
		Families:  []familyView{p.family(false), p.family(true)},
		MarkError: hexMark(config.MarkError),
		MarkLocal: hexMark(config.MarkLocal), MarkHold: hexMark(config.MarkHold),
		MarkSplit: hexMark(config.MarkSplit), KeepSplit: hexMark(^uint32(config.MarkSplit)),
		Virtual: p.virtual(), Rules: p.streamRules(),
	}
	for _, l := range p.links {
		v.Devices = append(v.Devices, quote(l.Device))
		lv := p.linkView(l)
		v.Links = append(v.Links, lv)
		if !l.Stock && (v.MSS4 == 0 || lv.MSS4 < v.MSS4) {
			v.MSS4, v.MSS6 = lv.MSS4, lv.MSS6
		}
	}
	var b strings.Builder
	if err := nftTemplate.Execute(&b, v); err != nil {
		panic("redirect: nft template: " + err.Error()) // only a broken template
	}
	return b.String()
}

func (p *planner) ports() (ports []string) {
	for _, peer := range p.cfg.Peers {
		ports = append(ports, fmt.Sprint(peer.ListenPort))
	}
	return ports
}

// family collects the sets of one family.
func (p *planner) family(v6 bool) familyView {
	f := familyView{V: 4, IP: "ip", Type: "ipv4_addr", Own: prefixes(p.cfg.Subnets, v6)}
	if v6 {
		f.V, f.IP, f.Type = 6, "ip6", "ipv6_addr"
	}
	for _, w := range p.cfg.Workloads {
		if w.IP.Is6() != v6 {
			continue
		}
		f.Workloads = append(f.Workloads, w.IP.String())
		if s, ok := p.segment(w.Segment); ok {
			f.Here = append(f.Here, quote(s.Bridge)+" . "+w.IP.String())
		}
	}
	for _, s := range p.cfg.Services {
		at, ok := s.At[p.cfg.Site]
		w, known := p.workload(s.Workload)
		if ok && known && at.Addr().Is6() == v6 && w.IP.Is6() == v6 {
			f.Services = append(f.Services, fmt.Sprintf("%s . %d : %s . %d", at.Addr(), at.Port(), w.IP, s.Port))
		}
	}
	return f
}

// linkView collects the sets and masks of one link.
func (p *planner) linkView(l namedLink) linkView {
	mark := uint32(l.Number) << config.MarkLink
	v := linkView{
		LinkInfo: l.LinkInfo, MSS4: config.MSS(l.InnerMTU, false), MSS6: config.MSS(l.InnerMTU, true),
		Mark: hexMark(mark), Keep: hexMark(^uint32(config.MarkLinkMask)), LinkMask: hexMark(config.MarkLinkMask),
		Anchor:     hexMark(mark | config.MarkAnchored),
		KeepAnchor: hexMark(^uint32(config.MarkLinkMask | config.MarkAnchored)),
		AnchorMask: hexMark(config.MarkLinkMask | config.MarkAnchored),
	}
	for _, v6 := range []bool{false, true} {
		f := linkFamily{V: 4, IP: "ip", Type: "ipv4_addr", Subnets: prefixes(p.peer(l.name).Subnets, v6)}
		if v6 {
			f.V, f.IP, f.Type = 6, "ip6", "ipv6_addr"
		}
		p.linkSets(&f, l, v6)
		v.Families = append(v.Families, f)
	}
	return v
}

// linkSets fills in the workloads' relation to a link.
func (p *planner) linkSets(f *linkFamily, l namedLink, v6 bool) {
	for _, w := range p.cfg.Workloads {
		if w.IP.Is6() != v6 || !p.mayBeAt(w, l) {
			continue
		}
		f.Movers = append(f.Movers, w.IP.String())
		o := p.owners[w.Name]
		if o.Fresh && o.Site == l.name {
			f.Left = append(f.Left, w.IP.String())
		}
		if p.elsewhere(o) != l.name {
			continue
		}
		f.Anchor = append(f.Anchor, w.IP.String())
		if o.Fresh || o.Site != p.cfg.Site {
			f.Fresh = append(f.Fresh, w.IP.String())
		}
	}
}

// elsewhere returns the other site that may know connections of a workload:
// where it was before, when it is here; where it is, when it is not here. The
// second holds between its arrival here and our hearing of it, so that a
// machine that speaks before its announcement is anchored too.
func (p *planner) elsewhere(o Owner) string {
	if o.Site == p.cfg.Site {
		return o.Previous
	}
	return o.Site
}

// virtual returns matches of the services' virtual addresses at this site.
func (p *planner) virtual() (matches []string) {
	for _, s := range p.cfg.Services {
		if at, ok := s.At[p.cfg.Site]; ok {
			matches = append(matches, fmt.Sprintf("%s daddr %s tcp dport %d", family(at.Addr().Is6()), at.Addr(), at.Port()))
		}
	}
	return matches
}

// streamRules returns the matches of the stream rules in file order. Those for
// the hosts of a segment are not the kernel's: it sees no frames of theirs.
func (p *planner) streamRules() (rules []ruleView) {
	for _, r := range p.cfg.Streams {
		if r.Segment != 0 {
			continue
		}
		verdict := "goto hold"
		switch {
		case r.Optimize == config.Off:
			verdict = "return"
		case r.Handshake == config.Early:
			verdict = "goto take"
		}
		for _, v6 := range []bool{false, true} {
			to := prefixes(r.To, v6)
			if len(to) == 0 || len(r.Ports) == 0 {
				continue
			}
			match := fmt.Sprintf("%s daddr { %s } tcp dport { %s }", family(v6), strings.Join(to, ", "), ports(r.Ports))
			rules = append(rules, ruleView{match, verdict})
		}
	}
	return rules
}

// ports returns port ranges as nft set elements, overlaps merged.
func ports(rs []config.PortRange) string {
	rs = slices.SortedFunc(slices.Values(rs), func(a, b config.PortRange) int { return int(a.First) - int(b.First) })
	var merged []config.PortRange
	for _, r := range rs {
		if n := len(merged); n > 0 && int(r.First) <= int(merged[n-1].Last)+1 {
			merged[n-1].Last = max(merged[n-1].Last, r.Last)
			continue
		}
		merged = append(merged, r)
	}
	var es []string
	for _, r := range merged {
		if r.First == r.Last {
			es = append(es, fmt.Sprint(r.First))
		} else {
			es = append(es, fmt.Sprintf("%d-%d", r.First, r.Last))
		}
	}
	return strings.Join(es, ", ")
}

// prefixes returns the prefixes of one family that no other contains, as text:
// nft refuses overlaps in an anonymous set.
func prefixes(ps []netip.Prefix, v6 bool) (out []string) {
	for i, p := range ps {
		covered := slices.ContainsFunc(ps[:i], func(q netip.Prefix) bool { return covers(q, p) }) ||
			slices.ContainsFunc(ps[i+1:], func(q netip.Prefix) bool { return covers(q, p) && q.Masked() != p.Masked() })
		if p.Addr().Is6() == v6 && !covered {
			out = append(out, p.Masked().String())
		}
	}
	return out
}

// covers reports whether q contains all of p.
func covers(q, p netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) }

func family(v6 bool) string {
	if v6 {
		return "ip6"
	}
	return "ip"
}

func hexMark(m uint32) string { return fmt.Sprintf("0x%08x", m) }

func quote(s string) string { return `"` + s + `"` }
