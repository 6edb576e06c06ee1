package wg

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"stitch/tunnel/netdev/super"
	"stitch/tunnel/wan"
)

// recorder keeps a copy of every datagram that end from sends; what lose says true
// to does not arrive.
type recorder struct {
	from int
	all  [][]byte
	lose func(p []byte) bool
}

func (r *recorder) drops(from int, p []byte) bool {
	if from == r.from {
		r.all = append(r.all, bytes.Clone(p))
	}
	return r.lose != nil && r.lose(p)
}

// inject has an end receive a datagram that its peer has not sent just now.
func (n *simNet) inject(to int, p []byte) {
	for len(n.ends[to].inbox) == cap(n.ends[to].inbox) {
		time.Sleep(time.Millisecond)
	}
	n.ends[to].inbox <- p
}

// send sends packets by a and returns the numbers of those that arrive at b.
func send(t *testing.T, a, b *simEnd, from, to uint32) (arrived []uint32) {
	t.Helper()
	for i := from; i < to; i++ {
		a.tun.In <- numbered(i)
		time.Sleep(5 * time.Millisecond)
		if i%100 == 99 || i == to-1 {
			if i == to-1 {
				time.Sleep(time.Second)
			}
			list, altered := numbers(b)
			if altered > 0 {
				t.Errorf("%d altered packets", altered)
			}
			arrived = append(arrived, list...)
		}
	}
	return arrived
}

// TestJunk is N-01: datagrams of every type and length that are made up, or were
// right before they were changed, and initiations that only lack the key. Nothing of
// it comes out, the link stays up, what was sent afterwards arrives, and the log is
// not flooded.
func TestJunk(t *testing.T) {
	bubble(t, 20*time.Millisecond, 0, func(t *testing.T, n *simNet) {
		seen := &recorder{}
		n.drops = seen.drops
		var text bytes.Buffer // its handler has a lock
		a, b := connected(t, n, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&text, nil)) })
		defer a.close(t)
		defer b.close(t)
		send(t, a, b, 0, 100)
		if text.Len() == 0 {
			t.Error("control case: nothing was logged")
		}
		text.Reset()
		edges, rng := len(a.states)+len(b.states), rand.New(rand.NewPCG(1, 9))
		low, high := testKeys(7)
		var macs [2]device.CookieGenerator // an initiation names its receiver in mac1
		macs[0].Init(device.NoisePublicKey(PublicKey(low)))
		macs[1].Init(device.NoisePublicKey(PublicKey(high)))
		for i := range times(20_000) {
			p := make([]byte, rng.IntN([]int{64, 200, 1600, 65535}[i%4]))
			for j := range min(len(p), 200) {
				p[j] = byte(rng.Uint32())
			}
			n.mu.Lock()
			known := seen.all[rng.IntN(len(seen.all))]
			n.mu.Unlock()
			to := i / 5 % 2
			switch i % 5 {
			case 0: // as it is
			case 1:
				p = append([]byte{byte(i%6 + 1), 0, 0, 0}, p...)
			case 2:
				p = bytes.Clone(known)
				p[rng.IntN(len(p))] ^= byte(1 + rng.IntN(255))
			case 3:
				p = append(bytes.Clone(known), p...)[:rng.IntN(len(known)+len(p))]
			case 4:
				p = hsMessage(1, rng.Uint32(), 0)
				for j := 8; j < len(p); j++ {
					p[j] = byte(rng.Uint32())
				}
				macs[to].AddMacs(p)
			}
			n.inject(to, p)
			if i%50 == 0 {
				time.Sleep(10 * time.Millisecond) // 5,000 a second
			}
		}
		list, altered := numbers(b)
		if back, _ := numbers(a); len(list)+len(back)+altered > 0 {
			t.Errorf("junk came out: %d at b, %d at a, %d altered", len(list), len(back), altered)
		}
		if lines := strings.Count(text.String(), "\n"); lines > 20 {
			t.Errorf("%d lines in the log: %.1000s", lines, text.String())
		}
		if got := send(t, a, b, 100, 600); len(got) != 500 || len(a.states)+len(b.states) != edges {
			t.Errorf("%d of 500 packets arrived afterwards; %d edges", len(got), len(a.states)+len(b.states)-edges)
		}
	})
}

