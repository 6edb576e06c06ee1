package redirect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"stitch/tunnel/config"
)

const connTimeout = 20 * time.Second

// world is the picture of the design page: two edges joined by a veth in the
// role of the link, a client that is also the Internet, a database, a host at
// site 2, and a machine whose cable moves.
type world struct {
	t                      *testing.T
	c1, e1, e2, d1, h2, vm *netns
	m1, m2                 *Manager
	kernels                [2]*Linux
	stop                   context.CancelFunc
	done                   sync.WaitGroup
	bridgeOf               map[*netns]string
	at                     *netns
	workload               config.Workload
}

func newWorld(t *testing.T, streams bool) *world {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	w := &world{t: t, workload: siteConfig("dc1").Workloads[0]}
	for name, dst := range map[string]**netns{"c1": &w.c1, "e1": &w.e1, "e2": &w.e2, "d1": &w.d1, "h2": &w.h2, "vm": &w.vm} {
		*dst = newNetns(t, name)
	}
	w.bridgeOf = map[*netns]string{w.e1: "br-lan", w.e2: "br-app"}
	w.wire()
	w.startManagers(streams)
	return w
}

// wire builds the cables. The edges are as unkind as hosts can be: strict
// reverse path filters, marks taken into account by them.
func (w *world) wire() {
	veth(w.c1, "to1", w.e1, "wan0")
	veth(w.c1, "to2", w.e2, "wan0")
	veth(w.d1, "eth0", w.e1, "db0")
	veth(w.h2, "eth0", w.e2, "lan0")
	linkVeth(w.e1, "st-dc2", w.e2, "st-dc1")
	veth(w.vm, "eth0", w.e1, "tap0")
	w.c1.sh(`ip addr add 203.0.113.1/24 dev to1; ip addr add 198.51.100.1/24 dev to2; ip addr add 192.0.2.7/32 dev lo; sysctl -qw net.ipv4.ip_forward=1`)
	for _, e := range []*netns{w.e1, w.e2} {
		e.sh(`sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.all.src_valid_mark=1
		[ ! -e /proc/sys/net/bridge ] || sysctl -qw net.bridge.bridge-nf-call-iptables=0
		printf 'table ip lab { chain post { type nat hook postrouting priority srcnat; ip saddr 10.0.0.0/8 oifname wan0 masquerade; }; }' | nft -f -`)
	}
	w.e1.sh(`ip link add br-lan address 02:53:54:00:01:00 type bridge; ip link set br-lan up; ip addr add 10.1.0.1/24 dev br-lan; ip link set tap0 master br-lan
		ip addr add 10.1.1.1/24 dev db0; ip addr add 203.0.113.10/24 dev wan0; ip route add default via 203.0.113.1`)
	w.e2.sh(`ip link add br-app type bridge; ip link set br-app up; ip addr add 10.2.0.1/24 dev lan0
		ip addr add 198.51.100.20/24 dev wan0; ip route add default via 198.51.100.1`)
	w.d1.sh("ip addr add 10.1.1.20/24 dev eth0; ip route add default via 10.1.1.1")
	w.h2.sh("ip addr add 10.2.0.10/24 dev eth0; ip route add default via 10.2.0.1")
	w.vm.sh("ip link set eth0 address 52:54:00:00:00:50; ip addr add 10.1.0.50/24 dev eth0; ip route add default via 10.1.0.1")
	w.at = w.e1
	w.probes()
}

// probes counts in a table of its own, before anything of ours, the TCP and UDP
// packets by the interface they come in by and by the server's port.
func (w *world) probes() {
	var b strings.Builder
	b.WriteString("table inet probe {\n")
	rules := ""
	for _, dev := range []string{"wan0", "link"} {
		match := `iifname "wan0"`
		if dev == "link" {
			match = `iifname { "st-dc1", "st-dc2" }`
		}
		for _, port := range walkPorts {
			fmt.Fprintf(&b, "counter %s_%d { }\n", dev, port)
			rules += fmt.Sprintf("%s th dport %d counter name %s_%d\n%s th sport %d counter name %s_%d\n", match, port, dev, port, match, port, dev, port)
		}
	}
	b.WriteString("chain pre { type filter hook prerouting priority -400;\n" + rules + "}\n}\n")
	for _, e := range []*netns{w.e1, w.e2} {
		e.sh("nft -f - <<'EOF'\n" + b.String() + "EOF")
	}
}

