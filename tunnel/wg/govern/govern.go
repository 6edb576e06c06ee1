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
// tell. While the queue is longer than it should be and less is delivered than sent,
// what is delivered is the bottleneck's rate; the next rate is a little less or more, so that the
// queue comes to targetQueue. While there is no queue though as much is
// sent as may be, the rate grows, faster with every step, but never so fast that a
// step could add more than maxGrowth of queue. A rate that has fallen at once is tried again
// as soon as the queue is gone: it may have been a moment only.
//
// Packets wait for processors too, and that must not look like the bottleneck's queue:
// the link's rate would fall for it, again and again. So a link begins to be governed when a queue
// stands without a break, while as much is delivered as ever was of late; and it is left
// alone when the rate turns out to be far too low, or falls where delays vary
// without it.
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
	// growQueue is what the processors at both ends and on the path add to a queue that there is not: where it
	// is less, and all of what is sent arrives, more may be sent.
	growQueue = 4 * time.Millisecond
	// maxQueue begins to be governed.
	maxQueue = 15 * time.Millisecond
	// standing is for how long a queue has to be longer than that, without a break: the processors of
	// both ends, too, make packets wait now and then.
	standing = 300 * time.Millisecond
	// A queue that is the bottleneck's stands while the bottleneck delivers all it can: at least
	// fullShare of the most of the last topTime. Else something is held up.
	fullShare = 0.8
	topTime   = 5 * time.Second
	// Where delays vary by more than disturbed, and the rate stays below fullShare of what it
	// was at first for tooLong, it is the delays that have brought it down.
	disturbed = 4 * time.Millisecond
	tooLong   = 1500 * time.Millisecond
	// A rate that has grown to mistaken times what it was at first was not the bottleneck's.
	mistaken = 2
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
	// minRate and maxRate bound what is governed, in bytes a second: on faster paths
	// it is too often processors for which packets wait.
	minRate = 128e3 / 8
	maxRate = 300e6 / 8
	// maxStart bounds what is believed before there was a queue: on faster paths it is
	// often processors that held up what was measured.
	maxStart = 150e6 / 8
	// A queue must have shrunk by a third of proof when it should have by proof.
	// If it did not maxStrikes times in a row, it is not ours.
	proof      = 15 * time.Millisecond
	maxStrikes = 3
	// Nor is it when we have come down to this share of what was delivered.
	leastShare = 0.7
	// A rate that has fallen below knownShare of itself is tried again soon.
	knownShare = 0.8
	// tookAll of what is sent arrives at least where nothing holds it up.
	tookAll = 0.97
	// maxLost bounds what is believed to be lost without a queue.
	maxLost = 0.2
	// minHold and maxHold are how long it is then left alone; it is doubled each
	// time, until governing went well for wellAfter. disturbedHold is where delays
	// vary too much.
	minHold       = 5 * time.Second
	disturbedHold = 20 * time.Second
	maxHold       = 160 * time.Second
	wellAfter     = time.Minute
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
	known    float64       // what it was before it fell; 0: that is over
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
	fromOld Answer        // the same of the step before
	gauges  int           // of this step
	delay   time.Duration // least of this step

	stood     time.Duration // since when the queue is long; 0: it is not
	stoodAt   Answer        // the answer then
	top       most          // delivered
	first     float64       // capacity, when it began to be governed
	sound     time.Duration // when there was last no doubt that it is right
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
// more than can be told without a queue.
func (g *Governor) Start(now time.Duration, rate float64) {
	if g.Fresh() && rate >= minRate && rate <= maxStart {
		g.begin(now, rate)
		g.rate, g.was = rate, rate
	}
}

// begin begins to govern.
func (g *Governor) begin(now time.Duration, capacity float64) {
	g.capacity, g.most, g.known, g.growth, g.probing = capacity, capacity, 0, 0, false
	g.strikes, g.predicted, g.seen, g.first = 0, 0, 0, capacity
	g.governed, g.emptied, g.sound = now, now, now
}

