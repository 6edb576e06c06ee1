package stream_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/stream"
	"stitch/tunnel/stream/streamtest"
)

// text is n bytes of words and numbers: it compresses, and has no long repeats.
func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	words := strings.Fields("tunnel site edge link segment stream history workload service owner claim frame packet route mark")
	out := make([]byte, 0, n+32)
	for len(out) < n {
		out = fmt.Appendf(out, "%s %d ", words[r.IntN(len(words))], r.IntN(1e6))
	}
	return out[:n]
}

// wire is what has crossed the link so far, both ways.
func (w *world) wire() int64 {
	p := w.a.proxy.Stats().Peers[0]
	return p.WireOut + p.WireIn
}

// crossed sends data through a stream at port and returns what it took on the
// link, both ways.
func (w *world) crossed(port uint16, data []byte) int64 {
	w.t.Helper()
	before := w.wire()
	c, s := w.split(port)
	exchange(w.t, c, s, data, nil)
	time.Sleep(time.Second)
	return w.wire() - before
}

func domainOf(p stream.PeerStats, name string) stream.DomainStats {
	for _, d := range p.Domains {
		if d.Domain == name {
			return d
		}
	}
	return stream.DomainStats{}
}

// TestModes holds what each way of carrying a stream does to data that is text
// and is sent twice.
func TestModes(t *testing.T) {
	bubble(t, 20*time.Millisecond, func(w *world) {
		const n = 1 << 20
		for _, c := range []struct {
			name         string
			port         uint16
			first, again int64 // at most
			least        int64 // of again
		}{
			{"full, in a domain", 4000, n * 7 / 10, n / 50, 0},
			{"full, by itself", 6000, n * 7 / 10, n * 7 / 10, n / 4},
			{"compress", 6100, n * 7 / 10, n * 7 / 10, n / 4},
			{"accelerate", 6200, n + n/100, n + n/100, n},
		} {
			one := text(uint64(c.port), n)
			first, again := w.crossed(c.port, one), w.crossed(c.port, one)
			if first > c.first || again > c.again || again < c.least {
				t.Errorf("%s: %d bytes, then %d", c.name, first, again)
			}
		}
		both := text(77, n)
		if got := w.crossed(6000, append(both, both...)); got > n*8/10 {
			t.Errorf("a stream by itself does not match its own bytes: %d", got)
		}
		dst := netip.AddrPortFrom(server, 6300)
		w.fabric.Serve(dst)
		if _, how, err := w.connect(dst); err != nil || how != streamtest.Direct {
			t.Errorf("off: %v, %v", how, err)
		}
	})
}

// TestMismatch: a domain that the other site's rule does not name is said on
// both sides, and the connection is carried as packets.
func TestMismatch(t *testing.T) {
	bubble(t, 20*time.Millisecond, func(w *world) {
		dst := netip.AddrPortFrom(server, 6400)
		w.fabric.Serve(dst)
		if _, how, err := w.connect(dst); err != nil || how != streamtest.Direct {
			t.Errorf("%v, %v", how, err)
		}
		for _, s := range []*site{w.a, w.b} {
			p := s.proxy.Stats().Peers[0]
			if !strings.Contains(p.Conflict, `"lab"`) || !strings.Contains(p.Conflict, "10.2.0.10:6400") || !p.Alive {
				t.Errorf("%s: %+v", s.cfg.Site, p)
			}
		}
		time.Sleep(2 * time.Minute)
		if p := w.a.proxy.Stats().Peers[0]; p.Conflict != "" {
			t.Errorf("still said after two minutes: %s", p.Conflict)
		}
	})
}

// TestUnknownDomain: a domain that only one site has.
func TestUnknownDomain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 20*time.Millisecond)
		w.b.cfg.Dials = w.b.cfg.Dials[1:]
		w.b.cfg.Streams = w.b.cfg.Streams[2:6]
		w.run(func() {
			dst := netip.AddrPortFrom(server, 4000)
			w.fabric.Serve(dst)
			if _, how, err := w.connect(dst); err != nil || how != streamtest.Direct {
				t.Errorf("%v, %v", how, err)
			}
			a, b := w.a.proxy.Stats().Peers[0], w.b.proxy.Stats().Peers[0]
			if d := domainOf(a, "lab"); d.Alive || !strings.Contains(d.LastError, `names domain \"lab\"`) {
				t.Errorf("near: %+v", d)
			}
			if !strings.Contains(b.Conflict, `names domain "lab"`) {
				t.Errorf("far: %+v", b)
			}
			w.split(6001) // the other domain is not disturbed
		})
	})
}

