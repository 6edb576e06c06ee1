package govern

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"stitch/tunnel/wan"
)

const (
	packet    = 1500
	tickEvery = time.Millisecond
	gaugeTime = 20 * time.Millisecond
)

// flow is a sender that always has something to send, in the manner of BBR: it
// knows the most that was delivered of late and keeps twice the path's product of
// that and the round trip under way; at first it doubles.
type flow struct {
	floor    time.Duration // round trip without a queue
	startup  bool
	best     []float64 // delivered bytes a second, of the last rounds
	inflight int
	arrived  []due
	round    time.Duration
	got      int
	full     int
	// cubic: a window that grows until something is lost.
	cubic   bool
	window  float64
	backoff time.Duration
}

type due struct {
	at   time.Duration
	lost bool
}

func (f *flow) cwnd(now time.Duration) float64 {
	if f.cubic {
		return f.window
	}
	if len(f.best) == 0 {
		return 10 * packet
	}
	if now%(10*time.Second) > 9800*time.Millisecond { // PROBE_RTT
		return 4 * packet
	}
	gain := 2.0
	if f.startup {
		gain = 2.89
	}
	return max(gain*slices.Max(f.best)*f.floor.Seconds(), 10*packet)
}

// acks takes in what has arrived.
func (f *flow) acks(now time.Duration) {
	for len(f.arrived) > 0 && f.arrived[0].at <= now {
		f.inflight -= packet
		switch lost := f.arrived[0].lost; {
		case lost && f.cubic && now > f.backoff:
			f.window *= 0.7
			f.backoff = now + f.floor
		case !lost:
			f.got += packet
			f.window += packet * packet / max(f.window, packet) * 4
		}
		f.arrived = f.arrived[1:]
	}
	if took := now - f.round; took >= f.floor {
		rate := float64(f.got) / took.Seconds()
		if f.startup && len(f.best) > 0 && rate < 1.25*slices.Max(f.best) {
			if f.full++; f.full == 3 {
				f.startup = false
			}
		} else {
			f.full = 0
		}
		if f.best = append(f.best, rate); len(f.best) > 10 {
			f.best = f.best[1:]
		}
		f.round, f.got = now, 0
	}
}

// world is a path with a governed flow, perhaps another one, and gauges.
type world struct {
	t       *testing.T
	g       Governor
	m       *wan.Model
	p       wan.Params
	back    time.Duration
	own     flow
	other   *flow
	govern  bool
	tokens  float64
	tx, rx  uint64
	pending []time.Duration // when ours arrive
	answers []Answer
	asked   time.Duration
	now     time.Duration
	skew    time.Duration
	most    float64 // bytes a second that our own application sends; 0: all it can
	queues  []time.Duration
	every   func(w *world) // called every tick
	// stalled: until then nothing gets on its way, because the processors do something
	// else.
	stalled time.Duration
}

func newWorld(t *testing.T, p wan.Params, governed bool) *world {
	m, err := wan.NewModel(p)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, m: m, p: p, back: p.Delay, govern: governed, skew: 12345 * time.Second}
	w.own = flow{floor: 2 * p.Delay, startup: true}
	return w
}

func (w *world) change(f func(p *wan.Params)) {
	f(&w.p)
	if err := w.m.Set(w.p); err != nil {
		w.t.Fatal(err)
	}
	w.back = w.p.Delay
	w.own.floor = 2 * w.p.Delay
	if w.other != nil {
		w.other.floor = 2 * w.p.Delay
	}
}

// send sends one packet of a flow.
func (w *world) send(f *flow) {
	v := w.enqueue(packet)
	f.inflight += packet
	d := due{v.At + w.back, v.Copies == 0}
	if d.lost {
		d.at = w.now + 2*w.back + 20*time.Millisecond
	}
	i, _ := slices.BinarySearchFunc(f.arrived, d, func(a, b due) int { return int(a.at - b.at) })
	f.arrived = slices.Insert(f.arrived, i, d)
	if f == &w.own {
		w.tx += packet
		if v.Copies > 0 {
			w.pending = append(w.pending, v.At)
		}
	}
}

// enqueue puts n bytes on their way.
func (w *world) enqueue(n int) wan.Verdict { return w.m.Enqueue(max(w.now, w.stalled), n) }

