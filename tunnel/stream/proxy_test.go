package stream_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/stream"
	"stitch/tunnel/stream/streamtest"
)

var (
	client   = netip.MustParseAddr("10.1.0.10")
	server   = netip.MustParseAddr("10.2.0.10")
	workload = netip.MustParseAddr("10.2.0.50")
	edge1    = netip.MustParseAddr("10.1.0.1")
	edge2    = netip.MustParseAddr("10.2.0.1")
	link1    = netip.MustParseAddr("169.254.1.1")
	link2    = netip.MustParseAddr("169.254.1.2")
)

// world is two sites, dc1 with the clients and dc2 with the servers.
type world struct {
	t       *testing.T
	fabric  *streamtest.Fabric
	a, b    *site
	nextSrc uint16
}

// site is one site's process.
type site struct {
	w     *world
	cfg   *config.Config
	link  stream.Link
	own   netip.Addr
	net   *streamtest.Net
	proxy *stream.Proxy
	stop  context.CancelFunc
	done  chan struct{}
	max   int // streams; 0: the default
}

func newWorld(t *testing.T, delay time.Duration) *world {
	w := &world{t: t, fabric: streamtest.New(), nextSrc: 30000}
	w.fabric.Delay = delay
	token := [32]byte{1, 2, 3}
	w.a = &site{w: w, own: edge1, cfg: siteConfig("dc1", "dc2"),
		link: stream.Link{Peer: "dc2", Number: 1, Device: "st-dc2", Local: link1, Remote: link2, Token: token}}
	w.b = &site{w: w, own: edge2, cfg: siteConfig("dc2", "dc1"),
		link: stream.Link{Peer: "dc1", Number: 1, Device: "st-dc1", Local: link2, Remote: link1, Token: token}}
	return w
}

func siteConfig(own, peer string) *config.Config {
	prefix := map[string]netip.Prefix{
		"dc1": netip.MustParsePrefix("10.1.0.0/24"), "dc2": netip.MustParsePrefix("10.2.0.0/24"),
	}
	ports := func(a, b uint16) []config.PortRange { return []config.PortRange{{First: a, Last: b}} }
	return &config.Config{
		Site:    own,
		Subnets: []netip.Prefix{prefix[own]},
		Peers:   []config.Peer{{Name: peer, Subnets: []netip.Prefix{prefix[peer]}}},
		Streams: []config.StreamRule{
			{Peer: peer, To: []netip.Prefix{prefix[peer]}, Ports: ports(4000, 4999), Handshake: config.Faithful, Domain: "lab"},
			{Peer: peer, To: []netip.Prefix{prefix[peer]}, Ports: ports(5000, 5999), Handshake: config.Early, Domain: "lab"},
			{Peer: peer, To: []netip.Prefix{prefix[peer]}, Ports: ports(6000, 6099)},
			{Peer: peer, To: []netip.Prefix{prefix[peer]}, Ports: ports(6100, 6199), Optimize: config.Compress},
			{Peer: peer, To: []netip.Prefix{prefix[peer]}, Ports: ports(6200, 6299), Optimize: config.Accelerate},
			{Peer: peer, To: []netip.Prefix{prefix[peer]}, Ports: ports(6300, 6399), Optimize: config.Off},
			{Peer: peer, To: []netip.Prefix{prefix[peer]}, Ports: ports(6400, 6400), Domain: "lab"},
			{Peer: peer, To: []netip.Prefix{prefix[peer]}, Ports: ports(7000, 7000), Handshake: config.Faithful},
		},
		Domains: []config.Domain{{Name: "lab"}},
		Dials: []config.DialRule{
			{Peer: peer, To: []netip.Prefix{prefix[own]}, Ports: ports(4000, 5999), Domain: "lab"},
			{Peer: peer, To: []netip.Prefix{prefix[own]}, Ports: ports(6000, 6499)},
		},
		History:   config.History{Size: 8 << 20, Memory: 8 << 20},
		Workloads: []config.Workload{{Name: "app", IP: workload, Site: "dc2"}},
	}
}

