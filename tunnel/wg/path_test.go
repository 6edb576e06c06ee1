package wg

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"stitch/tunnel/netdev/netdevtest"
	"stitch/tunnel/wan"
	"stitch/tunnel/wg/quality"
)

// mobile is a socket whose address changes while it is open, as seen by the
// other end: another port of a NAT, or another network.
type mobile struct {
	network *wan.Net

	mu      sync.Mutex
	now     *wan.Bind
	receive conn.ReceiveFunc
	open    bool
}

func (m *mobile) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fns, port, err := m.now.Open(port)
	if err != nil {
		return nil, 0, err
	}
	m.receive, m.open = fns[0], true
	return []conn.ReceiveFunc{m.receiveAny}, port, nil
}

// receiveAny receives from the socket there is.
func (m *mobile) receiveAny(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	for {
		m.mu.Lock()
		receive := m.receive
		m.mu.Unlock()
		n, err := receive(bufs, sizes, eps)
		m.mu.Lock()
		moved := m.open
		m.mu.Unlock()
		if err == nil || !errors.Is(err, net.ErrClosed) || !moved {
			return n, err
		}
	}
}

// move gives the socket a new address; what is under way to the old one is lost.
func (m *mobile) move(t *testing.T, to netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.now
	m.now = m.network.Bind(to)
	fns, _, err := m.now.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	m.receive = fns[0]
	_ = old.Close()
}

func (m *mobile) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open = false
	return m.now.Close()
}

func (m *mobile) Send(bufs [][]byte, ep conn.Endpoint) error {
	return m.bind().Send(bufs, ep)
}

func (m *mobile) bind() *wan.Bind {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

func (m *mobile) SetMark(uint32) error { return nil }
func (m *mobile) BatchSize() int       { return m.bind().BatchSize() }
func (m *mobile) ParseEndpoint(s string) (conn.Endpoint, error) {
	return m.bind().ParseEndpoint(s)
}

// times is how often a test does something: a quarter of n in -short, for the
// race detector.
func times(n int) int {
	if testing.Short() {
		return n / 4
	}
	return n
}

var pathAddrs = [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")}

// path is a link over an emulated path, the first end with a mobile socket.
type path struct {
	*wan.Net
	sock    [2]*mobile
	ends    [2]*simEnd
	options []func(*Config)
}

// onPath runs f over a path of given parameters each way, both ends up.
func onPath(t *testing.T, params wan.Params, f func(t *testing.T, p *path), options ...func(*Config)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		network, err := wan.NewNet(params)
		if err != nil {
			t.Fatal(err)
		}
		p := &path{Net: network, options: options}
		for i := range p.ends {
			p.open(t, i)
		}
		defer func() {
			for _, e := range p.ends {
				e.close(t)
			}
		}()
		for _, e := range p.ends {
			e.until(t, Up, 20*time.Second)
		}
		f(t, p)
	})
}

// open starts an end, again if it was closed.
func (p *path) open(t *testing.T, i int) {
	t.Helper()
	var keys [2]Config
	keys[0].PrivateKey, keys[1].PrivateKey = testKeys(7)
	p.sock[i] = &mobile{network: p.Net, now: p.Bind(pathAddrs[i])}
	e := &simEnd{tun: netdevtest.NewFake(fmt.Sprint("st-", i), 128), states: make(chan State, 1000)}
	cfg := Config{
		Name: fmt.Sprint("end", 1-i), PrivateKey: keys[i].PrivateKey, PublicKey: PublicKey(keys[1-i].PrivateKey), ListenPort: 51820,
		Endpoint: netip.AddrPortFrom(pathAddrs[1-i], 51820).String(), TUN: e.tun, InnerMTU: 1420, Bind: p.sock[i],
		OnState: func(s State) { e.states <- s },
	}
	cfg.Local, cfg.Remote = LinkAddrs(PublicKey(cfg.PrivateKey), cfg.PublicKey)
	for _, o := range p.options {
		o(&cfg)
	}
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	e.Link = l
	p.ends[i] = e
}

// steady lets d pass and fails if an end was down meanwhile.
func (p *path) steady(t *testing.T, d time.Duration) {
	t.Helper()
	synctest.Wait() // for what this very moment brings
	edges := [2]int{len(p.ends[0].states), len(p.ends[1].states)}
	time.Sleep(d)
	synctest.Wait()
	for i, e := range p.ends {
		if n := len(e.states) - edges[i]; n != 0 {
			t.Errorf("end %d: %d false edges", i, n)
		}
	}
}

