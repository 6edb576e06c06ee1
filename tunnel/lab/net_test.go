package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/wan"
)

// noisy reports a timing that is out of range: the machine was busy, and
// figures taken now are worth nothing. It is never a failure.
func noisy(t *testing.T, ok bool, format string, args ...any) {
	t.Helper()
	prefix := ""
	if !ok {
		prefix = "NOISY: "
	}
	t.Logf(prefix+format, args...)
}

// TestNetwork: who must reach whom before any agent runs, with the emulator
// and without.
func TestNetwork(t *testing.T) {
	needRoot(t)
	for name, rate := range map[string]int64{"emulator": 100e6, "plain wire": 0} {
		t.Run(name, func(t *testing.T) {
			l := Start(t, network(rate, 2*time.Millisecond))
			for _, p := range [][2]string{{"e1", "198.51.100.20"}, {"c1", "203.0.113.10"}, {"c1", "198.51.100.20"},
				{"h1", "10.1.0.11"}, {"h1", "10.1.1.20"}, {"d1", "10.1.0.1"}, {"h1", "192.0.2.7"}, {"h2", "192.0.2.7"},
				{"d1", "192.0.2.7"}, {"h1", "fd00:1::11"}, {"d1", "fd00:1::10"}, {"h2", "fd00:2::1"}} {
				run(t, l, p[0], "ping", "-c1", "-W2", p[1])
			}
			for _, p := range [][2]string{{"h1", "10.2.0.10"}, {"c1", "10.1.0.10"}, {"s2", "10.1.0.10"}} {
				if l.Command(p[0], "ping", "-c1", "-W0.2", p[1]).Run() == nil {
					t.Errorf("%s reaches %s without an agent", p[0], p[1])
				}
			}
			if got := congestion(t, l, "h1", "d1", "10.1.1.20:5001"); got != "cubic" {
				t.Errorf("hosts use %q", got)
			}
			if err := l.Publish(t.Context(), 5002); err != nil {
				t.Fatal(err)
			}
			listen(t, l, "h2", "tcp", "10.2.0.10:5002")
			dial(t, l, "h1", "tcp", "198.51.100.20:5002", "")
			_, err := l.WAN().Counters(t.Context())
			if rate == 0 != errors.Is(err, ErrNoEmulator) {
				t.Errorf("counters: %v", err)
			}
		})
	}
	if left := leftovers(t); left != nil {
		t.Errorf("left: %v", left)
	}
}

