package stream_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev"
	"stitch/tunnel/redirect"
	"stitch/tunnel/stream"
)

// edgeVariable makes the test binary the stream process of that site.
const edgeVariable = "STITCH_STREAM_TEST_EDGE"

// edgeMain is the stream process: it answers each line on stdin with its stats
// and ends with stdin.
func edgeMain(name string) error {
	cfg, link := edgeConfig(name)
	kernel := redirect.NewLinux(nil)
	links := redirect.Links{link.Peer: {Number: 1, Device: link.Device, Local: link.Local, Remote: link.Remote, InnerMTU: 1440}}
	if err := kernel.Apply(redirect.Plan(cfg, links, nil, true)); err != nil {
		return err
	}
	p, err := stream.New(stream.Config{Site: name, Cfg: cfg, Links: []stream.Link{link},
		Net: stream.Linux{Opener: netdev.Linux{}, HoldRoute: redirect.HoldRoute, Raw: new(stream.RawSockets)}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() { failed <- p.Run(ctx) }()
	go func() {
		defer cancel()
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			json.NewEncoder(os.Stdout).Encode(report{p.Stats(), runtime.NumGoroutine()})
		}
	}()
	if err := <-failed; ctx.Err() == nil {
		return err
	}
	return nil
}

// report is what an edge answers.
type report struct {
	stream.Stats
	Goroutines int
}

func edgeConfig(name string) (*config.Config, stream.Link) {
	cfg := siteConfig("dc1", "dc2")
	link := stream.Link{Peer: "dc2", Number: 1, Device: "st-dc2", Local: link1, Remote: link2, Token: [32]byte{9}}
	six := map[string]netip.Prefix{"dc1": netip.MustParsePrefix("fd00:1::/64"), "dc2": netip.MustParsePrefix("fd00:2::/64")}
	if name == "dc2" {
		cfg = siteConfig("dc2", "dc1")
		link = stream.Link{Peer: "dc1", Number: 1, Device: "st-dc1", Local: link2, Remote: link1, Token: [32]byte{9}}
	}
	cfg.Workloads = nil
	cfg.Subnets = append(cfg.Subnets, six[name])
	cfg.Peers[0].Subnets = append(cfg.Peers[0].Subnets, six[link.Peer])
	for i := range cfg.Streams {
		cfg.Streams[i].To = append(cfg.Streams[i].To, six[link.Peer])
	}
	cfg.Dials[0].To = append(cfg.Dials[0].To, six[name])
	return cfg, link
}

// rig is two edges with a host each, in namespaces; the link is a veth.
type rig struct {
	t      testing.TB
	prefix string
	edges  map[string]*edge
}

// edge is a running stream process.
type edge struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func newRig(t testing.TB) *rig {
	if os.Getuid() != 0 {
		t.Skip("needs root: network namespaces, TUN devices and nftables")
	}
	r := &rig{t: t, prefix: fmt.Sprintf("sts%d-", os.Getpid()), edges: make(map[string]*edge)}
	for _, ns := range []string{"h1", "e1", "e2", "h2"} {
		r.run("ip", "netns", "add", r.prefix+ns)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", r.prefix+ns).Run() })
		r.sh(ns, "ip link set lo up")
	}
	// One MAC at both ends and no ARP: the veth is as a TUN to the kernel.
	r.sh("e1", `ip link add st-dc2 address 02:00:00:00:00:77 type veth peer name st-dc1 address 02:00:00:00:00:77 netns `+r.prefix+`e2
		ip link set st-dc2 arp off up; ip addr add 169.254.1.1/32 dev st-dc2`)
	r.sh("e2", `ip link set st-dc1 arp off up; ip addr add 169.254.1.2/32 dev st-dc1`)
	for n := 1; n <= 2; n++ {
		host, edge := fmt.Sprintf("h%d", n), fmt.Sprintf("e%d", n)
		r.sh(edge, fmt.Sprintf(`ip link add lan type veth peer name eth0 netns %s%s
			ip addr add 10.%d.0.1/24 dev lan; ip addr add fd00:%d::1/64 dev lan nodad; ip link set lan up
			echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding`, r.prefix, host, n, n))
		r.sh(host, fmt.Sprintf(`ip link set eth0 up; ip addr add 10.%d.0.10/24 dev eth0; ip addr add fd00:%d::10/64 dev eth0 nodad
			ip route add default via 10.%d.0.1; ip route add default via fd00:%d::1`, n, n, n, n))
		r.start(fmt.Sprintf("dc%d", n))
	}
	r.ready()
	return r
}

func (r *rig) run(args ...string) {
	r.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		r.t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

func (r *rig) sh(ns, script string) {
	r.t.Helper()
	r.run("ip", "netns", "exec", r.prefix+ns, "sh", "-ec", script)
}

// start runs the stream process of a site.
func (r *rig) start(site string) {
	r.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), edgeVariable+"="+site)
	cmd.Stderr = os.Stderr
	stdin, _ := cmd.StdinPipe()
	stdout, _ := cmd.StdoutPipe()
	// Not by "ip netns exec", which hides the control groups.
	if _, err := in(r, "e"+site[2:], func() (int, error) { return 0, cmd.Start() }); err != nil {
		r.t.Fatal(err)
	}
	e := &edge{cmd, stdin, json.NewDecoder(stdout)}
	r.edges[site] = e
	r.t.Cleanup(func() { e.kill() })
}