// start runs a new process at the site.
func (s *site) start() {
	s.net = s.w.fabric.Site(s.own)
	p, err := stream.New(stream.Config{Site: s.cfg.Site, Cfg: s.cfg, Links: []stream.Link{s.link}, Net: s.net, MaxStreams: s.max})
	if err != nil {
		s.w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.proxy, s.stop, s.done = p, cancel, make(chan struct{})
	go func() {
		defer close(s.done)
		p.Run(ctx)
	}()
}

// kill is kill -9.
func (s *site) kill() {
	s.net.Kill()
	s.stop()
	<-s.done
}

// run starts both sites, waits until they know each other, and stops them.
func (w *world) run(f func()) {
	w.a.start()
	w.b.start()
	defer func() {
		w.a.stop()
		w.b.stop()
		<-w.a.done
		<-w.b.done
	}()
	time.Sleep(2 * time.Second)
	synctest.Wait()
	f()
}

func (w *world) connect(dst netip.AddrPort) (*streamtest.Conn, streamtest.How, error) {
	w.nextSrc++
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return w.a.net.Connect(ctx, netip.AddrPortFrom(client, w.nextSrc), dst)
}

// split opens a stream to a server at port and returns both ends.
func (w *world) split(port uint16) (c, s stream.Conn) {
	w.t.Helper()
	dst := netip.AddrPortFrom(server, port)
	l := w.fabric.Serve(dst)
	defer l.Close()
	c1, how, err := w.connect(dst)
	if err != nil || how != streamtest.Split {
		w.t.Fatalf("connect: %v, %v", how, err)
	}
	s1, err := l.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	return c1, s1
}

func bubble(t *testing.T, delay time.Duration, f func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, delay)
		w.run(func() { f(w) })
	})
}

// data is n bytes, half of them seen before.
func data(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b[:n/2] {
		b[i] = byte(r.Uint32())
	}
	copy(b[n/2:], b)
	return b
}

// exchange sends a to s and b to c at the same time, each with a FIN, and
// checks what arrives.
func exchange(t *testing.T, c, s stream.Conn, a, b []byte) {
	t.Helper()
	var wg sync.WaitGroup
	end := func(name string, conn stream.Conn, out, want []byte) {
		wg.Go(func() {
			if _, err := conn.Write(out); err != nil {
				t.Errorf("%s: write: %v", name, err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Errorf("%s: close write: %v", name, err)
			}
		})
		wg.Go(func() {
			got, err := io.ReadAll(conn)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: got %d bytes (%v), want %d", name, len(got), err, len(want))
			}
		})
	}
	end("client", c, a, b)
	end("server", s, b, a)
	wg.Wait()
}

func TestExchange(t *testing.T) {
	for _, port := range []uint16{4000, 5000} {
		bubble(t, 20*time.Millisecond, func(w *world) {
			c, s := w.split(port)
			if c.LocalAddr().String() != s.RemoteAddr().String() || c.RemoteAddr().String() != s.LocalAddr().String() {
				t.Errorf("client %v -> %v, server %v <- %v", c.LocalAddr(), c.RemoteAddr(), s.LocalAddr(), s.RemoteAddr())
			}
			exchange(t, c, s, data(1, 3<<20), data(2, 5<<20))
			c.Finish()
			s.Finish()
			time.Sleep(time.Second)
			for name, site := range map[string]*site{"dc1": w.a, "dc2": w.b} {
				st := site.proxy.Stats()
				if st.Open != 0 || st.Peers[0].Total != 1 || st.Peers[0].Reset != 0 || st.Peers[0].BytesIn+st.Peers[0].BytesOut != 8<<20 {
					t.Errorf("%s: %+v", name, st)
				}
			}
		})
	}
}

func TestHalfClose(t *testing.T) {
	for _, clientFirst := range []bool{true, false} {
		bubble(t, 20*time.Millisecond, func(w *world) {
			first, second := w.split(4001)
			if !clientFirst {
				first, second = second, first
			}
			first.Write([]byte("question"))
			first.CloseWrite()
			if got, err := io.ReadAll(second); err != nil || string(got) != "question" {
				t.Fatalf("got %q, %v", got, err)
			}
			time.Sleep(10 * time.Minute) // half-closed for long
			answer := data(3, 1<<20)
			go func() {
				second.Write(answer)
				second.CloseWrite()
			}()
			if got, err := io.ReadAll(first); err != nil || !bytes.Equal(got, answer) {
				t.Fatalf("got %d bytes, %v", len(got), err)
			}
		})
	}
}