// listen listens on a host of the lab.
func listen(t *testing.T, l *Lab, host, network, addr string) (ln net.Listener, pc net.PacketConn) {
	t.Helper()
	err := l.ns(host).Do(func() (err error) {
		if network == "udp" {
			pc, err = net.ListenPacket(network, addr)
			return err
		}
		ln, err = net.Listen(network, addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if ln != nil {
			ln.Close()
		} else {
			pc.Close()
		}
	})
	return ln, pc
}

// dial connects from a host, with the named congestion control if not "".
func dial(t *testing.T, l *Lab, host, network, addr, cc string) (conn net.Conn) {
	t.Helper()
	d := net.Dialer{Timeout: 5 * time.Second, Control: func(_, _ string, c syscall.RawConn) (err error) {
		if cc != "" {
			_ = c.Control(func(fd uintptr) { err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, cc) })
		}
		return err
	}}
	err := l.ns(host).Do(func() (err error) { conn, err = d.Dial(network, addr); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// congestion returns the algorithm of a connection that a host opened.
func congestion(t *testing.T, l *Lab, from, to, addr string) (name string) {
	t.Helper()
	listen(t, l, to, "tcp", addr)
	raw, err := dial(t, l, from, "tcp", addr, "").(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		name, _ = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	})
	return strings.TrimRight(name, "\x00")
}

// TestSelfTest measures the emulator as FAULTS.md asks before every e2e tier.
func TestSelfTest(t *testing.T) {
	needRoot(t)
	o := network(50e6, 40*time.Millisecond)
	o.Queue = 16 << 20
	l := Start(t, o)
	t.Run("ping", func(t *testing.T) { selfPing(t, l) })
	t.Run("loss", func(t *testing.T) { selfLoss(t, l) })
	t.Run("rate", func(t *testing.T) { selfRate(t, l) })
	for _, cc := range []string{"cubic", "bbr"} {
		t.Run("tcp "+cc, func(t *testing.T) { selfTCP(t, l, cc) })
	}
	t.Run("cut", func(t *testing.T) { selfCut(t, l) })
	t.Run("conserved", func(t *testing.T) { conserved(t, l) })
}

// selfPing: 200 pings, none lost, mean error at most 2 ms.
func selfPing(t *testing.T, l *Lab) {
	out := run(t, l, "e1", "ping", "-q", "-c200", "-i0.01", "198.51.100.20")
	m := regexp.MustCompile(`(\d+) received[\s\S]*= [\d.]+/([\d.]+)/([\d.]+)/`).FindStringSubmatch(out)
	if m == nil || m[1] != "200" {
		t.Fatalf("%s", out)
	}
	mean, _ := strconv.ParseFloat(m[2], 64)
	noisy(t, math.Abs(mean-40) <= 2, "200 pings at 40 ms: mean %s ms, max %s ms", m[2], m[3])
}

// blast sends n datagrams of the given payload from e1 to e2 and returns how
// many arrived and the time from the first to the last.
func blast(t *testing.T, l *Lab, n, payload int) (got int, took time.Duration) {
	t.Helper()
	_, pc := listen(t, l, "e2", "udp", "198.51.100.20:0")
	if raw, err := pc.(*net.UDPConn).SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20) })
	}
	conn := dial(t, l, "e1", "udp", pc.LocalAddr().String(), "")
	go func() { // reading must not wait for the last to be sent: the first arrive meanwhile
		for i := range n {
			if _, err := conn.Write(make([]byte, payload)); err != nil {
				t.Errorf("datagram %d: %v", i, err)
			}
		}
	}()
	var first, last time.Time
	for buf := make([]byte, 2048); ; got++ {
		_ = pc.SetReadDeadline(time.Now().Add(time.Second))
		if _, _, err := pc.ReadFrom(buf); err != nil {
			return got, last.Sub(first)
		}
		last = time.Now()
		if got == 0 {
			first = last
		}
	}
}

// selfLoss: of 10,000 datagrams at 2 % the model loses 158 to 242 (3 sigma),
// and exactly the others arrive.
func selfLoss(t *testing.T, l *Lab) {
	if err := l.WAN().SetLoss(t.Context(), 0.02); err != nil {
		t.Fatal(err)
	}
	defer l.WAN().SetLoss(t.Context(), 0)
	before := counters(t, l).E1toE2
	got, _ := blast(t, l, 10_000, 100)
	after := counters(t, l).E1toE2
	offered := after.Counters.Packets - before.Counters.Packets
	lost := after.Counters.LossDrops - before.Counters.LossDrops
	if after.HostDrops != before.HostDrops || offered != 10_000 {
		noisy(t, false, "the machine lost %d packets of its own", 10_000-offered+after.HostDrops-before.HostDrops)
		return
	}
	if lost < 158 || lost > 242 || got != int(10_000-lost) {
		t.Errorf("%d lost, %d arrived", lost, got)
	}
	if size := after.Counters.Bytes - before.Counters.Bytes; size != 10_000*128 {
		t.Errorf("%d bytes counted, want 10,000 x 128", size)
	}
}

// selfRate: a burst of 5 MB leaves at 50 Mb/s of IP bytes.
func selfRate(t *testing.T, l *Lab) {
	const n, payload = 3500, 1472
	got, took := blast(t, l, n, payload)
	if got != n {
		noisy(t, false, "%d of %d arrived", got, n)
		return
	}
	rate := float64(n-1) * (payload + 28) * 8 / took.Seconds()
	noisy(t, math.Abs(rate/50e6-1) <= 0.01, "50 Mb/s set, %.3f measured", rate/1e6)
}

// selfTCP: 8 MB arrive byte for byte, at most of the rate.
func selfTCP(t *testing.T, l *Lab, cc string) {
	ln, _ := listen(t, l, "e2", "tcp", "198.51.100.20:0")
	conn := dial(t, l, "e1", "tcp", ln.Addr().String(), cc)
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	data := make([]byte, 8<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	start := time.Now()
	go func() { _, _ = conn.Write(data); conn.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, far); err != nil {
		t.Fatal(err)
	}
	if want := sha256.Sum256(data); !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Error("bytes changed on the way")
	}
	rate := float64(len(data)) * 8 / time.Since(start).Seconds()
	noisy(t, rate > 0.75*50e6, "8 MiB with %s: %.1f Mb/s of 50, slow start included", cc, rate/1e6)
}

