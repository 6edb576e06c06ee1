package quality

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// naive is arrivals as a set of numbers.
type naive struct {
	instance uint64
	first    uint64
	newest   uint64
	got      map[uint64]bool
}

func (n *naive) add(instance, seq uint64) {
	switch {
	case n.got == nil || n.instance != instance || seq > n.newest+outage:
		*n = naive{instance, seq, seq, map[uint64]bool{}}
	case seq < n.first || seq+window <= n.newest:
		return
	}
	n.newest = max(n.newest, seq)
	n.got[seq] = true
}

func (n *naive) loss() float64 {
	if n.got == nil {
		return -1
	}
	count, lost := 0, 0
	for seq := n.newest; seq >= n.first && seq+window > n.newest; seq-- {
		if seq+reordered > n.newest {
			continue
		}
		count++
		if !n.got[seq] {
			lost++
		}
	}
	if count < fewest {
		return -1
	}
	return float64(lost) / float64(count)
}

// TestArrivalsTwin compares with the twin, over lost, reordered and repeated
// numbers, restarts, and the turn of 32 bits.
func TestArrivalsTwin(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 3))
		var a arrivals
		var n naive
		instance, seq := uint64(1), uint64(math.MaxUint32-100)
		for step := range 3000 {
			switch k := r.IntN(1000); {
			case k == 0:
				instance++
			case k == 1:
				seq += outage - 1 + uint64(r.IntN(4))
			case k < 200:
				seq++ // lost
			default:
				seq++
				got := seq
				if k < 300 {
					got -= min(uint64(r.IntN(window+20)), seq-math.MaxUint32/2)
				}
				a.add(instance, uint32(got))
				n.add(instance, got)
			}
			if got, want := a.loss(), n.loss(); got != want {
				t.Fatalf("seed %d step %d: loss %v, twin %v", seed, step, got, want)
			}
		}
	}
}

// twoEnds lets two meters exchange probes for a while.
func twoEnds(a, b *Meter, from, n int, lossAB, lossBA float64, r *rand.Rand) {
	for seq := from; seq < from+n; seq++ {
		for _, way := range []struct {
			from, to *Meter
			loss     float64
		}{{a, b, lossAB}, {b, a, lossBA}} {
			if r.Float64() >= way.loss {
				way.to.Heard(7, uint32(seq))
				way.to.Told(way.from.Share())
			}
		}
	}
}

// TestOneWayLoss loses packets in one direction: both ends see which.
func TestOneWayLoss(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var a, b Meter
	if got := a.Report(true, false); got.Health != Good || got.LossIn != -1 || got.LossOut != -1 || got.Best != 0 {
		t.Errorf("at first: %+v", got)
	}
	twoEnds(&a, &b, 0, 300, 0, 0, r)
	for _, m := range []*Meter{&a, &b} {
		if got := m.Report(true, false); got.Health != Good || got.LossIn != 0 || got.LossOut != 0 {
			t.Errorf("without loss: %+v", got)
		}
	}
	twoEnds(&a, &b, 300, 300, 0.2, 0, r)
	ra, rb := a.Report(true, false), b.Report(true, false)
	if ra.Health != Degraded || ra.LossIn != 0 || ra.LossOut < 0.1 || ra.LossOut > 0.3 || ra.Reason == "" {
		t.Errorf("the sender of what is lost: %+v", ra)
	}
	if rb.Health != Degraded || rb.LossOut != 0 || math.Abs(rb.LossIn-ra.LossOut) > 0.03 {
		t.Errorf("its receiver: %+v", rb)
	}
	twoEnds(&a, &b, 600, 300, 0, 0, r)
	if ra, rb = a.Report(true, false), b.Report(true, false); ra.Health != Good || rb.Health != Good {
		t.Errorf("after it: %+v, %+v", ra, rb)
	}
}

// TestHysteresis moves the loss around the thresholds.
func TestHysteresis(t *testing.T) {
	var m Meter
	for _, c := range []struct {
		share float64
		want  Health
	}{{0.02, Good}, {0.03, Degraded}, {0.02, Degraded}, {0.01, Good}, {0.02, Good}} {
		m.Told(1 + uint8(c.share*254+0.99))
		if got := m.Report(true, false).Health; got != c.want {
			t.Errorf("loss %v: %v, want %v", c.share, got, c.want)
		}
	}
}

// TestSlow lets the round trip grow and shrink, and a new path be longer for
// good: after a while that is what the link can do.
func TestSlow(t *testing.T) {
	var m Meter
	now := time.Duration(0)
	at := func(rtt time.Duration, n int) Health {
		for range n {
			now += 200 * time.Millisecond
			m.RoundTrip(now, rtt, rtt)
		}
		return m.Report(true, false).Health
	}
	for _, c := range []struct {
		rtt  time.Duration
		n    int
		want Health
	}{
		{40 * time.Millisecond, 100, Good}, {120 * time.Millisecond, 20, Good}, {140 * time.Millisecond, 20, Degraded},
		{100 * time.Millisecond, 20, Degraded}, {80 * time.Millisecond, 20, Good}, {200 * time.Millisecond, 20, Degraded},
		{200 * time.Millisecond, int(2 * bestFor / (200 * time.Millisecond)), Good},
	} {
		if got := at(c.rtt, c.n); got != c.want {
			t.Errorf("%v: %v, want %v (best %v)", c.rtt, got, c.want, m.Report(true, false).Best)
		}
	}
}

// TestJitter has round trips that alternate by 16 ms.
func TestJitter(t *testing.T) {
	var m Meter
	for i := range 1000 {
		m.RoundTrip(time.Duration(i)*time.Second, 50*time.Millisecond+time.Duration(i%2)*16*time.Millisecond, 0)
	}
	if got := m.Report(true, false).Jitter; got < 15*time.Millisecond || got > 17*time.Millisecond {
		t.Errorf("jitter %v, want 16 ms", got)
	}
}

// TestNotUp says what a link is that is not up; a blackout is not loss.
func TestNotUp(t *testing.T) {
	var m Meter
	if got := m.Report(false, false).Health; got != Down {
		t.Errorf("%v", got)
	}
	if got := m.Report(false, true); got.Health != OneWay || got.Reason == "" {
		t.Errorf("%+v", got)
	}
	for seq := range uint32(100) {
		m.Heard(1, seq)
	}
	m.Heard(1, 5000)
	if got := m.Report(true, false); got.LossIn != -1 || got.Health != Good {
		t.Errorf("after a blackout: %+v", got)
	}
	m.Told(255)
	m.Restart()
	if got := m.Report(true, false); got.LossOut != -1 || got.Health != Good {
		t.Errorf("after a restart: %+v", got)
	}
}

func TestRates(t *testing.T) {
	var m Meter
	for i := range 100 { // every 50 ms
		m.Traffic(time.Duration(i)*50*time.Millisecond, uint64(i)*5000, uint64(i)*100)
	}
	r := m.Report(true, false)
	if math.Abs(r.RateIn-100_000) > 1 || math.Abs(r.RateOut-2000) > 1 {
		t.Errorf("rates %v and %v, want 100000 and 2000", r.RateIn, r.RateOut)
	}
	for i := range 2 {
		m.Traffic(time.Hour+time.Duration(i)*time.Minute, 99*5000, 99*100)
	}
	if r = m.Report(true, false); r.RateIn != 0 || r.RateOut != 0 {
		t.Errorf("idle: %v and %v", r.RateIn, r.RateOut)
	}
}
