package stream

import (
	"math"
	"time"
)

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
	// pathTrips is what the path has in round trips while it, and not the host, is
	// the slower one. BBR, when it starts, has 2.89 of them under way, and what a
	// lost packet holds up is one more. It ends its start only when it was never
	// kept from that: with less credit it goes on at 2.89 times the path's rate for
	// as long as the stream lasts, and a fifth of what it sends is lost.
	pathTrips = 4
	// minRound is the shortest time the drain rate is measured over.
	minRound = 10 * time.Millisecond
	// startGain multiplies what a round has delivered so far while the rate still
	// grows, burstGain where the host takes what comes faster than it comes.
	startGain, burstGain = pathTrips, 8
	// startRounds without a quarter's growth end the start.
	startRounds = 3
	// forget is the part of a host's window missing in a round that from then on is
	// not taken for bytes that the host has not read: its kernel may have less
	// memory than before. It is small, since a slow host's queue grows by it.
	forget = 1.0 / 512
)

// credit decides how many original bytes the peer may send to a host here: as
// many as the host has taken, plus a window of the host's drain rate
// times (100 ms + round trip), or four round trips as long as the host keeps up.
// Taken is what the host's kernel has acknowledged and its program has read, as the
// window shows that the kernel announces: it may hold tens of megabytes, of which a
// hypervisor would believe that they have arrived.
// While the rate is still growing the window is a multiple of what the round has
// delivered, so a stream finds its rate in a few round trips. Pure; not safe for
// concurrent use.
type credit struct {
	limit  uint64 // granted in all
	window uint64
	rate   float64 // bytes per second the host acknowledged
	starts int     // rounds without growth; startRounds: the start is over
	best   float64 // of the start

	began   time.Time     // of the round
	base    uint64        // acknowledged when it began
	limited bool          // in this round the sender used its credit
	behind  uint64        // the least in this round that the host had not taken one look later
	busy    time.Duration // for how long in this round it had something to take

	looked time.Time // of the last Update
	seen   uint64    // received then
	idle   bool      // and all of it taken
	taken  uint64    // by the host, so far
	widest uint64    // window of the host
}

func newCredit(now time.Time) *credit {
	return &credit{limit: startWindow, window: startWindow, began: now, looked: now, idle: true, behind: math.MaxUint64}
}

// Update takes the totals received from the peer and acknowledged by the host, the
// window the host announces, and the round-trip time between the agents. It returns
// the new limit and whether it is worth telling the peer.
func (c *credit) Update(now time.Time, received, acked, window uint64, rtt time.Duration) (limit uint64, grant bool) {
	c.widest = max(c.widest, window)
	c.taken = max(c.taken, acked-min(acked, c.widest-window))
	c.limited = c.limited || c.limit-received < c.window/2
	if !c.idle {
		c.busy += now.Sub(c.looked)
	}
	c.behind = min(c.behind, c.seen-min(c.seen, c.taken))
	c.looked, c.seen, c.idle = now, received, c.taken >= received
	if c.starts < startRounds {
		c.open(float64(c.taken-c.base), rtt)
	}
	if elapsed := now.Sub(c.began); elapsed >= max(rtt, minRound) {
		c.round(float64(c.taken-c.base)/elapsed.Seconds(), rtt)
		c.began, c.base, c.limited, c.behind, c.busy = now, c.taken, false, math.MaxUint64, 0
		c.widest -= uint64(math.Ceil(float64(c.widest-window) * forget))
	}
	next := max(c.taken+c.window, acked+minWindow) // if the window only shrank, it still goes on
	if next <= c.limit || next-c.limit < c.window/8 {
		return c.limit, false
	}
	c.limit = next
	return next, true
}

// Scarce reports whether the sender may soon wait for credit, so that the
// host's progress is worth polling for.
func (c *credit) Scarce(received uint64) bool {
	return c.taken < received && c.limit-received < c.window/2
}

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
		c.start(rate)
		return
	}
	c.set(c.rate * c.span(rtt).Seconds())
}

// span is how much of the host's rate may be under way. A host that keeps up has,
// at least once in a round, taken all there was.
func (c *credit) span(rtt time.Duration) time.Duration {
	if float64(c.behind) > c.rate*drainTime.Seconds()/4 {
		return rtt + drainTime
	}
	return pathTrips*rtt + drainTime
}

// start notices that the rate does not grow any more.
func (c *credit) start(rate float64) {
	if rate > c.best*1.25 {
		c.best, c.starts = rate, 0
	} else if c.limited {
		c.starts++
	}
}

// open grows the window by what the round has delivered so far: a sender that
// waits for credit gets it when its bytes are taken, and not a round later.
func (c *credit) open(delivered float64, rtt time.Duration) {
	want := startGain * delivered
	if c.busy > 0 {
		taken := delivered / c.busy.Seconds() * (rtt + drainTime).Seconds()
		want = max(want, min(burstGain*delivered, taken))
	}
	if want > float64(c.window) {
		c.set(want)
	}
}

func (c *credit) set(want float64) {
	c.window = uint64(min(max(want, minWindow), maxWindow))
}
