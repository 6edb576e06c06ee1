package stream

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/divert"
)

func TestReasonsAreNumbered(t *testing.T) {
	all := Reasons()
	for i, r := range all {
		if int(r.Reason) != i+1 || r.Why == "" || r.Advice == "" {
			t.Errorf("entry %d: %+v", i, r)
		}
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if row := fmt.Sprintf("\n| %d | %s | %s |\n", r.Reason, r.Why, r.Advice); !strings.Contains(string(readme), row) {
			t.Errorf("the README does not have %s", row)
		}
	}
	if last := all[len(all)-1].Reason; last != OutOfResources {
		t.Errorf("the last one explained is %d", last)
	}
}

// TestPacketFlow holds which tracked connections cross a link, and the reason
// why each is packets.
func TestPacketFlow(t *testing.T) {
	p := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	ports := func(n uint16) []config.PortRange { return []config.PortRange{{First: n, Last: n}} }
	pol := newPolicy(&config.Config{
		Peers: []config.Peer{{Name: "dc2", Subnets: p("10.2.0.0/24")}, {Name: "wg", Subnets: p("10.9.0.0/24"), Stock: true}},
		Streams: []config.StreamRule{
			{Peer: "dc2", To: p("10.2.0.0/24"), Ports: ports(4000)},
			{Peer: "dc2", To: p("10.2.0.0/24"), Ports: ports(5000), Optimize: config.Off},
		},
		Workloads: []config.Workload{{Name: "vm", IP: netip.MustParseAddr("10.1.0.50")}},
		Services:  []config.Service{{Name: "app", Workload: "vm", At: map[string]netip.AddrPort{"dc2": netip.MustParseAddrPort("10.2.0.80:80")}}},
	})
	for _, c := range []struct {
		name     string
		proto    uint8
		src, dst string
		bound    string
		why      Reason
		peer     string // empty: crosses no link
		side     string
		want     Reason
		at       string // if not dst
		mark     uint32
	}{
		{"a datagram", 17, "10.1.0.10:5", "10.2.0.10:4000", "", 0, "dc2", "near", NotTCP, "", 0},
		{"no rule", 6, "10.1.0.10:5", "10.2.0.10:80", "", 0, "dc2", "near", NoStreamRule, "", 0},
		{"rule is off", 6, "10.1.0.10:5", "10.2.0.10:5000", "", 0, "dc2", "near", RuleOff, "", 0},
		{"remembered", 6, "10.1.0.10:5", "10.2.0.10:4000", "", NoDialRule, "dc2", "near", NoDialRule, "", 0},
		{"not remembered", 6, "10.1.0.10:5", "10.2.0.10:4000", "", 0, "dc2", "near", BegunEarlier, "", 0},
		{"from there", 6, "10.2.0.10:5", "10.1.0.10:4000", "", 0, "dc2", "far", BegunThere, "", 0},
		{"a service's address", 6, "10.1.0.10:5", "10.2.0.80:80", "", 0, "dc2", "near", Mobile, "", 0},
		{"a workload that has moved", 6, "10.1.0.10:5", "10.1.0.50:80", "dc2", 0, "dc2", "near", Mobile, "", config.MarkAnchored},
		{"a workload that came", 6, "192.0.2.1:5", "10.1.0.50:80", "dc2", 0, "dc2", "far", Mobile, "", 0},
		{"a service here, its workload there", 6, "192.0.2.1:5", "10.1.0.80:80", "", 0, "dc2", "near", NoStreamRule, "10.2.0.10:80", 0},
		{"a workload that has not", 6, "10.1.0.10:5", "10.1.0.50:80", "", 0, "", "", 0, "", 0},
		{"plain WireGuard", 6, "10.1.0.10:5", "10.9.0.1:22", "", 0, "wg", "near", NotAgent, "", 0},
		{"from plain WireGuard", 6, "10.9.0.1:5", "10.1.0.10:22", "", 0, "wg", "far", NotAgent, "", 0},
		{"not ours", 6, "10.1.0.10:5", "192.0.2.1:443", "", 0, "", "", 0, "", 0},
	} {
		at := netip.MustParseAddrPort(cmp.Or(c.at, c.dst))
		f, ok := pol.packetFlow(Tracked{Proto: c.proto, Src: netip.MustParseAddrPort(c.src), Dst: netip.MustParseAddrPort(c.dst), At: at, Mark: c.mark, BytesOut: 7, BytesIn: 9}, c.bound, c.why, pol.site)
		if ok != (c.peer != "") {
			t.Errorf("%s: crosses %v", c.name, ok)
			continue
		}
		if ok && (f.Peer != c.peer || f.Side != c.side || f.Reason != c.want || f.Carried != "packets") {
			t.Errorf("%s: %+v", c.name, f)
		}
		if out := map[string]int64{"near": 7, "far": 9}[f.Side]; ok && (f.BytesOut != out || f.BytesIn != 16-out) {
			t.Errorf("%s: %d bytes out, %d in", c.name, f.BytesOut, f.BytesIn)
		}
	}
}

