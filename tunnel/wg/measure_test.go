package wg

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"stitch/tunnel/wan"
)

// TestMeasure holds what a train shows against what the emulated path did.
func TestMeasure(t *testing.T) {
	const rate = 20e6
	onPath(t, wan.Params{Rate: rate, Delay: 40 * time.Millisecond, Loss: 0.02, Seed: 5}, func(t *testing.T, p *path) {
		time.Sleep(5 * time.Second) // the link's own probes of sizes and trains are over
		before := p.Counters(pathAddrs[0], pathAddrs[1])
		for _, c := range []struct {
			name     string
			rate     int64
			lo, hi   float64 // of what arrives
			rtt, bad time.Duration
		}{
			{"only questions", 0, 1, 1, 80 * time.Millisecond, 85 * time.Millisecond},
			{"half of the rate", rate / 2, 0.96, 1, 80 * time.Millisecond, 85 * time.Millisecond},
			{"twice the rate", 2 * rate, 0.45, 0.60, 80 * time.Millisecond, 180 * time.Millisecond}, // its queue holds 80 ms
		} {
			r, err := p.ends[0].Measure(t.Context(), Train{Rate: c.rate, Length: 2 * time.Second})
			if err != nil {
				t.Fatal(c.name, err)
			}
			want := uint64(float64(c.rate) / 8 * 2 / float64(r.WANSize))
			if r.Sent > want || r.Sent < want*98/100 {
				t.Errorf("%s: %d sent in %v, want %d", c.name, r.Sent, r.Took, want)
			}
			if c.rate > 0 {
				if got := float64(r.Received) / float64(r.Sent); got < c.lo || got > c.hi {
					t.Errorf("%s: %.3f arrived, want %g to %g", c.name, got, c.lo, c.hi)
				}
			}
			if r.Asked < 95 || r.Asked > 101 || r.Answered > r.Asked || r.Answered < r.Asked/3 || len(r.RTTs) != r.Answered {
				t.Errorf("%s: %d asked, %d answered, %d times", c.name, r.Asked, r.Answered, len(r.RTTs))
			}
			for _, d := range r.RTTs {
				if d < c.rtt || d > c.bad {
					t.Errorf("%s: a round trip of %v, want %v to %v", c.name, d, c.rtt, c.bad)
					break
				}
			}
			after := p.Counters(pathAddrs[0], pathAddrs[1])
			// What the emulator counted is the train, but for questions, probes and keepalives.
			bytes, most := after.Bytes-before.Bytes, r.Sent*uint64(r.WANSize)+100_000
			if bytes < r.Sent*uint64(r.WANSize) || bytes > most {
				t.Errorf("%s: %d bytes on the path, %d messages of %d", c.name, bytes, r.Sent, r.WANSize)
			}
			lost, small := after.Drops()-before.Drops(), uint64(40)
			if missing := r.Sent - r.Received; missing > lost || missing+small < lost {
				t.Errorf("%s: %d missing, the path lost %d", c.name, missing, lost)
			}
			before = after
		}
		if s := p.ends[0].Stats(); s.State != Up {
			t.Errorf("the link is %s", s.State)
		}
	})
}

// TestMeasureSizes: messages that do not fit cross in parts, as frames.
func TestMeasureSizes(t *testing.T) {
	onPath(t, wan.Params{Delay: 5 * time.Millisecond}, func(t *testing.T, p *path) {
		for _, size := range []int{measureLen, 512, 1412, 1413, 1514} {
			before := p.Counters(pathAddrs[0], pathAddrs[1])
			r, err := p.ends[0].Measure(t.Context(), Train{Size: size, Rate: 1e6, Length: time.Second})
			if err != nil || r.Sent == 0 || r.Received != r.Sent {
				t.Fatalf("%d bytes: %+v, %v", size, r, err)
			}
			bytes := p.Counters(pathAddrs[0], pathAddrs[1]).Bytes - before.Bytes
			if want := r.Sent * uint64(r.WANSize); bytes < want || bytes > want+50_000 {
				t.Errorf("%d bytes: %d on the path, want %d of %d", size, bytes, r.Sent, r.WANSize)
			}
		}
	})
}

