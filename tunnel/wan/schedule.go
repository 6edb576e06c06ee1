package wan

import "time"

// item is one delivery waiting in a schedule.
type item struct {
	at   time.Duration
	seq  uint64 // order of pushing, for equal times
	slot uint32 // the owner's name for the packet
	path uint32 // the owner's name for where it goes
}

// schedule is a binary heap of deliveries ordered by time, then by order of
// pushing. Pushes that come nearly in order cost next to nothing. Not safe
// for concurrent use; it allocates only while it grows.
type schedule struct {
	items []item
	seq   uint64
}

func (s *schedule) len() int { return len(s.items) }

// next returns the earliest delivery without taking it.
func (s *schedule) next() (time.Duration, bool) {
	if len(s.items) == 0 {
		return 0, false
	}
	return s.items[0].at, true
}

func (s *schedule) push(at time.Duration, slot, path uint32) {
	s.seq++
	s.items = append(s.items, item{at, s.seq, slot, path})
	for i := len(s.items) - 1; i > 0; {
		up := (i - 1) / 2
		if !s.less(i, up) {
			return
		}
		s.items[i], s.items[up] = s.items[up], s.items[i]
		i = up
	}
}

// pop takes the earliest delivery; there must be one.
func (s *schedule) pop() item {
	top, last := s.items[0], len(s.items)-1
	s.items[0] = s.items[last]
	s.items = s.items[:last]
	for i := 0; ; {
		least := i
		for kid := 2*i + 1; kid <= 2*i+2 && kid < last; kid++ {
			if s.less(kid, least) {
				least = kid
			}
		}
		if least == i {
			return top
		}
		s.items[i], s.items[least] = s.items[least], s.items[i]
		i = least
	}
}

func (s *schedule) less(i, j int) bool {
	a, b := &s.items[i], &s.items[j]
	return a.at < b.at || a.at == b.at && a.seq < b.seq
}