// TestPassings: why the latest SYNs were passed is known, and no more than the
// bound.
func TestPassings(t *testing.T) {
	var p passings
	at := func(i int) tuple {
		return tuple{src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1)}
	}
	for i := range 3 * maxKnown {
		p.note(at(i), PeerFailed)
		p.note(at(i), NoDialRule)
	}
	if len(p.known) != maxKnown || p.known[at(3*maxKnown-1)] != NoDialRule || p.known[at(2*maxKnown)] != NoDialRule || p.known[at(2*maxKnown-1)] != 0 {
		t.Errorf("%d known", len(p.known))
	}
}

// TestPassedFrames: what passed within a segment is listed for a while, with its
// latest reason, and not when it is a stream; the memory is bounded.
func TestPassedFrames(t *testing.T) {
	at := func(i int) tuple {
		return tuple{src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 1), segment: 100}
	}
	var p passedFrames
	now := time.Now()
	p.note("dc2", at(1), Tagged, now.Add(-frameLife))
	p.note("dc2", at(2), Tagged, now)
	p.note("dc2", at(2), Mobile, now)
	p.note("dc2", at(3), Mobile, now)
	list := p.flows(map[tuple]bool{at(3): true}, now)
	if len(list) != 1 || list[0].Src != at(2).src || list[0].Reason != Mobile || list[0].Segment != 100 || list[0].Carried != "packets" {
		t.Errorf("%+v", list)
	}
	for i := range maxPassedFrames + 10 {
		p.note("dc2", at(i), Mobile, now)
	}
	if n := len(p.known); n != maxPassedFrames {
		t.Errorf("%d are remembered", n)
	}
}

// TestWhyFrames holds the reasons for connections within a segment.
func TestWhyFrames(t *testing.T) {
	all := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}
	ports := func(n uint16) []config.PortRange { return []config.PortRange{{First: n, Last: n}} }
	pol := newPolicy(&config.Config{
		Streams: []config.StreamRule{
			{Peer: "dc2", Segment: 100, To: all, Ports: ports(1)},
			{Peer: "dc2", Segment: 100, To: all, Ports: ports(2), Optimize: config.Off},
		},
		Workloads: []config.Workload{{IP: netip.MustParseAddr("10.1.0.50")}},
	})
	for _, c := range []struct {
		src, dst string
		why      byte
		want     Reason
	}{
		{"10.1.0.11:9", "10.1.0.12:1", divert.PassedTagged, Tagged},
		{"10.1.0.50:9", "10.1.0.12:1", divert.PassedByRule, Mobile},
		{"10.1.0.11:9", "10.1.0.50:1", divert.PassedByRule, Mobile},
		{"10.1.0.11:9", "10.1.0.12:2", divert.PassedByRule, RuleOff},
		{"10.1.0.11:9", "10.1.0.12:1", divert.PassedCrowded, TooManyHeld},
		{"10.9.0.11:9", "10.1.0.12:1", divert.PassedByRule, NotNeighbours},
	} {
		tu := tuple{src: netip.MustParseAddrPort(c.src), dst: netip.MustParseAddrPort(c.dst), segment: 100}
		if got := pol.whyFrames("dc2", tu, c.why); got != c.want {
			t.Errorf("%s to %s, %d: %d, want %d", c.src, c.dst, c.why, got, c.want)
		}
	}
}
