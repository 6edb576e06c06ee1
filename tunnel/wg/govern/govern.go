// Package govern finds the rate at which a link may send so that its bottleneck, which
// is somewhere on the path, has almost no queue, and yet is never idle while
// there is something to send. The queue is then in front of the link, where
// package shape lets what is small pass.
//
// It is pure: no sockets, goroutines or clock. What it knows comes from answered
// gauges, small messages ahead of the queue that tell how much had left when one was
// sent and how much had arrived when it did, and when. From two of them follow
// the rates sent and delivered; from one and the least of the last half minute how
// long the way there took more than it could, which is the bottleneck's queue.
// Two clocks that differ, and drift slowly, do no harm.
//
// Each step is one change of the rate, and what the gauges that were sent after it
// tell. While the queue is longer than it should be, what is delivered is the
// bottleneck's rate; the next rate is a little less or more, so that the
// queue comes to targetQueue. While there is no queue though as much is
// sent as may be, the rate grows, faster with every step, but never so fast that a
// step could add more than maxGrowth of queue.
//
// A queue that does not shrink when this link sends less than is delivered is not
// this link's: others fill the bottleneck, or the path has become longer. Then the
// link is not governed for a while, as if there were no governor: whoever gives way
// to others who do not would be starved.
package govern

import "time"

const (
	// targetQueue is the queue that is kept, so that the bottleneck is not idle.
	targetQueue = 5 * time.Millisecond
	// idleQueue is less than what is taken for a queue.
	idleQueue = 2 * time.Millisecond
	// maxQueue begins to be governed.
	maxQueue = 15 * time.Millisecond
	// maxGrowth is the queue that growth adds at most before it shows.
	maxGrowth = 8 * time.Millisecond
	// minGrowth is a first step's.
	minGrowth = 0.01
	// probeEvery is how often a little more is sent to see whether it arrives.
	probeEvery = time.Second
	// maxNoise bounds what is forgiven for a delay that varies by itself.
	maxNoise = 12 * time.Millisecond
	// A step takes at least stepGauges and stepTime.
	stepGauges = 4
	stepTime   = 60 * time.Millisecond
	// pause without an answer, and measurement begins anew.
	pause = 2 * time.Second
	// baseTime is how long a least delay counts, at least; drainEvery how often
	// the queue is emptied to see it.
	baseTime   = 15 * time.Second
	drainEvery = 10 * time.Second
	// minRate and maxRate bound what is governed, in bytes a second.
	minRate = 128e3 / 8
	maxRate = 1e9 / 8
	// A queue must have shrunk by a third of proof when it should have by proof.
	// If it did not maxStrikes times in a row, it is not ours.
	proof      = 15 * time.Millisecond
	maxStrikes = 3
	// Nor is it when we have come down to this share of what was delivered.
	leastShare = 0.7
	// maxLost bounds what is believed to be lost without a queue.
	maxLost = 0.2
	// minHold and maxHold are how long it is then left alone; it is doubled each
	// time, until governing went well for wellAfter.
	minHold   = 5 * time.Second
	maxHold   = 160 * time.Second
	wellAfter = time.Minute
)

// Answer is a gauge that was answered. Sent and Back are by this end's clock, Arrived
// by the other's. Tx is how many bytes had been sent when the gauge was, Rx how
// many of them had arrived when it did.
type Answer struct {
	Sent, Arrived, Back time.Duration
	Tx, Rx              uint64
}

func (a Answer) delay() time.Duration { return a.Arrived - a.Sent }

