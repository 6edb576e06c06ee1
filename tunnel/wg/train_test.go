package wg

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"stitch/tunnel/wg/carrier"
)

// Where trains get lost the link notices, says so, and carries on without.
// Control cases: a good path, one with loss, and a peer that knows no trains.
func TestTrains(t *testing.T) {
	for _, c := range []struct {
		name  string
		torn  bool
		loss  float64
		apart bool
	}{
		{"good", false, 0, false},
		{"loss", false, 0.3, false},
		{"torn", true, 0, true},
		{"torn and loss", true, 0.05, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, 20*time.Millisecond, c.loss, func(t *testing.T, n *simNet) {
				n.torn = c.torn
				a, b := n.open(t, 0), n.open(t, 1)
				defer a.close(t)
				defer b.close(t)
				a.until(t, Up, 60*time.Second)
				time.Sleep(30 * time.Second)
				for _, e := range []*simEnd{a, b} {
					if s := e.Stats(); s.Apart != c.apart || s.Unmerged != c.apart {
						t.Errorf("datagrams leave one at a time: %v, come so: %v", s.Apart, s.Unmerged)
					}
				}
				if c.loss > 0 {
					return
				}
				for i := range 100 {
					a.tun.In <- ipPacket(1000, uint16(i))
				}
				for i := range 100 {
					if !bytes.Equal(got(b), ipPacket(1000, uint16(i))) {
						t.Fatalf("packet %d did not cross", i)
					}
				}
			})
		})
	}
}

func TestApartIsConfigured(t *testing.T) {
	bubble(t, time.Millisecond, 0, func(t *testing.T, n *simNet) {
		a, b := connected(t, n, func(c *Config) { c.Apart = true })
		defer a.close(t)
		defer b.close(t)
		n.set(func() { n.torn = true })
		for i := range 50 {
			a.tun.In <- ipPacket(1000, uint16(i))
		}
		for range 50 {
			if got(b) == nil {
				t.Fatal("a packet did not cross")
			}
		}
		if !a.Stats().Apart {
			t.Error("not shown")
		}
	})
}

// A peer that does not answer is not waited for, and proves nothing.
func TestTrainerGivesUp(t *testing.T) {
	var r trainer
	now := time.Unix(1, 0)
	r.start(now)
	asked, sent := 0, 0
	for range 200 {
		cars, ask := r.tick(now)
		sent += cars
		if ask {
			asked++
		}
		now = now.Add(tickInterval)
	}
	if r.running || r.harmful || asked != maxQuestions || sent != trainCars {
		t.Errorf("%+v: %d questions, %d cars", r, asked, sent)
	}
	r.answered(trainMsg{kind: answer, id: r.id}, now)
	if r.running || r.judge.rounds != 0 {
		t.Errorf("a late answer is taken: %+v", r)
	}
}

// What arrives decides: table of trains and singles, three rounds each.
func TestTrainerJudges(t *testing.T) {
	for _, c := range []struct {
		train, single uint16
		harmful       bool
		rounds        int
	}{
		{16, 16, false, 0}, {12, 0, false, 0}, {0, 16, true, badRounds}, {4, 12, true, badRounds},
		{5, 16, false, maxRounds}, {0, 11, false, maxRounds}, {0, 0, false, maxRounds},
	} {
		var r trainer
		now := time.Unix(1, 0)
		r.start(now)
		for range 10000 {
			if _, ask := r.tick(now); ask {
				m := trainMsg{kind: answer, id: r.id, count: c.train}
				if r.single {
					m.count = c.single
				}
				r.answered(m, now)
			}
			now = now.Add(tickInterval)
		}
		if r.running || r.harmful != c.harmful || r.judge.rounds != c.rounds {
			t.Errorf("%d of a train and %d singles: %+v", c.train, c.single, r)
		}
	}
}

func TestTrainMessages(t *testing.T) {
	for _, m := range []trainMsg{{car, 0, 7}, {question, 0, 0xfffffffe}, {answer, 16, 1}} {
		b := m.append(nil)
		if got, ok := parseTrain(b); !ok || got != m {
			t.Errorf("%+v became %+v", m, got)
		}
		if (m.kind == car) != (len(b) == carLen) || len(b) > carrier.MaxMessage {
			t.Errorf("%+v has %d bytes", m, len(b))
		}
		for n := range 8 {
			if _, ok := parseTrain(b[:n]); ok {
				t.Errorf("%d bytes of %+v are accepted", n, m)
			}
		}
	}
	if _, ok := parseTrain(probe{seq: 1}.append(nil)); ok {
		t.Error("a probe is taken for a message about trains")
	}
	var p platform
	for i := range 3 {
		p.receive(trainMsg{kind: car, id: 5})
		if reply, send := p.receive(trainMsg{kind: question, id: 5}); !send || reply != (trainMsg{answer, uint16(i + 1), 5}) {
			t.Errorf("%+v", reply)
		}
	}
	if reply, _ := p.receive(trainMsg{kind: question, id: 6}); reply.count != 0 {
		t.Errorf("%+v cars of a train that never came", reply)
	}
}

