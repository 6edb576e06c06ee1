package shape

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// fluid is what classes get of a rate if packets were infinitely small: all of it in
// proportion to the shares, but nobody more than he can use (most), whose rest the
// others have.
func fluid(rate float64, classes []Class, most []float64) []float64 {
	got := make([]float64, len(classes))
	done := make([]bool, len(classes))
	for range classes {
		left, shares := rate, 0.0
		for i, c := range classes {
			if done[i] {
				left -= got[i]
			} else {
				shares += float64(c.Share)
			}
		}
		again := false
		for i, c := range classes {
			if !done[i] && left*float64(c.Share)/shares >= most[i] {
				got[i], done[i], again = most[i], true, true
			}
		}
		if again {
			continue
		}
		for i, c := range classes {
			if !done[i] {
				got[i] = left * float64(c.Share) / shares
			}
		}
		break
	}
	return got
}

// load is what a class sends.
type load struct {
	flows int     // with so many flows
	rate  float64 // bits a second, with overhead; infinite: a queue is always there
	owed  float64
	n     int
}

// feed pushes what is due after a step.
func (l *load) feed(s *Shaper, class int, step time.Duration, overhead int) {
	const size = 1000
	if math.IsInf(l.rate, 1) {
		full := s.Count(class).Dropped
		for s.Count(class).Waiting < s.classes[class].room/8 && s.Count(class).Dropped == full {
			l.push(s, class, size)
		}
		return
	}
	for l.owed += l.rate * step.Seconds(); l.owed >= 8*float64(size+overhead); l.owed -= 8 * float64(size+overhead) {
		l.push(s, class, size)
	}
}

func (l *load) push(s *Shaper, class, size int) {
	l.n++
	s.Push(uint64(l.n%l.flows), class, 1, packet(class, l.n, size))
}

// run sends for a time and returns the rate of each class in bits a second.
func run(s *Shaper, loads []load, length time.Duration) []float64 {
	const step = 500 * time.Microsecond
	before := make([]Count, len(loads))
	for i := range loads {
		before[i] = s.Count(i)
	}
	for end := s.last + length; s.last < end; {
		now := s.last + step
		for i := range loads {
			loads[i].feed(s, i, step, s.overhead)
		}
		for ok := true; ok; {
			_, ok = s.Pop(now, nil)
		}
	}
	rates := make([]float64, len(loads))
	for i := range loads {
		rates[i] = float64(s.Count(i).Bytes-before[i].Bytes) * 8 / length.Seconds()
	}
	return rates
}

// TestFluid holds what classes of any shares, limits and loads get against the
// fluid: so the link is never idle while somebody may send, each has its part, and
// none more than its limit.
func TestFluid(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 40 {
		rate := 2e6 * math.Pow(2, float64(r.IntN(4)))
		classes := make([]Class, 1+r.IntN(5))
		loads, most := make([]load, len(classes)), make([]float64, len(classes))
		for i := range classes {
			classes[i].Share = 1 + r.IntN(60)
			loads[i] = load{flows: 1 + r.IntN(9), rate: math.Inf(1)}
			if r.IntN(3) == 0 {
				loads[i].rate = rate * r.Float64()
			}
			most[i] = loads[i].rate
			if r.IntN(3) == 0 {
				classes[i].Limit = int64(rate * (0.05 + r.Float64()))
				most[i] = min(most[i], float64(classes[i].Limit))
			}
		}
		s := New(int64(rate), 60, classes...)
		run(s, loads, time.Second)
		got, want := run(s, loads, 4*time.Second), fluid(rate, classes, most)
		for i := range classes {
			if math.Abs(got[i]-want[i]) > 0.02*rate {
				t.Errorf("%.0f bit/s, classes %+v, loads %+v: %.0f, want %.0f", rate, classes, loads, got, want)
				break
			}
			if c := classes[i]; c.Limit > 0 && got[i] > 1.005*float64(c.Limit)+8*2*1060/4 {
				t.Errorf("%.0f bit/s with a limit of %d", got[i], c.Limit)
			}
		}
	}
}