// selfCut: nothing passes a WAN that is cut, everything one that is mended.
func selfCut(t *testing.T, l *Lab) {
	if err := l.WAN().Cut(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if l.Command("e1", "ping", "-c2", "-i0.1", "-W0.3", "198.51.100.20").Run() == nil {
		t.Error("a ping passed the cut WAN")
	}
	run(t, l, "c1", "ping", "-c1", "-W2", "198.51.100.20")
	if c := counters(t, l).E1toE2.Counters; c.DownDrops < 2 {
		t.Errorf("%d packets dropped by the cut", c.DownDrops)
	}
	if err := l.WAN().Cut(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	run(t, l, "e1", "ping", "-c2", "-i0.1", "-W2", "198.51.100.20")
}

// conserved: every packet of the self-test is accounted for.
func conserved(t *testing.T, l *Lab) {
	r, err := l.WAN().Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Paths {
		c := p.Counters
		if c.Packets+c.Duplicates != c.Delivered+c.Drops() || c.Delivered != p.Sent+p.Waiting+p.HostDrops {
			t.Errorf("%s to %s not conserved: %+v", p.From, p.To, p)
		}
	}
	for name, p := range r.Ports {
		if p.Oversize != 0 {
			t.Errorf("port %s: %d frames longer than the MTU: an offload is on", name, p.Oversize)
		}
	}
}

func counters(t *testing.T, l *Lab) Traffic {
	t.Helper()
	c, err := l.WAN().Counters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestPlain: userspace WireGuard joins the sites, and a capture of the WAN
// shows a canary in the clear where it must and nowhere else.
func TestPlain(t *testing.T) {
	needRoot(t)
	if _, err := exec.LookPath("wireguard-go"); err != nil {
		t.Skip("needs wireguard-go")
	}
	o := network(100e6, 10*time.Millisecond)
	o.NoAgents, o.Plain = false, true
	l := Start(t, o)
	file := filepath.Join(t.TempDir(), "wan.pcap")
	c, err := l.Capture(file)
	if err != nil {
		t.Fatal(err)
	}
	run(t, l, "h1", "ping", "-c3", "-i0.1", "-W2", "-p", hexOf("hidden!!"), "10.2.0.10")
	run(t, l, "h2", "ping", "-c3", "-i0.1", "-W2", "-p", hexOf("hidden!!"), "10.1.1.20")
	run(t, l, "h1", "ping", "-c3", "-i0.1", "-W2", "-p", hexOf("in-clear"), "192.0.2.7")
	stats, err := c.Close()
	if err != nil || stats.Packets < 18 || stats.Dropped != 0 {
		t.Errorf("capture: %+v, %v", stats, err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, []byte("hidden!!")) {
		t.Error("WireGuard's payload is on the WAN in clear")
	}
	if n := bytes.Count(data, []byte("in-clearin-clear")); n < 6 {
		t.Errorf("%d hits of the positive control", n)
	}
	if _, err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
	if err := l.Down(context.Background()); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t); left != nil {
		t.Errorf("left: %v", left)
	}
}

func hexOf(s string) string {
	out := ""
	for _, b := range []byte(s) {
		out += strconv.FormatUint(uint64(b)|0x100, 16)[1:]
	}
	return out
}

// TestParamsAtRunTime changes more than loss while the lab runs.
func TestParamsAtRunTime(t *testing.T) {
	needRoot(t)
	l := Start(t, network(100e6, 0))
	if err := l.WAN().Change(t.Context(), func(p *wan.Params) { p.Duplicate = 1 }); err != nil {
		t.Fatal(err)
	}
	if out := run(t, l, "e1", "ping", "-c1", "-W2", "198.51.100.20"); !strings.Contains(out, "1 received") {
		t.Error(out)
	}
	if c := counters(t, l); c.E1toE2.Counters.Duplicates != c.E1toE2.Counters.Packets {
		t.Errorf("%+v", c.E1toE2)
	}
	if err := l.WAN().Change(t.Context(), func(p *wan.Params) { p.Loss = 2 }); err == nil {
		t.Error("a loss of 200 % was accepted")
	}
}
