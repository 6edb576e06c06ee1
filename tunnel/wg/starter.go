package wg

import (
	"time"

	"stitch/tunnel/wg/carrier"
)

const (
	// A start has starterTries trains, starterEvery apart; the first has fewCarriages
	// and the later ones, if that one did not take starterSlow, manyCarriages.
	starterTries  = 4
	starterEvery  = 500 * time.Millisecond
	fewCarriages  = 16
	manyCarriages = 48
	starterSlow   = 10 * time.Millisecond
	// starterFast is the shortest time over which a rate can be believed: a train that takes less
	// has met a path of some 300 Mbit/s or more, or processors.
	starterFast = 2 * time.Millisecond
	// starterTooFast is a rate that is more than is governed.
	starterTooFast = 1e12
	// starterShare is how much of what was found is sent at first.
	starterShare = 0.85
	// filler is the type of a probe that nobody answers.
	filler = 10
)

// starter finds the rate at which to begin, before much is sent: how long a short
// train takes to arrive, between a gauge in front of it and one behind. A path
// that lets a short train pass faster than a long stream shows in the first
// seconds of the first stream. It is pure, and not safe for concurrent use.
type starter struct {
	tries, answers int
	sent           uint64 // of the gauge in front; the one behind has the next number
	at             time.Duration
	front          gauge
	took           time.Duration // the last one
	best, second   float64       // bytes a second; the best one may be luck
}

// due reports whether to send a train.
func (s *starter) due(now time.Duration) bool {
	return s.tries < starterTries && (s.tries == 0 || now-s.at >= starterEvery)
}

// train returns the messages of a train.
func (s *starter) train(now time.Duration) [][]byte {
	s.tries, s.at, s.sent, s.front = s.tries+1, now, uint64(now), gauge{}
	n := fewCarriages
	if s.answers > 0 && s.took < starterSlow {
		n = manyCarriages
	}
	fill := make([]byte, carLen)
	fill[0] = filler
	msgs := [][]byte{gauge{sent: s.sent}.append(nil)}
	for range n {
		msgs = append(msgs, fill)
	}
	return append(msgs, gauge{sent: s.sent + 1}.append(nil))
}

// answered takes in an answer and reports whether it was of a train. After the
// last one it returns the rate to begin with, in bytes a second; 0: not yet, or not
// known.
func (s *starter) answered(m gauge) (rate float64, taken bool) {
	switch {
	case s.tries == 0 || m.sent != s.sent && m.sent != s.sent+1:
		return 0, false
	case m.sent == s.sent:
		s.front = m
		return 0, true
	case !s.front.answer || m.arrived <= s.front.arrived || m.rx <= s.front.rx:
		return 0, true
	}
	s.answers++
	s.took = time.Duration(m.arrived - s.front.arrived)
	found := starterTooFast
	if s.took >= starterFast {
		found = float64(m.rx-s.front.rx) / s.took.Seconds()
	}
	if found > s.best {
		s.best, found = found, s.best
	}
	s.second = max(s.second, found)
	if s.tries < starterTries {
		return 0, true
	}
	return starterShare * s.second, true
}

// sendAll queues probes so that they leave together, if there is room for all.
func (m *mux) sendAll(msgs [][]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.isClosed() || !m.control.room(len(msgs)) {
		return
	}
	for _, msg := range msgs {
		m.putWhole(carrier.Probe, msg)
	}
	m.notifyLocked()
}
