package stream

import "time"

const (
	// minWindow is the least a receiver grants beyond what its host has
	// acknowledged.
	minWindow = 256 << 10
	// startWindow is what every stream begins with, and keeps until its rate is
	// known: it fills 100 Mbit/s over 80 ms.
	startWindow = 1 << 20
	// maxWindow is the most. It is only reached by a host that drains as fast:
	// 200 MB/s (a migration whose pages the far side knows) at 100 ms round
	// trip needs 40 MB; a slow host gets what it drains in 100 ms plus a round
	// trip, whatever this says.
	maxWindow = 64 << 20
	// drainTime is how much buffering beyond the path's own a host gets.
	drainTime = 100 * time.Millisecond
	// minRound is the shortest time the drain rate is measured over.
	minRound = 10 * time.Millisecond
	// startGain multiplies what a round delivered while the rate still grows.
	startGain = 3
	// startRounds without a quarter's growth end the start.
	startRounds = 3
)

// credit decides how many original bytes the peer may send to a host here: as
// many as the host has acknowledged, plus a window of the host's drain rate
// times (100 ms + round trip). While the rate is still growing the window is
// three times what the last round delivered, so a stream finds its rate in a
// few round trips. Pure; not safe for concurrent use.
type credit struct {
	limit  uint64 // granted in all
	window uint64
	rate   float64 // bytes per second the host acknowledged
	starts int     // rounds without growth; startRounds: the start is over
	best   float64 // of the start

	began   time.Time // of the round
	base    uint64    // acknowledged when it began
	limited bool      // in this round the sender used its credit
}

func newCredit(now time.Time) *credit {
	return &credit{limit: startWindow, window: startWindow, began: now}
}

// Update takes the totals received from the peer and acknowledged by the host
// and the round-trip time between the agents. It returns the new limit and
// whether it is worth telling the peer.
func (c *credit) Update(now time.Time, received, acked uint64, rtt time.Duration) (limit uint64, grant bool) {
	c.limited = c.limited || c.limit-received < c.window/2
	if elapsed := now.Sub(c.began); elapsed >= max(rtt, minRound) {
		c.round(float64(acked-c.base)/elapsed.Seconds(), rtt)
		c.began, c.base, c.limited = now, acked, false
	}
	next := acked + c.window
	if next <= c.limit || next-c.limit < c.window/8 {
		return c.limit, false
	}
	c.limit = next
	return next, true
}

// Scarce reports whether the sender may soon wait for credit, so that the
// host's acknowledgements are worth polling for.
func (c *credit) Scarce(received uint64) bool { return c.limit-received < c.window/2 }

// round takes the rate of the round that ended. A round that the sender did
// not fill says nothing unless it was faster than what is known.
func (c *credit) round(rate float64, rtt time.Duration) {
	switch {
	case rate > c.rate:
		c.rate = rate
	case c.limited:
		c.rate += (rate - c.rate) / 4
	default:
		return
	}
	if c.starts < startRounds {
		c.start(rate, max(rtt, minRound))
		return
	}
	c.set(c.rate * (rtt + drainTime).Seconds())
}

// start grows the window while the rate grows.
func (c *credit) start(rate float64, round time.Duration) {
	if rate > c.best*1.25 {
		c.best, c.starts = rate, 0
	} else if c.limited {
		c.starts++
	}
	if want := startGain * rate * round.Seconds(); want > float64(c.window) {
		c.set(want)
	}
}

func (c *credit) set(want float64) {
	c.window = uint64(min(max(want, minWindow), maxWindow))
}
