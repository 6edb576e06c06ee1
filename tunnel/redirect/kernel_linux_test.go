package redirect

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"stitch/tunnel/config"
)

// udp opens a UDP socket; from may be any address of the namespace.
func (n *netns) udp(from string) net.PacketConn {
	n.t.Helper()
	var c net.PacketConn
	err := n.do(func() (err error) {
		c, err = net.ListenPacket("udp4", from)
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { c.Close() })
	return c
}

// hears sends text from c to a server until it arrives, and returns the source
// the server sees; "" when it does not arrive in five tries.
func hears(t *testing.T, c, server net.PacketConn, to, text string) string {
	t.Helper()
	addr, err := net.ResolveUDPAddr("udp4", to)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	for range 5 {
		if _, err := c.WriteTo([]byte(text), addr); err != nil {
			return "" // refused on this host already
		}
		server.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				break
			}
			if string(buf[:n]) == text {
				return from.String()
			}
		}
	}
	return ""
}

// UDP of a machine that has just moved keeps its path and so its public
// address, old tuples and new ones.
func TestUDPAnchored(t *testing.T) {
	w := newWorld(t, false)
	server := w.c1.udp("192.0.2.7:9000")
	old := w.vm.udp("10.1.0.50:9001")
	before := hears(t, old, server, "192.0.2.7:9000", "before")
	if !strings.HasPrefix(before, "203.0.113.10:") {
		t.Fatalf("at home the Internet sees %q", before)
	}
	w.move(w.e2, nil)
	if after := hears(t, old, server, "192.0.2.7:9000", "after"); after != before {
		t.Errorf("after the move the Internet sees %q, before %q", after, before)
	}
	reply, err := net.ResolveUDPAddr("udp4", before)
	if err != nil {
		t.Fatal(err)
	}
	server.WriteTo([]byte("answer"), reply)
	old.SetReadDeadline(time.Now().Add(connTimeout))
	if n, _, err := old.ReadFrom(make([]byte, 100)); err != nil || n != 6 {
		t.Errorf("the answer did not come back: %v", err)
	}
	fresh := w.vm.udp("10.1.0.50:9002")
	if got := hears(t, fresh, server, "192.0.2.7:9000", "fresh"); !strings.HasPrefix(got, "203.0.113.10:") {
		t.Errorf("a new tuple right after the move comes from %q", got)
	}
}

// What comes out of a link may only be what the peer may send.
func TestNotAnOpenRelay(t *testing.T) {
	w := newWorld(t, false)
	w.e2.sh(`for a in 10.2.0.99 10.1.1.99 10.1.0.77 192.0.2.99; do ip addr add $a/32 dev lo; done
		ip route add 192.0.2.7/32 dev st-dc1; sysctl -qw net.ipv4.conf.st-dc1.rp_filter=0`)
	db, inet, machine := w.d1.udp("10.1.1.20:9000"), w.c1.udp("192.0.2.7:9000"), w.vm.udp("10.1.0.50:9000")
	edge := w.e1.udp("10.1.1.1:9000")
	servers := map[string]net.PacketConn{"10.1.1.20:9000": db, "192.0.2.7:9000": inet, "10.1.0.50:9000": machine, "10.1.1.1:9000": edge}
	for _, c := range []struct {
		name, from, to string
		ok             bool
	}{
		{"peer's subnet to ours", "10.2.0.99:0", "10.1.1.20:9000", true},
		{"peer's subnet to this edge", "10.2.0.99:0", "10.1.1.1:9000", true},
		{"a machine that may be there to ours", "10.1.0.50:0", "10.1.1.20:9000", true},
		{"anybody to a machine", "192.0.2.99:0", "10.1.0.50:9000", true},
		{"our own address", "10.1.1.99:0", "10.1.1.20:9000", false},
		{"our own address, stretched subnet", "10.1.0.77:0", "10.1.1.20:9000", false},
		{"our own address to a machine", "10.1.1.99:0", "10.1.0.50:9000", false},
		{"stranger to ours", "192.0.2.99:0", "10.1.1.20:9000", false},
		{"stranger to this edge", "192.0.2.99:0", "10.1.1.1:9000", false},
		{"peer's subnet to the Internet", "10.2.0.99:0", "192.0.2.7:9000", false},
		{"machine to the Internet, nothing known here", "10.1.0.50:0", "192.0.2.7:9000", false},
		{"link address into the LAN", "169.254.7.2:0", "10.1.1.20:9000", false},
		{"link address to a machine", "169.254.7.2:0", "10.1.0.50:9000", false},
	} {
		spoofed := strings.HasPrefix(c.from, "10.1.0.50:")
		if spoofed {
			w.e2.sh("ip addr add 10.1.0.50/32 dev lo")
		}
		got := hears(t, w.e2.udp(c.from), servers[c.to], c.to, c.name)
		if (got != "") != c.ok {
			t.Errorf("%s: arrived as %q, allowed %v", c.name, got, c.ok)
		}
		if spoofed {
			w.e2.sh("ip addr del 10.1.0.50/32 dev lo")
		}
	}
}

