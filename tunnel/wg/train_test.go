package wg

import (
	"bytes"
	"testing"
	"time"

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
					if got := e.Stats().Apart; got != c.apart {
						t.Errorf("datagrams leave apart: %v", got)
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
	if r.running || r.rounds != 0 {
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
		if r.running || r.harmful != c.harmful || r.rounds != c.rounds {
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