// kill is kill -9.
func (e *edge) kill() {
	e.cmd.Process.Kill()
	e.cmd.Wait()
}

func (r *rig) stats(site string) stream.Stats { return r.report(site).Stats }

func (r *rig) report(site string) report {
	r.t.Helper()
	var s report
	io.WriteString(r.edges[site].in, "\n")
	if err := r.edges[site].out.Decode(&s); err != nil {
		r.t.Fatalf("stats of %s: %v", site, err)
	}
	return s
}

// until asks again until f is content; it fails after half a minute.
func (r *rig) until(what string, f func() bool) {
	r.t.Helper()
	for range 300 {
		if f() {
			return
		}
		<-time.After(100 * time.Millisecond)
	}
	r.t.Fatalf("never happened: %s; dc1 %+v", what, r.stats("dc1"))
}

// ready waits until both sides have warm connections.
func (r *rig) ready() {
	r.t.Helper()
	for site := range r.edges {
		r.until(site+" has warm connections", func() bool {
			return !slices.ContainsFunc(r.stats(site).Peers[0].Domains, func(d stream.DomainStats) bool { return d.Ready == 0 })
		})
	}
}

// in runs f on a thread in a namespace; the thread is thrown away.
func in[T any](r *rig, ns string, f func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	c := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		file, err := os.Open("/run/netns/" + r.prefix + ns)
		if err != nil {
			c <- result{err: err}
			return
		}
		defer file.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			c <- result{err: err}
			return
		}
		v, err := f()
		c <- result{v, err}
	}()
	res := <-c
	return res.v, res.err
}

func (r *rig) listen(ns, addr string) net.Listener {
	r.t.Helper()
	l, err := in(r, ns, func() (net.Listener, error) { return net.Listen("tcp", addr) })
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { l.Close() })
	return l
}