// TestUrgent: what was sent as urgent arrives as urgent, at its place among the
// other bytes, both ways; two marks in one block too.
func TestUrgent(t *testing.T) {
	bubble(t, 20*time.Millisecond, func(w *world) {
		a, b := w.split(4002)
		for _, way := range [][2]stream.Conn{{a, b}, {b, a}} {
			from, to := way[0], way[1]
			before, after := data(5, 100_000), data(6, 1000)
			from.Write(before)
			from.WriteUrgent('!')
			from.WriteUrgent('?')
			from.Write(after)
			from.CloseWrite()
			want := append(append(append([]byte{}, before...), "!?"...), after...)
			var got []byte
			var marks []int
			for buf := make([]byte, 10_000); ; {
				err := to.Wait()
				if to.AtMark() {
					marks = append(marks, len(got))
				}
				n, err2 := to.Read(buf)
				got = append(got, buf[:n]...)
				if err != nil || err2 != nil {
					break
				}
			}
			if !bytes.Equal(got, want) || !slices.Equal(marks, []int{len(before), len(before) + 1}) {
				t.Errorf("%d bytes with marks at %v", len(got), marks)
			}
		}
	})
}

// TestOneByte holds the latency of a small message: the links' delay.
func TestOneByte(t *testing.T) {
	bubble(t, 20*time.Millisecond, func(w *world) {
		c, s := w.split(4002)
		for range 3 {
			begin := time.Now()
			c.Write([]byte{1})
			if _, err := s.Read(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); took != 20*time.Millisecond {
				t.Errorf("one byte took %v", took)
			}
		}
	})
}

func TestRefused(t *testing.T) {
	bubble(t, 20*time.Millisecond, func(w *world) {
		gone, filtered, silent := netip.MustParseAddr("10.2.0.11"), netip.MustParseAddr("10.2.0.12"), netip.MustParseAddr("10.2.0.13")
		w.fabric.Fail(gone, syscall.EHOSTUNREACH)
		w.fabric.Fail(filtered, syscall.EACCES)
		w.fabric.Fail(silent, syscall.ETIMEDOUT)
		for _, c := range []struct {
			to   netip.Addr
			want error
		}{{server, syscall.ECONNREFUSED}, {gone, syscall.EHOSTUNREACH}, {filtered, syscall.EHOSTUNREACH}, {silent, context.DeadlineExceeded}} {
			_, _, err := w.connect(netip.AddrPortFrom(c.to, 4100))
			if !errors.Is(err, c.want) {
				t.Errorf("%v: %v, want %v", c.to, err, c.want)
			}
		}
	})
}

// TestFaithful holds what faithful means: the client is connected after the
// server has answered, one round trip later.
func TestFaithful(t *testing.T) {
	bubble(t, 50*time.Millisecond, func(w *world) {
		begin := time.Now()
		w.split(4003)
		if took := time.Since(begin); took != 100*time.Millisecond {
			t.Errorf("connect took %v, want one round trip", took)
		}
	})
}

func TestPassed(t *testing.T) {
	bubble(t, 20*time.Millisecond, func(w *world) {
		check := func(name string, addr netip.Addr, port uint16) {
			t.Helper()
			w.fabric.Serve(netip.AddrPortFrom(addr, port))
			_, how, err := w.connect(netip.AddrPortFrom(addr, port))
			if err != nil || how != streamtest.Direct {
				t.Errorf("%s: %v, %v; want it carried as packets", name, how, err)
			}
		}
		check("a workload", workload, 4000)
		check("no rule", server, 80)
		check("no dial rule there", server, 7000)
		check("the far edge itself", edge2, 4000)
		w.b.kill()
		time.Sleep(time.Second)
		check("faithful, far process dead", server, 4010)
		check("early, far process dead", server, 5010)
		if s := w.a.proxy.Stats().Peers[0]; s.Alive || s.LastError == "" || s.Passed != 6 {
			t.Errorf("stats: %+v", s)
		}
		w.b.start()
		time.Sleep(5 * time.Second)
		w.split(4011)
		w.a.kill()
		check("near process dead", server, 4012)
		w.a.start()
	})
}

