package wg

import (
	"bytes"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"stitch/tunnel/netdev/netdevtest"
	"stitch/tunnel/netdev/super"
)

// swallow lets no datagram of more than n bytes through, from one end (0, 1) or
// from both (2); 0 is no limit. Nobody is told.
func (n *simNet) swallow(from, most int) {
	n.set(func() {
		n.drops = func(end int, p []byte) bool { return most > 0 && (from == 2 || from == end) && len(p) > most }
	})
}

// A path that begins to swallow large datagrams without a word is found out
// within ten seconds, at the right size, and all sizes of packets and frames
// cross; when it heals, that is found out too. Control cases: the same without
// the hole, and with loss only.
func TestBlackHole(t *testing.T) {
	for _, c := range []struct {
		name       string
		from, most int
		loss       float64
		want       [2]int
	}{
		{"no hole", 2, 0, 0, [2]int{1440, 1440}},
		{"loss", 2, 0, 0.1, [2]int{1440, 1440}},
		{"1400", 2, 1400 - 28, 0, [2]int{1328, 1328}}, // 1340 in steps of 16
		{"1492", 2, 1492 - 28, 0, [2]int{1424, 1424}},
		{"one way", 0, 1400 - 28, 0, [2]int{1328, 1440}},
		{"1280, as narrow as IPv6 goes", 2, 1280 - 28, 0, [2]int{1216, 1216}}, // 1220
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, 20*time.Millisecond, 0, func(t *testing.T, n *simNet) {
				frames := make(chan []byte, 10)
				a := n.open(t, 0)
				b := n.open(t, 1, func(c *Config) { c.OnFrames = each(func(_ uint16, f []byte) { frames <- bytes.Clone(f) }) })
				defer a.close(t)
				defer b.close(t)
				a.until(t, Up, 5*time.Second)
				time.Sleep(10 * time.Second)
				if a.Stats().InnerMTU != 1440 {
					t.Fatalf("%d bytes before anything happened", a.Stats().InnerMTU)
				}
				n.swallow(c.from, c.most)
				n.set(func() { n.loss = c.loss })
				time.Sleep(10 * time.Second)
				if c.loss == 0 {
					for i, e := range []*simEnd{a, b} {
						if got := e.Stats().InnerMTU; got != c.want[i] {
							t.Errorf("end %d: %d bytes, want %d", i, got, c.want[i])
						}
					}
					for _, size := range []int{100, 1216, 1232, 1400, 1440, 1500, 9000} {
						if want := ipPacket(size, 1); func() bool { a.tun.In <- want; return !bytes.Equal(got(b), want) }() {
							t.Errorf("a packet of %d bytes did not cross", size)
						}
						want := ipPacket(size, 1)
						if !a.SendFrame(1, want, super.Header{}) || !bytes.Equal(<-frames, want) {
							t.Errorf("a frame of %d bytes did not cross", size)
						}
					}
				}
				n.swallow(2, 0)
				n.set(func() { n.loss = 0 })
				time.Sleep(raiseEvery + 10*time.Second)
				if a, b := a.Stats().InnerMTU, b.Stats().InnerMTU; a != 1440 || b != 1440 {
					t.Errorf("%d and %d bytes after it healed", a, b)
				}
			})
		})
	}
}

// Every limit of a path is found to the step, from wherever the search begins,
// and never more than what gets through stays in use.
func TestPathMTUFinds(t *testing.T) {
	for _, most := range []int{1440, 1420, 8940} {
		for limit := minSize; limit <= most; limit += 7 {
			now := time.Unix(1, 0)
			p := newPathMTU(most)
			p.start(now)
			for range 400 { // 20 s
				if m, send := p.tick(now, 0); send && int(m.size) <= limit {
					m.answer = true
					p.answered(m, now)
				}
				now = now.Add(tickInterval)
			}
			if p.size > limit || p.size < limit-sizeStep {
				t.Fatalf("most %d, limit %d: found %d", most, limit, p.size)
			}
		}
	}
}

// An agent that does not know these probes leaves the configuration as it is,
// and so does a configuration with no room to search in.
func TestPathMTUWithoutPeer(t *testing.T) {
	for _, most := range []int{1440, minInnerMTU} {
		p := newPathMTU(most)
		now := time.Unix(1, 0)
		p.start(now)
		sent := 0
		for range 1000 {
			if m, send := p.tick(now, 0); send {
				if sent++; m.size != minSize {
					t.Errorf("a probe of %d bytes", m.size)
				}
			}
			now = now.Add(tickInterval)
		}
		if p.size != most || sent > confirmTries {
			t.Errorf("%d bytes after %d probes", p.size, sent)
		}
	}
}

