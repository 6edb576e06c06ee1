package tunnel_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stitch/scripts/traffic"
	"stitch/tunnel/lab"
	"stitch/tunnel/wg"
)

// TestE2EBlackHole: the path begins to swallow datagrams above 1400 bytes and
// says nothing. Connections on the link and on the segment that were opened
// before go on, in packets that fit. The control case is the same connections
// before, in packets that fill 1500 bytes, whatever forged ICMP says. At last the path
// carries no more than IPv6 asks for, 1280 bytes.
func TestE2EBlackHole(t *testing.T) {
	l := world(t, lab.Options{Rate: 100e6, RTT: 20 * time.Millisecond})
	flows := map[string]*atomic.Int64{
		"link":    flow(t, l, "h1", "h2", "10.2.0.10:7001"),
		"segment": flow(t, l, "s1", "s2", "10.1.0.12:7001"),
	}
	progress := func(when string) {
		for name, n := range flows {
			from := n.Load()
			eventually(t, 30*time.Second, "the "+name+"'s connection goes on "+when, func() bool { return n.Load() > from+1<<20 })
		}
	}
	progress("before")
	for _, edge := range []string{"e1", "e2"} {
		if got := innerMTU(t, l, edge); got != 1440 {
			t.Errorf("%s sends packets of %d bytes before, want 1440", edge, got)
		}
	}
	forged(t, l, progress)
	for _, edge := range []string{"e1", "e2"} {
		run(t, l, edge, "nft", "add table inet hole { chain in { type filter hook prerouting priority -400; iifname wan0 udp length > 1380 drop; }; }")
	}
	start := time.Now()
	eventually(t, 30*time.Second, "both ends send packets that fit", func() bool {
		return innerMTU(t, l, "e1") == 1328 && innerMTU(t, l, "e2") == 1328
	})
	t.Logf("found out in %v", time.Since(start).Round(10*time.Millisecond))
	progress("after")

	for _, edge := range []string{"e1", "e2"} {
		run(t, l, edge, "nft", "flush chain inet hole in; add rule inet hole in iifname wan0 udp length > 1260 drop")
	}
	eventually(t, 30*time.Second, "both ends send packets that fit into 1280 bytes", func() bool {
		return innerMTU(t, l, "e1") == 1216 && innerMTU(t, l, "e2") == 1216
	})
	progress("in 1280 bytes")
}