// TestKill holds rule 1 of the faults: the death of either process in the
// middle of a transfer is a reset at both hosts, never an end of stream.
func TestKill(t *testing.T) {
	for _, near := range []bool{true, false} {
		bubble(t, 20*time.Millisecond, func(w *world) {
			c, s := w.split(4004)
			ends := make(chan error, 2)
			for _, conn := range []stream.Conn{c, s} {
				go func() {
					block := data(4, 100000)
					for _, err := conn.Write(block); err == nil; _, err = conn.Write(block) {
						time.Sleep(10 * time.Millisecond)
					}
				}()
				go func() {
					_, err := io.Copy(io.Discard, conn)
					ends <- err
				}()
			}
			time.Sleep(3 * time.Second)
			victim := w.b
			if near {
				victim = w.a
			}
			victim.kill()
			for range 2 {
				if err := <-ends; !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("near %v: transfer ended with %v, want a reset", near, err)
				}
			}
			victim.start()
			time.Sleep(5 * time.Second)
			c, s = w.split(4005)
			exchange(t, c, s, data(5, 1<<20), data(6, 1<<20))
		})
	}
}

// TestKillAfterFIN: one direction has ended cleanly, the other not.
func TestKillAfterFIN(t *testing.T) {
	bubble(t, 20*time.Millisecond, func(w *world) {
		c, s := w.split(4006)
		s.Write([]byte("all of it"))
		s.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "all of it" || err != nil {
			t.Fatal(string(got), err)
		}
		c.Write([]byte("never"))
		w.a.kill()
		if _, err := c.Write([]byte("more")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("client's write: %v", err)
		}
		time.Sleep(time.Second)
		if got, err := io.ReadAll(s); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("server read %q, %v", got, err)
		}
		w.a.start()
	})
}

// TestReset: a host's reset is a reset for the other one, after what came
// before it.
func TestReset(t *testing.T) {
	for _, fromClient := range []bool{true, false} {
		bubble(t, 20*time.Millisecond, func(w *world) {
			c, s := w.split(4007)
			if !fromClient {
				c, s = s, c
			}
			time.Sleep(time.Second)
			c.Close()
			if _, err := io.ReadAll(s); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read: %v", err)
			}
			time.Sleep(5 * time.Second)
			for _, site := range []*site{w.a, w.b} {
				if st := site.proxy.Stats(); st.Open != 0 || st.Peers[0].Reset != 1 {
					t.Errorf("%+v", st)
				}
			}
		})
	}
}

// TestSlowReader: a host that does not read stops the other one after a
// bounded amount, also when both wait for each other, and loses nothing.
func TestSlowReader(t *testing.T) {
	bubble(t, 20*time.Millisecond, func(w *world) {
		c, s := w.split(4008)
		want := data(7, 16<<20)
		var sent int
		var mu sync.Mutex
		go func() {
			for i := 0; i < len(want); i += 1 << 16 {
				c.Write(want[i : i+1<<16])
				mu.Lock()
				sent += 1 << 16
				mu.Unlock()
			}
			c.CloseWrite()
		}()
		time.Sleep(15 * time.Minute)
		mu.Lock()
		if most := 2<<20 + 512<<10; sent > most { // two hosts' buffers, and the window
			t.Errorf("%d bytes taken from the client, want at most %d", sent, most)
		}
		mu.Unlock()
		s.Write([]byte("the other way is free"))
		if _, err := io.ReadFull(c, make([]byte, 21)); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	})
}

// TestMany opens more streams at once than there are warm connections.
func TestMany(t *testing.T) {
	bubble(t, 20*time.Millisecond, func(w *world) {
		dst := netip.AddrPortFrom(server, 4009)
		l := w.fabric.Serve(dst)
		go echoConns(l)
		var wg sync.WaitGroup
		for i := range 50 {
			src := netip.AddrPortFrom(client, uint16(20000+i))
			wg.Go(func() {
				c, how, err := w.a.net.Connect(context.Background(), src, dst)
				if err != nil || how != streamtest.Split {
					t.Errorf("connect: %v %v", how, err)
					return
				}
				want := data(uint64(i), 50000)
				c.Write(want)
				c.CloseWrite()
				if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			})
		}
		wg.Wait()
		l.Close()
	})
}