// Link addresses exist on their link only.
func TestLinkAddressesStayOnTheirLink(t *testing.T) {
	w := newWorld(t, false)
	srv := w.e1.udp("169.254.7.1:9001")
	if got := hears(t, w.e2.udp("169.254.7.2:0"), srv, "169.254.7.1:9001", "udp over the link"); got != "" {
		t.Errorf("a port that is not the agents' is open on the link: %s", got)
	}
	w.e1.sh("ip route del 169.254.7.2")
	w.e1.sh("ip route replace 169.254.7.2 via 203.0.113.1; ip link set st-dc2 down")
	w.c1.sh("nft 'add table ip leak; add chain ip leak c { type filter hook prerouting priority -400; }; add rule ip leak c ip daddr 169.254.0.0/16 counter'")
	out := w.e1.udp("0.0.0.0:0")
	out.WriteTo([]byte("secret"), &net.UDPAddr{IP: net.IPv4(169, 254, 7, 2), Port: 5302})
	if got := w.c1.sh("nft list table ip leak"); !strings.Contains(got, "packets 0") {
		t.Errorf("a packet for the peer's link address left in clear: %s", got)
	}
}

// A packet for a machine that each edge believes to be at the other crosses the
// link twice and no more.
func TestBounceOnce(t *testing.T) {
	w := newWorld(t, false)
	w.stopManagers()
	w.e1.sh("ip route replace 10.1.0.50/32 dev st-dc2 proto 153")
	to, err := net.ResolveUDPAddr("udp4", fmt.Sprintf("10.1.0.50:%d", portHost))
	if err != nil {
		t.Fatal(err)
	}
	w.c1.sh("ip route add 10.1.0.50 via 203.0.113.10")
	if _, err := w.c1.udp("192.0.2.7:0").WriteTo([]byte("where are you?"), to); err != nil {
		t.Fatal(err)
	}
	crossings := func() int { return w.count(w.e1, "link", portHost) + w.count(w.e2, "link", portHost) }
	w.await("the packet at the other edge and back", func() bool { return crossings() >= 2 })
	for range 20 {
		nap() // a third crossing would take microseconds
	}
	if n := crossings(); n != 2 {
		t.Errorf("%d crossings", n)
	}
}

// state is what of ours is in the kernel, as text.
func (n *netns) state() string {
	return n.sh(`nft list tables; ip rule; ip -6 rule; for f in -4 -6; do ip $f route show table all proto 153; done; ip -4 -o addr | grep ':st' || true`)
}

