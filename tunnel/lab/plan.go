package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"stitch/tunnel/wan"
)

// Hosts are the lab's hosts; the namespace of each is <name>-<host>. "wan" is
// the emulator's, whose ports e1, e2 and c1 are where captures are taken.
var hosts = [...]string{"c1", "h1", "e1", "wan", "e2", "h2", "s1", "s2", "d1"}

// gatewayMAC is the one gateway MAC of segment 100.
const gatewayMAC = "02:53:54:00:01:00"

// veth is a cable between two hosts.
type veth struct{ host, dev, mac, peer, peerDev, peerMAC string }

// cables of the sites. A MAC's last byte but one tells the site, as addresses do.
var cables = []veth{
	{"h1", "eth0", "02:53:54:01:00:10", "e1", "lan-h1", "02:53:54:11:00:10"},
	{"h1", "eth1", "02:53:54:01:01:10", "e1", "lan-vm1", "02:53:54:11:01:10"},
	{"s1", "eth0", "02:53:54:01:00:11", "e1", "lan-s1", "02:53:54:11:00:11"},
	{"d1", "eth0", "02:53:54:01:01:20", "e1", "db-d1", "02:53:54:11:01:20"},
	{"h2", "eth0", "02:53:54:02:00:10", "e2", "lan-h2", "02:53:54:12:00:10"},
	{"h2", "eth1", "02:53:54:02:01:10", "e2", "app-vm2", "02:53:54:12:01:10"},
	{"s2", "eth0", "02:53:54:01:00:12", "e2", "app-s2", "02:53:54:12:00:12"},
}

// wanCables join the hosts on the WAN to the emulator's namespace.
var wanCables = []veth{
	{"e1", "wan0", "02:53:54:00:00:01", "wan", "e1", "02:53:54:f0:00:01"},
	{"e2", "wan0", "02:53:54:00:00:02", "wan", "e2", "02:53:54:f0:00:02"},
	{"c1", "eth0", "02:53:54:00:00:07", "wan", "c1", "02:53:54:f0:00:07"},
}

// plainCables are wanCables without emulator: the edges side by side, and a
// second device of theirs to a namespace that routes to the client.
var plainCables = []veth{
	{"e1", "wan0", "02:53:54:00:00:01", "e2", "wan0", "02:53:54:00:00:02"},
	{"e1", "wan1", "02:53:54:00:01:01", "wan", "e1", "02:53:54:f0:00:01"},
	{"e2", "wan1", "02:53:54:00:01:02", "wan", "e2", "02:53:54:f0:00:02"},
	{"c1", "eth0", "02:53:54:00:00:07", "wan", "c1", "02:53:54:f0:00:07"},
}

// plan is all that the lab asks of the kernel, as text.
type plan struct {
	cables  []veth
	sysctls map[string][]string // by host, "key=value", before any device exists
	ip      map[string]string   // by host, lines for ip -batch
	nft     map[string]string   // by host
	wire    []veth              // whose ends carry emulated traffic: offloads off
}