// Governor governs one link. Not safe for concurrent use. The zero value is
// ready.
type Governor struct {
	rate     float64       // bytes a second; 0: not governed
	capacity float64       // of the bottleneck, as far as is known
	was      float64       // when rate was set
	most     float64       // the greatest of late
	probing  bool          // this step sends more, to see whether all of it arrives
	asked    time.Duration // when it last did
	lost     float64       // share of what is sent
	growth   float64       // of the last step
	base     least
	noise    time.Duration // by which delays vary from one to the next

	last    Answer
	older   time.Duration // delay of the one before
	begun   bool
	changed time.Duration // when the step began
	from    Answer        // the last one before it took effect
	gauges  int           // of this step
	delay   time.Duration // least of this step

	queue     time.Duration // of the last step
	emptied   time.Duration // when there was last no queue
	predicted time.Duration // shrinking
	seen      time.Duration
	strikes   int
	held      time.Duration // until then it is left alone
	hold      time.Duration // how long, the next time
	governed  time.Duration // since when
}

// Rate is what may be sent, in bits a second as Answer counts bytes; 0: as much as
// one likes.
func (g *Governor) Rate() int64 { return int64(g.rate * 8) }

// Queue is the bottleneck's queue, as last seen.
func (g *Governor) Queue() time.Duration { return g.queue }

// Fresh reports whether nothing is known of the bottleneck.
func (g *Governor) Fresh() bool { return g.capacity == 0 }

// Start begins with rate bytes a second, unless something is known already or that is
// more than is governed.
func (g *Governor) Start(now time.Duration, rate float64) {
	if g.Fresh() && rate >= minRate && rate <= maxRate {
		g.begin(now, rate)
		g.rate, g.was = rate, rate
	}
}

// begin begins to govern.
func (g *Governor) begin(now time.Duration, capacity float64) {
	g.capacity, g.most, g.growth, g.probing = capacity, capacity, 0, false
	g.strikes, g.predicted, g.seen = 0, 0, 0
	g.governed, g.emptied = now, now
}

// Answer takes in an answer; one that came out of order is ignored.
func (g *Governor) Answer(a Answer) {
	if g.begun && (a.Sent <= g.last.Sent || a.Tx < g.last.Tx || a.Rx < g.last.Rx) {
		return
	}
	if !g.begun || a.Sent-g.last.Sent > pause {
		g.base.add(a.delay(), a.Back)
		g.older, g.last, g.from, g.begun = a.delay(), a, a, true
		g.step(a.Back)
		g.emptied = a.Back
		return
	}
	// The second difference, so that a queue that grows or shrinks is no noise.
	g.noise += ((a.delay()-2*g.last.delay()+g.older).Abs()/2 - g.noise) / 16
	g.older, g.last = g.last.delay(), a
	g.base.add(a.delay(), a.Back)
	if a.Sent < g.changed {
		g.from = a
		return
	}
	if g.gauges++; g.gauges == 1 || a.delay() < g.delay {
		g.delay = a.delay()
	}
	if g.gauges < stepGauges || a.Sent-g.changed < stepTime || a.Arrived <= g.from.Arrived {
		return
	}
	g.decide(a)
	g.from = a
	g.step(a.Back)
}

// step begins a step.
func (g *Governor) step(now time.Duration) { g.changed, g.gauges = now, 0 }

// forgiven is the delay that varies by itself, as the least of a step has it.
func (g *Governor) forgiven() time.Duration { return min(g.noise/2, maxNoise) }

// decide ends a step whose last answer is a.
func (g *Governor) decide(a Answer) {
	before := g.queue
	g.queue = max(g.delay-g.base.get(), 0)
	took := a.Back - g.changed
	out := float64(a.Tx-g.from.Tx) / (a.Sent - g.from.Sent).Seconds()
	in := float64(a.Rx-g.from.Rx) / (a.Arrived - g.from.Arrived).Seconds()
	if out <= 0 {
		return
	}
	idle := g.queue < idleQueue+g.forgiven()
	if idle {
		g.emptied = a.Back
		g.lost += (min(max(1-float64(a.Rx-g.from.Rx)/float64(a.Tx-g.from.Tx), 0), maxLost) - g.lost) / 8
	}
	in /= 1 - g.lost
	if g.rate == 0 {
		g.watch(a.Back, in)
		return
	}
	full := out > 0.9*g.rate
	switch probed := g.probing; {
	case idle && full:
		g.probing = true
		g.growth = min(max(2*g.growth, minGrowth), maxGrowth.Seconds()/took.Seconds())
		g.capacity *= 1 + g.growth
	case idle:
		g.probing, g.growth = false, 0
	case full && probed && in > g.capacity*(1+g.growth/2) && (g.queue-before).Seconds() < g.growth*took.Seconds()/2:
		// More was sent, all of it arrived, and no queue grew: what looks like one
		// is not.
		g.capacity = max(g.capacity, in)
		g.growth = min(2*g.growth, maxGrowth.Seconds()/took.Seconds())
	case full || in < 0.9*out:
		g.probing, g.growth = false, 0
		g.believe(in, before)
		if g.foreign(before, in, out, took, a.Back) {
			return
		}
	}
	g.set(a.Back, took)
}