// TestReplayed is N-04: all that was ever sent to an end is sent to it again, in any
// order, and once more when it has restarted and knows no counters. Nothing comes out
// twice, and the link works. The control case is a datagram that was kept from it:
// that comes out when it is sent at last.
func TestReplayed(t *testing.T) {
	for end := range 2 {
		bubble(t, 20*time.Millisecond, 0, func(t *testing.T, n *simNet) {
			seen := &recorder{from: 1 - end}
			n.drops = seen.drops
			a, b := connected(t, n)
			ends := [2]*simEnd{a, b}
			defer func() { ends[0].close(t); ends[1].close(t) }()
			if got := send(t, ends[1-end], ends[end], 0, 2000); len(got) != 2000 {
				t.Fatalf("%d arrived", len(got))
			}
			n.set(func() { seen.lose = func(p []byte) bool { return len(p) == 208+device.MessageTransportSize } })
			send(t, ends[1-end], ends[end], 2000, 2001)
			n.set(func() { seen.lose = nil })
			again := func() (came []uint32) {
				n.mu.Lock()
				all := slices.Clone(seen.all)
				n.mu.Unlock()
				rand.New(rand.NewPCG(3, 3)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
				for i, p := range all {
					n.inject(end, p)
					if i%100 == 0 {
						time.Sleep(5 * time.Millisecond)
						list, _ := numbers(ends[end])
						came = append(came, list...)
					}
				}
				time.Sleep(time.Second)
				list, _ := numbers(ends[end])
				return append(came, list...)
			}
			if got := again(); len(got) != 1 || got[0] != 2000 {
				t.Errorf("end %d: %v came out again, want 2000 only", end, got)
			}
			ends[end].close(t)
			ends[end] = n.open(t, end)
			if got := again(); len(got) > 0 {
				t.Errorf("end %d: %v came out after the restart", end, got)
			}
			for _, e := range ends {
				e.until(t, Up, 6*time.Second)
			}
			if got := send(t, ends[1-end], ends[end], 3000, 3500); len(got) != 500 {
				t.Errorf("end %d: %d of 500 arrived afterwards", end, len(got))
			}
		})
	}
}

// TestReflected is N-05: every second handshake message is lost, and all that an end
// sends comes back to it too. The link comes up as with loss, and what crosses comes
// out once, at the other end only.
func TestReflected(t *testing.T) {
	bubble(t, 20*time.Millisecond, 0, func(t *testing.T, n *simNet) {
		handshakes, reflected := [2]int{}, 0
		n.drops = func(from int, p []byte) bool {
			select {
			case n.ends[from].inbox <- bytes.Clone(p):
				reflected++
			default:
			}
			if p[0] == 4 {
				return false
			}
			handshakes[from]++
			return handshakes[from]%2 == 1
		}
		a, b := n.open(t, 0), n.open(t, 1)
		defer a.close(t)
		defer b.close(t)
		took := a.until(t, Up, 15*time.Second)
		b.until(t, Up, 15*time.Second-took)
		edges := len(a.states) + len(b.states)
		for range 4 { // over renewals of the session
			if got := send(t, a, b, 0, 500); len(got) != 500 || !slices.IsSorted(got) {
				t.Errorf("%d of 500 packets arrived", len(got))
			}
			if back, _ := numbers(a); len(back) > 0 {
				t.Errorf("%d came back", len(back))
			}
			time.Sleep(time.Minute)
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if n := len(a.states) + len(b.states) - edges; n > 0 || reflected < 2000 || handshakes[0]+handshakes[1] < 6 {
			t.Errorf("%d edges; %d datagrams were reflected, %v handshake messages", n, reflected, handshakes)
		}
	})
}

// taker is a bind of which an attacker takes datagrams away.
type taker struct {
	conn.Bind
	mu     sync.Mutex
	wanted bool
	taken  []byte
}

func (b *taker) Send(bufs [][]byte, ep conn.Endpoint) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.wanted && bufs[0][0] == device.MessageTransportType {
		b.wanted, b.taken = false, bytes.Clone(bufs[0])
		return nil
	}
	return b.Bind.Send(bufs, ep)
}

// TestHijack is N-09: an attacker sends a datagram of an end from an address of its
// own. One that the other end knows already moves nothing; one that it took away and
// is new does, which any roaming allows, and the end's next datagram moves it back.
// The link stays up.
func TestHijack(t *testing.T) {
	var bind *taker
	onPath(t, wan.Params{Delay: 20 * time.Millisecond}, func(t *testing.T, p *path) {
		attacker := p.Bind(netip.MustParseAddr("203.0.113.66"))
		if _, _, err := attacker.Open(51820); err != nil {
			t.Fatal(err)
		}
		defer attacker.Close()
		to, err := attacker.ParseEndpoint(netip.AddrPortFrom(pathAddrs[1], 51820).String())
		if err != nil {
			t.Fatal(err)
		}
		endpoint := func() netip.Addr { return netip.MustParseAddrPort(p.ends[1].Stats().Endpoint).Addr() }
		time.Sleep(5 * time.Second)
		edges := len(p.ends[0].states) + len(p.ends[1].states)
		for round := range 10 {
			bind.mu.Lock()
			bind.wanted = true
			bind.mu.Unlock()
			time.Sleep(210 * time.Millisecond)
			bind.mu.Lock()
			taken := bind.taken
			bind.mu.Unlock()
			moved := false
			for _, first := range []bool{true, false} {
				if err := attacker.Send([][]byte{taken}, to); err != nil {
					t.Fatal(err)
				}
				for range 300 {
					time.Sleep(time.Millisecond)
					moved = moved || endpoint() == attacker.Addr()
				}
				if moved != first {
					t.Errorf("round %d: the endpoint moved: %v, want %v", round, moved, first)
				}
				moved = false
				if got := endpoint(); got != pathAddrs[0] {
					t.Errorf("round %d: the endpoint is %v 0.3 s later", round, got)
				}
			}
		}
		if n := len(p.ends[0].states) + len(p.ends[1].states) - edges; n > 0 {
			t.Errorf("%d edges", n)
		}
	}, func(c *Config) {
		if c.Endpoint == netip.AddrPortFrom(pathAddrs[1], 51820).String() {
			bind = &taker{Bind: c.Bind}
			c.Bind = bind
		}
	})
}

// TestWrongKeys is K-03: with a key that is not the peer's there is no session, and no
// more is sent than a few messages a second. The control case has the right keys.
func TestWrongKeys(t *testing.T) {
	low, high := testKeys(7)
	other, _ := testKeys(8)
	for name, c := range map[string]struct {
		change func(*Config)
		up     bool
		why    [2]Obstacle // after ten seconds
	}{
		"right":                       {func(*Config) {}, true, [2]Obstacle{}},
		"another preshared key":       {func(c *Config) { c.PresharedKey[0] = 1 }, false, [2]Obstacle{Secret, Secret}},
		"another peer's key":          {func(c *Config) { c.PublicKey = PublicKey(other) }, false, [2]Obstacle{PeerKey, OurKey}},
		"another key of one's own":    {func(c *Config) { c.PrivateKey = other }, false, [2]Obstacle{OurKey, PeerKey}},
		"the two keys are the peer's": {func(c *Config) { c.PrivateKey, c.PublicKey = high, PublicKey(low) }, false, [2]Obstacle{OurKey, OurKey}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 20*time.Millisecond, 0, func(t *testing.T, n *simNet) {
				sent := [2]int{}
				n.drops = func(from int, _ []byte) bool { sent[from]++; return false }
				a, b := n.open(t, 0, c.change), n.open(t, 1)
				defer a.close(t)
				defer b.close(t)
				for at := range 6 {
					time.Sleep(10 * time.Second)
					if why := [2]Obstacle{a.Stats().Obstacle, b.Stats().Obstacle}; why != c.why {
						t.Errorf("after %d s: %q", 10*(at+1), why)
					}
				}
				n.mu.Lock()
				defer n.mu.Unlock()
				if up := a.currentState() == Up && b.currentState() == Up; up != c.up {
					t.Errorf("%s and %s", a.currentState(), b.currentState())
				}
				if !c.up && (max(sent[0], sent[1]) > 600 || !a.Stats().LastHandshake.IsZero() && !b.Stats().LastHandshake.IsZero()) {
					t.Errorf("%v datagrams in a minute; handshakes at %v and %v", sent, a.Stats().LastHandshake, b.Stats().LastHandshake)
				}
			})
		})
	}
}