// count returns a probe of an edge, 0 to begin with.
func (w *world) count(e *netns, dev string, port int) int {
	w.t.Helper()
	fields := strings.Fields(e.sh(fmt.Sprintf("nft list counter inet probe %s_%d", dev, port)))
	for i, f := range fields {
		if f == "packets" {
			n, err := strconv.Atoi(fields[i+1])
			if err != nil {
				w.t.Fatal(err)
			}
			return n
		}
	}
	w.t.Fatalf("no packets in %v", fields)
	return 0
}

// startManagers runs the real thing at both edges; gossip crosses in memory.
func (w *world) startManagers(streams bool) {
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	managers := make(map[string]*Manager)
	for i, site := range []string{"dc1", "dc2"} {
		cfg := siteConfig(site)
		cfg.Workloads = cfg.Workloads[:1]
		for _, port := range []uint16{portPush, portNew, portClosing} {
			cfg.Services = append(cfg.Services, config.Service{Name: fmt.Sprint(port), Workload: "app", Port: port, At: map[string]netip.AddrPort{
				"dc1": netip.AddrPortFrom(ip("203.0.113.10"), port), "dc2": netip.AddrPortFrom(ip("198.51.100.20"), port)}})
		}
		w.kernels[i] = NewLinux(nil)
		m, err := New(Config{Cfg: cfg, Links: siteLinks(site), Kernel: w.kernels[i], Streams: streams,
			Send: func(peer string, msg []byte) bool { managers[peer].FromPeer(site, msg); return true }})
		if err != nil {
			w.t.Fatal(err)
		}
		managers[site] = m
	}
	w.m1, w.m2 = managers["dc1"], managers["dc2"]
	for i, e := range []*netns{w.e1, w.e2} {
		m := []*Manager{w.m1, w.m2}[i]
		w.done.Go(func() {
			if err := e.do(func() error { return m.Run(ctx) }); !errors.Is(err, context.Canceled) {
				w.t.Errorf("manager at %s: %v", e.name, err)
			}
		})
		w.await("the first programming of "+e.name, func() bool { return m.Stats().Programmed > 0 || m.Stats().Error != "" })
		if s := m.Stats(); s.Error != "" {
			w.t.Fatalf("%s: %s", e.name, s.Error)
		}
	}
	w.t.Cleanup(w.stopManagers)
}

func (w *world) stopManagers() {
	w.stop()
	w.done.Wait()
}

// await polls for something that happens in the kernel or in a run loop.
func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(connTimeout)
	for !ok() {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited too long for %s", what)
		}
		nap()
	}
}

// nap lets the kernel work.
func nap() { <-time.After(5 * time.Millisecond) }

// move plugs the machine's cable in at the other edge. before runs when the
// machine can speak there but nobody has heard of it yet.
func (w *world) move(to *netns, before func()) {
	w.t.Helper()
	run(w.t, fmt.Sprintf("ip -n %s link set tap0 netns %s", w.at.name, to.name))
	to.sh("ip link set tap0 master " + w.bridgeOf[to] + " up")
	w.at = to
	if before != nil {
		before()
	}
	m, site := w.m1, "dc1"
	if to == w.e2 {
		m, site = w.m2, "dc2"
	}
	began := [2]uint64{w.m1.Stats().Programmed, w.m2.Stats().Programmed}
	start := time.Now()
	m.Announce(w.workload.MAC, netip.Addr{})
	order := []int{0, 1}
	if to == w.e2 {
		order = []int{1, 0}
	}
	for _, i := range order {
		m := []*Manager{w.m1, w.m2}[i]
		w.await("the move to "+site, func() bool { return m.Owners()[0].Site == site && m.Stats().Programmed > began[i] })
		w.t.Logf("%v after the announcement at %s the edge of dc%d is programmed", time.Since(start), site, i+1)
	}
}

