// Package quality turns what the probes of a link show into figures and a
// judgement. It is pure: times are durations from any fixed origin that never go
// back, and nothing here sends, waits or logs.
//
// Each end numbers its requests one by one. The numbers that arrive say which
// requests of the peer were lost on the way here, and each end tells the other
// this share: so both know both directions apart. Echoes give the round-trip
// time and its variation.
//
// A link that carries packets both ways is Good or Degraded: it loses a good
// part of them, or takes much longer than it could. Degraded begins at one
// threshold and ends at a lower one, so that it does not flap. A link that hears
// the peer, which does not hear it, is OneWay.
package quality

import (
	"fmt"
	"math/bits"
	"time"
)

// Health is the judgement about a link.
type Health string

// The order is from best to worst.
const (
	// Good: packets cross both ways.
	Good Health = "good"
	// Degraded: they do, with much loss or delay.
	Degraded Health = "degraded"
	// OneWay: the peer is heard, and says that it does not hear us.
	OneWay Health = "one-way"
	// Down: nothing crosses, or not yet.
	Down Health = "down"
)

const (
	// window is how many requests of the peer a share of loss is of: 25 s at
	// five a second.
	window = 128
	// fewest is how many are needed for a share, reordered how many of the
	// latest are left out, since they may still come.
	fewest    = 32
	reordered = 2
	// outage is the gap in the numbers that is a time without a link and not
	// loss: the count begins anew.
	outage = 25
	// A share of lossBad is too much, until it is below lossGood.
	lossBad, lossGood = 0.03, 0.015
	// A round trip is too slow beyond slowBad times the best of the last
	// minutes and slowMore, until it is below slowGood times that.
	slowBad, slowGood = 2.5, 1.5
	slowMore          = 30 * time.Millisecond
	// bestFor is how long a best round trip counts, at least.
	bestFor = 2 * time.Minute
	// rateOver is the time that rates are averages of.
	rateOver = time.Second
)

// Report is a link's quality.
type Report struct {
	Health Health `json:"health"`
	// Reason says in words why Health is not Good.
	Reason string `json:"reason,omitempty"`
	// Best is the shortest round trip of the last minutes, Jitter the mean
	// difference of two round trips that follow each other (RFC 3550); 0: not
	// measured.
	Best   time.Duration `json:"best_rtt_ns"`
	Jitter time.Duration `json:"jitter_ns"`
	// LossIn and LossOut are the shares of probes lost on the way here and on
	// the way there, 0 to 1; -1: not known.
	LossIn  float64 `json:"loss_in"`
	LossOut float64 `json:"loss_out"`
	// RateIn and RateOut are bytes per second of UDP payload.
	RateIn  float64 `json:"rate_in"`
	RateOut float64 `json:"rate_out"`
}

// Meter measures one link. It is not safe for concurrent use. The zero value is
// ready.
type Meter struct {
	peer     arrivals
	told     uint8 // what the peer says of our requests; see Share
	last     time.Duration
	jitter   time.Duration
	best     [2]time.Duration // of the running and the last period
	turned   time.Duration
	lossy    bool
	slow     bool
	in, out  rate
	rtt      time.Duration
	measured bool
}

// arrivals remembers which of the latest numbers arrived.
type arrivals struct {
	instance uint64
	first    uint32 // the first number counted
	newest   uint32
	seen     [window / 64]uint64 // bit i of the whole: newest-i arrived
	any      bool
}

// add notes that number seq of instance arrived.
func (a *arrivals) add(instance uint64, seq uint32) {
	ahead := int32(seq - a.newest)
	switch {
	case !a.any || a.instance != instance || ahead > outage:
		*a = arrivals{instance: instance, first: seq, newest: seq, any: true}
		a.seen[0] = 1
	case ahead > 0:
		a.shift(uint(ahead))
		a.seen[0] |= 1
		a.newest = seq
	case ahead > -window && int32(seq-a.first) >= 0:
		a.seen[uint32(-ahead)/64] |= 1 << (uint32(-ahead) % 64)
	}
}

// shift makes room for n newer numbers, n <= outage.
func (a *arrivals) shift(n uint) {
	for i := len(a.seen) - 1; i > 0; i-- {
		a.seen[i] = a.seen[i]<<n | a.seen[i-1]>>(64-n)
	}
	a.seen[0] <<= n
}