func newKernelNS(t *testing.T) *netns {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	n := newNetns(t, "k")
	n.sh("ip link add br-app type bridge; ip link set br-app up; ip link add st-dc1 type veth peer name peer; ip link set st-dc1 up; ip link set peer up; ip link add wan0 type bridge; ip link set wan0 up; ip addr add 198.51.100.20/24 dev wan0")
	return n
}

func (n *netns) must(f func() error) {
	n.t.Helper()
	if err := n.do(f); err != nil {
		n.t.Fatal(err)
	}
}

// Apply twice changes nothing; another process with another plan removes what
// the first left; Clear leaves the guards, then nothing.
func TestKernelConverges(t *testing.T) {
	n := newKernelNS(t)
	empty := n.state()
	n.sh("ip route add 10.99.0.0/16 dev wan0; nft add table inet other; ip rule add pref 5305 lookup 99")
	foreign := n.state()
	plan := Plan(siteConfig("dc2"), siteLinks("dc2"), nil, true)
	k := NewLinux(nil)
	n.must(func() error { return k.Apply(plan) })
	first := n.state()
	n.must(func() error { return k.Apply(plan) })
	if again := n.state(); again != first {
		t.Errorf("a second Apply changed something:\n%s\n%s", first, again)
	}
	moved := Plan(siteConfig("dc2"), siteLinks("dc2"), []Owner{{Workload: "app", Site: "dc2", Previous: "dc1", Seq: 1}}, false)
	n.must(func() error { return NewLinux(nil).Apply(moved) })
	for _, gone := range []string{"lookup 53300", "table 53301"} {
		if s := n.state(); strings.Contains(s, gone) {
			t.Errorf("%s is left of the first process", gone)
		}
	}
	if s := n.sh("ip route get 10.1.0.50"); !strings.Contains(s, "dev br-app") {
		t.Errorf("the arrived machine is routed %s", s)
	}
	if s := n.sh("ip neigh show dev br-app"); !strings.Contains(s, "10.1.0.50 lladdr 52:54:00:00:00:50 REACHABLE") {
		t.Errorf("neighbours: %s", s)
	}
	if s := n.sh("ip -o link show br-app"); !strings.Contains(s, "02:53:54:00:01:00") {
		t.Errorf("gateway MAC: %s", s)
	}
	n.must(func() error { return NewLinux(nil).Clear(true) })
	n.sh("ip link del st-dc1; ip route add default via 198.51.100.1 dev wan0")
	if out := n.sh("ip route get 10.1.1.20 2>&1 || true"); !strings.Contains(out, "No route to host") {
		t.Errorf("without link and agent the peer's subnet goes %s", out)
	}
	n.must(func() error { return NewLinux(nil).Clear(false) })
	n.sh("ip route del default")
	if s := n.state(); s != foreign {
		t.Errorf("left behind:\n%s\nforeign:\n%s", s, foreign)
	}
	n.sh("ip route del 10.99.0.0/16; nft delete table inet other; ip rule del pref 5305")
	if s := n.state(); s != empty {
		t.Errorf("left behind:\n%s", s)
	}
}

// Devices that are not there yet are an error that the next Apply mends, and
// everything else is done meanwhile; guards come without any device.
func TestKernelMissingDevice(t *testing.T) {
	n := newKernelNS(t)
	n.sh("ip link del st-dc1")
	plan := Plan(siteConfig("dc2"), siteLinks("dc2"), nil, false)
	k := NewLinux(nil)
	n.must(func() error { return k.Guard(plan) })
	if out := n.sh("ip route get 10.1.1.20 2>&1 || true"); !strings.Contains(out, "No route to host") {
		t.Errorf("guarded subnet: %s", out)
	}
	if err := n.do(func() error { return k.Apply(plan) }); err == nil || !strings.Contains(err.Error(), "no device st-dc1 yet") {
		t.Errorf("without the device: %v", err)
	}
	if s := n.sh("nft list tables"); !strings.Contains(s, config.NftTable) {
		t.Error("the nft table waits for a device")
	}
	n.sh("ip link add st-dc1 type veth peer name peer; ip link set st-dc1 up; ip link set peer up")
	n.must(func() error { return k.Apply(plan) })
	if s := n.sh("ip route get 10.1.1.20"); !strings.Contains(s, "dev st-dc1") {
		t.Errorf("with the device: %s", s)
	}
}

