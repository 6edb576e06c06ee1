package stream

import (
	"testing"
	"time"
)

// pathModel is a BBR in its start on a path, a round trip at a time.
type pathModel struct {
	r    rush
	now  time.Time
	s    paceSample
	last uint64 // limit that was set
	sets int
}

// rounds sends so many bytes in each of n rounds, of which a share is lost.
func (m *pathModel) rounds(n int, bytes uint64, lost float64) {
	for range n {
		m.now = m.now.Add(m.s.rtt)
		m.s.sent += bytes
		m.s.resent += uint64(lost * float64(bytes))
		if m.r.due(m.now, m.s.rtt) {
			if limit, news := m.r.Update(m.now, m.s); news {
				m.last = limit
				m.sets++
			}
		}
	}
}

func newPathModel(bandwidth float64) *pathModel {
	return &pathModel{now: t0, s: paceSample{gain: rushGain, bandwidth: bandwidth, rtt: 100 * time.Millisecond}}
}

// TestRushHeld: a start that goes on and overflows the path is held to what the
// path takes, until it has ended, and then never again.
func TestRushHeld(t *testing.T) {
	m := newPathModel(5e6)
	m.rounds(1, 1e6, 0)
	m.s.gain = 0 // before the first acknowledgement
	m.rounds(1, 1e6, 0)
	m.s.gain = rushGain
	m.rounds(2, 1e6, 0.2)
	if m.sets != 0 {
		t.Fatalf("held after %d rounds", rushFlat-1)
	}
	m.rounds(1, 1e6, 0.2)
	if m.sets != 1 || m.last != 5e6 {
		t.Fatalf("%d limits, the last %d", m.sets, m.last)
	}
	m.s.gain = gainUnit // the round trip is measured
	m.rounds(3, 1e6, 0)
	m.s.gain = 88 // the queue is drained
	m.rounds(1, 1e6, 0)
	if m.sets != 2 || m.last != unpaced {
		t.Fatalf("%d limits, the last %d, when the start has ended", m.sets, m.last)
	}
	m.s.gain = rushGain
	m.rounds(20, 1e6, 0.2)
	if m.sets != 2 {
		t.Error("held behind its start")
	}
}

// TestRushCalm: without loss the limit is taken back, so that a path that takes more
// is found out.
func TestRushCalm(t *testing.T) {
	m := newPathModel(5e6)
	m.rounds(1+rushFlat, 1e6, 0.2)
	m.rounds(rushCalm-1, 1e6, 0)
	if m.sets != 1 {
		t.Fatalf("%d limits", m.sets)
	}
	m.rounds(1, 1e6, 0)
	if m.sets != 2 || m.last != unpaced {
		t.Errorf("%d limits, the last %d", m.sets, m.last)
	}
}

// TestRushLet: what grows, what loses as bad paths do, and what sends little is not
// held.
func TestRushLet(t *testing.T) {
	grows := newPathModel(1e5)
	for range 10 {
		grows.s.bandwidth *= 1.3
		grows.rounds(rushFlat-1, 1e6, 0.2)
	}
	loses := newPathModel(5e6)
	loses.rounds(100, 1e6, 0.05)
	little := newPathModel(1e5)
	little.rounds(10, 20e3, 0.2)
	for name, m := range map[string]*pathModel{"a path that grows": grows, "one that loses": loses, "little": little} {
		if m.sets != 0 {
			t.Errorf("%s is held to %d", name, m.last)
		}
	}
}