// believe takes the rate delivered out of a queue for the bottleneck's: at once if
// the queue stays too long, else bit by bit.
func (g *Governor) believe(in float64, before time.Duration) {
	share := 0.25
	switch too := maxQueue + g.forgiven(); {
	case g.queue > too && before > too:
		share = 1
	case g.queue > too, in > g.capacity:
		share = 0.5
	}
	g.capacity += share * (in - g.capacity)
}

// watch looks whether to begin to govern.
func (g *Governor) watch(now time.Duration, in float64) {
	if now < g.held || g.queue <= maxQueue+g.forgiven() || in < minRate || in > maxRate {
		return
	}
	g.begin(now, in)
	g.set(now, stepTime)
}

// set sets the rate after a step that took so long.
func (g *Governor) set(now, took time.Duration) {
	excess := g.queue - targetQueue - g.forgiven()
	share := excess.Seconds() / (2 * took.Seconds())
	switch {
	case now-g.emptied > drainEvery:
		share = (g.queue + idleQueue).Seconds() / took.Seconds()
		g.emptied, g.probing = now, false
	case g.probing && g.growth > 0 && excess < targetQueue:
		share = -g.growth
	case now-g.asked > probeEvery && excess < targetQueue:
		g.asked, g.probing, g.growth = now, true, targetQueue.Seconds()/took.Seconds()
		share = -g.growth
	}
	g.was = g.capacity
	g.rate = max(g.capacity*(1-min(share, 0.5)), minRate)
	if g.rate > maxRate {
		g.rate = 0
	}
}

// foreign reports, and draws the consequences, that the queue is not ours.
func (g *Governor) foreign(before time.Duration, in, out float64, took, now time.Duration) bool {
	if g.queue <= maxQueue+g.forgiven() {
		g.strikes, g.predicted, g.seen = 0, 0, 0
		g.most = max(g.most, g.capacity)
		if now-g.governed > wellAfter {
			g.hold = 0
		}
		return false
	}
	if in < 0.9*out { // it is the bottleneck that takes less
		g.most = in
	}
	g.predicted += time.Duration((1 - g.rate/g.was) * float64(took))
	g.seen += before - g.queue
	if g.predicted > proof {
		if g.strikes++; g.seen > g.predicted/3 {
			g.strikes = 0
		}
		g.predicted, g.seen = 0, 0
	}
	if g.strikes < maxStrikes && g.capacity > leastShare*g.most {
		return false
	}
	g.hold = min(max(2*g.hold, minHold), maxHold)
	g.rate, g.held = 0, now+g.hold
	return true
}

// least is the least delay of late.
type least struct {
	turned time.Duration
	delay  [2]time.Duration // of the running and the last period
	begun  bool
}

func (l *least) add(d, now time.Duration) {
	switch {
	case !l.begun:
		*l = least{now, [2]time.Duration{d, d}, true}
	case now-l.turned >= baseTime:
		*l = least{now, [2]time.Duration{d, l.delay[0]}, true}
	}
	l.delay[0] = min(l.delay[0], d)
}

func (l *least) get() time.Duration {
	return min(l.delay[0], l.delay[1])
}