// Intact notices what other tools do.
func TestKernelIntact(t *testing.T) {
	n := newKernelNS(t)
	plan := Plan(siteConfig("dc2"), siteLinks("dc2"), nil, true)
	for _, damage := range []string{
		"nft flush ruleset",
		"nft delete table inet stitch; nft add table inet stitch",
		"nft flush chain inet stitch from_1; nft delete chain inet stitch bounce 2>/dev/null || nft flush table inet stitch; nft delete chain inet stitch mangle_out",
		"ip route del unreachable 10.1.1.0/24 metric 4000000",
		"ip route del 10.1.0.50",
		"ip rule del pref 5310",
		"ip link del st-dc1; ip link add st-dc1 type veth peer name peer; ip link set st-dc1 up; ip link set peer up",
	} {
		k := NewLinux(nil)
		n.must(func() error { return k.Apply(plan) })
		intact := func() (ok bool) {
			n.must(func() error { ok = k.Intact(plan); return nil })
			return ok
		}
		if !intact() {
			t.Errorf("before %q: not intact", damage)
		}
		n.sh(damage)
		if intact() {
			t.Errorf("after %q: intact", damage)
		}
		n.must(func() error { return k.Apply(plan) })
		if !intact() {
			t.Errorf("repaired after %q: not intact", damage)
		}
	}
}

func TestKernelNftMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := runNft("table inet x\n"); err == nil || !strings.Contains(err.Error(), "apt-get install nftables") {
		t.Errorf("got %v", err)
	}
}

// The kernel's own source for the peer is never the gateway's address, which
// both edges hold.
func TestOwnSource(t *testing.T) {
	n := newKernelNS(t)
	n.sh("ip addr add 10.2.0.5/24 dev wan0; ip addr add 10.2.0.1/32 dev lo")
	for _, c := range []struct {
		not  []netip.Addr
		want netip.Addr
	}{{nil, ip("10.2.0.1")}, {[]netip.Addr{ip("10.2.0.1")}, ip("10.2.0.5")}, {[]netip.Addr{ip("10.2.0.1"), ip("10.2.0.5")}, netip.Addr{}}} {
		n.must(func() error {
			links, err := readLinks()
			if got := links.ownSource(Desired{SourceIn: []netip.Prefix{pfx("10.2.0.0/24")}, SourceNot: slices.Clone(c.not)}); got != c.want {
				t.Errorf("without %v: %v, want %v", c.not, got, c.want)
			}
			return err
		})
	}
}

// TestKernelWarnings is X-01: what keeps packets from crossing, and is another's to
// change, is said. The control case is a host on which it is right.
func TestKernelWarnings(t *testing.T) {
	n := newKernelNS(t)
	plan := Plan(siteConfig("dc2"), siteLinks("dc2"), nil, true)
	const right = "sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=0 net.ipv4.conf.all.src_valid_mark=0"
	for wrong, want := range map[string]string{
		"true":                             "",
		"sysctl -qw net.ipv4.ip_forward=0": "does not forward IPv4",
		"sysctl -qw net.bridge.bridge-nf-call-iptables=1": "IP firewall",
		"sysctl -qw net.ipv4.conf.all.src_valid_mark=1":   "src_valid_mark",
	} {
		n.sh(right + "; " + wrong)
		n.must(func() error {
			ws := NewLinux(nil).Warnings(plan)
			if want == "" && len(ws) > 0 || want != "" && (len(ws) != 1 || !strings.Contains(ws[0], want)) {
				t.Errorf("%s: %q, want %q", wrong, ws, want)
			}
			return nil
		})
	}
}