// run runs for d.
func (w *world) run(d time.Duration) {
	for end := w.now + d; w.now < end; w.now += tickEvery {
		for len(w.answers) > 0 && w.answers[0].Back <= w.now {
			if w.govern {
				w.g.Answer(w.answers[0])
			}
			w.answers = w.answers[1:]
		}
		if w.every != nil {
			w.every(w)
		}
		w.own.acks(w.now)
		rate := w.g.rate
		if w.most > 0 && (rate == 0 || rate > w.most) {
			rate = w.most
		}
		w.tokens = max(min(w.tokens+rate*tickEvery.Seconds(), rate*0.004+2*packet), -packet)
		for float64(w.own.inflight) < w.own.cwnd(w.now) && (rate == 0 || w.tokens > 0) {
			w.send(&w.own)
			w.tokens -= packet
		}
		if w.other != nil {
			w.other.acks(w.now)
			for float64(w.other.inflight) < w.other.cwnd(w.now) {
				w.send(w.other)
			}
		}
		if w.now-w.asked >= gaugeTime {
			w.asked = w.now
			if v := w.enqueue(120); v.Copies > 0 {
				for len(w.pending) > 0 && w.pending[0] <= v.At {
					w.rx += packet
					w.pending = w.pending[1:]
				}
				w.answers = append(w.answers, Answer{w.now, v.At + w.skew, v.At + w.back, w.tx, w.rx})
				w.queues = append(w.queues, max(v.At-w.now-w.p.Delay, 0))
			}
		}
	}
}

// result is what a stretch of time showed.
type result struct {
	p50, p99 time.Duration // of the bottleneck's queue
	rate     float64       // delivered bits a second
}

// over runs for d and returns what it showed.
func (w *world) over(d time.Duration) result {
	w.queues = nil
	from := w.rx
	w.run(d)
	q := slices.Clone(w.queues)
	slices.Sort(q)
	return result{q[len(q)/2], q[len(q)*99/100], float64(w.rx-from) * 8 / d.Seconds()}
}

// fast is the path of most cases: its queue takes a round trip.
var fast = wan.Params{Rate: 100e6, Delay: 20 * time.Millisecond}