// TestFull: with as many streams as either side allows, further connections
// pass as packets, whole; and when streams have ended there are new ones.
func TestFull(t *testing.T) {
	const most = 64 // so that the gate opens again a little below
	for _, near := range []bool{true, false} {
		for _, port := range []uint16{4000, 5000} {
			if !near && port == 5000 {
				continue // early: the far side's refusal comes after the client's handshake
			}
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 20*time.Millisecond)
				full := map[bool]*site{true: w.a, false: w.b}[near]
				full.max = most
				w.run(func() { fill(t, w, port, most) })
				if s := full.proxy.Stats(); s.Full == 0 || s.Max != most || s.Admitted != 0 {
					t.Errorf("near %v, port %d: %d turned away, %d of %d admitted", near, port, s.Full, s.Admitted, s.Max)
				}
			})
		}
	}
}

// TestMemoryShort: while memory is short at either site new connections pass as
// packets, those that are open go on, and above the low mark new ones are split again.
func TestMemoryShort(t *testing.T) {
	for _, near := range []bool{true, false} {
		bubble(t, 20*time.Millisecond, func(w *world) {
			short := map[bool]*site{true: w.a, false: w.b}[near]
			echo := func(c *streamtest.Conn) {
				t.Helper()
				c.Write([]byte("is anybody there?"))
				if _, err := io.ReadFull(c, make([]byte, 17)); err != nil {
					t.Error(err)
				}
			}
			dst := netip.AddrPortFrom(server, 4000)
			l := w.fabric.Serve(dst)
			defer l.Close()
			go echoConns(l)
			var open []*streamtest.Conn
			for _, c := range []struct {
				free uint64
				want streamtest.How
			}{{70 << 20, streamtest.Split}, {60 << 20, streamtest.Direct}, {120 << 20, streamtest.Direct}, {130 << 20, streamtest.Split}, {70 << 20, streamtest.Split}} {
				short.net.SetFree(c.free)
				time.Sleep(2 * time.Second)
				conn, how, err := w.connect(dst)
				if err != nil || how != c.want {
					t.Fatalf("near %v, %d MiB free: %v, %v", near, c.free>>20, how, err)
				}
				open = append(open, conn)
				for _, c := range open {
					echo(c)
				}
				if s := short.proxy.Stats(); s.Memory.Short != (c.want == streamtest.Direct) || s.Memory.Free != c.free {
					t.Errorf("near %v, %d MiB free: %+v", near, c.free>>20, s.Memory)
				}
			}
			why := stream.PeerFailed
			if near {
				why = stream.MemoryShort
			}
			w.a.net.Forwarded = []stream.Tracked{tracked(open[1]), tracked(open[2])}
			for _, f := range w.a.proxy.Flows(100).Flows {
				if f.Carried == "packets" && f.Reason != why {
					t.Errorf("near %v: %+v", near, f)
				}
			}
			for _, c := range open {
				c.CloseWrite()
				io.ReadAll(c)
				c.Finish()
			}
		})
	}
}

// tracked is how the kernel tracks a client's connection.
func tracked(c *streamtest.Conn) stream.Tracked {
	src, dst := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
	return stream.Tracked{Proto: 6, Src: src, Dst: dst, At: dst}
}

// fill connects five times as often as there may be streams, all at once.
func fill(t *testing.T, w *world, port uint16, most int) {
	dst := netip.AddrPortFrom(server, port)
	l := w.fabric.Serve(dst)
	defer l.Close()
	go echoConns(l)
	for range 2 { // the second time when the first ones have ended
		var mu sync.Mutex
		var conns []*streamtest.Conn
		ways := map[streamtest.How]int{}
		var wg sync.WaitGroup
		for range 5 * most {
			w.nextSrc++
			src := netip.AddrPortFrom(client, w.nextSrc)
			wg.Go(func() {
				c, how, err := w.a.net.Connect(context.Background(), src, dst)
				if err == nil {
					c.Write([]byte("is anybody there?"))
					_, err = io.ReadFull(c, make([]byte, 17))
				}
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Errorf("port %d: %v: %v", port, how, err)
				}
				ways[how]++
				conns = append(conns, c)
			})
		}
		wg.Wait()
		if ways[streamtest.Split] != most || ways[streamtest.Direct] != 4*most {
			t.Errorf("port %d: %v, want %d split and the others direct", port, ways, most)
		}
		for _, c := range conns {
			if c != nil {
				c.CloseWrite()
				io.ReadAll(c)
				c.Finish()
			}
		}
		time.Sleep(10 * time.Second)
	}
}