func (r *rig) dial(ns, addr string) (*net.TCPConn, error) {
	c, err := in(r, ns, func() (net.Conn, error) { return net.DialTimeout("tcp", addr, 20*time.Second) })
	if err != nil {
		return nil, err
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return c.(*net.TCPConn), nil
}

// pair connects h1 to a server at h2.
func (r *rig) pair(addr string) (c, s *net.TCPConn) {
	r.t.Helper()
	l := r.listen("h2", addr)
	defer l.Close()
	c, err := r.dial("h1", addr)
	if err != nil {
		r.t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	if conn.RemoteAddr().String() != c.LocalAddr().String() {
		r.t.Errorf("server sees %v, the client is %v", conn.RemoteAddr(), c.LocalAddr())
	}
	return c, conn.(*net.TCPConn)
}

// transfer sends data both ways at once with FINs and compares.
func transfer(t *testing.T, c, s *net.TCPConn, n int) {
	t.Helper()
	done := make(chan error, 4)
	end := func(conn *net.TCPConn, out, want []byte) {
		go func() {
			_, err := conn.Write(out)
			done <- errors.Join(err, conn.CloseWrite())
		}()
		go func() {
			got, err := io.ReadAll(conn)
			if err == nil && !bytes.Equal(got, want) {
				err = fmt.Errorf("%d bytes came, not the %d sent", len(got), len(want))
			}
			done <- err
		}()
	}
	a, b := data(1, n), data(2, n+12345)
	end(c, a, b)
	end(s, b, a)
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestKernel runs two stream processes against the real kernel: transparent
// sockets, the hold device, the rules of package redirect.
func TestKernel(t *testing.T) {
	r := newRig(t)
	t.Run("transfer", func(t *testing.T) {
		for i, addr := range []string{"10.2.0.10:4000", "[fd00:2::10]:4000", "10.2.0.10:5000", "[fd00:2::10]:5000"} {
			c, s := r.pair(addr)
			transfer(t, c, s, 8<<20)
			r.until("the stream has ended cleanly", func() bool { return r.stats("dc1").Open == 0 && r.stats("dc2").Open == 0 })
			if p := r.stats("dc1").Peers[0]; p.Total != uint64(i+1) || p.Reset != 0 || p.BytesOut+p.BytesIn < int64(i+1)*(16<<20) {
				t.Errorf("%s: %+v", addr, p)
			}
		}
		if p := r.stats("dc1").Peers[0]; p.Congestion != "bbr" && p.Congestion != "cubic" {
			t.Errorf("congestion control %q", p.Congestion)
		}
	})
	t.Run("half close", func(t *testing.T) {
		c, s := r.pair("10.2.0.10:4001")
		io.WriteString(c, "question")
		c.CloseWrite()
		if got, err := io.ReadAll(s); err != nil || string(got) != "question" {
			t.Errorf("%q, %v", got, err)
		}
		io.WriteString(s, "answer")
		s.Close()
		if got, err := io.ReadAll(c); err != nil || string(got) != "answer" {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		for _, addr := range []string{"10.2.0.10:4002", "[fd00:2::10]:4002"} {
			if _, err := r.dial("h1", addr); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: %v", addr, err)
			}
		}
		for _, addr := range []string{"10.2.0.99:4002", "[fd00:2::99]:4002"} {
			if _, err := r.dial("h1", addr); !errors.Is(err, syscall.EHOSTUNREACH) {
				t.Errorf("%s: %v", addr, err)
			}
		}
	})
	t.Run("reset", func(t *testing.T) {
		c, s := r.pair("10.2.0.10:4003")
		io.WriteString(c, "last words")
		c.SetLinger(0)
		c.Close()
		if got, err := io.ReadAll(s); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("not the port itself", func(t *testing.T) {
		for _, addr := range []string{"10.1.0.1:5301", "10.1.0.1:5302", "10.1.0.1:4000", "10.2.0.1:4000"} {
			if _, err := r.dial("h1", addr); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: %v", addr, err)
			}
		}
	})
	t.Run("no dial rule", func(t *testing.T) {
		before := r.stats("dc1").Peers[0]
		c, s := r.pair("10.2.0.10:7000")
		transfer(t, c, s, 1<<20)
		if p := r.stats("dc1").Peers[0]; p.Passed <= before.Passed || p.Total != before.Total {
			t.Errorf("not passed: %+v", p)
		}
	})
}

// TestKernelKill kills each stream process in the middle of a transfer.
func TestKernelKill(t *testing.T) {
	r := newRig(t)
	for i, victim := range []string{"dc2", "dc1"} {
		c, s := r.pair(fmt.Sprintf("10.2.0.10:%d", 4100+i))
		go io.Copy(s, zeros{})
		if _, err := io.CopyN(io.Discard, c, 20<<20); err != nil {
			t.Fatal(err)
		}
		r.edges[victim].kill()
		if n, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s killed: client read %d bytes more and then %v, want a reset", victim, n, err)
		}
		for _, addr := range []string{"10.2.0.10:4110", "[fd00:2::10]:4110"} {
			c, s = r.pair(addr) // as packets
			transfer(t, c, s, 1<<20)
		}
		r.start(victim)
		r.ready()
		before := r.stats("dc2").Peers[0].Total
		c, s = r.pair("10.2.0.10:4120")
		transfer(t, c, s, 1<<20)
		if r.stats("dc2").Peers[0].Total != before+1 {
			t.Errorf("%s restarted: connections are not split again", victim)
		}
	}
}

// BenchmarkKernel moves fresh and repeated data through two stream processes,
// all on this machine: what the agents themselves can do.
func BenchmarkKernel(b *testing.B) {
	r := newRig(b)
	const size = 64 << 20
	for _, kind := range []string{"random", "repeat", "zeros"} {
		b.Run(kind, func(b *testing.B) {
			c, s := r.pair("10.2.0.10:4200")
			b.SetBytes(size)
			block, rnd := make([]byte, 1<<20), rand.NewChaCha8([32]byte{byte(len(kind))})
			if kind == "repeat" {
				rnd.Read(block)
			}
			go func() {
				for range b.N * size >> 20 {
					if kind == "random" {
						rnd.Read(block)
					}
					c.Write(block)
				}
			}()
			b.ResetTimer()
			s.SetDeadline(time.Now().Add(5 * time.Minute))
			if _, err := io.CopyN(io.Discard, s, int64(b.N)*size); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			c.Close()
		})
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