// newPlan returns the plan of a lab with or without emulator, whose hosts have
// a congestion control.
func newPlan(emulator bool, congestion string) plan {
	p := plan{cables: append(append([]veth(nil), cables...), plainCables...), sysctls: map[string][]string{},
		ip: map[string]string{}, nft: map[string]string{}}
	if emulator {
		p.cables, p.wire = append(append([]veth(nil), cables...), wanCables...), wanCables
	}
	for _, h := range hosts {
		p.sysctls[h] = sysctls(h, emulator)
		p.ip[h] = "link set lo up\n"
	}
	p.ip["h1"] += host(congestion, "eth0", "10.1.0.10/24", "10.1.0.1", "fd00:1::10/64", "fd00:1::1") + bridge("br-vm", "", "eth1")
	p.ip["h2"] += host(congestion, "eth0", "10.2.0.10/24", "10.2.0.1", "fd00:2::10/64", "fd00:2::1") + bridge("br-vm", "", "eth1")
	p.ip["s1"] += host(congestion, "eth0", "10.1.0.11/24", "10.1.0.1", "fd00:1::11/64", "fd00:1::1")
	p.ip["s2"] += host(congestion, "eth0", "10.1.0.12/24", "10.1.0.1", "fd00:1::12/64", "fd00:1::1")
	p.ip["d1"] += host(congestion, "eth0", "10.1.1.20/24", "10.1.1.1", "fd00:1:1::20/64", "fd00:1:1::1")
	p.ip["c1"] += host(congestion, "eth0", "192.0.2.7/24", "192.0.2.1", "", "")
	p.ip["e1"] += bridge("br-lan", gatewayMAC, "lan-h1", "lan-vm1", "lan-s1") + address("br-lan", "10.1.0.1/24", "fd00:1::1/64") +
		bridge("br-db", "", "db-d1") + address("br-db", "10.1.1.1/24", "fd00:1:1::1/64")
	p.ip["e2"] += bridge("br-lan", "", "lan-h2") + address("br-lan", "10.2.0.1/24", "fd00:2::1/64") +
		bridge("br-app", "", "app-vm2", "app-s2")
	for _, e := range edges {
		p.ip[e.host] += e.underlay(emulator)
		p.nft[e.host] = e.snat()
	}
	p.ip["wan"] += wanSide(emulator)
	return p
}

// edge is what differs between the two edges.
type edge struct {
	host, site, other string
	addr, gateway     string
	otherAddr         string
	bridge            string // of segment 100
	subnets           []string
	fixed             []string // hosts behind it that streams may reach
}

var edges = [...]edge{
	{"e1", "dc1", "e2", "203.0.113.10", "203.0.113.1", "198.51.100.20", "br-lan",
		[]string{"10.1.0.0/24", "10.1.1.0/24"}, []string{"10.1.0.10/32", "10.1.1.0/24"}},
	{"e2", "dc2", "e1", "198.51.100.20", "198.51.100.1", "203.0.113.10", "br-app",
		[]string{"10.2.0.0/24"}, []string{"10.2.0.0/24"}},
}

// underlay gives the edge its public address. Without emulator the other edge
// is a neighbour on wan0, and wan1 leads to everybody else.
func (e edge) underlay(emulator bool) string {
	if emulator {
		return address("wan0", e.addr+"/24") + fmt.Sprintf("route add default via %s dev wan0\n", e.gateway)
	}
	return address("wan0", e.addr+"/32") + address("wan1", e.addr+"/24") +
		fmt.Sprintf("route add %s/32 dev wan0 scope link src %s\n", e.otherAddr, e.addr) +
		fmt.Sprintf("route add default via %s dev wan1\n", e.gateway)
}

// snat gives the site's hosts the Internet, in a table of the lab's own.
func (e edge) snat() string {
	return fmt.Sprintf(`table ip stitch_lab {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.0.0.0/8 oifname { "wan0", "wan1" } snat to %s
	}
}
`, e.addr)
}

// wanSide is the emulator's namespace: ports without addresses, or the router
// that stands in for it.
func wanSide(emulator bool) string {
	if emulator {
		return address("e1") + address("e2") + address("c1")
	}
	return address("e1", "203.0.113.1/24") + address("e2", "198.51.100.1/24") + address("c1", "192.0.2.1/24")
}