// echoConns sends back what comes, on every connection.
func echoConns(l stream.Listener) {
	for s, err := l.Accept(); err == nil; s, err = l.Accept() {
		go func() {
			io.Copy(s, s)
			s.CloseWrite()
		}()
	}
}

// TestWrongToken: neither side talks to one that does not know the token.
func TestWrongToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Millisecond)
		right := w.b.link.Token
		wrong := right
		wrong[31] ^= 1
		w.b.start()
		synctest.Wait()
		rogue := w.fabric.Site(edge1)
		for token, ok := range map[[32]byte]bool{right: true, wrong: false, {}: false} {
			c, err := rogue.DialPeer(context.Background(), w.a.link, config.StreamPort)
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Dialler(c, token); ok != (err == nil) {
				t.Errorf("dialler's token right %v: %v", ok, err)
			}
			l, err := rogue.ListenPeer(w.a.link, config.StreamPort)
			if err != nil {
				t.Fatal(err)
			}
			c, _ = l.Accept()
			if err := stream.ListenerHello(c, token); ok != (err == nil) {
				t.Errorf("listener's token right %v: %v", ok, err)
			}
			l.Close()
			c.Close()
		}
		if s := w.b.proxy.Stats().Peers[0]; s.Alive || s.LastError == "" {
			t.Errorf("%+v", s)
		}
		w.b.stop()
		<-w.b.done
	})
}

// TestStranger: only the peer's own link address may talk on the link.
func TestStranger(t *testing.T) {
	bubble(t, time.Millisecond, func(w *world) {
		link := w.a.link
		link.Local = netip.MustParseAddr("169.254.1.3")
		c, err := w.fabric.Site(edge1).DialPeer(context.Background(), link, config.StreamPort)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Dialler(c, link.Token); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a stranger got %v", err)
		}
		if s := w.b.proxy.Stats().Peers[0]; s.Restarts != 0 {
			t.Error("a stranger was listened to")
		}
	})
}

// TestGreedy: a peer that sends more than it was granted is reset, and so is
// the server it sent to, which has read nothing.
func TestGreedy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Millisecond)
		w.b.start()
		synctest.Wait()
		l := w.fabric.Serve(netip.AddrPortFrom(server, 4020))
		c, err := w.fabric.Site(edge1).DialPeer(context.Background(), w.a.link, config.StreamPort)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Dialler(c, w.a.link.Token); err != nil {
			t.Fatal(err)
		}
		_, err = stream.Flood(c, netip.AddrPortFrom(client, 1), netip.AddrPortFrom(server, 4020), 40)
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("40 blocks of 64 KiB: %v", err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, s); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("server read %d bytes, %v", n, err)
		}
		w.b.stop()
		<-w.b.done
	})
}

// TestKillUnacknowledged: both hosts have sent all and ended, but the server
// has not acknowledged everything when an agent dies: nobody must believe in a
// clean end.
func TestKillUnacknowledged(t *testing.T) {
	for _, near := range []bool{true, false} {
		bubble(t, 20*time.Millisecond, func(w *world) {
			c, s := w.split(4019)
			c.Write(data(1, 200000)) // more than the server's kernel takes
			c.CloseWrite()
			time.Sleep(time.Second)
			s.CloseWrite()
			time.Sleep(time.Minute)
			if a, b := w.a.proxy.Stats().Open, w.b.proxy.Stats().Open; a != 1 || b != 1 {
				t.Errorf("%d and %d streams open", a, b)
			}
			victim := w.b
			if near {
				victim = w.a
			}
			victim.kill()
			time.Sleep(time.Second)
			for name, conn := range map[string]stream.Conn{"client": c, "server": s} {
				if _, err := io.ReadAll(conn); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("%s: %v, want a reset", name, err)
				}
			}
			victim.start()
		})
	}
}