// TestClasses: the cases that an operator has in mind, and without classes, the
// control case, a rate that goes by flows.
func TestClasses(t *testing.T) {
	const rate = 20e6
	bulk := func(flows int) load { return load{flows: flows, rate: math.Inf(1)} }
	for name, c := range map[string]struct {
		classes []Class
		loads   []load
		want    []float64 // parts of the rate
	}{
		"75 and 25":              {[]Class{{Share: 75}, {Share: 25}}, []load{bulk(1), bulk(1)}, []float64{0.75, 0.25}},
		"8 flows against 1":      {[]Class{{Share: 50}, {Share: 50}}, []load{bulk(8), bulk(1)}, []float64{0.5, 0.5}},
		"one idle":               {[]Class{{Share: 75}, {Share: 25}}, []load{{flows: 1}, bulk(1)}, []float64{0, 1}},
		"one with little":        {[]Class{{Share: 75}, {Share: 25}}, []load{{flows: 1, rate: 0.2 * rate}, bulk(3)}, []float64{0.2, 0.8}},
		"a limit":                {[]Class{{Share: 75, Limit: 0.3 * rate}, {Share: 25}}, []load{bulk(1), bulk(1)}, []float64{0.3, 0.7}},
		"a limit, alone":         {[]Class{{Share: 75, Limit: 0.3 * rate}, {Share: 25}}, []load{bulk(1), {flows: 1}}, []float64{0.3, 0}},
		"what is left, by share": {[]Class{{Share: 60}, {Share: 20}, {Share: 10}}, []load{{flows: 1}, bulk(2), bulk(5)}, []float64{0, 2. / 3, 1. / 3}},
	} {
		s := New(rate, 60, c.classes...)
		run(s, c.loads, time.Second)
		for i, got := range run(s, c.loads, 4*time.Second) {
			if math.Abs(got/rate-c.want[i]) > 0.01 {
				t.Errorf("%s: class %d had %.3f of the rate, want %.3f", name, i, got/rate, c.want[i])
			}
		}
	}
	s, sent := New(rate, 60), [9]int{}
	for i, now := 0, time.Duration(0); now < 2*time.Second; now += time.Millisecond {
		for ; s.Bytes() < s.limit/2; i++ {
			s.Push(uint64(i%9), 0, 1, packet(i%9, i, 1000))
		}
		for p, ok := s.Pop(now, nil); ok; p, ok = s.Pop(now, nil) {
			sent[flowOf(p)]++
		}
	}
	if part := float64(sent[0]) / float64(2*time.Second.Seconds()*rate/8/1060); part < 0.10 || part > 0.12 {
		t.Errorf("without classes one flow of nine had %.3f of the rate", part)
	}
}

// TestClassFlood: a class that sends nothing but what passes bulk, in very many
// flows, takes no more than its part in the long run. Without classes it does.
func TestClassFlood(t *testing.T) {
	const rate = 20e6
	for _, own := range []bool{true, false} {
		classes := []Class{{Share: 1}}
		if own {
			classes = []Class{{Share: 75}, {Share: 25}}
		}
		s := New(rate, 60, classes...)
		sent := [2]int{}
		for i, now := 0, time.Duration(0); now < 4*time.Second; now += time.Millisecond {
			for range 3 {
				s.Push(0, 0, 1, packet(0, i, 1000))
			}
			for range 10 {
				i++
				s.Push(uint64(1+i%1000), len(classes)-1, 1, packet(1, i, 400))
			}
			for p, ok := s.Pop(now, nil); ok; p, ok = s.Pop(now, nil) {
				sent[flowOf(p)] += len(p) + 60
			}
		}
		switch part := float64(sent[0]) / float64(sent[0]+sent[1]); {
		case own && part < 0.70: // 4 s, and 0.2 s ahead
			t.Errorf("the flood left %.2f of the rate", part)
		case !own && part > 0.2:
			t.Errorf("without classes the flood left %.2f of the rate: this proves nothing", part)
		}
	}
}

