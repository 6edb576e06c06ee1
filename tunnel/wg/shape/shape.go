// Package shape sends packets no faster than a rate, and decides which one is
// next: fair queueing by flow with strict priority for flows that do not keep a
// queue, as in fq_codel (RFC 8290), with weights. A key press, a ping or a name query never
// waits behind bulk, whatever its port or protocol, and bulk flows share by their weights.
//
// Flows are of classes, and classes come first: each has its part of the rate
// whatever the others send and in however many flows, and those that send divide
// among them, by their shares, what the others leave (start-time fair queueing, Goyal and
// others 1996). A class may have a limit, which it keeps also when nobody else sends.
// What passes bulk is counted to its class, whose bulk waits for it.
//
// It is pure: no sockets, no goroutines, no clock. It copies what it queues.
package shape

import (
	"slices"
	"time"
)

const (
	// flowCount is how many flows of a class are told apart; two that fall together
	// share.
	flowCount = 1024
	// quantum is what a flow may send in one turn, in bytes.
	quantum = 1500
	// burstTime is how much may be sent at once after a pause: shorter than what
	// anybody notices, longer than a timer's error.
	burstTime = 4 * time.Millisecond
	minBurst  = 2 * quantum
	// queueTime is how long what may wait takes to be sent. Long, because nobody
	// but its own flow waits for it, and what a starting connection sends too much
	// would have to be sent again. It is also how far a class that sends nothing but
	// what passes bulk may be ahead of its share.
	queueTime = 200 * time.Millisecond
	minQueue  = 64 << 10
	maxQueue  = 16 << 20
	// leastRoom is the part of all shares for which every class has room to wait:
	// 1 in leastRoom.
	leastRoom = 20
	// maxSpare bounds the buffers that are kept.
	maxSpare = 256
)

// Class is a part of what is sent.
type Class struct {
	// Share is what the class gets of the rate in proportion to the shares of the
	// others that have something to send; at least 1.
	Share int
	// Limit is the most that it sends, in bits a second; 0: as much as there is.
	Limit int64
}

// Count is what became of a class so far, and what waits.
type Count struct {
	// Packets and Bytes were sent, Bytes with the overhead. Dropped are packets.
	Packets, Bytes, Dropped uint64
	// Waiting is in bytes.
	Waiting int
}

// Shaper is one link's. Not safe for concurrent use.
type Shaper struct {
	overhead int
	bucket   bucket
	last     time.Duration
	limit    int

	classes []class
	clock   float64 // of the class whose bulk was sent last
	bytes   int
	spare   [][]byte
	sent    uint64
	dropped uint64
}

// class is a class and what of it waits.
type class struct {
	share  float64
	bound  bool   // it has a limit
	bucket bucket // of its limit
	room   int    // the most that waits
	// clock is how much was sent, in bytes for each unit of share; a class that
	// had nothing to send has not gained by it.
	clock      float64
	flows      []flow
	fresh, old []int // flows that have packets, or had until now
	count      Count
}

type flow struct {
	packets [][]byte
	bytes   int
	deficit int
	weight  int
	listed  bool
	// old says in which list it is, emptied how much everybody had sent when its last
	// packet left.
	old     bool
	emptied uint64
}

// bucket bounds a rate, in bytes a second.
type bucket struct{ rate, burst, tokens float64 }

// set sets the rate in bits a second.
func (b *bucket) set(rate int64) {
	b.rate = float64(rate) / 8
	b.burst = max(b.rate*burstTime.Seconds(), minBurst)
	b.tokens = min(b.tokens, b.burst)
}

func (b *bucket) refill(passed time.Duration) {
	b.tokens = min(b.tokens+passed.Seconds()*b.rate, b.burst)
}

// wait is how long it is until something may be sent.
func (b *bucket) wait() time.Duration {
	if b.tokens > 0 {
		return 0
	}
	return time.Duration(-b.tokens/b.rate*float64(time.Second)) + time.Microsecond
}

// queue is how many bytes may wait for the rate.
func (b *bucket) queue() int {
	return int(min(max(b.rate*queueTime.Seconds(), minQueue), maxQueue))
}

