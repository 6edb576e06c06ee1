package main

import (
	"time"

	"stitch/tunnel/hypervisor"
)

const (
	// patience is how many rounds, and how long, may pass in which a hypervisor
	// comes no closer to the end.
	patience     = 4
	patienceTime = 40 * time.Second
	// closer is what a round must leave of the least left before to count.
	closer = 0.95
)

// outlook tells whether a move will ever end, from what the hypervisor says: every
// round begins with the pages that were written to in the one before, and a move in
// which those do not get fewer goes on for ever. Pure; the zero value is ready.
type outlook struct {
	round, since int64     // the last, and the one that came closest
	least        int64     // bytes that were left when that began
	at           time.Time // when it did
}

// hopeless takes what the hypervisor says of its memory at a time.
func (o *outlook) hopeless(now time.Time, m hypervisor.RAM) bool {
	if m.Rounds > o.round {
		o.round = m.Rounds
		if o.least == 0 || float64(m.Remaining) < closer*float64(o.least) {
			o.since, o.least, o.at = m.Rounds, m.Remaining, now
		}
	}
	return m.Rounds-o.since >= patience && now.Sub(o.at) >= patienceTime
}
