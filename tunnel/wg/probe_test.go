package wg

import (
	"math/rand/v2"
	"testing"
	"time"

	"stitch/tunnel/wg/quality"
)

// pair is two probers over a path of fixed delay; the test moves the time.
type pair struct {
	now   time.Time
	ends  [2]*prober
	delay time.Duration
	wire  []wireProbe
	cut   [2]bool // towards this end
}

type wireProbe struct {
	at time.Time
	to int
	p  probe
}

func newPair(delay time.Duration) *pair {
	now := time.Unix(1000, 0)
	return &pair{now: now, delay: delay, ends: [2]*prober{newProber(11, now), newProber(22, now)}}
}

// run lets d pass in steps of one tick.
func (p *pair) run(d time.Duration) {
	for end := p.now.Add(d); p.now.Before(end); {
		p.now = p.now.Add(tickInterval)
		p.deliver()
		for i, e := range p.ends {
			if request, send := e.tick(p.now); send {
				p.send(i, request)
			}
		}
	}
}

func (p *pair) send(from int, m probe) {
	if !p.cut[1-from] {
		p.wire = append(p.wire, wireProbe{p.now.Add(p.delay), 1 - from, m})
	}
}

func (p *pair) deliver() {
	for len(p.wire) > 0 && !p.wire[0].at.After(p.now) {
		w := p.wire[0]
		p.wire = p.wire[1:]
		if echo, send := p.ends[w.to].receive(w.p, p.now); send {
			p.send(w.to, echo)
		}
	}
}

func (p *pair) states() [2]State { return [2]State{p.ends[0].state, p.ends[1].state} }

func TestProberComesUpAndGoesDown(t *testing.T) {
	for _, delay := range []time.Duration{0, 50 * time.Millisecond, 150 * time.Millisecond, 400 * time.Millisecond} {
		p := newPair(delay)
		p.run(2*delay + 300*time.Millisecond)
		if p.states() != [2]State{Up, Up} {
			t.Errorf("delay %v: %v", delay, p.states())
		}
		p.run(30 * time.Second)
		if got, want := p.ends[0].srtt, 2*delay; got < want || got > want+2*tickInterval {
			t.Errorf("delay %v: RTT %v", delay, got)
		}
		if p.ends[0].loss() != 0 {
			t.Errorf("delay %v: loss %v", delay, p.ends[0].loss())
		}
		p.cut = [2]bool{true, true}
		limit := p.ends[0].deadline()
		p.run(limit - probeInterval - tickInterval)
		if p.states() != [2]State{Up, Up} {
			t.Errorf("delay %v: down too early", delay)
		}
		p.run(2*delay + probeInterval + 4*tickInterval)
		if p.states() != [2]State{Down, Down} {
			t.Errorf("delay %v: %v after %v of silence", delay, p.states(), limit)
		}
		p.cut = [2]bool{}
		p.run(2*delay + 300*time.Millisecond)
		if p.states() != [2]State{Up, Up} {
			t.Errorf("delay %v: %v after the cut healed", delay, p.states())
		}
	}
}

// A process that is not scheduled for 2 s, or 30 s, does not report its peer down.
func TestProberIgnoresOwnPauses(t *testing.T) {
	for _, pause := range []time.Duration{2 * time.Second, 30 * time.Second} {
		p := newPair(20 * time.Millisecond)
		p.run(10 * time.Second)
		// End 0 is not called; end 1 goes on and rightly reports it down.
		stopped := p.ends[0]
		p.ends[0] = newProber(99, p.now)
		p.cut = [2]bool{true, true}
		p.run(pause)
		if p.ends[1].state != Down {
			t.Errorf("pause %v: the running end did not notice", pause)
		}
		p.ends[0], p.cut = stopped, [2]bool{}
		for range 20 {
			p.run(tickInterval)
			if stopped.state != Up {
				t.Fatalf("pause %v: the peer was reported down", pause)
			}
		}
		if p.ends[1].state != Up {
			t.Errorf("pause %v: not up again", pause)
		}
	}
}

func TestProberOneWay(t *testing.T) {
	p := newPair(20 * time.Millisecond)
	p.run(5 * time.Second)
	p.cut[1] = true
	p.run(900 * time.Millisecond)
	if p.states() != [2]State{Down, Down} || !p.ends[0].deaf() || p.ends[1].deaf() {
		t.Errorf("%v, deaf %v %v", p.states(), p.ends[0].deaf(), p.ends[1].deaf())
	}
	p.run(20 * time.Second)
	if p.states() != [2]State{Down, Down} {
		t.Errorf("%v with one direction cut", p.states())
	}
}

