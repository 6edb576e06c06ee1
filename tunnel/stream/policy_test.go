package stream

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"stitch/tunnel/config"
)

func testPolicy() *policy {
	p := netip.MustParsePrefix
	return newPolicy(&config.Config{
		Peers: []config.Peer{{Name: "dc2", Subnets: []netip.Prefix{p("10.2.0.0/24"), p("fd00:2::/64")}}, {Name: "dc3", Subnets: []netip.Prefix{p("10.3.0.0/24")}}},
		Streams: []config.StreamRule{
			{Peer: "dc3", To: []netip.Prefix{p("10.2.0.9/32")}, Ports: []config.PortRange{{First: 22, Last: 22}}},
			{Peer: "dc2", To: []netip.Prefix{p("10.2.0.0/24")}, Ports: []config.PortRange{{First: 22, Last: 22}, {First: 4000, Last: 5999}}},
			{Peer: "dc2", To: []netip.Prefix{p("fd00:2::/64")}, Ports: []config.PortRange{{First: 1, Last: 65535}}},
		},
		Dials: []config.DialRule{
			{Peer: "dc2", To: []netip.Prefix{p("0.0.0.0/0"), p("::/0")}, Ports: []config.PortRange{{First: 4000, Last: 5999}}},
			{Peer: "dc3", To: []netip.Prefix{p("10.1.0.10/32")}, Ports: []config.PortRange{{First: 22, Last: 22}}},
		},
		Workloads: []config.Workload{{IP: netip.MustParseAddr("10.2.0.50")}},
		Services:  []config.Service{{At: map[string]netip.AddrPort{"dc2": netip.MustParseAddrPort("10.2.0.60:443")}}},
	})
}

func TestRule(t *testing.T) {
	p := testPolicy()
	for _, c := range []struct{ src, dst, peer string }{
		{"10.1.0.10:1", "10.2.0.10:22", "dc2"},
		{"10.1.0.10:1", "10.2.0.9:22", "dc3"}, // the first rule counts
		{"10.1.0.10:1", "10.2.0.9:4000", "dc2"},
		{"10.1.0.10:1", "10.2.0.10:5999", "dc2"},
		{"10.1.0.10:1", "10.2.0.10:6000", ""},
		{"10.1.0.10:1", "10.2.1.10:22", ""},
		{"10.1.0.10:1", "10.2.0.50:22", ""}, // a workload
		{"10.2.0.50:1", "10.2.0.10:22", ""},
		{"10.1.0.10:1", "10.2.0.60:22", ""}, // a service
		{"[fd00:1::1]:1", "[fd00:2::1]:65535", "dc2"},
	} {
		r, ok := p.rule(tuple{src: netip.MustParseAddrPort(c.src), dst: netip.MustParseAddrPort(c.dst)})
		if ok != (c.peer != "") || r.Peer != c.peer {
			t.Errorf("%s -> %s: %q, %v", c.src, c.dst, r.Peer, ok)
		}
	}
}