// Answer takes in an answer; one that came out of order is ignored.
func (g *Governor) Answer(a Answer) {
	if g.begun && (a.Sent <= g.last.Sent || a.Tx < g.last.Tx || a.Rx < g.last.Rx) {
		return
	}
	if !g.begun || a.Sent-g.last.Sent > pause {
		g.base.add(a.delay(), a.Back)
		g.older, g.last, g.from, g.fromOld, g.begun = a.delay(), a, a, a, true
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
	g.fromOld, g.from = g.from, a
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
	// What was held up somewhere arrives a little later, then faster: twice as long a time
	// shows it.
	if took := a.Arrived - g.fromOld.Arrived; in < tookAll*out && took > 0 {
		in = min(max(in, float64(a.Rx-g.fromOld.Rx)/took.Seconds()/(1-g.lost)), tookAll*out)
	}
	g.top.add(min(in, out), a.Back)
	if g.rate == 0 {
		g.watch(a)
		return
	}
	full := out > 0.9*g.rate
	switch probed := g.probing; {
	case full && (idle || g.queue < growQueue+g.forgiven() && in > tookAll*out):
		g.probing = true
		g.growth = min(max(2*g.growth, minGrowth), (maxGrowth-min(g.queue, maxGrowth/2)).Seconds()/took.Seconds())
		g.capacity = max(g.capacity, min(out, g.rate)) // and set adds growth
		if g.known > g.capacity {                      // it may have been a moment only
			g.capacity += (g.known - g.capacity) / 2
		}
	case idle:
		g.probing, g.growth = false, 0
	case full && probed && in > g.capacity*(1+g.growth/2) && (g.queue-before).Seconds() < g.growth*took.Seconds()/2:
		// More was sent, all of it arrived, and no queue grew: what looks like one
		// is not.
		g.capacity = max(g.capacity, in)
		g.growth = min(2*g.growth, maxGrowth.Seconds()/took.Seconds())
	case full || in < 0.9*out:
		g.probing, g.growth = false, 0
		g.believe(in, out, before)
		if g.foreign(before, in, out, took, a.Back) {
			return
		}
	}
	if g.capacity >= fullShare*g.first || g.noise < disturbed {
		g.sound = a.Back
	}
	if a.Back-g.sound > tooLong {
		g.release(a.Back, disturbedHold)
		return
	}
	if g.capacity > mistaken*g.first {
		g.release(a.Back, minHold)
		return
	}
	g.set(a.Back, took)
}

// believe takes the rate delivered out of a queue for the bottleneck's: at once if
// the queue stays too long, else bit by bit. That all of what is sent arrives does
// not tell that no more would: then it is believed hardly at all.
func (g *Governor) believe(in, out float64, before time.Duration) {
	share := 0.25
	switch too := maxQueue + g.forgiven(); {
	case in > g.capacity:
		share = 0.5
	case in > tookAll*out:
		share = 0.05
	case min(g.queue, before) > idleQueue+g.forgiven():
		share = 1
	case g.queue > too:
		share = 0.5
	}
	was := g.capacity
	g.capacity += share * (in - g.capacity)
	switch {
	case g.capacity > knownShare*was:
	case g.known == 0:
		g.known = was
	default: // it fell again
		g.known = 0
	}
}

// watch looks whether to begin to govern.
func (g *Governor) watch(a Answer) {
	if a.Back < g.held || g.queue <= maxQueue+g.forgiven() {
		g.stood = 0
		return
	}
	if g.stood == 0 {
		g.stood, g.stoodAt = a.Back, a
		return
	}
	if a.Back-g.stood < standing || a.Arrived <= g.stoodAt.Arrived {
		return
	}
	in := float64(a.Rx-g.stoodAt.Rx) / (a.Arrived - g.stoodAt.Arrived).Seconds() / (1 - g.lost)
	g.stood = 0
	if in < minRate || in > maxRate || in < fullShare*g.top.get() {
		return
	}
	g.begin(a.Back, in)
	g.set(a.Back, stepTime)
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
	g.release(now, minHold)
	return true
}

// release leaves the link alone for a while, of at least so long.
func (g *Governor) release(now, least time.Duration) {
	g.hold = min(max(2*g.hold, least), maxHold)
	g.rate, g.held, g.stood = 0, now+g.hold, 0
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

// most is the greatest rate of late.
type most struct {
	turned time.Duration
	rate   [2]float64 // of the running and the last period
}

func (m *most) add(r float64, now time.Duration) {
	if now-m.turned >= topTime {
		m.turned, m.rate = now, [2]float64{0, m.rate[0]}
	}
	m.rate[0] = max(m.rate[0], r)
}

func (m *most) get() float64 { return max(m.rate[0], m.rate[1]) }