// TestClassPriority: a packet now and then passes the bulk of its own class and of
// the others, however small its class's share; one of the bulk's own flow, the
// control case, does not.
func TestClassPriority(t *testing.T) {
	for _, own := range []bool{true, false} {
		for class := range 3 {
			s := New(20e6, 60, Class{Share: 75}, Class{Share: 24}, Class{Share: 1})
			loads := []load{{flows: 2, rate: math.Inf(1)}, {flows: 1, rate: math.Inf(1)}, {flows: 1, rate: math.Inf(1)}}
			run(s, loads, time.Second)
			worst := 0
			for i := range 50 {
				run(s, loads, 20*time.Millisecond)
				hash := uint64(0)
				if own {
					hash = 7
				}
				s.Push(hash, class, 1, packet(9, i, 300))
				now := s.last
				for ahead := 0; ; {
					p, ok := s.Pop(now, nil)
					if ok && flowOf(p) == 9 {
						worst = max(worst, ahead)
						break
					}
					if ok {
						ahead++
					} else {
						now += 100 * time.Microsecond
						for i := range loads {
							loads[i].feed(s, i, 0, 60)
						}
					}
				}
			}
			if own && worst > 3 || !own && worst < 20 {
				t.Errorf("class %d, own flow %v: %d packets went ahead", class, own, worst)
			}
		}
	}
}

// TestClassRoom: a class cannot take the others' room to wait, and one with a limit
// has no more than it can send in good time.
func TestClassRoom(t *testing.T) {
	s := New(80e6, 60, Class{Share: 60}, Class{Share: 39}, Class{Share: 1, Limit: 8e6})
	for i := range 20_000 {
		s.Push(uint64(i), 0, 1, packet(0, i, 1000))
		if s.Bytes() > s.limit {
			t.Fatalf("%d bytes wait", s.Bytes())
		}
	}
	for i := range 200 {
		s.Push(0, 1, 1, packet(1, i, 1000))
	}
	for i := range 2000 {
		s.Push(0, 2, 1, packet(2, i, 1000))
	}
	if c := s.Count(1); c.Dropped != 0 || c.Waiting != 200_000 {
		t.Errorf("of a class that is not to blame: %+v", c)
	}
	if c := s.Count(2); c.Waiting < 60_000 || c.Waiting > 200_000 || c.Dropped == 0 {
		t.Errorf("of the class with a limit: %+v", c)
	}
	for i := range 20_000 {
		s.Push(uint64(i), 0, 1, packet(0, i, 1000))
	}
	if c := s.Count(2); c.Waiting < s.limit/leastRoom/2 {
		t.Errorf("of the class of the least share %d bytes wait", c.Waiting)
	}
	all := uint64(0)
	for i := range s.classes {
		all += s.Count(i).Dropped
	}
	if all != s.Dropped() {
		t.Errorf("%d dropped, %d by classes", s.Dropped(), all)
	}
	s.Clear()
	if _, some := s.Wait(s.last); some || s.Bytes() != 0 {
		t.Error("something is left after Clear")
	}
}

// TestClassWait: what waits for a limit is told when it may leave, not a moment
// before, and the class that may send does not wait for it.
func TestClassWait(t *testing.T) {
	s := New(100e6, 0, Class{Share: 1, Limit: 1e6}, Class{Share: 1})
	s.Push(0, 0, 1, packet(0, 0, 1000))
	now, left := time.Duration(0), 0
	for i := range 100 {
		for {
			if _, ok := s.Pop(now, nil); !ok {
				break
			}
			left += 1000
			s.Push(0, 0, 1, packet(0, i, 1000))
		}
		wait, some := s.Wait(now)
		if !some || wait <= 0 {
			t.Fatalf("wait %v, %v", wait, some)
		}
		if _, ok := s.Pop(now+wait-2*time.Microsecond, nil); ok {
			t.Fatal("it left before its time")
		}
		now += wait
	}
	if got := float64(left*8) / now.Seconds(); math.Abs(got-1e6) > 0.1e6 {
		t.Errorf("%.0f bit/s", got)
	}
	s.Push(0, 1, 1, packet(1, 0, 1000))
	if wait, some := s.Wait(now - time.Millisecond); !some || wait != 0 {
		t.Errorf("the other class waits %v", wait)
	}
}
