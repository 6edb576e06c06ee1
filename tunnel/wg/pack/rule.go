package pack

import (
	"math"
	"time"

	"stitch/compress"
)

// unknownLoss is what is taken for the loss as long as it is not known.
const unknownLoss = 0.01

// Most returns how many datagrams a unit may take in place of n, at loss p; a
// negative p is not known.
func Most(n int, p float64) int {
	if p < 0 {
		p = unknownLoss
	}
	k := 3 * n / 4
	for k > 0 && float64(k) > float64(n)*math.Pow(1-p, float64(k-1)) {
		k--
	}
	return k
}

const (
	// share is the part of time that compressing may take, saved that may be
	// saved up.
	share = 4
	saved = 20 * time.Millisecond
	// firstRest is the first rest, each next is twice as long, up to longRest.
	firstRest, longRest = time.Second, 64 * time.Second
	// calm is how long S2 must take less than a share of idle for zstd to come
	// back, and how long after a rest all is forgiven.
	calm = 2 * time.Second
	idle = 12
)

// governor bounds the time spent on compressing by choosing the level. The zero
// value is not ready; times are from any fixed origin.
type governor struct {
	level  compress.Level // Balanced, Fast, or Store: it rests
	tokens time.Duration
	last   time.Duration
	rest   time.Duration // the next one
	until  time.Duration // of this one
	// Since begin, spent went into compressing.
	begin, spent time.Duration
	// past says that the history is used. It is the first thing to be given up:
	// until back, the next time for wait. It has been used since used.
	past             bool
	back, wait, used time.Duration
}

func newGovernor(now time.Duration) governor {
	return governor{level: compress.Balanced, tokens: saved, last: now, rest: firstRest, begin: now, wait: firstRest}
}

// at returns the level to compress with now; Store: not at all.
func (g *governor) at(now time.Duration) compress.Level {
	g.fill(now)
	switch period := now - g.begin; {
	case g.level == compress.Store && now >= g.until:
		g.enter(compress.Fast, now)
	case g.level == compress.Store || period < calm:
	case g.level == compress.Fast && g.spent < period/idle:
		g.enter(compress.Balanced, now)
	default: // it keeps up
		g.begin, g.spent, g.rest = now, 0, firstRest
	}
	return g.level
}

// fill adds the tokens of the time that passed.
func (g *governor) fill(now time.Duration) {
	g.tokens = min(g.tokens+(now-g.last)/share, saved)
	g.last = now
}

// usePast reports whether the history may be used now.
func (g *governor) usePast(now time.Duration) bool {
	g.fill(now)
	if !g.past && now >= g.back {
		g.past, g.used = true, now
	}
	if g.past && now-g.used >= calm {
		g.wait = firstRest
	}
	return g.past
}

// enter begins with a level.
func (g *governor) enter(l compress.Level, now time.Duration) {
	g.level, g.tokens, g.begin, g.spent = l, saved, now, 0
}

// took notes that compressing and the history took d, until now.
func (g *governor) took(d, now time.Duration) {
	g.tokens -= d
	g.spent += d
	if g.tokens > 0 {
		return
	}
	if g.past {
		g.past, g.back, g.tokens = false, now+g.wait, saved
		g.wait = min(2*g.wait, longRest)
		return
	}
	if g.level == compress.Balanced {
		g.enter(compress.Fast, now)
		return
	}
	g.level, g.until = compress.Store, now+g.rest
	g.rest = min(2*g.rest, longRest)
}