// TestObstacles: what a path does is not taken for a wrong key, but for what it is, and
// once a session begins nothing is said.
func TestObstacles(t *testing.T) {
	for name, c := range map[string]struct {
		drops func(from int) bool
		why   [2]Obstacle
	}{
		"nothing crosses":         {func(int) bool { return true }, [2]Obstacle{Silence, Silence}},
		"nothing from the second": {func(from int) bool { return from == 1 }, [2]Obstacle{Silence, Secret}},
		"nothing from the first":  {func(from int) bool { return from == 0 }, [2]Obstacle{Secret, Silence}},
		"everything crosses":      {func(int) bool { return false }, [2]Obstacle{}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 50*time.Millisecond, 0, func(t *testing.T, n *simNet) {
				var lost atomic.Bool
				lost.Store(true)
				n.drops = func(from int, _ []byte) bool { return lost.Load() && c.drops(from) }
				a, b := n.open(t, 0), n.open(t, 1)
				defer a.close(t)
				defer b.close(t)
				time.Sleep(12 * time.Second)
				if why := [2]Obstacle{a.Stats().Obstacle, b.Stats().Obstacle}; why != c.why {
					t.Errorf("%q, want %q", why, c.why)
				}
				lost.Store(false)
				a.until(t, Up, 10*time.Second)
				b.until(t, Up, 10*time.Second)
				if why := [2]Obstacle{a.Stats().Obstacle, b.Stats().Obstacle}; why != [2]Obstacle{} {
					t.Errorf("up, and %q", why)
				}
			})
		})
	}
}