func TestSizeMessages(t *testing.T) {
	for _, m := range []sizeMsg{{false, 1440, 7}, {false, minSize, 0}, {true, 1440, 0xfffffffe}} {
		b := m.append(nil)
		if got, ok := parseSize(b); !ok || got != m {
			t.Errorf("%+v became %+v, %v", m, got, ok)
		}
		if !m.answer {
			if _, ok := parseSize(b[:len(b)-1]); ok {
				t.Errorf("%+v is accepted with a byte less", m)
			}
		}
	}
	for _, b := range [][]byte{nil, make([]byte, 16), {6, 0, 0, 0, 0, 0, 0}, probe{}.append(nil), trainMsg{kind: car}.append(nil)} {
		if m, ok := parseSize(b); ok {
			t.Errorf("%x is taken for %+v", b[:min(len(b), 8)], m)
		}
	}
}

// sizedTUN is a device that notes its MTU.
type sizedTUN struct {
	*netdevtest.Fake
	mtu  atomic.Int32
	sets atomic.Int32
	err  error
}

func (s *sizedTUN) SetMTU(n int) error {
	s.mtu.Store(int32(n))
	s.sets.Add(1)
	return s.err
}

// The MTU of the TUN device follows what the path carries, where that is more
// than a LAN's packet, and is left alone otherwise.
func TestTUNFollowsPath(t *testing.T) {
	for _, c := range []struct{ inner, most, mtu, sets int }{
		{8940, 1400 - 28, 1500, 1}, // to 1200 at once and then up to 1328: one change
		{8940, 4000 - 28, 3936, 0}, // in steps
		{1440, 1400 - 28, 0, 0},
		{8940, 0, 0, 0},
	} {
		bubble(t, 20*time.Millisecond, 0, func(t *testing.T, n *simNet) {
			var tuns [2]*sizedTUN
			var ends [2]*simEnd
			for i := range ends {
				ends[i] = n.open(t, i, func(cfg *Config) {
					tuns[i] = &sizedTUN{Fake: cfg.TUN.(*netdevtest.Fake)}
					cfg.TUN, cfg.InnerMTU = tuns[i], c.inner
				})
				defer ends[i].close(t)
			}
			ends[0].until(t, Up, 5*time.Second)
			ends[1].until(t, Up, 5*time.Second)
			n.swallow(2, c.most)
			time.Sleep(20 * time.Second)
			for i, tun := range tuns {
				if got, sets := int(tun.mtu.Load()), int(tun.sets.Load()); got != c.mtu || c.sets > 0 && sets != c.sets {
					t.Errorf("inner %d, path %d, end %d: MTU %d after %d changes, want %d; the link sends %d", c.inner, c.most, i, got, sets, c.mtu, ends[i].Stats().InnerMTU)
				}
			}
			n.swallow(2, 0)
			time.Sleep(raiseEvery + 20*time.Second)
			if got := int(tuns[0].mtu.Load()); got != 0 && got != c.inner {
				t.Errorf("inner %d, path %d: MTU %d after it healed", c.inner, c.most, got)
			}
		})
	}
}

// A packet that is too big came in because somebody raised the MTU: it is set
// back, at most once a second, also when that fails.
func TestTUNSetBack(t *testing.T) {
	for _, c := range []struct {
		stock bool
		want  int
		err   error
	}{{false, 1500, nil}, {true, 1440, nil}, {true, 1440, unix.EPERM}} {
		bubble(t, time.Millisecond, 0, func(t *testing.T, n *simNet) {
			var tun *sizedTUN
			a := n.open(t, 0, func(cfg *Config) {
				tun = &sizedTUN{Fake: cfg.TUN.(*netdevtest.Fake), err: c.err}
				cfg.TUN, cfg.Stock = tun, c.stock
			})
			defer a.close(t)
			time.Sleep(3 * time.Second)
			if tun.sets.Load() != 0 {
				t.Error("set without reason")
			}
			for range 30 {
				tun.In <- ipPacket(16385, 1)
				time.Sleep(100 * time.Millisecond)
			}
			time.Sleep(2 * time.Second)
			if got, sets, dropped := tun.mtu.Load(), tun.sets.Load(), a.Stats().Drops.TooBig; int(got) != c.want || sets < 3 || sets > 4 || dropped != 30 {
				t.Errorf("stock %v: MTU %d after %d changes, %d dropped; want %d, 3 or 4, 30", c.stock, got, sets, dropped, c.want)
			}
		})
	}
}

// pickyBind refuses several datagrams at once, as a kernel does that knows of a
// smaller MTU.
type pickyBind struct {
	conn.Bind
	err  error
	sent []int
}

func (p *pickyBind) Send(bufs [][]byte, _ conn.Endpoint) error {
	if len(bufs) > 1 {
		return p.err
	}
	p.sent = append(p.sent, len(bufs[0]))
	return nil
}

func TestRefusedTogether(t *testing.T) {
	bufs := [][]byte{make([]byte, 100), make([]byte, 200)}
	for _, c := range []struct {
		err  error
		sent int
	}{{unix.EINVAL, 2}, {unix.EMSGSIZE, 2}, {unix.ENETUNREACH, 0}} {
		inner := &pickyBind{err: c.err}
		b := newBinder(inner, true, new(counters), nil, func(int) {})
		err := b.send(bufs, nil)
		if len(inner.sent) != c.sent || (err == nil) != (c.sent > 0) {
			t.Errorf("%v: %d sent, %v", c.err, len(inner.sent), err)
		}
	}
}