// The servers' ports say which path a probe sees.
const (
	portService  = 443  // client -> service, echo
	portPush     = 444  // client -> service, the machine speaks on its own
	portDB       = 5432 // machine -> database
	portInternet = 7777 // machine -> Internet
	portNewDB    = 5433 // as above, opened while the machine is at site 2
	portNewNet   = 7778
	portHost     = 8443 // host at site 2 -> machine
	portNew      = 445  // client -> service at site 2
	portClosing  = 446  // client -> service, the machine ends it right after the move
	portEarly    = 8001 // of a stream rule with handshake "early"
	portEarly2   = 8002
	portHeld     = 4001 // of a stream rule with handshake "faithful"
)

var walkPorts = []int{portService, portPush, portDB, portInternet, portNewDB, portNewNet, portHost, portNew, portClosing, portEarly, portEarly2}

// talk is one connection whose every byte is checked.
type talk struct {
	name string
	conn net.Conn
	seq  uint64
	sent *atomic.Uint64 // of a pushed connection: how far the machine is
}

// say exchanges n messages; any wrong byte, reset or silence fails the test.
func (k *talk) say(t *testing.T, n int) {
	t.Helper()
	buf := make([]byte, 512)
	for range n {
		k.seq++
		msg := pattern(k.seq)
		k.conn.SetDeadline(time.Now().Add(connTimeout))
		if _, err := k.conn.Write(msg); err != nil {
			t.Fatalf("%s: message %d: %v", k.name, k.seq, err)
		}
		if _, err := io.ReadFull(k.conn, buf); err != nil {
			t.Fatalf("%s: answer %d: %v", k.name, k.seq, err)
		}
		if string(buf) != string(msg) {
			t.Fatalf("%s: answer %d is wrong", k.name, k.seq)
		}
	}
}

// pattern returns the 512 bytes of message seq.
func pattern(seq uint64) []byte {
	b := make([]byte, 512)
	for i := 0; i < len(b); i += 8 {
		binary.BigEndian.PutUint64(b[i:], (seq*64+uint64(i/8))*0x9e3779b97f4a7c15)
	}
	return b
}

// echo serves a listener; it remembers where the last connection came from.
func echo(l net.Listener) func() string {
	var mu sync.Mutex
	from := ""
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			from, _, _ = net.SplitHostPort(c.RemoteAddr().String())
			mu.Unlock()
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	return func() string { mu.Lock(); defer mu.Unlock(); return from }
}

// push serves a listener with messages that nobody asks for; it counts them.
func push(l net.Listener, sent *atomic.Uint64) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for seq := uint64(1); ; seq++ {
				if _, err := c.Write(pattern(seq)); err != nil {
					return
				}
				sent.Store(seq)
				nap()
			}
		}()
	}
}

// hear reads n pushed messages.
func (k *talk) hear(t *testing.T, n int) {
	t.Helper()
	buf := make([]byte, 512)
	for range n {
		k.seq++
		k.conn.SetDeadline(time.Now().Add(connTimeout))
		if _, err := io.ReadFull(k.conn, buf); err != nil {
			t.Fatalf("%s: push %d: %v", k.name, k.seq, err)
		}
		if string(buf) != string(pattern(k.seq)) {
			t.Fatalf("%s: push %d is wrong", k.name, k.seq)
		}
	}
}

// delta is how many packets of a server's port an edge saw come in.
type delta struct{ wan1, wan2, link int }

// during returns what the probes of one port counted while f ran.
func (w *world) during(port int, f func()) delta {
	w.t.Helper()
	read := func() delta {
		return delta{w.count(w.e1, "wan0", port), w.count(w.e2, "wan0", port),
			w.count(w.e1, "link", port) + w.count(w.e2, "link", port)}
	}
	a := read()
	f()
	b := read()
	return delta{b.wan1 - a.wan1, b.wan2 - a.wan2, b.link - a.link}
}

// expect has a connection talk and says over which edges it must and must not
// have gone.
func (w *world) expect(where string, k *talk, port int, want delta) {
	w.t.Helper()
	speak := k.say
	if k.sent != nil {
		speak = k.hear
		k.hear(w.t, int(k.sent.Load()-k.seq)) // what waits in the socket
	}
	speak(w.t, 3) // what is still under way from before arrives
	got := w.during(port, func() { speak(w.t, 20) })
	if (got.wan1 > 0) != (want.wan1 > 0) || (got.wan2 > 0) != (want.wan2 > 0) || (got.link > 0) != (want.link > 0) {
		w.t.Errorf("%s: %s: packets in by wan of site 1, of site 2, by the link: %v, want %v (1: some)", where, k.name, got, want)
	}
}