// TestCloseAnytime is P-10: a link is closed at any moment of its life, while it
// shakes hands, while packets and frames go in at both ends, while its socket is opened
// anew. Close returns within 5 s, and nothing of the link runs on: a bubble does not
// end before all of its goroutines have.
func TestCloseAnytime(t *testing.T) {
	for seed := range uint64(times(100)) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 10))
			n := newSimNet(time.Duration(rng.IntN(100))*time.Millisecond, []float64{0, 0.3}[seed%2], seed)
			defer n.close()
			ends := [2]*simEnd{n.open(t, 0), n.open(t, 1)}
			stop := make(chan struct{})
			var tasks sync.WaitGroup
			for _, e := range ends {
				tasks.Go(func() {
					frame := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0}, make([]byte, 100)...)
					for {
						select {
						case <-stop:
							return
						case <-time.After(10 * time.Millisecond):
						}
						select {
						case e.tun.In <- ipPacket(1400, 7):
						default:
						}
						e.SendFrame(100, frame, super.Header{})
						e.SendControl([]byte("x"))
						for len(e.tun.Out) > 0 {
							<-e.tun.Out
						}
					}
				})
			}
			if seed%3 == 0 {
				tasks.Go(func() { ends[0].rebind() })
			}
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
			for _, i := range rng.Perm(2) {
				start := time.Now()
				ends[i].close(t)
				if took := time.Since(start); took > 5*time.Second {
					t.Errorf("seed %d: closed after %v", seed, took)
				}
				if err := ends[i].Link.Close(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("closed twice: %v", err)
				}
			}
			close(stop)
			tasks.Wait()
		})
	}
}

// TestHandshakesUnderFlood is half of N-02: initiations that are made up reach an end
// 2,500 times a second. Two ends find each other all the same, and a restarted one is
// found again.
func TestHandshakesUnderFlood(t *testing.T) {
	for flooded := range 2 {
		bubble(t, 20*time.Millisecond, 0, func(t *testing.T, n *simNet) {
			low, high := testKeys(7)
			var macs device.CookieGenerator
			macs.Init(device.NoisePublicKey(PublicKey([2][32]byte{low, high}[flooded])))
			stop := make(chan struct{})
			var tasks sync.WaitGroup
			tasks.Go(func() {
				for i := uint64(0); ; i++ {
					p := hsMessage(1, uint32(i), 0)
					binary.LittleEndian.PutUint64(p[40:], i)
					macs.AddMacs(p)
					select {
					case <-stop:
						return
					case n.ends[flooded].inbox <- p:
					default:
					}
					if i%25 == 0 {
						time.Sleep(10 * time.Millisecond)
					}
				}
			})
			a, b := n.open(t, 0), n.open(t, 1)
			ends := [2]*simEnd{a, b}
			for i := range 3 {
				took := ends[0].until(t, Up, 15*time.Second)
				took += ends[1].until(t, Up, 15*time.Second-took)
				t.Logf("end %d flooded: up after %v", flooded, took)
				time.Sleep(300 * time.Millisecond)
				if i < 2 {
					ends[i].close(t)
					ends[i] = n.open(t, i)
				}
			}
			if got := send(t, ends[0], ends[1], 0, 50); len(got) != 50 {
				t.Errorf("%d of 50 arrived", len(got))
			}
			close(stop)
			tasks.Wait()
			ends[0].close(t)
			ends[1].close(t)
		})
	}
}
