package stream

import (
	"math"
	"time"
)

const (
	// rushGain is BBR's pacing gain in its start, 2/ln 2, and gainUnit what it calls
	// a gain of 1.
	rushGain, gainUnit = 739, 256
	// rushFlat rounds in which the bandwidth did not grow by a quarter are as many as
	// BBR itself wants before it ends its start.
	rushFlat = 3
	// rushLoss of at least rushBytes, lost meanwhile, say that the path is full: what
	// overflows in a start that does not end is 10 to 20 %, and a path that loses so
	// much anyway is rare.
	rushLoss, rushBytes = 0.08, 256 << 10
	// rushCalm rounds without loss show that the path may take more.
	rushCalm = 10
)

// unpaced is the rate that limits nothing.
const unpaced = math.MaxUint64

// rush ends the start of a BBR that does not end by itself. BBR sends at 2.89 times
// the bandwidth it has measured until that does not grow any more, but counts only
// rounds at whose beginning there was more to send: and at that rate there often
// is not, with a codec in front of it. Then it overflows the path's queue for as
// long as the stream lasts. Held to the bandwidth it has measured, it soon has more
// to send than it may, and goes on to its steady state. Pure; not safe for
// concurrent use.
type rush struct {
	over bool // the start is
	held bool // now
	best float64
	flat int // rounds without growth of best; held: without loss

	began        time.Time // of the round
	sent, resent uint64    // when best grew, or held: when the round began
}

// paceSample is what the kernel knows of a connection that BBR controls.
type paceSample struct {
	gain         uint32
	bandwidth    float64 // bytes per second
	rtt          time.Duration
	sent, resent uint64 // bytes, the latter among the former
}

// due reports whether it is time for another sample; most often it is not.
func (r *rush) due(now time.Time, rtt time.Duration) bool {
	return !r.over && now.Sub(r.began) >= max(rtt, minRound)
}

// Update takes a sample. It returns what the kernel is to pace at most, in bytes per
// second, and whether that is news.
func (r *rush) Update(now time.Time, s paceSample) (limit uint64, news bool) {
	switch s.gain {
	case rushGain:
	case 0, gainUnit: // nothing acknowledged yet; or it may measure the round trip, between two parts of its start
		return 0, false
	default:
		news, r.over, r.held = r.held, true, false
		return unpaced, news
	}
	r.began = now
	sent, lost := s.sent-r.sent, s.resent-r.resent
	if r.held {
		r.sent, r.resent = s.sent, s.resent
		if r.flat++; lost > sent/100 {
			r.flat = 0
		}
		if r.flat < rushCalm {
			return 0, false
		}
		r.held, r.flat, r.best = false, 0, s.bandwidth
		return unpaced, true
	}
	if s.bandwidth > 1.25*r.best {
		r.best, r.flat, r.sent, r.resent = s.bandwidth, 0, s.sent, s.resent
		return 0, false
	}
	r.flat++
	if r.flat < rushFlat || sent < rushBytes || float64(lost) < rushLoss*float64(sent) {
		return 0, false
	}
	r.held, r.flat, r.sent, r.resent = true, 0, s.sent, s.resent
	return uint64(s.bandwidth), true
}
