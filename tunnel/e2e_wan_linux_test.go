package tunnel_test

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/lab"
	"stitch/tunnel/wan"
	"stitch/tunnel/wg"
)

// ways are how data crosses: split, as packets of the link, on the segment.
var ways = []struct{ name, from, to, addr string }{
	{"split", "h1", "h2", "10.2.0.10:4600"}, {"packets", "h1", "h2", "10.2.0.10:80"}, {"segment", "s1", "s2", "10.1.0.12:4600"},
}

// linkDetail is what an edge says of its link.
func linkDetail(t *testing.T, l *lab.Lab, edge string) (out wg.Stats) {
	t.Helper()
	if err := json.Unmarshal(status(t, l, edge).Links[0].Detail, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// nft loads rules on a host, and the returned function removes their table.
func nft(t *testing.T, l *lab.Lab, host, rules string) (undo func()) {
	t.Helper()
	run(t, l, host, "nft", "add table ip fault {\n"+rules+"\n}")
	return func() { run(t, l, host, "nft", "delete table ip fault") }
}

// TestE2EBadPaths has paths that are bad in one way each and carry: what crosses
// in each way is exact, byte by byte, and no end thinks that the link is down.
// The WAN's or the link's counters show that the fault was there; the control
// case is a good path, which counts nothing.
func TestE2EBadPaths(t *testing.T) {
	l := world(t, wan100)
	k := &checker{t: t, l: l}
	k.nextID.Store(10)
	for _, w := range ways {
		go k.serve(listen(t, l, w.to, w.addr))
	}
	const in = "chain in { type filter hook prerouting priority -400; iifname wan0 udp dport 51820 "
	damage := in + "numgen random mod 100 < 2 @th,256,8 set 0xff udp checksum set 0; }" // a byte behind WireGuard's header
	for _, c := range []struct {
		name  string
		path  func(*wan.Params)
		rules string
		size  uint64
		times int
		down  bool          // it may be
		rtt   time.Duration // the link has noticed when it takes so long
		long  bool          // takes long
		shows func(before, after wan.Counters, rejected uint64) bool
	}{
		{name: "control", size: 1 << 20, shows: func(a, b wan.Counters, r uint64) bool {
			return b.LossDrops == a.LossDrops && b.Duplicates == a.Duplicates && b.Reordered == a.Reordered && r < 5
		}},
		{name: "W-01 five per cent", path: func(p *wan.Params) { p.Loss = 0.05 }, size: 128 << 10, shows: lost},
		{name: "W-02 thirty per cent", path: func(p *wan.Params) { p.Burst = wan.BurstLoss(0.3, 1.5) }, size: 1 << 10, times: tries(), down: true, shows: lost},
		{name: "W-03 bad spells", path: func(p *wan.Params) { p.Burst = wan.BurstLoss(0.05, 8) }, size: 256 << 10, down: true, shows: lost},
		{name: "W-04 damage", rules: damage, size: 256 << 10, shows: func(_, _ wan.Counters, r uint64) bool { return r > 5 }},
		{name: "W-05 twice", path: func(p *wan.Params) { p.Duplicate = 0.5 }, size: 1 << 20, shows: func(a, b wan.Counters, r uint64) bool { return b.Duplicates > a.Duplicates+100 && r > 100 }},
		{name: "W-06 out of order", path: func(p *wan.Params) { p.Reorder, p.ReorderBy = 0.2, 30*time.Millisecond }, size: 256 << 10, shows: func(a, b wan.Counters, _ uint64) bool { return b.Reordered > a.Reordered+20 }},
		{name: "W-07 jitter", path: func(p *wan.Params) { p.Jitter = 80 * time.Millisecond }, size: 128 << 10},
		{name: "W-08 a second and a half", path: func(p *wan.Params) { p.Delay = 750 * time.Millisecond }, size: 8 << 10, rtt: time.Second, long: true},
		{name: "W-18 marks", rules: in + "ip dscp set cs1 ip ecn set ce; }", size: 256 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.long && os.Getenv("STITCH_LONG") == "" {
				t.Skip("takes seconds: STITCH_LONG=1 runs it")
			}
			change(t, l, func(p *wan.Params) {
				*p = wan.Params{Rate: p.Rate, Delay: 20 * time.Millisecond, Seed: p.Seed}
				if c.path != nil {
					c.path(p)
				}
			})
			if c.rules != "" {
				for _, e := range []string{"e1", "e2"} {
					defer nft(t, l, e, c.rules)()
				}
			}
			eventually(t, 30*time.Second, "both ends are up", func() bool {
				a, b := linkDetail(t, l, "e1"), linkDetail(t, l, "e2")
				return a.State == wg.Up && b.State == wg.Up && min(a.RTT, b.RTT) >= c.rtt
			})
			before, ends := path(t, l), [2]wg.Stats{linkDetail(t, l, "e1"), linkDetail(t, l, "e2")}
			for round := 0; round == 0 || round < 20 && c.shows != nil && !c.shows(before, path(t, l), rejected(t, l, ends)); round++ {
				var tasks sync.WaitGroup
				for _, w := range ways {
					if c.times > 0 && w.name != "split" {
						continue // TCP between the hosts takes its time, whatever carries it
					}
					tasks.Go(func() {
						for range max(c.times, 1) {
							if v := k.call(w.from, w.addr, c.size); v != exact {
								t.Errorf("%s: %d bytes are %v", w.name, c.size, v)
							}
						}
					})
				}
				tasks.Wait()
			}
			for i, e := range []string{"e1", "e2"} {
				if now := linkDetail(t, l, e); !c.down && (now.State != wg.Up || now.Since != ends[i].Since) {
					t.Errorf("%s: link %s since %v, before since %v", e, now.State, now.Since, ends[i].Since)
				}
			}
			if r := rejected(t, l, ends); c.shows != nil && !c.shows(before, path(t, l), r) {
				t.Errorf("the fault does not show: %+v, then %+v, %d rejected", before, path(t, l), r)
			}
			if c.name == "W-18 marks" {
				marks(t, l)
			}
		})
	}
	t.Run("W-01 and faster", func(t *testing.T) { outruns(t, l) })
}

// rejected is what both ends have rejected since.
func rejected(t *testing.T, l *lab.Lab, since [2]wg.Stats) (n uint64) {
	t.Helper()
	for i, e := range []string{"e1", "e2"} {
		n += linkDetail(t, l, e).Drops.Rejected - since[i].Drops.Rejected
	}
	return n
}

func lost(before, after wan.Counters, _ uint64) bool { return after.LossDrops > before.LossDrops+5 }

// tries is how many connections are made one after the other under much loss.
func tries() int {
	if os.Getenv("STITCH_LONG") != "" {
		return 50
	}
	return 3
}

// change edits the path between the edges.
func change(t *testing.T, l *lab.Lab, edit func(*wan.Params)) {
	t.Helper()
	if err := l.WAN().Change(t.Context(), edit); err != nil {
		t.Fatal(err)
	}
}

// path is what the path from e1 to e2 has counted.
func path(t *testing.T, l *lab.Lab) wan.Counters {
	t.Helper()
	c, err := l.WAN().Counters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c.E1toE2.Counters
}

// marks sends packets with every mark of congestion, and wants them as they were:
// what the outer header has met is not theirs (RFC 6040, compatibility mode).
func marks(t *testing.T, l *lab.Lab) {
	in, out := udpPair(t, l, "h2", "10.2.0.10:9100", "h1")
	raw, err := in.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTOS, 1) })
	}
	if err != nil {
		t.Fatal(err)
	}
	sender, err := out.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, tos := range []int{0, 1, 2, 3, 0xb8 | 2} {
		_ = sender.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, tos) })
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write([]byte{byte(tos)}); err != nil {
			t.Fatal(err)
		}
		buf, oob := make([]byte, 16), make([]byte, 64)
		_ = in.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, n, _, _, err := in.ReadMsgUDP(buf, oob)
		if err != nil {
			t.Fatal(err)
		}
		messages, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(messages) != 1 || int(messages[0].Data[0]) != tos {
			t.Errorf("sent with mark %#x, arrived with %v (%v)", tos, messages, err)
		}
	}
}