// TestGovern holds what is delivered, and how long the queue is, against the same
// path without a governor, which is the control case: there the queue must be
// long.
func TestGovern(t *testing.T) {
	for name, c := range map[string]struct {
		path     wan.Params
		before   func(w *world) // sets up
		settle   time.Duration  // before it counts
		over     time.Duration
		p50, p99 time.Duration // at most
		control  time.Duration // p50 without, at least
		share    float64       // of what is delivered without, at least
	}{
		"steady":       {path: fast, settle: 3 * time.Second, p50: 8 * time.Millisecond, p99: 15 * time.Millisecond, control: 35 * time.Millisecond, share: 0.97},
		"T3":           {path: wan.Params{Rate: 45e6, Delay: 50 * time.Millisecond}, settle: 4 * time.Second, p50: 10 * time.Millisecond, p99: 20 * time.Millisecond, control: 90 * time.Millisecond, share: 0.97},
		"slow":         {path: wan.Params{Rate: 2e6, Delay: 20 * time.Millisecond}, settle: 5 * time.Second, p50: 15 * time.Millisecond, p99: 40 * time.Millisecond, control: 40 * time.Millisecond, share: 0.95},
		"known":        {path: fast, before: known, settle: time.Second, p50: 10 * time.Millisecond, p99: 25 * time.Millisecond, control: 35 * time.Millisecond, share: 0.97},
		"loss 1 %":     {path: wan.Params{Rate: 100e6, Delay: 40 * time.Millisecond, Loss: 0.01}, settle: 4 * time.Second, p50: 12 * time.Millisecond, p99: 20 * time.Millisecond, control: 60 * time.Millisecond, share: 0.97},
		"loss 3 %":     {path: wan.Params{Rate: 100e6, Delay: 40 * time.Millisecond, Loss: 0.03}, settle: 4 * time.Second, p50: 12 * time.Millisecond, p99: 20 * time.Millisecond, control: 60 * time.Millisecond, share: 0.97},
		"burst loss":   {path: wan.Params{Rate: 100e6, Delay: 40 * time.Millisecond, Burst: wan.BurstLoss(0.01, 5)}, settle: 4 * time.Second, p50: 12 * time.Millisecond, p99: 20 * time.Millisecond, control: 60 * time.Millisecond, share: 0.97},
		"jitter":       {path: wan.Params{Rate: 100e6, Delay: 20 * time.Millisecond, Jitter: 10 * time.Millisecond}, settle: 4 * time.Second, p50: 15 * time.Millisecond, p99: 30 * time.Millisecond, control: 40 * time.Millisecond, share: 0.95},
		"radio":        {path: fast, before: radio, settle: 4 * time.Second, p50: 20 * time.Millisecond, p99: 46 * time.Millisecond, control: 30 * time.Millisecond, share: 0.95},
		"rate / 20":    {path: fast, before: change(func(p *wan.Params) { p.Rate /= 20 }), settle: 14 * time.Second, p50: 12 * time.Millisecond, p99: 25 * time.Millisecond, control: 35 * time.Millisecond, share: 0.95},
		"rate / 2":     {path: fast, before: change(func(p *wan.Params) { p.Rate /= 2 }), settle: 12 * time.Second, p50: 12 * time.Millisecond, p99: 25 * time.Millisecond, control: 35 * time.Millisecond, share: 0.97},
		"rate x 2":     {path: fast, before: change(func(p *wan.Params) { p.Rate *= 2 }), settle: 18 * time.Second, p50: 12 * time.Millisecond, p99: 25 * time.Millisecond, control: 35 * time.Millisecond, share: 0.97},
		"rate x 20":    {path: wan.Params{Rate: 5e6, Delay: 20 * time.Millisecond}, before: change(func(p *wan.Params) { p.Rate *= 20 }), settle: 20 * time.Second, p50: 10 * time.Millisecond, p99: 20 * time.Millisecond, control: 35 * time.Millisecond, share: 0.97},
		"longer path":  {path: fast, before: change(func(p *wan.Params) { p.Delay = 50 * time.Millisecond }), settle: 60 * time.Second, p50: 12 * time.Millisecond, p99: 25 * time.Millisecond, control: 60 * time.Millisecond, share: 0.97},
		"shorter path": {path: fast, before: change(func(p *wan.Params) { p.Delay = 10 * time.Millisecond }), settle: 14 * time.Second, p50: 10 * time.Millisecond, p99: 20 * time.Millisecond, control: 18 * time.Millisecond, share: 0.97},
		// Whoever shares the bottleneck fills its queue; ours must not suffer from it.
		"other, BBR":   {path: fast, before: another(false), settle: 10 * time.Second, over: 100 * time.Second, p50: time.Hour, p99: time.Hour, share: 0.80},
		"other, CUBIC": {path: fast, before: another(true), settle: 10 * time.Second, over: 100 * time.Second, p50: time.Hour, p99: time.Hour, share: 0.80},
		// The queue is now and then long, and not the path's; a little less than what is
		// delivered must not look like the most that can be.
		"processors":      {path: wan.Params{Rate: 900e6, Delay: 10 * time.Millisecond}, before: processors(300e6, 100*time.Millisecond), settle: 3 * time.Second, p50: time.Hour, p99: time.Hour, share: 0.97},
		"full processors": {path: wan.Params{Rate: 900e6, Delay: 10 * time.Millisecond}, before: full, settle: 3 * time.Second, p50: time.Hour, p99: time.Hour, share: 0.93},
		"known wrongly":   {path: wan.Params{Rate: 900e6, Delay: 10 * time.Millisecond}, before: func(w *world) { known(w); processors(300e6, 100*time.Millisecond)(w) }, settle: 3 * time.Second, p50: time.Hour, p99: time.Hour, share: 0.97},
		"processors, 100": {path: fast, before: processors(0, 100*time.Millisecond), settle: 3 * time.Second, p50: 15 * time.Millisecond, p99: time.Hour, control: 35 * time.Millisecond, share: 0.93},
		"little":          {path: fast, before: func(w *world) { w.most = 10e6 / 8; another(true)(w) }, settle: 10 * time.Second, over: 60 * time.Second, p50: time.Hour, p99: time.Hour, share: 0.95},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got [2]result
			for i := range got {
				w := newWorld(t, c.path, i == 1)
				if c.before != nil {
					c.before(w)
				}
				w.run(c.settle)
				got[i] = w.over(max(c.over, 18*time.Second))
			}
			t.Logf("%s: without %v, %v, %.2f Mbit/s; with %v, %v, %.2f Mbit/s (%.3f)", name, got[0].p50, got[0].p99, got[0].rate/1e6,
				got[1].p50, got[1].p99, got[1].rate/1e6, got[1].rate/got[0].rate)
			if got[0].p50 < c.control {
				t.Errorf("without a governor the queue is %v: this proves nothing", got[0].p50)
			}
			if got[1].p50 > c.p50 || got[1].p99 > c.p99 {
				t.Errorf("queue %v, %v, want at most %v, %v", got[1].p50, got[1].p99, c.p50, c.p99)
			}
			if got[1].rate < c.share*got[0].rate {
				t.Errorf("%.0f bit/s, want %.2f of %.0f", got[1].rate, c.share, got[0].rate)
			}
		})
	}
}