// An echo for a former process of ours proves nothing, a repeated one gives no
// second RTT, and time that goes backwards does no harm.
func TestProberOddities(t *testing.T) {
	now := time.Unix(1000, 0)
	p := newProber(7, now)
	p.tick(now)
	if _, send := p.receive(probe{echo: true, seq: 1, instance: 8}, now); send || p.state != Connecting || p.hasHeard {
		t.Error("an echo for somebody else counted")
	}
	p.receive(probe{echo: true, seq: 1, instance: 7}, now.Add(10*time.Millisecond))
	if p.state != Up || p.srtt != 0 {
		t.Errorf("%s, RTT %v of a probe sent before up", p.state, p.srtt)
	}
	request, _ := p.tick(now.Add(probeInterval + 20*time.Millisecond))
	for i := range 2 {
		p.receive(probe{echo: true, seq: request.seq, instance: 7}, now.Add(probeInterval+time.Duration(50+i*100)*time.Millisecond))
		if p.srtt != 30*time.Millisecond {
			t.Errorf("RTT %v", p.srtt)
		}
	}
	p.tick(now.Add(-time.Hour))
	if p.state != Up {
		t.Error("down because the time went backwards")
	}
	if _, send := p.receive(probe{age: never, seq: 9, instance: 5}, now); !send {
		t.Error("no echo")
	}
}

func TestProbeBytes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 100 {
		want := probe{echo: rng.IntN(2) == 1, loss: uint8(rng.Uint32()), age: uint16(rng.Uint32()), seq: rng.Uint32(), instance: rng.Uint64(), features: features(rng.Uint32())}
		b := want.append(nil)
		if len(b) != probeLen+1 {
			t.Fatalf("%d bytes", len(b))
		}
		if got, ok := parseProbe(append(b, 1, 2, 3)); !ok || got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		old := want
		old.features = 0
		if got, ok := parseProbe(b[:probeLen]); !ok || got != old {
			t.Errorf("of an older agent: %+v, want %+v", got, old)
		}
		for n := range probeLen {
			if _, ok := parseProbe(b[:n]); ok {
				t.Errorf("%d bytes were enough", n)
			}
		}
		b[0] = 3
		if _, ok := parseProbe(b); ok {
			t.Error("unknown type accepted")
		}
	}
}

func FuzzProbe(f *testing.F) {
	f.Add([]byte{1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9}, int64(1))
	f.Add([]byte{2, 0, 0xff, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7}, int64(1e9))
	f.Fuzz(func(t *testing.T, b []byte, step int64) {
		now := time.Unix(1000, 0)
		p := newProber(7, now)
		p.tick(now)
		now = now.Add(time.Duration(step % int64(time.Hour)))
		m, ok := parseProbe(b)
		if !ok {
			return
		}
		echo, send := p.receive(m, now)
		if send == m.echo || send && (echo.seq != m.seq || echo.instance != m.instance || !echo.echo) {
			t.Fatalf("%+v answered by %+v, %v", m, echo, send)
		}
		p.tick(now.Add(time.Second))
		if p.proof > p.run || p.heard > p.run {
			t.Fatalf("heard or proved in the future: %+v", p)
		}
	})
}

// TestProberQuality loses a tenth of what goes one way: both ends know which,
// say so within 15 s, and forget it when it is over. The link stays up.
func TestProberQuality(t *testing.T) {
	p := newPair(20 * time.Millisecond)
	rng := rand.New(rand.NewPCG(5, 5))
	lossy := func(d time.Duration, share float64) {
		for end := p.now.Add(d); p.now.Before(end); {
			p.cut[1] = rng.Float64() < share
			p.run(tickInterval)
			for _, e := range p.ends {
				e.judge(0, 0)
			}
		}
		p.cut[1] = false
	}
	health := func(i int) quality.Report { return p.ends[i].judge(0, 0) }
	lossy(20*time.Second, 0)
	for i := range p.ends {
		if q := health(i); q.Health != quality.Good || q.LossIn != 0 || q.LossOut != 0 || q.Jitter > tickInterval {
			t.Errorf("end %d without loss: %+v", i, q)
		}
	}
	lossy(15*time.Second, 0.1)
	if q := health(0); q.Health != quality.Degraded || q.LossOut < 0.03 || q.LossIn != 0 {
		t.Errorf("the end whose packets are lost: %+v", q)
	}
	if q := health(1); q.Health != quality.Degraded || q.LossIn < 0.03 || q.LossOut != 0 {
		t.Errorf("the other end: %+v", q)
	}
	if got := p.states(); got != [2]State{Up, Up} {
		t.Errorf("a tenth of loss took the link down: %v", got)
	}
	lossy(40*time.Second, 0)
	p.cut[1] = true
	p.run(2 * time.Second)
	if q := health(1); q.Health != quality.Down {
		t.Errorf("the end that hears nothing: %+v", q)
	}
	if q := health(0); q.Health != quality.OneWay {
		t.Errorf("the end that is not heard: %+v", q)
	}
	p.cut[1] = false
	p.run(20 * time.Second)
	for i := range p.ends {
		if q := health(i); q.Health != quality.Good || q.LossIn > 0.01 {
			t.Errorf("end %d after all: %+v", i, q)
		}
	}
}