// TestTrainsLater has a path that begins to tear trains after a while, as when the
// edge or its way to the peer moves behind another network card. Control cases:
// a path that does not, and one with so much traffic that nothing is concluded.
func TestTrainsLater(t *testing.T) {
	for _, c := range []struct {
		name       string
		torn, busy bool
		apart      bool
	}{{"good", false, false, false}, {"torn", true, false, true}, {"torn and busy", true, true, false}} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, 20*time.Millisecond, 0, func(t *testing.T, n *simNet) {
				a, b := connected(t, n)
				defer a.close(t)
				defer b.close(t)
				time.Sleep(time.Minute)
				n.set(func() { n.torn = c.torn })
				for range 60 {
					for i := 0; c.busy && i < 100; i++ {
						a.tun.In <- ipPacket(1000, uint16(i))
						time.Sleep(5 * time.Millisecond)
					}
					time.Sleep(500 * time.Millisecond)
					for len(b.tun.Out) > 0 {
						<-b.tun.Out
					}
				}
				if s := a.Stats(); s.Apart != c.apart {
					t.Errorf("datagrams leave one at a time: %v", s.Apart)
				}
				if s := b.Stats(); s.Unmerged != c.apart {
					t.Errorf("they come one at a time: %v", s.Unmerged)
				}
			})
		})
	}
}

// TestUnmerged has the kernel hand over a train merged and not, whenever that is
// asked for: the datagrams are the same.
func TestUnmerged(t *testing.T) {
	for _, c := range []struct {
		name          string
		before, while bool
		merged        int
	}{{"merged", false, false, 1}, {"from the beginning", true, false, 0}, {"while it is open", false, true, 0}} {
		t.Run(c.name, func(t *testing.T) {
			b := newBinder(conn.NewDefaultBind(), true, new(counters), slog.New(slog.DiscardHandler), func(int) {})
			b.unmerged.Store(c.before)
			fns, port, err := b.Open(0)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if c.while && (!b.unmerge() || b.unmerge()) {
				t.Error("it is new once")
			}
			for fd, gro := range groOf(t, port) {
				if gro != c.merged {
					t.Errorf("descriptor %d: UDP_GRO is %d", fd, gro)
				}
			}
			out, err := net.Dial("udp4", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port).String())
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			const size, cars = 1000, 20
			train := make([]byte, cars*size)
			for i := range train {
				train[i] = byte(i / size)
			}
			raw, _ := out.(*net.UDPConn).SyscallConn()
			_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) })
			if err != nil {
				t.Fatal(err)
			}
			if _, err := out.Write(train); err != nil {
				t.Fatal(err)
			}
			bufs, sizes, eps := make([][]byte, b.BatchSize()), make([]int, b.BatchSize()), make([]conn.Endpoint, b.BatchSize())
			for i := range bufs {
				bufs[i] = make([]byte, 1<<16)
			}
			for next := 0; next < cars; {
				n, err := fns[0](bufs, sizes, eps)
				if err != nil {
					t.Fatal(err)
				}
				for i := range n {
					if !bytes.Equal(bufs[i][:sizes[i]], train[next*size:(next+1)*size]) {
						t.Fatalf("datagram %d has %d bytes, or others", next, sizes[i])
					}
					next++
				}
			}
		})
	}
}

// groOf is UDP_GRO of this process's sockets with a local port, by descriptor.
func groOf(t *testing.T, port uint16) map[int]int {
	t.Helper()
	found := map[int]int{}
	for fd := range 1024 {
		local, err := unix.Getsockname(fd)
		if err != nil {
			continue
		}
		if a, ok := local.(*unix.SockaddrInet4); ok && a.Port == int(port) {
			found[fd], _ = unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO)
		}
		if a, ok := local.(*unix.SockaddrInet6); ok && a.Port == int(port) {
			found[fd], _ = unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO)
		}
	}
	if len(found) != 2 {
		t.Fatalf("%d sockets of port %d", len(found), port)
	}
	return found
}