// TestPathsAreNoDown has paths that are bad and carry: no end thinks that the
// link is down, and both judge it right.
func TestPathsAreNoDown(t *testing.T) {
	ms := time.Millisecond
	for name, c := range map[string]struct {
		wan.Params
		want quality.Health
	}{
		"control, 40 ms":             {wan.Params{Delay: 20 * ms}, quality.Good},
		"W-07 jitter of 80 ms":       {wan.Params{Delay: 20 * ms, Jitter: 80 * ms}, ""},
		"W-08 a round trip of 1.5 s": {wan.Params{Delay: 750 * ms}, quality.Good},
		"W-05 half of all twice":     {wan.Params{Delay: 20 * ms, Duplicate: 0.5}, quality.Good},
		"W-06 out of order":          {wan.Params{Delay: 20 * ms, Reorder: 0.2, ReorderBy: 100 * ms}, ""},
		"W-03 bad spells, 5 %":       {wan.Params{Delay: 20 * ms, Burst: wan.BurstLoss(0.05, 2)}, quality.Degraded},
		"W-01 five per cent":         {wan.Params{Delay: 20 * ms, Loss: 0.05}, quality.Degraded},
	} {
		t.Run(name, func(t *testing.T) {
			onPath(t, c.Params, func(t *testing.T, p *path) {
				time.Sleep(time.Minute)
				p.steady(t, time.Duration(times(180))*time.Second)
				for i, e := range p.ends {
					if q := e.Stats().Quality; c.want != "" && q.Health != c.want {
						t.Errorf("end %d: %+v, want %s", i, q, c.want)
					}
				}
			})
		})
	}
}

// TestBufferbloat is W-16: the path's buffer of two seconds fills within
// seconds and drains. Nobody takes that for a dead link; it is a slow one.
func TestBufferbloat(t *testing.T) {
	onPath(t, wan.Params{Rate: 8e6, Delay: 20 * time.Millisecond, Queue: 2_000_000}, func(t *testing.T, p *path) {
		time.Sleep(10 * time.Second)
		synctest.Wait()
		edges := len(p.ends[0].states) + len(p.ends[1].states)
		slow := false
		for i := range 6000 { // 1200 bytes every ms are 9.6 Mbit/s
			p.ends[0].tun.In <- ipPacket(1200, uint16(i))
			time.Sleep(time.Millisecond)
			if q := p.ends[0].Stats().Quality; q.Health == quality.Degraded {
				slow = true
			}
		}
		rtt := p.ends[0].Stats().RTT
		for len(p.ends[1].tun.Out) > 0 {
			<-p.ends[1].tun.Out
		}
		time.Sleep(20 * time.Second)
		if n := len(p.ends[0].states) + len(p.ends[1].states) - edges; n != 0 {
			t.Errorf("%d false edges", n)
		}
		if !slow || rtt < 500*time.Millisecond {
			t.Errorf("round trip %v, degraded %v", rtt, slow)
		}
		if q := p.ends[0].Stats().Quality; q.Health != quality.Good {
			t.Errorf("after it: %+v", q)
		}
	})
}

// TestRoaming is W-14 and G-19: the address of one end changes, at first after
// 1 s, then every 5 s, port and host by turns, at either end.
func TestRoaming(t *testing.T) {
	for end := range 2 {
		onPath(t, wan.Params{Delay: 20 * time.Millisecond}, func(t *testing.T, p *path) {
			for i := range times(12) {
				p.steady(t, map[bool]time.Duration{true: time.Second, false: 5 * time.Second}[i == 0])
				to := pathAddrs[end]
				if i%2 == 1 {
					to = netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)})
				}
				p.sock[end].move(t, to)
			}
			p.steady(t, 5*time.Second)
			want := p.sock[end].bind().Addr().String()
			if got := p.ends[1-end].Stats().Endpoint; netip.MustParseAddrPort(got).Addr().String() != want {
				t.Errorf("end %d followed to %s, the other is at %s", 1-end, got, want)
			}
		})
	}
}

