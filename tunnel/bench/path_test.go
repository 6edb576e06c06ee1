package bench

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"stitch/tunnel/bench/far"
)

// TestSearch lets a search find paths that take so much and no more, lose a part
// of it, or have a sender that cannot do more.
func TestSearch(t *testing.T) {
	for _, c := range []struct {
		name              string
		path, sender, pkt float64 // rates, and the share that is lost
		bad               int     // a train that is spoiled by chance
		lo, hi            float64
	}{
		{"slow", 1e6, 1e12, 0, -1, 1e6, 1e6},
		{"between two", 50e6, 1e12, 0, -1, 50e6, 50e6},
		{"with loss", 100e6, 1e12, 0.05, -1, 90e6, 100e6},
		{"spoiled once", 100e6, 1e12, 0, 2, 100e6, 100e6},
		{"a slow sender", 1e12, 30e6, 0, -1, 30e6, 30e6},
		{"no end", 1e15, 1e15, 0, -1, maxRate, maxRate},
		{"nothing arrives", 0, 1e12, 0, -1, 0, 0},
	} {
		var s search
		n := 0
		for ; n < 100; n++ {
			rate, more := s.next(firstRate, maxRate)
			if !more {
				break
			}
			st := Step{Sent: min(rate, c.sender)}
			st.Got = min(st.Sent*(1-c.pkt), c.path)
			if n == c.bad {
				st.Got = 0
			}
			s.took(st)
		}
		if s.best < c.lo || s.best > c.hi || n > maxSteps {
			t.Errorf("%s: %g in %d trains, want %g to %g: %v", c.name, s.best, n, c.lo, c.hi, s.steps)
		}
	}
}

func TestStepOf(t *testing.T) {
	for _, c := range []struct {
		sent, got  uint64
		took, span time.Duration
		want       Step
	}{
		{100, 100, time.Second, time.Second, Step{800, 792}},
		{100, 100, time.Second, 2 * time.Second, Step{800, 396}}, // they waited in a queue
		{100, 50, time.Second, time.Second, Step{800, 392}},
		{100, 101, time.Second, time.Millisecond, Step{800, 808}}, // all at once: no faster than sent
		{100, 0, time.Second, 0, Step{800, 0}},
	} {
		if got := stepOf(c.sent, c.got, c.took, c.span, 8); math.Abs(got.Got-c.want.Got) > 1 || got.Sent != c.want.Sent {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}

func TestDelayOf(t *testing.T) {
	const ms = time.Millisecond
	if got := delayOf(nil); got != (Delay{}) {
		t.Errorf("%+v", got)
	}
	want := Delay{N: 4, Min: 10 * ms, P50: 20 * ms, P99: 40 * ms, Jitter: 20 * ms}
	if got := delayOf([]time.Duration{20 * ms, 10 * ms, 20 * ms, 40 * ms}); got.N != want.N || got.Min != want.Min || got.P50 != want.P50 || got.P99 != want.P99 || got.Max != 40*ms || got.Jitter != 40*ms/3 {
		t.Errorf("%+v", got)
	}
}

// TestUpload sends to a sink over a connection of this machine, twice on the
// same one, and is cut off and interrupted.
func TestUpload(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go serve(l, func(c net.Conn) { _ = far.Serve(far.Sink, c, nil) })
	dial := func() *upload {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return newUpload(c.(*net.TCPConn))
	}
	u := dial()
	for i, last := range []bool{false, true} {
		x, err := u.send(t.Context(), io.LimitReader(random(uint64(i)), 3e6), time.Minute, last)
		if err != nil || !x.Finished || x.Bytes != 3e6 || x.Seconds <= 0 {
			t.Errorf("%+v, %v", x, err)
		}
	}
	u.close()
	u = dial()
	if x, err := u.send(t.Context(), random(3), 100*time.Millisecond, true); err != nil || x.Finished || x.Bytes == 0 {
		t.Errorf("cut off: %+v, %v", x, err)
	}
	u.close()
	u = dial()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := u.send(ctx, random(4), time.Minute, true); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	u.close()
}

// TestHTML: the page has a plot of each kind, escapes what others wrote, and
// needs nothing else.
func TestHTML(t *testing.T) {
	r := &Report{
		Peer: "<dc2>", Rate: 50e6, VM: VM{Memory: 1 << 30, Dirty: 1 << 20},
		Path:      &Path{Rate: 50e6, Sent: 100, Received: 98, Steps: []Step{{4e6, 4e6}, {8e6, 7e6}}},
		Packets:   []PacketRate{{Carrier: Stitch, Layer: 2, Size: 512, Rate: 12345}},
		Transfers: []Transfer{{Carrier: Stitch, Data: Typical, Bytes: 1e6, Seconds: 1, Points: []Point{{0.5, 4e5}, {1, 1e6}}}},
		Latencies: []Latency{{Carrier: Stitch, Busy: true, Delay: Delay{N: 1, P50: time.Millisecond}, Points: []Point{{0, 1}}}},
		Left:      map[string]string{"streams": "a <reason>"},
	}
	r.forecast()
	var b bytes.Buffer
	if err := r.HTML(&b); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	if n := strings.Count(page, "<svg"); n != 3 {
		t.Errorf("%d plots", n)
	}
	for _, want := range []string{"&lt;dc2&gt;", "a &lt;reason&gt;", "50.0 Mbit/s", "2.00 %", "12345", "cut off", "M480.0 148.6L900.0 11.4"} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in the page", want)
		}
	}
	for _, not := range []string{"<dc2>", "<script", "http:", "https:", "NaN", "Inf"} {
		if strings.Contains(page, not) {
			t.Errorf("%q is in the page", not)
		}
	}
	if err := (&Report{}).HTML(io.Discard); err != nil {
		t.Errorf("an empty report: %v", err)
	}
}