// TestMiss: blocks that refer to what the far side has lost are asked for
// again, and when that goes on they refer to it no more.
func TestMiss(t *testing.T) {
	bubble(t, 20*time.Millisecond, func(w *world) {
		one := data(8, 1<<20)
		c, s := w.split(4013)
		exchange(t, c, s, one, nil)
		time.Sleep(time.Second)
		epoch := w.b.proxy.Stats().Peers[0].Domains[0].Epoch

		w.b.proxy.LoseHistory("dc1")
		c, s = w.split(4014)
		go func(c stream.Conn) {
			c.Write(one[:10000]) // one block with sources that are gone
			time.Sleep(time.Second)
			c.Write(data(9, 100000))
			c.CloseWrite()
		}(c)
		want := append(one[:10000:10000], data(9, 100000)...)
		if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		s.CloseWrite()
		time.Sleep(time.Second)
		if p := w.a.proxy.Stats().Peers[0]; p.Resent != 1 || p.Reset != 0 {
			t.Errorf("one miss: %+v", p)
		}

		w.b.proxy.LoseHistory("dc1")
		c, s = w.split(4015)
		go func(c stream.Conn) {
			for i := 0; i < len(one); i += 100000 {
				c.Write(one[i:min(i+100000, len(one))])
				time.Sleep(time.Second)
			}
			c.CloseWrite()
		}(c)
		if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, one) {
			t.Errorf("nothing but misses: %d bytes, %v", len(got), err)
		}
		s.CloseWrite()
		time.Sleep(time.Second)
		if p := w.a.proxy.Stats().Peers[0]; p.Resent < 2 || p.Resent > 5 || p.Reset != 0 || p.Restarts != 0 {
			t.Errorf("after misses in a row: %+v", p)
		}
		if now := w.b.proxy.Stats().Peers[0].Domains[0].Epoch; now != epoch {
			t.Error("the history started again")
		}
	})
}

// TestIdle holds what an idle stream costs each agent: at most 64 KiB and
// three goroutines.
func TestIdle(t *testing.T) {
	bubble(t, time.Millisecond, func(w *world) {
		const streams = 300
		measure := func() (memory uint64, goroutines int) {
			synctest.Wait()
			runtime.GC()
			runtime.GC() // what the pools held
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapInuse + m.StackInuse, runtime.NumGoroutine()
		}
		c, s := w.split(4017) // everything shared exists now
		exchange(t, c, s, data(1, 1<<20), nil)
		time.Sleep(time.Second)
		before, goroutines := measure()
		conns := make([]stream.Conn, 0, 2*streams)
		for range streams {
			c, s := w.split(4018)
			c.Write(data(2, 1000))
			s.Read(make([]byte, 1000))
			conns = append(conns, c, s)
		}
		time.Sleep(time.Minute)
		after, more := measure()
		if got := int64(after-before) / (2 * streams); got > 64<<10 {
			t.Errorf("%d bytes per stream and agent", got)
		}
		if got := float64(more-goroutines) / (2 * streams); got > 3 {
			t.Errorf("%.1f goroutines per stream and agent", got)
		}
		t.Logf("%d bytes, %.1f goroutines", int64(after-before)/(2*streams), float64(more-goroutines)/(2*streams))
		for _, c := range conns {
			c.Close()
		}
	})
}

// TestEarlyOrder: of connections that a client begins at one port one after the
// other, without waiting for the server, the first reaches the server first; and
// a first one that is refused keeps nobody.
func TestEarlyOrder(t *testing.T) {
	bubble(t, 20*time.Millisecond, func(w *world) {
		const together = 8
		for port := uint16(5001); port < 5031; port++ {
			dst := netip.AddrPortFrom(server, port)
			l := w.fabric.Serve(dst)
			first := w.nextSrc + 1
			begun := time.Now()
			for range together {
				if _, how, err := w.connect(dst); err != nil || how != streamtest.Split {
					t.Fatalf("connect: %v, %v", how, err)
				}
			}
			for i := range together {
				c, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				if got := c.RemoteAddr().(*net.TCPAddr).Port; i == 0 && got != int(first) {
					t.Fatalf("port %d: the server's first is %d, the client's %d", port, got, first)
				}
			}
			if took := time.Since(begun); took > 200*time.Millisecond {
				t.Errorf("port %d: the last came after %v", port, took)
			}
			l.Close()
		}
		refused := netip.AddrPortFrom(server, 5100)
		for range together {
			c, _, err := w.connect(refused)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("a refused connection ended with %v", err)
			}
		}
	})
}