// TestMeasureRefused: what is not to be had is refused with its reason, and one
// that is cut short leaves nothing behind.
func TestMeasureRefused(t *testing.T) {
	onPath(t, wan.Params{Delay: 5 * time.Millisecond}, func(t *testing.T, p *path) {
		a := p.ends[0]
		for _, c := range []Train{
			{Length: 0}, {Length: time.Hour}, {Length: time.Second, Rate: -1}, {Length: time.Second, Rate: 1e12},
			{Length: time.Second, Size: 10}, {Length: time.Second, Size: 2000},
		} {
			if _, err := a.Measure(t.Context(), c); !errors.Is(err, ErrMeasure) {
				t.Errorf("%+v: %v", c, err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		first := make(chan error, 1)
		go func() {
			_, err := a.Measure(ctx, Train{Rate: 1e6, Length: 20 * time.Second})
			first <- err
		}()
		time.Sleep(time.Second)
		if _, err := a.Measure(t.Context(), Train{Length: time.Second}); !errors.Is(err, ErrMeasure) {
			t.Errorf("a second one at a time: %v", err)
		}
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("cut short: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
		before := p.Counters(pathAddrs[0], pathAddrs[1])
		time.Sleep(10 * time.Second)
		if got := p.Counters(pathAddrs[0], pathAddrs[1]).Bytes - before.Bytes; got > 50_000 {
			t.Errorf("%d bytes in 10 s after it", got)
		}
		if r, err := a.Measure(t.Context(), Train{Length: time.Second}); err != nil || r.Answered != r.Asked {
			t.Errorf("control case: %+v, %v", r, err)
		}
	})
}

// TestMeasureSilence: a peer that does not answer, as one does of a release that
// drops the kind of message, is an error that says so.
func TestMeasureSilence(t *testing.T) {
	onPath(t, wan.Params{Delay: 5 * time.Millisecond}, func(t *testing.T, p *path) {
		p.Cut(pathAddrs[0], pathAddrs[1], true)
		if _, err := p.ends[0].Measure(t.Context(), Train{Rate: 1e6, Length: time.Second}); !errors.Is(err, ErrMeasure) {
			t.Errorf("%v", err)
		}
	})
}

// TestMeter gives a meter what a hostile peer might send.
func TestMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m meter
		now := time.Now()
		for i, at := range []uint64{0, 1 << 63, ^uint64(0), 0, 1} {
			if _, send := m.receive(measureMsg{kind: measureCar, run: 7, at: at}, now.Add(time.Duration(i))); send {
				t.Error("a car was answered")
			}
		}
		a, send := m.receive(measureMsg{kind: measureQuestion, run: 7, at: 9}, now)
		if !send || a.count != 5 || a.at != 9 || a.span != 4 {
			t.Errorf("%+v", a)
		}
		if a, _ := m.receive(measureMsg{kind: measureQuestion, run: 8}, now); a.count != 0 || a.run != 8 {
			t.Errorf("of another run: %+v", a)
		}
		if got := a.append(nil, measureLen); len(got) != measureLen || binary.BigEndian.Uint64(got[20:]) != 5 {
			t.Errorf("%x", got)
		}
		r := measureRun{id: 7, began: now, asked: 1}
		for range 5 {
			r.answered(measureMsg{run: 7, at: ^uint64(0), count: 3, span: ^uint64(0), jitter: ^uint64(0)}, now.Add(time.Second))
			r.answered(measureMsg{run: 7, count: 3, span: ^uint64(0), jitter: ^uint64(0)}, now.Add(time.Second))
		}
		if len(r.result.RTTs) != 1 || r.result.Span < 0 || r.result.Jitter < 0 {
			t.Errorf("%+v", r.result)
		}
	})
}

// TestPacer: a pacer sends at its rate, and does not make up for a long pause.
func TestPacer(t *testing.T) {
	now := time.Time{}
	p, n := newPacer(8e6, 1000, now), 0
	for range 1000 {
		now = now.Add(time.Millisecond)
		n += p.next(now)
	}
	if n != 1000 {
		t.Errorf("%d messages of 1000 bytes in a second at 1 MB/s", n)
	}
	if got := p.next(now.Add(time.Second)); got != 21 {
		t.Errorf("%d after a pause, want those of 20 ms and one", got)
	}
}

// FuzzMeasure gives both ends of a train any messages: what is read is what is
// written, and what they keep stays within bounds.
func FuzzMeasure(f *testing.F) {
	for _, kind := range []uint8{0, measureCar, measureQuestion, measureAnswer, 4} {
		f.Add(measureMsg{kind: kind, run: 7, at: 1, count: 2, span: 3, jitter: 4}.append(nil, 60))
	}
	f.Add([]byte{measureAnswer})
	now := time.Now()
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := parseMeasure(b)
		if !ok {
			return
		}
		if again, ok := parseMeasure(m.append(nil, measureLen)); !ok || again != m {
			t.Fatalf("%+v is read as %+v", m, again)
		}
		var r meter
		run := measureRun{id: m.run, began: now.Add(-time.Second), asked: 1}
		for range 3 {
			if answer, send := r.receive(m, now); send != (m.kind == measureQuestion) && m.kind != measureAnswer || send && answer.kind != measureAnswer {
				t.Fatalf("%+v: %+v, %v", m, answer, send)
			}
			run.answered(m, now)
		}
		if res := run.result; len(res.RTTs) > 1 || res.Span < 0 || res.Jitter < 0 {
			t.Fatalf("%+v", res)
		}
	})
}