func TestMayDial(t *testing.T) {
	p := testPolicy()
	for _, c := range []struct {
		peer, src, dst string
		want           bool
	}{
		{"dc2", "10.2.0.10:40000", "10.1.0.10:4000", true},
		{"dc2", "[fd00:2::1]:40000", "[fd00:1::1]:4000", true},
		{"dc2", "10.2.0.10:40000", "10.1.0.10:80", false},
		{"dc3", "10.3.0.10:40000", "10.1.0.10:4000", false}, // dc2's rule
		{"dc3", "10.3.0.10:40000", "10.1.0.10:22", true},
		{"dc4", "10.3.0.10:40000", "10.1.0.10:22", false},
		{"dc2", "10.3.0.10:40000", "10.1.0.10:4000", false}, // not a host of dc2
		{"dc2", "10.1.0.99:40000", "10.1.0.10:4000", false},
		{"dc2", "10.2.0.10:0", "10.1.0.10:4000", false},
		{"dc2", "10.2.0.50:40000", "10.1.0.10:4000", false}, // workloads
		{"dc2", "10.2.0.10:40000", "10.2.0.50:4000", false},
		{"dc2", "10.2.0.10:40000", "127.0.0.1:4000", false},
		{"dc2", "10.2.0.10:40000", "169.254.169.254:4000", false},
		{"dc2", "10.2.0.10:40000", "0.0.0.0:4000", false},
		{"dc2", "10.2.0.10:40000", "224.0.0.1:4000", false},
		{"dc2", "10.2.0.10:40000", "255.255.255.255:4000", false},
		{"dc2", "[fd00:2::1]:40000", "[::1]:4000", false},
		{"dc2", "[fd00:2::1]:40000", "[fe80::1]:4000", false},
		{"dc2", "[fd00:2::1]:40000", "[ff02::1]:4000", false},
		{"dc2", "10.2.0.10:40000", "[fd00:1::1]:4000", false},
	} {
		k := tuple{src: netip.MustParseAddrPort(c.src), dst: netip.MustParseAddrPort(c.dst)}
		if got := p.mayDial(c.peer, "", k); (got == 0) != c.want || !c.want && got != Denied {
			t.Errorf("%s: %s -> %s: %v", c.peer, c.src, c.dst, got)
		}
		if got := p.mayDial(c.peer, "other", k); c.want != (got == Mismatch) {
			t.Errorf("%s: %s -> %s in another domain: %v", c.peer, c.src, c.dst, got)
		}
	}
}

func TestDomains(t *testing.T) {
	p := newPolicy(&config.Config{
		Domains: []config.Domain{{Name: "a"}, {Name: "b", ManyTenants: true}},
		Streams: []config.StreamRule{
			{Peer: "dc2", Domain: "b"}, {Peer: "dc2", Domain: "b"}, {Peer: "dc3", Domain: "a"},
			{Peer: "dc2", Optimize: config.Off}, {Peer: "dc4", Optimize: config.Compress},
		},
		Dials: []config.DialRule{{Peer: "dc2", Domain: "a"}, {Peer: "dc2", Domain: "b"}, {Peer: "dc3"}},
	})
	for peer, want := range map[string][]use{
		"dc2": {{"b", true, true}, {"a", false, false}},
		"dc3": {{"a", false, true}, {"", false, false}},
		"dc4": {{"", false, true}},
		"dc5": nil,
	} {
		if got := p.domains(peer); !slices.Equal(got, want) {
			t.Errorf("%s: %+v, want %+v", peer, got, want)
		}
	}
}

func TestGate(t *testing.T) {
	const most, low = 320, 310
	g := gate{max: most}
	enter := func() bool {
		why, _ := g.enter(t0)
		return why == 0
	}
	for n := range most {
		if !enter() {
			t.Fatal("closed at", n)
		}
	}
	for i, want := range []bool{true, false, true} {
		if why, tell := g.enter(t0.Add(time.Duration(i) * warnEvery / 2)); why != TooManyStreams || tell != want {
			t.Errorf("above the maximum, %d: %v, tell %v", i, why, tell)
		}
	}
	var s Stats
	if g.stats(&s, t0); s.Admitted != most || s.Full != 3 {
		t.Errorf("%d in, %d turned away", s.Admitted, s.Full)
	}
	for n := most; n > low; n-- {
		g.leave()
		if open := enter(); open != (n-1 < low) {
			t.Fatalf("with %d streams open: %v", n-1, open)
		} else if open {
			g.leave()
		}
	}
	g.leave()
	if !enter() {
		t.Error("still closed below the low mark")
	}
}