// sysctls of a host, set before it has any device.
func sysctls(host string, emulator bool) []string {
	s := []string{"net/ipv6/conf/default/accept_dad=0", "net/ipv6/conf/all/accept_dad=0",
		"net/ipv6/conf/default/accept_ra=0", "net/ipv4/conf/all/rp_filter=0", "net/ipv4/conf/default/rp_filter=0",
		"net/bridge/bridge-nf-call-iptables=0", "net/bridge/bridge-nf-call-ip6tables=0", "net/bridge/bridge-nf-call-arptables=0"}
	switch {
	case host == "h1" || host == "h2":
		// Two devices on one LAN: each answers for its own address only, so that
		// a neighbour never learns a MAC that this host does not send from.
		return append(s, "net/ipv4/conf/all/arp_ignore=1", "net/ipv4/conf/all/arp_announce=2")
	case host == "e1" || host == "e2":
		return append(s, "net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1")
	case host == "wan" && emulator:
		return append(s, "net/ipv6/conf/default/disable_ipv6=1", "net/ipv6/conf/all/disable_ipv6=1")
	case host == "wan":
		return append(s, "net/ipv4/ip_forward=1")
	}
	return s
}

// host returns the lines that give a host one device with addresses and
// routes; all its IPv4 connections use that congestion control.
func host(congestion, dev, addr, gateway, addr6, gateway6 string) string {
	p := netip.MustParsePrefix(addr)
	s := address(dev, addr, addr6) +
		fmt.Sprintf("route replace %s dev %s proto kernel scope link src %s congctl %s\n", p.Masked(), dev, p.Addr(), congestion) +
		fmt.Sprintf("route add default via %s dev %s congctl %s\n", gateway, dev, congestion)
	if gateway6 != "" {
		s += fmt.Sprintf("route add ::/0 via %s dev %s congctl %s\n", gateway6, dev, congestion)
	}
	return s
}

// address returns the lines that bring dev up with addresses; empty ones are
// left out.
func address(dev string, addrs ...string) string {
	s := fmt.Sprintf("link set %s up\n", dev)
	for _, a := range addrs {
		switch {
		case strings.Contains(a, ":"):
			s += fmt.Sprintf("address add %s dev %s nodad\n", a, dev)
		case a != "":
			s += fmt.Sprintf("address add %s dev %s\n", a, dev)
		}
	}
	return s
}

// bridge returns the lines that make a bridge with ports.
func bridge(name, mac string, ports ...string) string {
	if mac != "" {
		mac = "address " + mac + " "
	}
	s := fmt.Sprintf("link add %s %stype bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set %s up\n", name, mac, name)
	for _, p := range ports {
		s += fmt.Sprintf("link set %s master %s up\n", p, name)
	}
	return s
}

// cableLines are the lines for one ip -batch outside all namespaces.
func (p plan) cableLines(ns func(host string) string) string {
	var b strings.Builder
	for _, c := range p.cables {
		fmt.Fprintf(&b, "link add %s address %s netns %s type veth peer name %s address %s netns %s\n",
			c.dev, c.mac, ns(c.host), c.peerDev, c.peerMAC, ns(c.peer))
	}
	return b.String()
}

// emulatorConfig is what the emulator's daemon reads. The client is 10 ms from
// both edges, at 1 Gbit/s, in models of its own.
func emulatorConfig(between wan.Params, control string) wan.EmulatorConfig {
	cfg := wan.EmulatorConfig{Control: control}
	nets := map[string]string{"e1": "203.0.113.0/24", "e2": "198.51.100.0/24", "c1": "192.0.2.0/24"}
	for _, c := range wanCables {
		cfg.Ports = append(cfg.Ports, wan.Port{Name: c.peerDev, Interface: c.peerDev, MAC: wan.MustMAC(c.peerMAC), Host: wan.MustMAC(c.mac),
			Prefixes: []netip.Prefix{netip.MustParsePrefix(nets[c.peerDev])}})
	}
	client := wan.Params{Rate: 1e9, Delay: 10 * time.Millisecond}
	back := between
	back.Seed++
	cfg.Paths = []wan.Path{{From: "e1", To: "e2", Params: between}, {From: "e2", To: "e1", Params: back}}
	for _, e := range edges {
		cfg.Paths = append(cfg.Paths, wan.Path{From: "c1", To: e.host, Params: client}, wan.Path{From: e.host, To: "c1", Params: client})
	}
	return cfg
}