// udpPair returns a socket at addr of one host, and one of another connected to it.
func udpPair(t *testing.T, l *lab.Lab, to, addr, from string) (in, out *net.UDPConn) {
	t.Helper()
	for host, open := range map[string]func() error{
		to: func() error {
			pc, err := net.ListenPacket("udp", addr)
			if err == nil {
				in = pc.(*net.UDPConn)
			}
			return err
		},
		from: func() error {
			c, err := net.Dial("udp", addr)
			if err == nil {
				out = c.(*net.UDPConn)
			}
			return err
		},
	} {
		ns, _ := l.Namespace(host)
		if err := ns.Do(open); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { in.Close(); out.Close() })
	return in, out
}

// outruns is the other half of W-01: for a second and a half each, one connection
// that is split and one that is not send what does not compress, with the same
// loss. The split one brings at least as much.
func outruns(t *testing.T, l *lab.Lab) {
	for i, loss := range []float64{0.01, 0.05} {
		change(t, l, func(p *wan.Params) {
			*p = wan.Params{Rate: p.Rate, Delay: 20 * time.Millisecond, Seed: p.Seed, Loss: loss}
		})
		got := map[string]int64{}
		for _, w := range ways[:2] {
			addr := fmt.Sprintf("10.2.0.10:%d", map[string]int{"split": 4610, "packets": 83}[w.name]+i)
			n := sink(t, l, addr)
			c := mustDial(t, l, w.from, addr)
			go noise(c, byte(i))
			time.Sleep(1500 * time.Millisecond)
			got[w.name] = n.Load()
			_ = c.SetLinger(0)
			c.Close()
		}
		t.Logf("loss %v: split %.1f Mbit/s, as packets %.1f", loss, float64(got["split"])*8e-6/1.5, float64(got["packets"])*8e-6/1.5)
		if got["split"] < got["packets"] || got["packets"] == 0 {
			t.Errorf("loss %v: %d bytes split, %d as packets", loss, got["split"], got["packets"])
		}
	}
}

