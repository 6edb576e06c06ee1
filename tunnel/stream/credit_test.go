package stream

import (
	"math/rand/v2"
	"testing"
	"time"
)

// flowModel is a sender that always has data, a path with a rate and a round
// trip, and a host whose program reads at a rate, from a kernel that takes some more
// and announces a window, or seems to announce none; time in steps of a millisecond.
type flowModel struct {
	path, host         float64 // bytes per second
	kernel             float64 // bytes
	mute               bool
	now                time.Duration // since t0
	rtt                time.Duration
	sent, received     float64
	read               float64
	acked, limitAtPeer float64
	inFlight           []arrival
	credits            []arrival
}

type arrival struct {
	at    time.Time
	value float64
}

// run drives c for d and returns the host's goodput over the second half and
// the most bytes that waited at the host.
func (m *flowModel) run(c *credit, d time.Duration) (rate, queued float64) {
	m.limitAtPeer = float64(c.limit)
	const step = time.Millisecond
	var half float64
	for i := range int(d / step) {
		m.now += step
		now := t0.Add(m.now)
		for len(m.credits) > 0 && !m.credits[0].at.After(now) {
			m.limitAtPeer = m.credits[0].value
			m.credits = m.credits[1:]
		}
		n := min(m.path*step.Seconds(), m.limitAtPeer-m.sent)
		m.sent += n
		m.inFlight = append(m.inFlight, arrival{now.Add(m.rtt / 2), m.sent})
		for len(m.inFlight) > 0 && !m.inFlight[0].at.After(now) {
			m.received = m.inFlight[0].value
			m.inFlight = m.inFlight[1:]
		}
		m.read += min(m.host*step.Seconds(), m.received-m.read)
		m.acked = max(m.acked, min(m.received, m.read+m.kernel))
		if i > int(d/step)/2 {
			queued = max(queued, m.received-m.read)
		} else {
			half = m.read
		}
		window := max(0, m.kernel-(m.acked-m.read))
		if m.mute {
			window = 0
		}
		if limit, ok := c.Update(now, uint64(m.received), uint64(m.acked), uint64(window), m.rtt); ok {
			m.credits = append(m.credits, arrival{now.Add(m.rtt / 2), float64(limit)})
		}
	}
	return (m.read - half) / (d / 2).Seconds(), queued
}

// TestCreditRates: the window lets the slower of path and host work at its
// full rate, and a slow host has about 100 ms plus a round trip queued.
func TestCreditRates(t *testing.T) {
	for _, c := range []struct {
		path, host float64
		rtt        time.Duration
	}{
		{1e9, 1e9, time.Millisecond},
		{5.6e6, 1e9, 100 * time.Millisecond},
		{112e6, 1e9, 20 * time.Millisecond},
		{200e6, 1e9, 100 * time.Millisecond},
		{1e9, 5e6, 20 * time.Millisecond},
		{1e9, 100e6, 40 * time.Millisecond},
		{1e9, 20e6, 300 * time.Millisecond},
	} {
		m := flowModel{path: c.path, host: c.host, rtt: c.rtt}
		rate, queued := m.run(newCredit(t0), 10*time.Second)
		want := min(c.path, c.host)
		if rate < 0.95*want {
			t.Errorf("path %.0f MB/s, host %.0f MB/s, %v: %.1f MB/s", c.path/1e6, c.host/1e6, c.rtt, rate/1e6)
		}
		if most := max(1.3*c.host*(drainTime+c.rtt).Seconds(), 1.3*minWindow); c.host < c.path && queued > most {
			t.Errorf("path %.0f MB/s, host %.0f MB/s, %v: %.1f MB queued, want at most %.1f", c.path/1e6, c.host/1e6, c.rtt, queued/1e6, most/1e6)
		}
	}
}

// TestCreditKernel: what a host's kernel holds for a slow program is not taken for
// delivered, however much it is willing to take. In the control the window is not known.
func TestCreditKernel(t *testing.T) {
	for _, mute := range []bool{false, true} {
		m := flowModel{path: 200e6, host: 17e6, kernel: 32 << 20, rtt: 100 * time.Millisecond, mute: mute}
		rate, queued := m.run(newCredit(t0), 20*time.Second)
		if rate < 0.95*m.host {
			t.Errorf("mute %v: %.1f MB/s", mute, rate/1e6)
		}
		if most := 1.5 * m.host * (drainTime + m.rtt).Seconds(); queued > most != mute {
			t.Errorf("mute %v: %.1f MB queued, %.1f are asked for", mute, queued/1e6, most/1e6)
		}
	}
}