// New returns a Shaper that sends rate bits a second, counting overhead bytes
// with each packet. Without classes all packets are of class 0.
func New(rate int64, overhead int, classes ...Class) *Shaper {
	if len(classes) == 0 {
		classes = []Class{{Share: 1}}
	}
	s := &Shaper{overhead: overhead, classes: make([]class, len(classes))}
	for i, c := range classes {
		k := class{share: float64(max(c.Share, 1)), bound: c.Limit > 0, flows: make([]flow, flowCount)}
		if k.bound {
			k.bucket.set(c.Limit)
			k.bucket.tokens = k.bucket.burst
		}
		s.classes[i] = k
	}
	s.SetRate(rate)
	s.bucket.tokens = s.bucket.burst
	return s
}

// SetRate sets the rate from now on; what waits goes on waiting.
func (s *Shaper) SetRate(rate int64) {
	s.bucket.set(rate)
	s.limit = s.bucket.queue()
	for i := range s.classes {
		c := &s.classes[i]
		if c.room = s.limit; c.bound {
			c.room = min(s.limit, c.bucket.queue())
		}
	}
}

// Push queues a copy of a packet of the given flow and class, which is one of
// New's. The flow's share among the flows of its class that wait is weight, at
// least 1. When too much waits, the oldest packets are dropped of the longest
// queue of the class that has the most waiting for its share.
func (s *Shaper) Push(hash uint64, class, weight int, packet []byte) {
	i := int(hash % flowCount)
	c := &s.classes[class]
	f := &c.flows[i]
	if f.old && len(f.packets) == 0 && s.sent-f.emptied >= s.round() {
		// Its turn to be seen without a packet would have come, if it did not come
		// seldom in a class of a small share.
		c.old = slices.DeleteFunc(c.old, func(j int) bool { return i == j })
		f.listed, f.old = false, false
	}
	f.packets = append(f.packets, append(s.buffer(), packet...))
	f.bytes += len(packet)
	f.weight = max(weight, 1)
	c.count.Waiting += len(packet)
	s.bytes += len(packet)
	if !f.listed {
		f.listed, f.deficit = true, quantum
		c.fresh = append(c.fresh, i)
	}
	for c.count.Waiting > c.room {
		s.drop(c)
	}
	for s.bytes > s.limit {
		s.drop(s.fullest())
	}
}

// round is how much is sent while each flow has a turn.
func (s *Shaper) round() uint64 {
	n := 0
	for i := range s.classes {
		n += len(s.classes[i].fresh) + len(s.classes[i].old)
	}
	return uint64(n * quantum)
}

// fullest is the class with the most waiting for its share.
func (s *Shaper) fullest() *class {
	all := 0.0
	for i := range s.classes {
		all += s.classes[i].share
	}
	var fullest *class
	most := 0.0
	for i := range s.classes {
		c := &s.classes[i]
		if n := float64(c.count.Waiting) / max(c.share, all/leastRoom); n > most {
			fullest, most = c, n
		}
	}
	return fullest
}

// drop drops the oldest packet of the longest queue of a class.
func (s *Shaper) drop(c *class) {
	var longest *flow
	for _, list := range [][]int{c.fresh, c.old} {
		for _, i := range list {
			if f := &c.flows[i]; longest == nil || f.bytes > longest.bytes {
				longest = f
			}
		}
	}
	s.keep(s.take(c, longest))
	c.count.Dropped++
	s.dropped++
}

// take takes the oldest packet of a flow out.
func (s *Shaper) take(c *class, f *flow) []byte {
	p := f.packets[0]
	f.packets[0] = nil
	if f.packets = f.packets[1:]; len(f.packets) == 0 {
		f.packets = nil
		f.emptied = s.sent
	}
	f.bytes -= len(p)
	c.count.Waiting -= len(p)
	s.bytes -= len(p)
	return p
}

// Pop appends the next packet to dst and reports whether there was one that may
// be sent at now, a time since any fixed instant.
func (s *Shaper) Pop(now time.Duration, dst []byte) ([]byte, bool) {
	s.refill(now)
	for s.bytes > 0 && s.bucket.tokens > 0 {
		c, urgent := s.next()
		if c == nil {
			break
		}
		f := c.turn()
		if f == nil {
			continue
		}
		p := s.take(c, f)
		f.deficit -= len(p)
		s.charge(c, urgent, len(p)+s.overhead)
		dst = append(dst, p...)
		s.keep(p)
		return dst, true
	}
	return dst, false
}