// TestRoamingInBlackout changes the address while nothing passes.
func TestRoamingInBlackout(t *testing.T) {
	for _, length := range []time.Duration{time.Second, 30 * time.Second, 170 * time.Second, 200 * time.Second, 10 * time.Minute, 3 * time.Hour} {
		if testing.Short() && length > 5*time.Minute {
			continue
		}
		t.Run(length.String(), func(t *testing.T) {
			onPath(t, wan.Params{Delay: 20 * time.Millisecond}, func(t *testing.T, p *path) {
				time.Sleep(5 * time.Second)
				p.Cut(pathAddrs[0], pathAddrs[1], true)
				time.Sleep(length)
				p.sock[0].move(t, netip.MustParseAddr("203.0.113.77")) // the new way is not cut
				for _, e := range p.ends {
					e.until(t, Up, 2*time.Second)
				}
			})
		})
	}
}

// TestOnOff is W-09: the path is there for 2 s and away for 5 s, again and
// again.
func TestOnOff(t *testing.T) {
	onPath(t, wan.Params{Delay: 20 * time.Millisecond}, func(t *testing.T, p *path) {
		for range times(30) {
			p.Cut(pathAddrs[0], pathAddrs[1], true)
			time.Sleep(5 * time.Second)
			p.Cut(pathAddrs[0], pathAddrs[1], false)
			start := time.Now()
			for _, e := range p.ends {
				e.until(t, Up, time.Second)
			}
			time.Sleep(2*time.Second - time.Since(start))
		}
	})
}

// TestBothRestart is P-07: both ends restart within a second of each other,
// twenty times.
func TestBothRestart(t *testing.T) {
	onPath(t, wan.Params{Delay: 20 * time.Millisecond}, func(t *testing.T, p *path) {
		for i := range times(20) {
			time.Sleep(3 * time.Second)
			for _, e := range p.ends {
				e.close(t)
			}
			p.open(t, i%2)
			time.Sleep(time.Duration(i) * 50 * time.Millisecond)
			p.open(t, 1-i%2)
			for _, e := range p.ends {
				e.until(t, Up, 3*time.Second)
			}
		}
	})
}

// TestClockBack is C-01: an end restarts with a clock that was set
// back. The other one takes no initiation of its, as older than the last; here
// all are dropped. The link comes up by the other one's, whichever end it is.
func TestClockBack(t *testing.T) {
	for restarted := range 2 {
		for _, away := range []time.Duration{time.Millisecond, time.Second, 2500 * time.Millisecond, time.Minute} {
			bubble(t, 20*time.Millisecond, 0, func(t *testing.T, n *simNet) {
				a, b := connected(t, n)
				ends := [2]*simEnd{a, b}
				time.Sleep(10 * time.Second)
				ends[restarted].close(t)
				n.set(func() {
					n.drops = func(from int, p []byte) bool { return from == restarted && p[0] == 1 }
				})
				time.Sleep(away)
				e := n.open(t, restarted)
				defer e.close(t)
				defer ends[1-restarted].close(t)
				took := e.until(t, Up, 15*time.Second)
				t.Logf("end %d, away %v: up after %v", restarted, away, took)
				if took > 6*time.Second {
					t.Errorf("end %d, away %v: up after %v, want 6 s", restarted, away, took)
				}
			})
		}
	}
}

// TestClockStep is C-02 and C-04: the clock of an end is set back while the link
// is up, as after a time far ahead was corrected. For as long as that lasts only
// the other end can renew the session.
func TestClockStep(t *testing.T) {
	for stepped := range 2 {
		bubble(t, 20*time.Millisecond, 0, func(t *testing.T, n *simNet) {
			a, b := connected(t, n)
			defer a.close(t)
			defer b.close(t)
			time.Sleep(10 * time.Second)
			n.set(func() {
				n.drops = func(from int, p []byte) bool { return from == stepped && p[0] == 1 }
			})
			down := time.Duration(0)
			for range time.Duration(times(20)) * time.Minute / (50 * time.Millisecond) {
				time.Sleep(50 * time.Millisecond)
				if a.currentState() != Up || b.currentState() != Up {
					down += 50 * time.Millisecond
				}
			}
			if down > 0 {
				t.Errorf("end %d: not up for %v of %d minutes", stepped, down, times(20))
			}
		})
	}
}
