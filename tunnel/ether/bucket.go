package ether

import "time"

// burst is how much of a second's frames may come at once.
const burst = time.Second / 5

// limiter is a token bucket for a number of events a second, kept as the time
// at which it would be empty of debt (GCRA). It is not safe for concurrent use.
type limiter struct{ every, debt time.Duration }

// newLimiter returns a limiter of perSecond events, defaultLimit if that is
// not positive.
func newLimiter(perSecond int) limiter {
	const defaultLimit = 500
	if perSecond <= 0 {
		perSecond = defaultLimit
	}
	return limiter{every: max(time.Second/time.Duration(perSecond), 1)}
}

// allow takes one event at now and reports whether it is within the limit.
func (l *limiter) allow(now time.Duration) bool { return l.allowN(now, 1) }

// allowN takes an event that counts for n. If n is more than a burst it is
// within the limit when there is no debt.
func (l *limiter) allowN(now time.Duration, n int) bool {
	cost := time.Duration(n) * l.every
	debt := max(l.debt, now) + cost
	if debt-now > max(burst, cost) {
		return false
	}
	l.debt = debt
	return true
}