// TestHistoryConfig holds where histories lie, and that no two stores share a
// key or a directory.
func TestHistoryConfig(t *testing.T) {
	c := config.History{Size: 8 << 30, Memory: 1 << 30, Dir: "/var/lib/stitch/dc1", Key: config.Key{1}}
	if got := historyConfig(c, "dc2", ""); got.Dir != "" || got.Key != nil || got.Size != maxPrivate {
		t.Errorf("streams by themselves: %+v", got)
	}
	dirs, keys := map[string]bool{}, map[string]bool{}
	for _, peer := range []string{"dc2", "dc3"} {
		for _, name := range []string{"a", "b"} {
			got := historyConfig(c, peer, name)
			if got.Size != c.Size || got.Memory != c.Memory || len(got.Key) != 32 || got.Dir != "/var/lib/stitch/dc1/"+peer+"/"+name {
				t.Errorf("%s, %s: %+v", peer, name, got)
			}
			dirs[got.Dir], keys[string(got.Key)] = true, true
		}
	}
	if len(dirs) != 4 || len(keys) != 4 {
		t.Errorf("%d directories and %d keys for four stores", len(dirs), len(keys))
	}
	c.Key = config.Key{}
	if got := historyConfig(c, "dc2", "a"); got.Key != nil || got.Dir == "" {
		t.Errorf("without a key: %+v", got)
	}
	c.Dir = ""
	if got := historyConfig(c, "dc2", "a"); got.Dir != "" || got.Size != c.Size {
		t.Errorf("without a directory: %+v", got)
	}
}

// TestSegmentRules holds which connections within a segment are split, and where a
// peer may have us connect: never another's, a routed rule's, a workload's, or the
// gateway's.
func TestSegmentRules(t *testing.T) {
	p := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	ports := func(n uint16) []config.PortRange { return []config.PortRange{{First: n, Last: n}} }
	segment := func(id uint16, subnet, gateway string) config.Segment {
		return config.Segment{ID: id, Subnet: netip.MustParsePrefix(subnet), Gateway: netip.MustParseAddr(gateway)}
	}
	cfg := &config.Config{
		Segments: []config.Segment{segment(100, "10.1.0.0/24", "10.1.0.1"), segment(200, "10.5.0.0/24", "10.5.0.1")},
		Streams: []config.StreamRule{
			{Peer: "dc2", To: p("10.1.0.0/24"), Ports: ports(22)}, // routed
			{Peer: "dc2", Segment: 100, To: p("10.1.0.77/32"), Ports: ports(4000), Optimize: config.Off},
			{Peer: "dc3", Segment: 100, To: p("10.1.0.0/24"), Ports: ports(4000)},
			{Peer: "dc2", Segment: 100, To: append(p("10.1.0.0/24"), p("fd00:1::/48")...), Ports: ports(4000)},
		},
		Dials: []config.DialRule{
			{Peer: "dc2", Segment: 100, To: append(p("10.1.0.0/24"), p("fd00:1::/48")...), Ports: ports(4000)},
			{Peer: "dc2", To: p("10.1.0.0/24"), Ports: ports(22)},
		},
		Peers:     []config.Peer{{Name: "dc2", Subnets: p("10.2.0.0/24")}},
		Workloads: []config.Workload{{IP: netip.MustParseAddr("10.1.0.50")}},
	}
	s := NewSelector(cfg)
	pol := newPolicy(cfg)
	for _, c := range []struct {
		segment        uint16
		peer, src, dst string
		split, mayDial bool
	}{
		{100, "dc2", "10.1.0.11:5", "10.1.0.12:4000", true, true},
		{100, "dc2", "[fd00:1::11]:5", "[fd00:1::12]:4000", true, true},
		{100, "dc3", "10.1.0.11:5", "10.1.0.12:4000", true, false}, // its own rule; it may dial nowhere
		{100, "dc4", "10.1.0.11:5", "10.1.0.12:4000", false, false},
		{200, "dc2", "10.1.0.11:5", "10.1.0.12:4000", false, false},
		{300, "dc2", "10.1.0.11:5", "10.1.0.12:4000", false, false},
		{100, "dc2", "10.1.0.11:5", "10.1.0.77:4000", false, true},            // optimize = off
		{100, "dc2", "10.1.0.11:5", "10.1.0.12:22", false, false},             // the routed rule's port
		{100, "dc2", "10.1.0.11:5", "10.1.0.50:4000", false, false},           // a workload
		{100, "dc2", "10.1.0.50:5", "10.1.0.12:4000", false, false},           // begun by one
		{100, "dc2", "10.1.0.1:5", "10.1.0.12:4000", false, false},            // the gateway
		{100, "dc2", "10.1.0.11:5", "10.1.0.1:4000", false, false},            //
		{100, "dc2", "10.2.0.11:5", "10.1.0.12:4000", false, false},           // routed by some host of the LAN
		{100, "dc2", "10.1.0.12:5", "10.1.0.12:4000", false, false},           // itself
		{100, "dc2", "[fd00:1::11]:5", "[fd00:1:0:1::12]:4000", false, false}, // another /64
		{100, "dc2", "[fe80::11]:5", "[fe80::12]:4000", false, false},
		{100, "dc2", "10.1.0.11:5", "[fd00:1::12]:4000", false, false},
		{0, "dc2", "10.1.0.11:5", "10.1.0.12:4000", false, false},
	} {
		src, dst := netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst)
		if _, got := s.Choose(c.segment, c.peer, src, dst); got != c.split {
			t.Errorf("segment %d, %s: %s -> %s: split %v", c.segment, c.peer, c.src, c.dst, got)
		}
		k := tuple{src: src, dst: dst, segment: c.segment}
		if got := pol.mayDial(c.peer, "", k); (got == 0) != c.mayDial {
			t.Errorf("segment %d, %s: dial %s -> %s: %v", c.segment, c.peer, c.src, c.dst, got)
		}
	}
	if r, ok := pol.rule(tuple{src: netip.MustParseAddrPort("10.9.0.1:5"), dst: netip.MustParseAddrPort("10.1.0.12:22")}); !ok || r.Segment != 0 {
		t.Errorf("a routed connection meets %+v, %v", r, ok)
	}
}

