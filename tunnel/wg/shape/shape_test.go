package shape

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// packet is n bytes that carry a flow and a number.
func packet(flow, number, n int) []byte {
	p := make([]byte, max(n, 8))
	binary.BigEndian.PutUint32(p, uint32(flow))
	binary.BigEndian.PutUint32(p[4:], uint32(number))
	return p
}

func flowOf(p []byte) int { return int(binary.BigEndian.Uint32(p)) }

// twin is the same discipline as a list of packets that is searched for each
// one: who is listed as fresh, who as old, and what each may still send.
type twin struct {
	waiting    [][]byte
	fresh, old []int
	deficit    map[int]int
	sent       int
	emptied    map[int]int
}

func (w *twin) has(flow int) bool {
	return slices.ContainsFunc(w.waiting, func(p []byte) bool { return flowOf(p) == flow })
}

func (w *twin) push(flow int, p []byte) { // its weight is flow + 1
	if i := slices.Index(w.old, flow); i >= 0 && !w.has(flow) && w.sent-w.emptied[flow] >= quantum*(len(w.fresh)+len(w.old)) {
		w.old = slices.Delete(w.old, i, i+1)
	}
	if !slices.Contains(w.fresh, flow) && !slices.Contains(w.old, flow) {
		w.fresh = append(w.fresh, flow)
		w.deficit[flow] = quantum
	}
	w.waiting = append(w.waiting, p)
}

func (w *twin) pop() []byte {
	for len(w.waiting) > 0 {
		fresh := len(w.fresh) > 0
		all := append(slices.Clone(w.fresh), w.old...)
		flow := all[0]
		w.fresh = slices.DeleteFunc(w.fresh, func(f int) bool { return f == flow })
		w.old = slices.DeleteFunc(w.old, func(f int) bool { return f == flow })
		at := slices.IndexFunc(w.waiting, func(p []byte) bool { return flowOf(p) == flow })
		switch {
		case w.deficit[flow] <= 0:
			w.deficit[flow] += (flow + 1) * quantum
			w.old = append(w.old, flow)
		case at < 0 && fresh:
			w.old = append(w.old, flow)
		case at >= 0:
			p := w.waiting[at]
			w.waiting = slices.Delete(w.waiting, at, at+1)
			w.deficit[flow] -= len(p)
			w.emptied[flow] = w.sent
			w.sent += len(p)
			if fresh {
				w.fresh = append([]int{flow}, w.fresh...)
			} else {
				w.old = append([]int{flow}, w.old...)
			}
			return p
		}
	}
	return nil
}

// TestTwin holds the order against the twin's.
func TestTwin(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 50 {
		s, w := New(1e12, 0), &twin{deficit: map[int]int{}, emptied: map[int]int{}}
		now := time.Duration(0)
		for i := range 400 {
			now += time.Second
			if r.IntN(3) > 0 && s.Bytes() < 50_000 {
				flow := r.IntN(1 + round%7)
				p := packet(flow, i, 8+r.IntN(1400))
				s.Push(uint64(flow), 0, flow+1, p)
				w.push(flow, p)
				continue
			}
			got, ok := s.Pop(now, nil)
			if want := w.pop(); ok != (want != nil) || !slices.Equal(got, want) {
				t.Fatalf("round %d, step %d: flow and number % x, want % x", round, i, got[:min(8, len(got))], want[:min(8, len(want))])
			}
		}
	}
}

// TestRate: what leaves in a second is the rate, also when it is asked for late
// and at odd times, and the overhead counts.
func TestRate(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, rate := range []int64{1e6, 100e6, 2e9} {
		s := New(rate, 60)
		sent, now := 0, time.Duration(0)
		for length := time.Duration(min(2, 20e6*8/float64(rate)) * float64(time.Second)); now < length; {
			for s.Bytes() < s.limit/2 {
				s.Push(uint64(r.IntN(3)), 0, 1, packet(0, 0, 1440))
			}
			for {
				p, ok := s.Pop(now, nil)
				if !ok {
					break
				}
				sent += len(p) + 60
			}
			wait, _ := s.Wait(now)
			if wait <= 0 {
				t.Fatalf("%d bit/s: nothing may leave, and there is no wait", rate)
			}
			now += wait + time.Duration(r.IntN(int(time.Millisecond)))
		}
		// The burst at the beginning is extra.
		if got := (float64(sent) - s.bucket.burst) * 8 / now.Seconds(); got > 1.02*float64(rate) || got < 0.98*float64(rate) {
			t.Errorf("%d bit/s: %.0f left", rate, got)
		}
	}
}

// TestPriority: a packet now and then leaves before the bulk that waits, and
// bulk flows share; without a flow of its own it would wait for all of it.
func TestPriority(t *testing.T) {
	for _, own := range []bool{true, false} {
		s := New(20e6, 60)
		now, worst := time.Duration(0), 0
		counts := map[int]int{}
		for i := range 2000 {
			now += time.Millisecond
			for s.Bytes() < s.limit-2000 {
				s.Push(uint64(i%2), 0, 1+2*(i%2), packet(i%2, i, 1440))
				i++
			}
			if i%10 == 0 {
				hash := uint64(0)
				if own {
					hash = 7
				}
				s.Push(hash, 0, 1, packet(9, i, 100))
				for ahead := 0; ; ahead++ {
					p, ok := s.Pop(now, nil)
					if !ok {
						now += time.Millisecond
						continue
					}
					if flowOf(p) == 9 {
						worst = max(worst, ahead)
						break
					}
					counts[flowOf(p)]++
				}
			}
		}
		// At most one turn of each bulk flow: it was listed a moment ago.
		if own && worst > 1+2+4 || !own && worst < 100 {
			t.Errorf("own flow %v: %d packets of bulk went ahead", own, worst)
		}
		if share := float64(counts[1]) / float64(counts[0]); own && (share < 2.7 || share > 3.3) {
			t.Errorf("two bulk flows of weights 1 and 3 sent %v", counts)
		}
	}
}

// TestBounds: the queue is bounded, the longest one pays, and all is accounted
// for.
func TestBounds(t *testing.T) {
	s := New(8e6, 60)
	for i := range 1000 {
		s.Push(1, 0, 1, packet(1, i, 1400))
		if i%100 == 0 {
			s.Push(2, 0, 1, packet(2, i, 100))
		}
		if s.Bytes() > s.limit {
			t.Fatalf("%d bytes wait", s.Bytes())
		}
	}
	small, all := 0, 0
	for now := time.Duration(0); s.Bytes() > 0; now += time.Second {
		if p, ok := s.Pop(now, nil); ok {
			all++
			if flowOf(p) == 2 {
				small++
			}
		}
	}
	if small != 10 || uint64(all)+s.Dropped() != 1010 {
		t.Errorf("%d of 10 small packets, %d left, %d dropped", small, all, s.Dropped())
	}
	s.Push(1, 0, 1, packet(1, 0, 100))
	s.Clear()
	if _, ok := s.Pop(time.Hour, nil); ok || s.Bytes() != 0 {
		t.Error("something is left after Clear")
	}
}