// TestCreditWindowShrinks: a kernel that has less memory than before looks like a
// program that does not read. The stream goes on, and is as fast again when that is
// forgotten.
func TestCreditWindowShrinks(t *testing.T) {
	m := flowModel{path: 50e6, host: 1e9, kernel: 32 << 20, rtt: 20 * time.Millisecond}
	c := newCredit(t0)
	m.run(c, 2*time.Second)
	m.kernel = 1 << 20
	if slow, _ := m.run(c, 2*time.Second); slow < minWindow*10 {
		t.Errorf("%.1f MB/s at first", slow/1e6)
	}
	m.run(c, time.Minute)
	if rate, _ := m.run(c, 2*time.Second); rate < 0.95*m.path {
		t.Errorf("%.1f MB/s in the end", rate/1e6)
	}
}

// TestCreditStart: the rate of a fast return trip is reached soon.
func TestCreditStart(t *testing.T) {
	m := flowModel{path: 200e6, host: 1e9, rtt: 100 * time.Millisecond}
	m.run(newCredit(t0), time.Second)
	if m.acked < 120e6 {
		t.Errorf("%.0f MB in the first second at 200 MB/s and 100 ms", m.acked/1e6)
	}
}

// TestCreditPath: as long as the host keeps up the path may have what BBR puts on it
// in its start and what a loss holds up; a host that does not gets less.
func TestCreditPath(t *testing.T) {
	const rate, rtt = 20e6, 100 * time.Millisecond
	for _, c := range []struct {
		path, host  float64
		least, most time.Duration
	}{{rate, 1e9, pathTrips * rtt, burstGain * rtt}, {1e9, rate, rtt, rtt + drainTime}} {
		credit := newCredit(t0)
		m := flowModel{path: c.path, host: c.host, rtt: rtt}
		m.run(credit, 5*time.Second)
		if got := float64(credit.window) / rate; got < 0.9*c.least.Seconds() || got > 1.1*c.most.Seconds() {
			t.Errorf("path %.0f MB/s, host %.0f MB/s: a window of %.2f s, want %v to %v", c.path/1e6, c.host/1e6, got, c.least, c.most)
		}
	}
}

// TestCreditStall: a host that stops reading gets no more, and a window that
// shrinks never takes back what was granted nor stops a sender for good.
func TestCreditStall(t *testing.T) {
	c := newCredit(t0)
	m := flowModel{path: 100e6, host: 1e9, rtt: 20 * time.Millisecond}
	m.run(c, 2*time.Second)
	before, acked := c.limit, uint64(m.acked)
	for i := range 1000 {
		now := t0.Add(2*time.Second + time.Duration(i)*50*time.Millisecond)
		if limit, ok := c.Update(now, before, acked, 0, m.rtt); ok && limit < before || c.limit < before {
			t.Fatal("credit taken back")
		}
	}
	if c.window != minWindow || c.limit > acked+maxWindow {
		t.Errorf("window %d after a long stall", c.window)
	}
	if limit, ok := c.Update(t0.Add(time.Minute), c.limit, c.limit, 0, m.rtt); !ok || limit < c.window {
		t.Error("everything is acknowledged and no more is granted")
	}
}

// TestCreditIdle: small traffic keeps its window and asks for no attention.
func TestCreditIdle(t *testing.T) {
	c := newCredit(t0)
	r := rand.New(rand.NewPCG(1, 1))
	var n uint64
	for i := range 10000 {
		n += r.Uint64N(500)
		limit, _ := c.Update(t0.Add(time.Duration(i)*20*time.Millisecond), n, n, 0, 20*time.Millisecond)
		if limit-n < minWindow/2 {
			t.Fatalf("%d bytes of credit left", limit-n)
		}
	}
}

// TestCreditBounds: whatever happens, the limit only grows and is at most
// maxWindow beyond what was acknowledged.
func TestCreditBounds(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	c := newCredit(t0)
	var received, acked, last uint64
	now := t0
	for range 100000 {
		now = now.Add(time.Duration(r.Int64N(int64(100 * time.Millisecond))))
		received += r.Uint64N(c.limit - received + 1)
		acked += r.Uint64N(received - acked + 1)
		limit, _ := c.Update(now, received, acked, r.Uint64N(64<<20), time.Duration(r.Int64N(int64(time.Second))))
		if limit < last || limit > acked+maxWindow && limit != last || c.window < minWindow || c.window > maxWindow {
			t.Fatalf("limit %d after %d, acknowledged %d, window %d", limit, last, acked, c.window)
		}
		last = limit
	}
}