// The packet walk of the design page, both ways and twice, with the real
// tables at both edges.
func TestPacketWalk(t *testing.T) {
	w := newWorld(t, false)
	for _, port := range []int{portService, portNew, portHost} {
		echo(w.vm.listen(fmt.Sprintf("10.1.0.50:%d", port)))
	}
	var sent atomic.Uint64
	go push(w.vm.listen(fmt.Sprintf("10.1.0.50:%d", portPush)), &sent)
	for _, port := range []int{portDB, portNewDB} {
		echo(w.d1.listen(fmt.Sprintf("10.1.1.20:%d", port)))
	}
	seen := echo(w.c1.listen(fmt.Sprintf("192.0.2.7:%d", portInternet)))
	seenNew := echo(w.c1.listen(fmt.Sprintf("192.0.2.7:%d", portNewNet)))

	open := func(name string, n *netns, from, to string) *talk {
		return &talk{name: name, conn: n.dial(from, to)}
	}
	service := open("client to the service", w.c1, "192.0.2.7", "203.0.113.10:443")
	pushed := open("machine speaking to the client", w.c1, "192.0.2.7", "203.0.113.10:444")
	pushed.sent = &sent
	db := open("machine to the database", w.vm, "", "10.1.1.20:5432")
	internet := open("machine to the Internet", w.vm, "", "192.0.2.7:7777")
	host := open("host at site 2 to the machine", w.h2, "", "10.1.0.50:8443")

	home := func(where string) {
		w.expect(where, service, portService, delta{wan1: 1})
		w.expect(where, pushed, portPush, delta{wan1: 1})
		w.expect(where, db, portDB, delta{})
		w.expect(where, internet, portInternet, delta{wan1: 1})
		w.expect(where, host, portHost, delta{link: 1})
	}
	away := func(where string) {
		w.expect(where, service, portService, delta{wan1: 1, link: 1})
		w.expect(where, pushed, portPush, delta{wan1: 1, link: 1})
		w.expect(where, db, portDB, delta{link: 1})
		w.expect(where, internet, portInternet, delta{wan1: 1, link: 1})
		w.expect(where, host, portHost, delta{})
	}
	ending := w.vm.listen(fmt.Sprintf("10.1.0.50:%d", portClosing))
	ended := open("connection that the machine ends", w.c1, "192.0.2.7", "203.0.113.10:446")
	end, err := ending.Accept()
	if err != nil {
		t.Fatal(err)
	}

	home("at home")
	if got := seen(); got != "203.0.113.10" {
		t.Errorf("at home the Internet sees %s", got)
	}
	w.move(w.e2, func() {
		before := w.count(w.e1, "link", portPush)
		w.await("an unannounced machine's packets at its old edge", func() bool { return w.count(w.e1, "link", portPush) > before })
	})
	// The first that this edge sees of it is a FIN, which makes no entry here.
	end.Close()
	ended.conn.SetDeadline(time.Now().Add(connTimeout))
	if _, err := ended.conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%s: %v, want its end", ended.name, err)
	}
	away("after the move")

	service2 := open("client to the service at site 2", w.c1, "192.0.2.7", "198.51.100.20:445")
	db2 := open("machine at site 2 to the database", w.vm, "", "10.1.1.20:5433")
	internet2 := open("machine at site 2 to the Internet", w.vm, "", "192.0.2.7:7778")
	away2 := func(where string) {
		w.expect(where, service2, portNew, delta{wan2: 1})
		w.expect(where, db2, portNewDB, delta{link: 1})
		w.expect(where, internet2, portNewNet, delta{wan2: 1})
	}
	away2("opened after the move")
	if got := seenNew(); got != "198.51.100.20" {
		t.Errorf("after the move the Internet sees %s", got)
	}
	for _, round := range []string{"after the return", "after the second return"} {
		w.move(w.e1, nil)
		home(round)
		w.expect(round, service2, portNew, delta{wan2: 1, link: 1})
		w.expect(round, db2, portNewDB, delta{})
		w.expect(round, internet2, portNewNet, delta{wan2: 1, link: 1})
		w.move(w.e2, nil)
		away(round + " and away again")
		away2(round + " and away again")
	}
}