// sink takes what connections to addr of h2 bring, and counts it.
func sink(t *testing.T, l *lab.Lab, addr string) *atomic.Int64 {
	t.Helper()
	ln, n := listen(t, l, "h2", addr), new(atomic.Int64)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(counter{n}, c); c.Close() }()
		}
	}()
	return n
}

// noise sends what does not compress until the connection ends.
func noise(c net.Conn, seed byte) {
	r := rand.NewChaCha8([32]byte{seed + 1})
	buf := make([]byte, 64<<10)
	for {
		_, _ = r.Read(buf)
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

// TestE2EPathGoes takes the path away in several ways, and it comes back.
func TestE2EPathGoes(t *testing.T) {
	o := wan100
	// What these rules rewrite has to be single datagrams.
	o.Edit = func(_, toml string) string { return "offload_off = [\"train\"]\n" + toml }
	l := world(t, o)
	k := &checker{t: t, l: l}
	k.nextID.Store(10)
	for _, w := range ways {
		go k.serve(listen(t, l, w.to, w.addr))
	}
	kept := mustDial(t, l, "h1", keepOpenAt(t, l, "10.2.0.10:81"))
	for _, c := range []struct {
		name string
		f    func(*testing.T, *lab.Lab, *checker)
	}{
		{"W-14 and G-19, other addresses", roams},
		{"W-13, one way", oneWay},
		{"W-17, no UDP", noUDP},
		{"C-08, a process that is not scheduled", stalls},
		{"W-15, a rate that falls", falls},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.f(t, l, k)
			exchange(t, kept)
		})
	}
}

// keepOpenAt is keepOpen with an address.
func keepOpenAt(t *testing.T, l *lab.Lab, addr string) string {
	t.Helper()
	go echoAll(listen(t, l, "h2", addr))
	return addr
}

// roams gives e1 another port or address, as a NAT does, again and again while data
// crosses. What is under way to the old one is lost. The other end follows.
func roams(t *testing.T, l *lab.Lab, k *checker) {
	change(t, l, func(p *wan.Params) { p.Rate = 50e6 })
	defer change(t, l, func(p *wan.Params) { p.Rate = 100e6 })
	var tasks sync.WaitGroup
	for _, w := range ways {
		tasks.Go(func() {
			if v := k.call(w.from, w.addr, 4<<20); v != exact {
				t.Errorf("%s: %v", w.name, v)
			}
		})
	}
	undo := func() {}
	for _, to := range []string{"203.0.113.10:40001", "203.0.113.10:40002", "203.0.113.77:40002", "203.0.113.78:51820"} {
		time.Sleep(600 * time.Millisecond)
		undo()
		addr, port, _ := strings.Cut(to, ":")
		undo = nft(t, l, "e1", fmt.Sprintf("chain out { type filter hook postrouting priority 300; oifname wan0 udp sport 51820 ip saddr set %s udp sport set %s; }\n"+
			"chain in { type filter hook prerouting priority -400; iifname wan0 ip daddr %s udp dport %s ip daddr set 203.0.113.10 udp dport set 51820; }", addr, port, addr, port))
	}
	want := "203.0.113.78:51820"
	eventually(t, 10*time.Second, "e2 follows to "+want, func() bool { return linkDetail(t, l, "e2").Endpoint == want })
	tasks.Wait()
	undo()
	eventually(t, 10*time.Second, "e2 follows back", func() bool { return linkDetail(t, l, "e2").Endpoint == "203.0.113.10:51820" })
}

// oneWay lets nothing through from e1 to e2.
func oneWay(t *testing.T, l *lab.Lab, _ *checker) {
	undo := nft(t, l, "e2", "chain in { type filter hook prerouting priority -400; iifname wan0 udp dport 51820 drop; }")
	eventually(t, 5*time.Second, "e1 says that it is not heard, and e2 that nothing comes", func() bool {
		return linkDetail(t, l, "e1").PeerDeaf && strings.Contains(strings.Join(status(t, l, "e1").Alarms, "\n"), "one-way") &&
			linkDetail(t, l, "e2").State == wg.Down && !linkDetail(t, l, "e2").PeerDeaf
	})
	undo()
	eventually(t, 5*time.Second, "both are up", func() bool {
		return linkDetail(t, l, "e1").State == wg.Up && linkDetail(t, l, "e2").State == wg.Up
	})
}

