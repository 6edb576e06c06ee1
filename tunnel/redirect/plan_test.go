package redirect

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"stitch/tunnel/config"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func ip(s string) netip.Addr    { return netip.MustParseAddr(s) }

func mac(s string) config.MAC {
	m, err := config.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

// siteConfig is the picture of the design page seen from one site: the segment
// 10.1.0.0/24 is at home at dc1 and stretched to dc2.
func siteConfig(site string) *config.Config {
	subnets := map[string][]netip.Prefix{
		"dc1": {pfx("10.1.0.0/24"), pfx("10.1.1.0/24"), pfx("fd00:1::/64")},
		"dc2": {pfx("10.2.0.0/24"), pfx("fd00:2::/64")},
	}
	peer, bridge := "dc2", "br-lan"
	if site == "dc2" {
		peer, bridge = "dc1", "br-app"
	}
	return &config.Config{
		Site: site, Subnets: subnets[site],
		Peers: []config.Peer{{Name: peer, ListenPort: 51820, Subnets: subnets[peer]}},
		Segments: []config.Segment{{
			ID: 100, Bridge: bridge, Subnet: pfx("10.1.0.0/24"), Gateway: ip("10.1.0.1"),
			GatewayMAC: mac("02:53:54:00:01:00"), Home: "dc1", Peers: []string{peer},
		}},
		Streams: []config.StreamRule{
			{Peer: peer, To: []netip.Prefix{pfx("10.2.0.99/32")}, Ports: []config.PortRange{{First: 4000, Last: 4000}}, Optimize: config.Off},
			{Peer: peer, To: []netip.Prefix{subnets[peer][0]}, Ports: []config.PortRange{{First: 4000, Last: 5999}, {First: 22, Last: 22}}, Handshake: config.Faithful},
			{Peer: peer, To: []netip.Prefix{subnets[peer][0], pfx("fd00:9::/64")}, Ports: []config.PortRange{{First: 8000, Last: 8010}, {First: 8005, Last: 8020}}, Handshake: config.Early},
		},
		Workloads: []config.Workload{
			{Name: "app", MAC: mac("52:54:00:00:00:50"), IP: ip("10.1.0.50"), Site: "dc1", Segment: 100},
			{Name: "app6", MAC: mac("52:54:00:00:00:50"), IP: ip("fd00:1::50"), Site: "dc1", Segment: 100},
			{Name: "s2", MAC: mac("52:54:00:00:00:12"), IP: ip("10.1.0.12"), Site: "dc2", Segment: 100},
		},
		Services: []config.Service{{Name: "www.app.example", Workload: "app", Port: 443, At: map[string]netip.AddrPort{
			"dc1": netip.MustParseAddrPort("203.0.113.10:443"), "dc2": netip.MustParseAddrPort("198.51.100.20:443"),
		}}},
	}
}

func siteLinks(site string) Links {
	a, b := ip("169.254.7.1"), ip("169.254.7.2")
	if site == "dc2" {
		return Links{"dc1": {Number: 1, Device: "st-dc1", Local: b, Remote: a, InnerMTU: 1440}}
	}
	return Links{"dc2": {Number: 1, Device: "st-dc2", Local: a, Remote: b, InnerMTU: 1440}}
}

var planCases = []struct {
	name    string
	site    string
	owners  []Owner
	streams bool
}{
	{"dc1-before", "dc1", nil, true},
	{"dc1-moved", "dc1", []Owner{{Workload: "app", Site: "dc2", Previous: "dc1", Seq: 1, Fresh: true}}, false},
	{"dc2-before", "dc2", nil, false},
	{"dc2-moved", "dc2", []Owner{{Workload: "app", Site: "dc2", Previous: "dc1", Seq: 1, Fresh: true}}, false},
	{"dc2-settled", "dc2", []Owner{{Workload: "app", Site: "dc2", Previous: "dc1", Seq: 1}}, false},
}

// describe prints a plan for the golden files.
func describe(d Desired) string {
	var b strings.Builder
	for _, r := range d.Routes {
		fmt.Fprintf(&b, "# route %+v\n", r)
	}
	for _, r := range d.Rules {
		fmt.Fprintf(&b, "# rule %+v\n", r)
	}
	for _, x := range []any{d.Addrs, d.Neighs, d.MACs, d.Sysctls, d.SourceIn, d.SourceNot} {
		fmt.Fprintf(&b, "# %+v\n", x)
	}
	return b.String() + d.Nft
}

func TestPlanGolden(t *testing.T) {
	for _, c := range planCases {
		t.Run(c.name, func(t *testing.T) {
			got := describe(Plan(siteConfig(c.site), siteLinks(c.site), c.owners, c.streams))
			name := filepath.Join("testdata", c.name+".nft")
			if *update {
				if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("plan differs from %s: run with -update and read the diff\n%s", name, got)
			}
			checkNft(t, name)
		})
	}
}

// checkNft has nft itself read the file, in a network namespace of its own.
func checkNft(t *testing.T, name string) {
	if os.Getuid() != 0 {
		t.Log("nft -c needs root: text compared only")
		return
	}
	out, err := exec.Command("unshare", "-n", "nft", "-c", "-f", name).CombinedOutput()
	if err != nil {
		t.Errorf("nft -c: %v\n%s", err, out)
	}
}

// A move must not change the text at the new site: its first packets are
// anchored before anybody has heard of the move.
func TestArrivalChangesRoutesOnly(t *testing.T) {
	moved := []Owner{{Workload: "app", Site: "dc2", Previous: "dc1", Seq: 1, Fresh: true}}
	before := Plan(siteConfig("dc2"), siteLinks("dc2"), nil, true)
	after := Plan(siteConfig("dc2"), siteLinks("dc2"), moved, true)
	if before.Nft != after.Nft {
		t.Error("the nft text of the new site changed with the arrival")
	}
	want := Route{Dst: pfx("10.1.0.50/32"), Device: "br-app"}
	if !slices.Contains(after.Routes, want) || slices.Contains(before.Routes, want) {
		t.Errorf("no route of its own after the arrival: %+v", after.Routes)
	}
}

func TestPlanWithoutLinksKeepsGuards(t *testing.T) {
	d := Plan(siteConfig("dc2"), nil, nil, true)
	for _, dst := range []string{"10.1.0.0/24", "10.1.1.0/24", "fd00:1::/64"} {
		want := Route{Dst: pfx(dst), Kind: RouteUnreachable, Metric: guardMetric, Guard: true}
		if !slices.Contains(d.Routes, want) {
			t.Errorf("no guard for %s", dst)
		}
	}
}

func TestCheckNames(t *testing.T) {
	for _, c := range []struct {
		bridge, device string
		number         int
		ok             bool
	}{
		{"br-lan", "st-dc2", 1, true},
		{"br.100", "st-a_b", 255, true},
		{`br"; drop`, "st-dc2", 1, false},
		{"br-lan", "st-*", 1, false},
		{"br-lan", "st-dc2", 0, false},
		{"br-lan", "st-dc2", 256, false},
		{"br-lan", config.HoldDevice, 1, false},
		{"", "st-dc2", 1, false},
		{"sixteen-letters-", "st-dc2", 1, false},
	} {
		cfg := &config.Config{Segments: []config.Segment{{ID: 1, Bridge: c.bridge}}}
		err := checkNames(cfg, Links{"x": {Number: c.number, Device: c.device}})
		if (err == nil) != c.ok {
			t.Errorf("bridge %q device %q number %d: %v", c.bridge, c.device, c.number, err)
		}
	}
}

func TestPortsMerge(t *testing.T) {
	for _, c := range []struct {
		in   []config.PortRange
		want string
	}{
		{[]config.PortRange{{First: 22, Last: 22}}, "22"},
		{[]config.PortRange{{First: 10, Last: 20}, {First: 1, Last: 5}}, "1-5, 10-20"},
		{[]config.PortRange{{First: 10, Last: 20}, {First: 15, Last: 30}, {First: 31, Last: 31}}, "10-31"},
		{[]config.PortRange{{First: 65535, Last: 65535}, {First: 1, Last: 65535}}, "1-65535"},
	} {
		if got := ports(c.in); got != c.want {
			t.Errorf("ports(%v) = %q, want %q", c.in, got, c.want)
		}
	}
}

func TestPrefixesDropCovered(t *testing.T) {
	in := []netip.Prefix{pfx("10.0.0.0/8"), pfx("10.1.0.0/24"), pfx("fd00::/8"), pfx("192.0.2.7/24"), pfx("192.0.2.0/24")}
	if got := prefixes(in, false); !slices.Equal(got, []string{"10.0.0.0/8", "192.0.2.0/24"}) {
		t.Errorf("got %v", got)
	}
}

// TestInitialWindow: 50 ms of a link's rate, within bounds; the kernel's where the
// rate is not known.
func TestInitialWindow(t *testing.T) {
	for rate, want := range map[int64]int{0: 0, 1e6: 10, 100e6: 434, 10e9: 1024} {
		if got := window(rate, 1440); got != want {
			t.Errorf("%d bit/s: %d segments, want %d", rate, got, want)
		}
	}
	cfg := &config.Config{Site: "dc1", Peers: []config.Peer{{Name: "dc2", Rate: 100e6}}}
	var routes []Route
	for _, r := range Plan(cfg, siteLinks("dc1"), nil, false).Routes {
		if r.Window != 0 {
			routes = append(routes, r)
		}
	}
	if len(routes) != 1 || routes[0].Window != 434 || routes[0].Dst.Addr() != siteLinks("dc1")["dc2"].Remote {
		t.Errorf("routes with a window: %+v", routes)
	}
}