// change changes the path after eight seconds.
func change(f func(p *wan.Params)) func(w *world) {
	return func(w *world) {
		w.every = func(w *world) {
			if w.now == 8*time.Second {
				w.change(f)
			}
		}
	}
}

// known has been found out before.
func known(w *world) {
	if w.govern {
		w.g.Start(0, 0.85*100e6/8)
	}
}

// radio makes the path one that carries half for 20 ms now and then.
func radio(w *world) {
	w.every = func(w *world) {
		switch w.now % (317 * time.Millisecond) {
		case 0:
			w.change(func(p *wan.Params) { p.Rate = 50e6 })
		case 20 * time.Millisecond:
			w.change(func(p *wan.Params) { p.Rate = 100e6 })
		}
	}
}

// processors have other things to do, often for some milliseconds and now and then
// for about as long as pause, and can send no more than rate.
func processors(rate float64, pause time.Duration) func(w *world) {
	return func(w *world) {
		r := rand.New(rand.NewPCG(1, 2))
		w.most = rate / 8
		var next time.Duration
		w.every = func(w *world) {
			if w.now < next {
				return
			}
			mean := 5 * time.Millisecond
			if r.IntN(50) == 0 {
				mean = pause
			}
			w.stalled = w.now + time.Duration(r.ExpFloat64()*float64(mean))
			next = w.stalled + time.Duration(r.ExpFloat64()*float64(30*time.Millisecond))
		}
	}
}

// full processors do other things most of the time.
func full(w *world) {
	r := rand.New(rand.NewPCG(1, 2))
	var next time.Duration
	w.every = func(w *world) {
		if w.now >= next {
			w.stalled = w.now + time.Duration(r.ExpFloat64()*float64(25*time.Millisecond))
			next = w.stalled + time.Duration(r.ExpFloat64()*float64(15*time.Millisecond))
		}
	}
}

// another sends too, from the fifth second on.
func another(cubic bool) func(w *world) {
	return func(w *world) {
		w.every = func(w *world) {
			if w.now == 5*time.Second {
				w.other = &flow{floor: 2 * w.p.Delay, startup: true, cubic: cubic, window: 10 * packet}
			}
		}
	}
}

// TestGovernNothing: a path without a queue is never governed, however much crosses.
func TestGovernNothing(t *testing.T) {
	w := newWorld(t, fast, true)
	w.most = 90e6 / 8
	w.every = func(w *world) {
		if w.g.Rate() != 0 {
			t.Fatalf("after %v it is governed: %d bit/s, queue %v", w.now, w.g.Rate(), w.g.Queue())
		}
	}
	w.run(30 * time.Second)
}

// TestStart: what is found out before is used at first, within bounds.
func TestStart(t *testing.T) {
	for _, c := range []struct {
		rate float64
		want int64
	}{{10e6, 80e6}, {1, 0}, {1e12, 0}} {
		var g Governor
		g.Start(0, c.rate)
		if g.Rate() != c.want {
			t.Errorf("%v: %d bit/s, want %d", c.rate, g.Rate(), c.want)
		}
		if g.Fresh() != (c.want == 0) {
			t.Errorf("%v: fresh %v", c.rate, g.Fresh())
		}
	}
}

// TestAnswers that are late, from a clock that is set back, or repeated do no harm.
func TestAnswers(t *testing.T) {
	var g Governor
	for i := range time.Duration(1000) {
		at := i * 20 * time.Millisecond
		a := Answer{Sent: at, Arrived: at + time.Millisecond, Back: at + 2*time.Millisecond, Tx: uint64(i) * 1000, Rx: uint64(i) * 1000}
		switch i % 7 {
		case 1:
			a.Sent -= time.Second
		case 2:
			a.Arrived -= time.Hour
		case 3:
			a.Tx, a.Rx = 0, 0
		case 4:
			g.Answer(a)
		case 5:
			a.Rx = 1 << 63
		}
		g.Answer(a)
		if r := g.Rate(); r < 0 || r > maxRate*8 {
			t.Fatalf("rate %d", r)
		}
	}
}