// TestTerms is version skew: an agent that cannot be worked with is told why,
// one that only knows more is worked with.
func TestTerms(t *testing.T) {
	bubble(t, time.Millisecond, func(w *world) {
		w.a.kill()
		for name, c := range map[string]struct {
			edit func(*stream.Hello)
			want string
		}{
			"this release":             {func(h *stream.Hello) {}, ""},
			"the next one":             {func(h *stream.Hello) { h.Versions(1, 2); h.Offer(1 << 40) }, ""},
			"one too new":              {func(h *stream.Hello) { h.Versions(2, 3) }, "versions 1 to 1 meet 2 to 3"},
			"one with a must":          {func(h *stream.Hello) { h.Require(1 << 40) }, "features 0x10000000000 are required"},
			"one with another domain":  {func(h *stream.Hello) { h.Domain("nobodys") }, `names domain \"nobodys\"`},
			"one without a rule of it": {func(h *stream.Hello) { h.Domain("") }, ""},
		} {
			conn, err := w.fabric.Site(edge1).DialPeer(context.Background(), w.a.link, config.StreamPort)
			if err != nil {
				t.Fatal(err)
			}
			reason, err := stream.Ask(conn, w.a.link.Token, c.edit)
			if err != nil || !strings.Contains(reason, c.want) || (reason == "") != (c.want == "") {
				t.Errorf("%s: %q, %v", name, reason, err)
			}
			conn.Close()
			time.Sleep(time.Second)
			conflict := w.b.proxy.Stats().Peers[0].Conflict
			if unquoted := strings.ReplaceAll(c.want, `\`, ""); c.want != "" && !strings.Contains(conflict, unquoted) {
				t.Errorf("%s: this side says %q", name, conflict)
			}
		}
		w.a.start()
	})
}

// TestRestarts kills the processes in every order of four: each time the two
// sides find together, streams work both ways, and nothing is taken from a
// history that the other side has not.
func TestRestarts(t *testing.T) {
	one := text(1, 1<<20)
	for order := range 16 {
		bubble(t, 10*time.Millisecond, func(w *world) {
			for bit := range 4 {
				if got := w.crossed(4000, one); got > int64(len(one)) {
					t.Errorf("order %04b: %d bytes", order, got)
				}
				victim := w.a
				if order>>bit&1 == 1 {
					victim = w.b
				}
				victim.kill()
				time.Sleep(time.Duration(order*bit) * 7 * time.Millisecond)
				victim.start()
				time.Sleep(3 * time.Second)
			}
			w.crossed(4000, one)
			if got := w.crossed(5000, one); got > int64(len(one)/50) {
				t.Errorf("order %04b: a repeat took %d bytes", order, got)
			}
			for _, s := range []*site{w.a, w.b} {
				p := s.proxy.Stats().Peers[0]
				if d := domainOf(p, "lab"); p.Resent != 0 || !d.InStep || d.Resyncs == 0 || !d.Alive && s == w.a {
					t.Errorf("order %04b: %s: %+v", order, s.cfg.Site, p)
				}
			}
		})
	}
}

// TestCutHandshakes breaks the connections of the first moments after a restart
// at every step of their handshake, the bringing in step of the histories among
// them: when connections hold again both sides find together, and nothing is taken
// from a history that the other side has not.
func TestCutHandshakes(t *testing.T) {
	one := text(9, 1<<20)
	for at := 0; at < 900; at += 41 {
		bubble(t, 10*time.Millisecond, func(w *world) {
			w.crossed(4000, one)
			victim := w.b
			if at%2 == 1 {
				victim = w.a
			}
			victim.kill()
			w.fabric.Cut(12, at)
			victim.start()
			time.Sleep(20 * time.Second)
			w.crossed(4000, one)
			if got := w.crossed(5000, one); got > int64(len(one)/50) {
				t.Errorf("cut after %d bytes: a repeat took %d bytes", at, got)
			}
			for _, s := range []*site{w.a, w.b} {
				p := s.proxy.Stats().Peers[0]
				if d := domainOf(p, "lab"); p.Resent != 0 || !d.InStep || !d.Alive {
					t.Errorf("cut after %d bytes: %s: %+v", at, s.cfg.Site, p)
				}
			}
		})
	}
}

// TestEncrypted: a stream that begins like TLS is only accelerated, whoever
// begins and however often the same is sent; the control is the same bytes
// behind one that is no TLS.
func TestEncrypted(t *testing.T) {
	hello := append([]byte{22, 3, 1, 0, 200, 1}, text(3, 1<<20)...)
	plain := append([]byte{1}, hello...)
	bubble(t, 20*time.Millisecond, func(w *world) {
		for range 2 {
			if got := w.crossed(4000, hello); got < int64(len(hello)) {
				t.Errorf("TLS took %d bytes of %d", got, len(hello))
			}
		}
		p := w.a.proxy.Stats().Peers[0]
		if p.Matched != 0 || p.Reset != 0 {
			t.Errorf("%+v", p)
		}
		w.crossed(4000, plain)
		if got := w.crossed(4000, plain); got > int64(len(plain)/50) {
			t.Errorf("control: the same behind a byte took %d bytes", got)
		}
		// STARTTLS: the server speaks first, then both switch.
		c, s := w.split(4001)
		s.Write([]byte("220 ready\r\n"))
		io.ReadFull(c, make([]byte, 11))
		c.Write([]byte("STARTTLS\r\n"))
		io.ReadFull(s, make([]byte, 10))
		matched := w.a.proxy.Stats().Peers[0].Matched
		exchange(t, c, s, hello, hello)
		if p := w.a.proxy.Stats().Peers[0]; p.Matched != matched || p.Resent != 0 {
			t.Errorf("after STARTTLS: %+v", p)
		}
	})
}

// TestPeerVanishes: the machine of one side dies without a word, and its
// successor is met while the old connections still look alive.
func TestPeerVanishes(t *testing.T) {
	for _, victimIsNear := range []bool{true, false} {
		bubble(t, 10*time.Millisecond, func(w *world) {
			one := text(5, 1<<20)
			w.crossed(4000, one)
			victim := w.b
			if victimIsNear {
				victim = w.a
			}
			victim.net.Vanish()
			victim.stop()
			<-victim.done
			victim.start()
			time.Sleep(5 * time.Second)
			if w.crossed(4000, one) < int64(len(one)/4) {
				t.Error("a history that is gone was used")
			}
			if got := w.crossed(4000, one); got > int64(len(one)/50) {
				t.Errorf("a repeat took %d bytes", got)
			}
			const warm = 4 // of each side, in each of two domains
			for s, peer := range map[*site]string{w.a: "dc2", w.b: "dc1"} {
				if n := s.proxy.Connections(peer); n != 4*warm {
					t.Errorf("%s: %d connections are on the account, want %d", s.cfg.Site, n, 4*warm)
				}
			}
		})
	}
}