// noUDP blocks all UDP and leaves TCP: the link is down, with an alarm, and
// nothing takes another way.
func noUDP(t *testing.T, l *lab.Lab, _ *checker) {
	wanFile, lanFile := filepath.Join(t.TempDir(), "wan.pcap"), filepath.Join(t.TempDir(), "lan.pcap")
	stopWAN, stopLAN := sniff(t, l, "e1", "wan0", wanFile), sniff(t, l, "e1", "lan-h1", lanFile)
	var undo []func()
	for _, e := range []string{"e1", "e2"} {
		undo = append(undo, nft(t, l, e, "chain in { type filter hook prerouting priority -400; iifname wan0 ip protocol udp drop; }"))
	}
	stop := shout(t, l)
	eventually(t, 5*time.Second, "an alarm says that the link is down", func() bool {
		return strings.Contains(strings.Join(status(t, l, "e1").Alarms, "\n"), "link to dc2 is down")
	})
	if c, err := dialFor(l, "h1", "10.2.0.10:80", time.Second); err == nil {
		c.Close()
		t.Error("a connection was made without a path")
	}
	stop()
	stopWAN()
	stopLAN()
	if n := count(t, wanFile, canary); n > 0 {
		t.Errorf("the canary was on the WAN in clear %d times", n)
	}
	if n := count(t, lanFile, canary); n == 0 {
		t.Error("control case: the canary is not in the capture of the LAN either")
	}
	for _, f := range undo {
		f()
	}
	eventually(t, 10*time.Second, "both are up", func() bool {
		return linkDetail(t, l, "e1").State == wg.Up && linkDetail(t, l, "e2").State == wg.Up
	})
}

// stalls stops e1's link process for 2 s: it does not take its own absence
// for its peer's. The control case is the peer, which has to notice.
func stalls(t *testing.T, l *lab.Lab, _ *checker) {
	before := linkDetail(t, l, "e1")
	pid := signal(t, l, "e1", "link", syscall.SIGSTOP)
	resume := time.Now().Add(2 * time.Second)
	eventually(t, 10*time.Second, "control case: e2 notices that e1 is silent", func() bool { return linkDetail(t, l, "e2").State == wg.Down })
	time.Sleep(time.Until(resume))
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "e2 is up", func() bool { return linkDetail(t, l, "e2").State == wg.Up })
	if now := linkDetail(t, l, "e1"); now.State != wg.Up || now.Since != before.Since {
		t.Errorf("e1: %s since %v, was up since %v", now.State, now.Since, before.Since)
	}
}

// falls sends a stream while the rate falls from 100 to 5 Mbit/s. The path's
// buffer is one of 50 ms: what waits longer waits here, and pings do not. The
// control case is a path with a second of buffer.
func falls(t *testing.T, l *lab.Lab, _ *checker) {
	const addr = "10.2.0.10:4700"
	sink(t, l, addr)
	mean := map[int64]time.Duration{}
	for i, queue := range []int64{0, 625_000} {
		c := mustDial(t, l, "h1", addr)
		go noise(c, byte(100+i))
		time.Sleep(time.Second)
		change(t, l, func(p *wan.Params) { p.Rate, p.Queue = 5e6, queue })
		time.Sleep(2 * time.Second)
		mean[queue] = pingMean(t, l)
		_ = c.SetLinger(0)
		c.Close()
		change(t, l, func(p *wan.Params) { p.Rate, p.Queue = 100e6, 0 })
	}
	t.Logf("mean ping at 5 Mbit/s: %v, with a second of buffer in the path %v", mean[0], mean[625_000])
	if mean[0] > 240*time.Millisecond {
		t.Errorf("a ping took %v, want 40 ms and 200 at most", mean[0])
	}
	if mean[625_000] < 240*time.Millisecond {
		t.Errorf("control case: %v with a second of buffer", mean[625_000])
	}
}

// pingMean is the mean of ten round trips from s1 to h2, .
func pingMean(t *testing.T, l *lab.Lab) time.Duration {
	t.Helper()
	out, _ := l.Command("s1", "ping", "-c10", "-i0.1", "-W3", "-q", "10.2.0.10").CombinedOutput()
	_, figures, _ := strings.Cut(string(out), " = ")
	var low, mean float64
	if _, err := fmt.Sscanf(figures, "%f/%f/", &low, &mean); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return time.Duration(mean * float64(time.Millisecond))
}
