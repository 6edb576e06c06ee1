package wg

import (
	"encoding/hex"
	"testing"
	"time"
)

// TestGauge: the format is fixed, and what is no gauge is refused.
func TestGauge(t *testing.T) {
	m := gauge{answer: true, sent: 1, counter: 2, arrived: 3, rx: 0x0102030405060708}
	b := m.append(nil)
	if got, want := hex.EncodeToString(b), "09"+"0000000000000001"+"0000000000000002"+"0000000000000003"+"0102030405060708"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if back, ok := parseGauge(b); !ok || back != m {
		t.Errorf("%+v, %v", back, ok)
	}
	if back, ok := parseGauge(gauge{sent: 5}.append(nil)); !ok || back != (gauge{sent: 5}) {
		t.Errorf("%+v, %v", back, ok)
	}
	for _, b := range [][]byte{nil, b[:len(b)-1], append([]byte{7}, b[1:]...), append([]byte{filler}, b[1:]...)} {
		if _, ok := parseGauge(b); ok {
			t.Errorf("% x is a gauge", b)
		}
	}
}

// TestPacing: one gauge a second while little is sent; 50 a second while much is, but
// no more than a hundredth of that.
func TestPacing(t *testing.T) {
	for name, c := range map[string]struct {
		rate        uint64 // bytes a second
		least, most int    // gauges in ten seconds
	}{
		"nothing":     {0, 9, 11},
		"key presses": {2000, 9, 11},
		"2 Mbit/s":    {250_000, 160, 200},
		"1 Gbit/s":    {125e6, 480, 505},
	} {
		var p pacing
		sent := 0
		for now := time.Duration(0); now < 10*time.Second; {
			due, again := p.due(now, uint64(float64(c.rate)*now.Seconds()))
			if due {
				sent++
			}
			now += again
		}
		if sent < c.least || sent > c.most {
			t.Errorf("%s: %d gauges in ten seconds, want %d to %d", name, sent, c.least, c.most)
		}
	}
}

// TestStarter: of trains that arrive in some time, the fastest but one counts; one that is too
// fast, or whose gauges are lost, tells nothing.
func TestStarter(t *testing.T) {
	for name, c := range map[string]struct {
		took []time.Duration // of 50,000 bytes; 0: lost
		want float64
	}{
		"steady":    {[]time.Duration{5e6, 5e6, 5e6, 5e6}, starterShare * 10e6},
		"disturbed": {[]time.Duration{5e6, 40e6, 10e6, 50e6}, starterShare * 5e6},
		"one lost":  {[]time.Duration{0, 5e6, 5e6, 5e6}, starterShare * 10e6},
		"luck":      {[]time.Duration{5e6, 5e6, 5e4, 5e6}, starterShare * 10e6},
		"too fast":  {[]time.Duration{5e4, 5e6, 5e4, 5e6}, starterShare * starterTooFast},
		"lost":      {[]time.Duration{0, 0, 0, 0}, 0},
	} {
		var s starter
		got := 0.0
		for i, took := range c.took {
			now := time.Duration(i) * starterEvery
			if !s.due(now) || i > 0 && (&starter{tries: 1, at: s.at}).due(now-time.Millisecond) {
				t.Fatalf("%s: train %d is not due, or too early", name, i)
			}
			msgs := s.train(now)
			if n := len(msgs) - 2; n != fewCarriages && n != manyCarriages {
				t.Errorf("%s: %d carriages", name, n)
			}
			front, _ := parseGauge(msgs[0])
			back, _ := parseGauge(msgs[len(msgs)-1])
			if took == 0 {
				continue
			}
			front.answer, front.arrived, front.rx = true, 100, 1000
			back.arrived, back.rx = 100+uint64(took), 51_000
			if rate, taken := s.answered(front); rate != 0 || !taken {
				t.Errorf("%s: %v, %v", name, rate, taken)
			}
			rate, taken := s.answered(back)
			if !taken {
				t.Errorf("%s: not taken", name)
			}
			got = max(got, rate)
		}
		if got != c.want {
			t.Errorf("%s: %.0f bytes a second, want %.0f", name, got, c.want)
		}
		if _, taken := s.answered(gauge{answer: true, sent: 12345}); taken {
			t.Errorf("%s: an answer to something else was taken", name)
		}
		if s.due(time.Hour) {
			t.Errorf("%s: a train too many", name)
		}
	}
}
