// Package shape sends packets no faster than a rate, and decides which one is
// next: fair queueing by flow with strict priority for flows that do not keep a
// queue, as in fq_codel (RFC 8290), with weights. A key press, a ping or a name query never
// waits behind bulk, whatever its port or protocol, and bulk flows share by their weights.
//
// It is pure: no sockets, no goroutines, no clock. It copies what it queues.
package shape

import "time"

const (
	// flowCount is how many flows are told apart; two that fall together share.
	flowCount = 1024
	// quantum is what a flow may send in one turn, in bytes.
	quantum = 1500
	// burstTime is how much may be sent at once after a pause: shorter than what
	// anybody notices, longer than a timer's error.
	burstTime = 4 * time.Millisecond
	minBurst  = 2 * quantum
	// queueTime is how long what may wait takes to be sent. Long, because nobody
	// but its own flow waits for it, and what a starting connection sends too much
	// would have to be sent again.
	queueTime = 200 * time.Millisecond
	minQueue  = 64 << 10
	maxQueue  = 16 << 20
	// maxSpare bounds the buffers that are kept.
	maxSpare = 256
)

// Shaper is one link's. Not safe for concurrent use.
type Shaper struct {
	rate     float64 // bytes a second
	overhead int
	burst    float64
	tokens   float64
	last     time.Duration
	limit    int

	flows      [flowCount]flow
	fresh, old []int // flows that have packets, or had until now
	bytes      int
	spare      [][]byte
	dropped    uint64
}

type flow struct {
	packets [][]byte
	bytes   int
	deficit int
	weight  int
	listed  bool
}

// New returns a Shaper that sends rate bits a second, counting overhead bytes
// with each packet.
func New(rate int64, overhead int) *Shaper {
	s := &Shaper{overhead: overhead}
	s.SetRate(rate)
	s.tokens = s.burst
	return s
}

// SetRate sets the rate from now on; what waits goes on waiting.
func (s *Shaper) SetRate(rate int64) {
	s.rate = float64(rate) / 8
	s.burst = max(s.rate*burstTime.Seconds(), minBurst)
	s.tokens = min(s.tokens, s.burst)
	s.limit = int(min(max(s.rate*queueTime.Seconds(), minQueue), maxQueue))
}

// Push queues a copy of a packet of the given flow, whose share among the flows
// that wait is weight, at least 1. When too much waits, the oldest packets of
// the longest queue are dropped.
func (s *Shaper) Push(hash uint64, weight int, packet []byte) {
	i := int(hash % flowCount)
	f := &s.flows[i]
	f.packets = append(f.packets, append(s.buffer(), packet...))
	f.bytes += len(packet)
	f.weight = max(weight, 1)
	s.bytes += len(packet)
	if !f.listed {
		f.listed, f.deficit = true, quantum
		s.fresh = append(s.fresh, i)
	}
	for s.bytes > s.limit {
		s.drop()
	}
}

// drop drops the oldest packet of the longest queue.
func (s *Shaper) drop() {
	var longest *flow
	for _, list := range [][]int{s.fresh, s.old} {
		for _, i := range list {
			if f := &s.flows[i]; longest == nil || f.bytes > longest.bytes {
				longest = f
			}
		}
	}
	s.keep(s.take(longest))
	s.dropped++
}

// take takes the oldest packet of a flow out.
func (s *Shaper) take(f *flow) []byte {
	p := f.packets[0]
	f.packets[0] = nil
	if f.packets = f.packets[1:]; len(f.packets) == 0 {
		f.packets = nil
	}
	f.bytes -= len(p)
	s.bytes -= len(p)
	return p
}

// Pop appends the next packet to dst and reports whether there was one that may
// be sent at now, a time since any fixed instant.
func (s *Shaper) Pop(now time.Duration, dst []byte) ([]byte, bool) {
	s.refill(now)
	for s.bytes > 0 && s.tokens > 0 {
		list := &s.fresh
		if len(*list) == 0 {
			list = &s.old
		}
		i := (*list)[0]
		f := &s.flows[i]
		switch {
		case f.deficit <= 0:
			f.deficit += f.weight * quantum
			*list = (*list)[1:]
			s.old = append(s.old, i)
		case len(f.packets) == 0:
			// From the fresh ones it goes behind the others, or a flow with a packet
			// now and then could keep them all waiting.
			*list = (*list)[1:]
			if f.listed = list == &s.fresh; f.listed {
				s.old = append(s.old, i)
			}
		default:
			p := s.take(f)
			f.deficit -= len(p)
			s.tokens -= float64(len(p) + s.overhead)
			dst = append(dst, p...)
			s.keep(p)
			return dst, true
		}
	}
	return dst, false
}

// Spend counts bytes that are sent past the queue.
func (s *Shaper) Spend(packet int) { s.tokens -= float64(packet + s.overhead) }

// Wait returns how long it is until a packet may be sent; 0: now. False: none
// waits.
func (s *Shaper) Wait(now time.Duration) (time.Duration, bool) {
	s.refill(now)
	if s.tokens > 0 {
		return 0, s.bytes > 0
	}
	return time.Duration(-s.tokens/s.rate*float64(time.Second)) + time.Microsecond, s.bytes > 0
}

func (s *Shaper) refill(now time.Duration) {
	s.tokens = min(s.tokens+max(now-s.last, 0).Seconds()*s.rate, s.burst)
	s.last = now
}

// Clear drops all that waits.
func (s *Shaper) Clear() {
	for s.bytes > 0 {
		s.drop()
	}
}

// Dropped is how many packets were dropped.
func (s *Shaper) Dropped() uint64 { return s.dropped }

// Bytes is how much waits.
func (s *Shaper) Bytes() int { return s.bytes }

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