// forged is N-06 and M-05: somebody on the way tells e1's kernel that the path to e2
// carries little, that nobody is there, and of a better way. The link does not heed
// it: nothing leaves in fragments, and no packet is smaller. The control case is the
// kernel, which believes it.
func forged(t *testing.T, l *lab.Lab, progress func(when string)) {
	t.Helper()
	before := linkDetail(t, l, "e1")
	run(t, l, "e2", "nft", "add table ip watch { counter fragments { }; chain in { type filter hook prerouting priority -450; iifname wan0 ip frag-off & 0x3fff != 0 counter name fragments; }; }")
	defer run(t, l, "e2", "nft", "delete table ip watch")
	fd := rawIP(t, l, "e2")
	quoted := hexBytes(t, "4500 059c 1234 4000 40 11 0000 cb00710a c6336414 ca6c ca6c 0588 0000") // of e1's to e2's port 51820
	for _, icmp := range []string{
		"03 04 0000 0000 0500", "03 04 0000 0000 0240", "03 04 0000 0000 0044", // fragmentation needed: 1280, 576, 68 bytes
		"03 00 0000 00000000", "03 01 0000 00000000", "03 03 0000 00000000", "05 01 0000 cb007101", // net, host and port unreachable, a redirect
	} {
		message := append(hexBytes(t, icmp), quoted...)
		binary.BigEndian.PutUint16(message[2:], ^sum16(message))
		header := hexBytes(t, "4500 0000 0000 0000 40 01 0000 c6336401 cb00710a") // from e2's router; the kernel fills in the rest
		if err := unix.Sendto(fd, append(header, message...), 0, &unix.SockaddrInet4{Addr: [4]byte{203, 0, 113, 10}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if route := run(t, l, "e1", "ip", "route", "get", "198.51.100.20"); !strings.Contains(route, " 552") {
		t.Errorf("control case: the kernel did not believe it: %s", route)
	}
	progress("in spite of forged ICMP")
	if out := run(t, l, "e2", "nft", "list", "counter", "ip", "watch", "fragments"); !strings.Contains(out, "packets 0 ") {
		t.Errorf("fragments came: %s", out)
	}
	after := linkDetail(t, l, "e1")
	if after.State != wg.Up || after.Since != before.Since || after.Endpoint != before.Endpoint || innerMTU(t, l, "e1") != 1440 {
		t.Errorf("the link was %+v, is %+v", before, after)
	}
}

// rawIP opens a socket of a host that sends whole IPv4 packets.
func rawIP(t *testing.T, l *lab.Lab, host string) (fd int) {
	t.Helper()
	ns, err := l.Namespace(host)
	if err == nil {
		err = ns.Do(func() (err error) { fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW); return })
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// sum16 is the sum of the Internet checksum over an even number of bytes.
func sum16(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// innerMTU is the largest packet an edge sends in one datagram.
func innerMTU(t *testing.T, l *lab.Lab, edge string) int {
	t.Helper()
	var s struct {
		InnerMTU int `json:"inner_mtu"`
	}
	if err := json.Unmarshal(status(t, l, edge).Links[0].Detail, &s); err != nil {
		t.Fatal(err)
	}
	return s.InnerMTU
}

// flow sends over TCP from one host to another until the test ends; it counts
// what arrives.
func flow(t *testing.T, l *lab.Lab, from, to, addr string) *atomic.Int64 {
	t.Helper()
	ln := listen(t, l, to, addr)
	n := new(atomic.Int64)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(counter{n}, c) // ends with the test
	}()
	var c net.Conn
	eventually(t, 10*time.Second, "a connection to "+addr, func() (ok bool) {
		var err error
		c, err = dial(l, from, addr)
		return err == nil
	})
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 64<<10)
		traffic.Fill(buf, 1, traffic.Request, 0) // what compresses would cross in few large datagrams
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}()
	return n
}

// counter counts what is written to it.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

// What a link does not carry is answered or fragmented by the edge's kernel,
// towards hosts with jumbo frames, and what is an octet smaller crosses as it
// is. The hosts are real kernels' TCP, UDP and ping.

// TestE2ETooBigForAgent: an agent takes 1500 bytes, in parts. A LAN at the other
// site that carries less says so itself.
func TestE2ETooBigForAgent(t *testing.T) {
	l := bigWorld(t, "")
	bigPings(t, l, "e1", 1500)
	bigUDP(t, l, 1500)
	farLAN(t, l)
}

// TestE2ETooBigForStock: a stock peer takes what fits into a datagram.
func TestE2ETooBigForStock(t *testing.T) {
	l := bigWorld(t, "stock = true\n")
	bigPings(t, l, "e1", 1440)
	bigUDP(t, l, 1440)
	raisedMTU(t, l, 1440)
	silence(t, l)
}

// TestE2ETooBigForJumbo: jumbo frames cross whole where the path carries them,
// and when it no longer does hosts are told.
func TestE2ETooBigForJumbo(t *testing.T) {
	l := bigWorld(t, "underlay_mtu = 9000\n")
	bigPings(t, l, "e1", 8940)
	shrink(t, l)
}

// bigWorld is a lab without a WAN's limits, with jumbo frames everywhere, and
// with one line more for the peer in each configuration.
func bigWorld(t *testing.T, line string) *lab.Lab {
	t.Helper()
	l := world(t, lab.Options{Edit: bigLAN(line)})
	for _, host := range []string{"e1", "e2"} {
		// One datagram at a time, so that a rule sees how long each is.
		run(t, l, host, "ip", "link", "set", "wan0", "mtu", "9000", "gso_max_segs", "1")
	}
	jumbo(t, l, "h1", "e1", "lan-h1")
	jumbo(t, l, "h2", "e2", "lan-h2")
	return l
}

// bigLAN gives both sites IPv6, and the peer in each configuration one line
// more; a stock peer has nothing but its link.
func bigLAN(line string) func(host, toml string) string {
	return func(host, toml string) string {
		toml = strings.ReplaceAll(toml, `"10.1.1.0/24"]`, `"10.1.1.0/24", "fd00:1::/64"]`)
		toml = strings.ReplaceAll(toml, `"10.2.0.0/24"]`, `"10.2.0.0/24", "fd00:2::/64"]`)
		head, rest, _ := strings.Cut(toml, "[[segment]]")
		if strings.HasPrefix(line, "stock") {
			if host == "e2" { // two ends that call at once may have to do so again; who is called expects IPv6
				head = strings.Replace(head, `endpoint = "203.0.113.10:51820"`, "underlay_mtu = 1520", 1)
			}
			return head + line
		}
		return head + line + "\n[[segment]]" + rest
	}
}

// jumbo gives a host and its edge frames of 9000 bytes.
func jumbo(t *testing.T, l *lab.Lab, host, edge, port string) {
	t.Helper()
	run(t, l, host, "ip", "link", "set", "eth0", "mtu", "9000")
	run(t, l, edge, "ip", "link", "set", port, "mtu", "9000")
	run(t, l, edge, "ip", "link", "set", "br-lan", "mtu", "9000")
}

// bigPings sends packets of most bytes, which cross, and of one byte more, which
// are answered by an edge with the right MTU; IPv4 without DF crosses too.
func bigPings(t *testing.T, l *lab.Lab, edge string, most int) {
	t.Helper()
	from := map[string][2]string{"e1": {"10.1.0.1", "fd00:1::1"}, "e2": {"10.2.0.1", "fd00:2::1"}}[edge]
	forget(t, l, "h1")
	for _, p := range []struct{ addr, from, answer string }{
		{"10.2.0.10", from[0], "(mtu = %d)"}, {"fd00:2::10", from[1], "Packet too big: mtu=%d"},
	} {
		header := 28
		if strings.Contains(p.addr, ":") {
			header = 48
		}
		ping := func(size int, df string) string {
			out, _ := l.Command("h1", "ping", "-c2", "-i0.2", "-W5", "-M"+df, "-s"+strconv.Itoa(size-header), p.addr).CombinedOutput()
			return string(out)
		}
		if out := ping(most, "do"); !strings.Contains(out, " 0% packet loss") {
			t.Errorf("%d bytes to %s do not cross:\n%s", most, p.addr, out)
		}
		if header == 28 { // of IPv6 it is always the sender who fragments
			if out := ping(most+1, "dont"); !strings.Contains(out, " 0% packet loss") {
				t.Errorf("%d bytes to %s that may be fragmented do not cross:\n%s", most+1, p.addr, out)
			}
		}
		out := ping(most+1, "do")
		if !strings.Contains(out, "From "+p.from+" ") || !strings.Contains(out, fmt.Sprintf(p.answer, most)) {
			t.Errorf("%d bytes to %s are not answered by %s:\n%s", most+1, p.addr, p.from, out)
		}
		if want := fmt.Sprint("mtu ", most); !strings.Contains(run(t, l, "h1", "ip", "route", "get", p.addr), want) {
			t.Errorf("the host did not learn %q of %s", want, p.addr)
		}
	}
}

// bigUDP sends super-packets of datagrams: such as make packets of most bytes
// arrive, and of those with one byte more the socket learns that they are too big.
func bigUDP(t *testing.T, l *lab.Lab, most int) {
	t.Helper()
	forget(t, l, "h1")
	for addr, o := range map[string]struct{ header, level, discover, mtu int }{
		"10.2.0.10:9000":    {28, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_MTU},
		"[fd00:2::10]:9000": {48, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU},
	} {
		var in net.PacketConn
		var out net.Conn
		for host, open := range map[string]func() error{
			"h2": func() (err error) { in, err = net.ListenPacket("udp", addr); return },
			"h1": func() (err error) { out, err = net.Dial("udp", addr); return },
		} {
			ns, _ := l.Namespace(host)
			if err := ns.Do(open); err != nil {
				t.Fatal(err)
			}
		}
		defer in.Close()
		defer out.Close()
		raw, err := out.(*net.UDPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		send := func(size int) (learned int) {
			_ = raw.Control(func(fd uintptr) {
				err = errors.Join(unix.SetsockoptInt(int(fd), o.level, o.discover, unix.IP_PMTUDISC_DO),
					unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size))
			})
			if err != nil {
				t.Fatal(err)
			}
			_, _ = out.Write(make([]byte, 3*size)) // fails when it was told
			_ = raw.Control(func(fd uintptr) { learned, err = unix.GetsockoptInt(int(fd), o.level, o.mtu) })
			if err != nil {
				t.Fatal(err)
			}
			return learned
		}
		eventually(t, 10*time.Second, fmt.Sprintf("a socket to %s learns that %d bytes are too big", addr, most+1), func() bool {
			return send(most+1-o.header) == most
		})
		buf := make([]byte, 9000)
		eventually(t, 10*time.Second, fmt.Sprintf("packets of %d bytes arrive at %s", most, addr), func() bool {
			send(most - o.header)
			for range 3 {
				_ = in.SetReadDeadline(time.Now().Add(time.Second))
				n, _, err := in.ReadFrom(buf)
				if err != nil {
					return false
				}
				if n != most-o.header {
					t.Fatalf("a datagram of %d bytes arrived at %s", n, addr)
				}
			}
			return true
		})
	}
}

// forget makes a host forget the path MTUs it has learned.
func forget(t *testing.T, l *lab.Lab, host string) {
	t.Helper()
	run(t, l, host, "ip", "route", "flush", "cache")
	run(t, l, host, "ip", "-6", "route", "flush", "cache")
}

// farLAN: a LAN at the other site carries less than the link; what its edge
// says crosses the link and passes the filter there.
func farLAN(t *testing.T, l *lab.Lab) {
	run(t, l, "h2", "ip", "link", "set", "eth0", "mtu", "1400")
	run(t, l, "e2", "ip", "link", "set", "br-lan", "mtu", "1400")
	bigPings(t, l, "e2", 1400)
}

// raisedMTU: somebody raises the MTU of a TUN. The first packet too big to be
// carried is lost, and then they are answered as before.
func raisedMTU(t *testing.T, l *lab.Lab, most int) {
	run(t, l, "e1", "ip", "link", "set", "st-dc2", "mtu", "9000")
	forget(t, l, "h1")
	run(t, l, "h1", "sh", "-c", "! ping -c1 -W1 -Mdo -s3000 10.2.0.10")
	eventually(t, 10*time.Second, "the MTU is set back", func() bool {
		return strings.Contains(run(t, l, "e1", "ip", "link", "show", "st-dc2"), fmt.Sprint("mtu ", most, " "))
	})
	bigPings(t, l, "e1", most)
}

// silence: a connection whose segments have become too large goes on because it
// is told. The control case is that it does not when the host does not hear it.
func silence(t *testing.T, l *lab.Lab) {
	forget(t, l, "h1")
	n := flow(t, l, "h1", "h2", "10.2.0.10:7001")
	eventually(t, 10*time.Second, "a connection runs", func() bool { return n.Load() > 1<<20 })
	run(t, l, "h1", "nft", "add table inet deaf { counter answers { }; chain in { type filter hook prerouting priority -400; icmp type destination-unreachable counter name answers drop; }; }")
	heard := func(times int) func() bool {
		return func() bool {
			var packets int
			out := run(t, l, "h1", "nft", "list", "counter", "inet", "deaf", "answers")
			if _, err := fmt.Sscanf(out[strings.Index(out, "packets"):], "packets %d", &packets); err != nil {
				t.Fatal(err)
			}
			return packets >= times
		}
	}
	run(t, l, "e1", "ip", "link", "set", "st-dc2", "mtu", "1300") // a lower one is respected
	eventually(t, 20*time.Second, "two answers, the second to a repetition", heard(2))
	before := n.Load()
	eventually(t, 20*time.Second, "two more", heard(4))
	if after := n.Load(); after != before {
		t.Fatalf("%d bytes arrived though the host heard no answer: this test cannot fail", after-before)
	}
	run(t, l, "h1", "nft", "delete", "table", "inet", "deaf")
	eventually(t, 20*time.Second, "it goes on when the host hears the answer", func() bool { return n.Load() > before+1<<20 })
}

// shrink: a path that carried jumbo frames begins to swallow all but small ones.
// The TUN's MTU follows, connections go on, and hosts are told.
func shrink(t *testing.T, l *lab.Lab) {
	forget(t, l, "h1")
	flows := map[string]*atomic.Int64{"IPv4": flow(t, l, "h1", "h2", "10.2.0.10:7001"), "IPv6": flow(t, l, "h1", "h2", "[fd00:2::10]:7001")}
	progress := func() {
		for name, n := range flows {
			from := n.Load()
			eventually(t, 20*time.Second, name+" goes on", func() bool { return n.Load() > from+1<<20 })
		}
	}
	progress()
	for _, edge := range []string{"e1", "e2"} {
		run(t, l, edge, "nft", "add table inet hole { chain in { type filter hook prerouting priority -400; iifname wan0 udp length > 1380 drop; }; }")
	}
	eventually(t, 20*time.Second, "both ends send packets that fit, and the TUN's MTU follows", func() bool {
		return innerMTU(t, l, "e1") == 1328 && innerMTU(t, l, "e2") == 1328 && strings.Contains(run(t, l, "e1", "ip", "link", "show", "st-dc2"), "mtu 1500 ")
	})
	progress()
	for _, addr := range []string{"10.2.0.10", "fd00:2::10"} {
		if out := run(t, l, "h1", "ip", "route", "get", addr); !strings.Contains(out, "mtu 1500 ") {
			t.Errorf("the host was not told: %s", out)
		}
	}
}