// next chooses the class that is to send: of those with a flow that passes bulk, or
// else of all that may send, the one that has had least for its share. Nil: all
// that wait do so for their limits.
func (s *Shaper) next() (chosen *class, urgent bool) {
	for i := range s.classes {
		c := &s.classes[i]
		if c.count.Waiting == 0 || c.bound && c.bucket.tokens <= 0 {
			continue
		}
		passes := len(c.fresh) > 0 && (c.clock-s.clock)*c.share <= float64(s.limit)
		if chosen == nil || passes && !urgent || passes == urgent && c.clock < chosen.clock {
			chosen, urgent = c, passes
		}
	}
	return chosen, urgent
}

// turn returns the flow of a class that is to send, or nil after it has changed
// whose turn it is.
func (c *class) turn() *flow {
	list := &c.fresh
	if len(*list) == 0 {
		list = &c.old
	}
	i := (*list)[0]
	f := &c.flows[i]
	switch {
	case f.deficit <= 0:
		f.deficit += f.weight * quantum
		*list = (*list)[1:]
		c.old = append(c.old, i)
		f.old = true
	case len(f.packets) == 0:
		// From the fresh ones it goes behind the others, or a flow with a packet
		// now and then could keep them all waiting.
		*list = (*list)[1:]
		f.listed = list == &c.fresh
		if f.old = f.listed; f.old {
			c.old = append(c.old, i)
		}
	default:
		return f
	}
	return nil
}

// charge counts n bytes that a class sent. A class that begins, or waited for its
// limit, begins where the others are; so do all when nothing waits any more.
func (s *Shaper) charge(c *class, urgent bool, n int) {
	s.sent += uint64(n)
	s.bucket.tokens -= float64(n)
	c.bucket.tokens -= float64(n)
	c.count.Packets++
	c.count.Bytes += uint64(n)
	c.clock = max(c.clock, s.clock)
	if !urgent {
		s.clock = c.clock
	}
	c.clock += float64(n) / c.share
	if s.bytes > 0 {
		return
	}
	for i := range s.classes {
		s.clock = max(s.clock, s.classes[i].clock)
	}
}

// Spend counts bytes that are sent past the queue.
func (s *Shaper) Spend(packet int) { s.bucket.tokens -= float64(packet + s.overhead) }

// Wait returns how long it is until a packet may be sent; 0: now. False: none
// waits.
func (s *Shaper) Wait(now time.Duration) (time.Duration, bool) {
	s.refill(now)
	wait, some := time.Duration(0), false
	for i := range s.classes {
		c := &s.classes[i]
		if c.count.Waiting == 0 {
			continue
		}
		w := time.Duration(0)
		if c.bound {
			w = c.bucket.wait()
		}
		if !some || w < wait {
			wait, some = w, true
		}
	}
	return max(wait, s.bucket.wait()), some
}

func (s *Shaper) refill(now time.Duration) {
	passed := max(now-s.last, 0)
	s.last = now
	s.bucket.refill(passed)
	for i := range s.classes {
		if c := &s.classes[i]; c.bound {
			c.bucket.refill(passed)
		}
	}
}

// Clear drops all that waits.
func (s *Shaper) Clear() {
	for i := range s.classes {
		for c := &s.classes[i]; c.count.Waiting > 0; {
			s.drop(c)
		}
	}
}

// Dropped is how many packets were dropped.
func (s *Shaper) Dropped() uint64 { return s.dropped }

// Bytes is how much waits.
func (s *Shaper) Bytes() int { return s.bytes }

// Count returns what became of a class, which is one of New's.
func (s *Shaper) Count(class int) Count { return s.classes[class].count }

func (s *Shaper) buffer() []byte {
	n := len(s.spare)
	if n == 0 {
		return make([]byte, 0, 2048)
	}
	b := s.spare[n-1]
	s.spare = s.spare[:n-1]
	return b
}

func (s *Shaper) keep(p []byte) {
	if len(s.spare) < maxSpare {
		s.spare = append(s.spare, p[:0])
	}
}