// TestClass: the rule of the side that sends counts, for streams by where they were
// begun, for packets by where they go or else where they come from.
func TestClass(t *testing.T) {
	ports, pfx := []config.PortRange{{First: 1, Last: 99}}, netip.MustParsePrefix
	p := newPolicy(&config.Config{
		Classes: []config.Class{{}, {Name: "a"}, {Name: "b"}},
		Streams: []config.StreamRule{
			{Peer: "dc2", To: []netip.Prefix{pfx("10.2.0.9/32")}, Ports: ports},
			{Peer: "dc2", To: []netip.Prefix{pfx("10.2.0.0/24")}, Ports: ports, Class: 1, Mark: 7},
			{Peer: "dc2", Segment: 5, To: []netip.Prefix{pfx("10.1.0.0/24")}, Ports: ports, Class: 2, Mark: 4},
		},
		Dials: []config.DialRule{{Peer: "dc2", To: []netip.Prefix{pfx("10.1.0.0/24")}, Ports: ports, Class: 2, Mark: 3}},
	})
	for _, c := range []struct {
		peer     string
		segment  uint16
		near     bool
		src, dst string
		mark     int
		class    string // as packets from here
	}{
		{"dc2", 0, true, "10.1.0.1:500", "10.2.0.1:22", 7, "a"},
		{"dc2", 0, true, "10.1.0.1:22", "10.2.0.1:22", 7, "a"},
		{"dc2", 0, true, "10.1.0.1:500", "10.2.0.1:100", 0, ""},
		{"dc2", 0, true, "10.1.0.1:500", "10.2.0.9:22", 0, ""},
		{"dc2", 0, false, "10.2.0.1:500", "10.1.0.1:22", 3, ""},
		{"dc2", 0, true, "10.1.0.1:22", "10.2.0.1:500", 0, "b"},
		{"dc3", 0, false, "10.3.0.1:500", "10.1.0.1:22", 0, ""},
		{"dc2", 0, false, "10.1.0.1:500", "10.2.0.1:22", 0, "a"},
		{"dc2", 5, true, "10.1.0.1:500", "10.1.0.2:22", 4, "b"},
		{"dc3", 5, true, "10.1.0.1:500", "10.1.0.2:22", 0, ""},
	} {
		src, dst := netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst)
		if got := p.mark(c.peer, c.near, tuple{src: src, dst: dst, segment: c.segment}); got != c.mark {
			t.Errorf("%+v: mark %d", c, got)
		}
		if got := p.className(p.class(c.peer, c.segment, src, dst)); got != c.class {
			t.Errorf("%+v: class %q", c, got)
		}
	}
}