// loss returns the share of numbers that did not arrive, -1 if too few did.
func (a *arrivals) loss() float64 {
	if !a.any {
		return -1
	}
	count := min(int(a.newest-a.first)+1, window) - reordered
	if count < fewest {
		return -1
	}
	seen := a.seen
	seen[0] &^= 1<<reordered - 1
	arrived := 0
	for _, word := range seen {
		arrived += bits.OnesCount64(word)
	}
	return float64(count-min(arrived, count)) / float64(count)
}

// Heard notes a request of the peer: the number of its run and its own.
func (m *Meter) Heard(instance uint64, seq uint32) { m.peer.add(instance, seq) }

// Share is the loss of the peer's requests in the form that is told to the peer:
// 0 not known, else 1 for none to 255 for all.
func (m *Meter) Share() uint8 {
	loss := m.peer.loss()
	if loss < 0 {
		return 0
	}
	return 1 + uint8(loss*254+0.5)
}

// Told takes what the peer says of our requests, a Share.
func (m *Meter) Told(share uint8) { m.told = share }

// RoundTrip takes the time of one echo, and smoothed, the mean of late.
func (m *Meter) RoundTrip(now, rtt, smoothed time.Duration) {
	if m.measured {
		m.jitter += ((rtt - m.last).Abs() - m.jitter) / 16
	} else {
		m.turned, m.best = now, [2]time.Duration{rtt, rtt}
	}
	m.last, m.rtt, m.measured = rtt, smoothed, true
	if now-m.turned >= bestFor {
		m.turned, m.best = now, [2]time.Duration{rtt, m.best[0]}
	}
	m.best[0] = min(m.best[0], rtt)
}

// Restart forgets loss and delay: the link was away.
func (m *Meter) Restart() {
	in, out := m.in, m.out
	*m = Meter{in: in, out: out}
}

// rate is an average of a counter's growth.
type rate struct {
	at    time.Duration
	count uint64
	value float64
	begun bool
}

func (r *rate) add(now time.Duration, count uint64) {
	switch d := now - r.at; {
	case !r.begun:
		*r = rate{at: now, count: count, begun: true}
	case d >= rateOver:
		*r = rate{at: now, count: count, value: float64(count-r.count) / d.Seconds(), begun: true}
	}
}

// Traffic takes the link's counters of bytes.
func (m *Meter) Traffic(now time.Duration, in, out uint64) {
	m.in.add(now, in)
	m.out.add(now, out)
}

// Report judges a link that is up or not; deaf: its peer is heard and does not
// hear us.
func (m *Meter) Report(up, deaf bool) Report {
	r := Report{
		Health: Good, Jitter: m.jitter, LossIn: m.peer.loss(), LossOut: -1,
		RateIn: m.in.value, RateOut: m.out.value,
	}
	if m.measured {
		r.Best = min(m.best[0], m.best[1])
	}
	if m.told > 0 {
		r.LossOut = float64(m.told-1) / 254
	}
	loss := max(r.LossIn, r.LossOut)
	m.lossy = loss >= lossBad || m.lossy && loss >= lossGood
	m.slow = m.measured && (m.rtt > limit(r.Best, slowBad) || m.slow && m.rtt > limit(r.Best, slowGood))
	switch {
	case !up && deaf:
		r.Health, r.Reason = OneWay, "the peer's packets arrive here, ours do not arrive there"
	case !up:
		r.Health = Down
	case m.lossy:
		r.Health, r.Reason = Degraded, fmt.Sprintf("packets are lost: %s on the way there, %s on the way back", percent(r.LossOut), percent(r.LossIn))
	case m.slow:
		r.Health, r.Reason = Degraded, fmt.Sprintf("a round trip takes %v, %v at best", m.rtt.Round(time.Millisecond), r.Best.Round(time.Millisecond))
	}
	return r
}

func limit(best time.Duration, factor float64) time.Duration {
	return time.Duration(float64(best)*factor) + slowMore
}

func percent(share float64) string {
	if share < 0 {
		return "an unknown share"
	}
	return fmt.Sprintf("%.1f %%", share*100)
}
