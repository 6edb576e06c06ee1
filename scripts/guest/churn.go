package main

import (
	"context"
	"sync/atomic"
	"time"
)

const (
	editsPerSecond = 1000
	freshPerSecond = 64 << 10
	churnTick      = 10 * time.Millisecond
	// maxCatchUp bounds what is made up for after a pause: a guest that was
	// stopped does not do the work of that time all at once.
	maxCatchUp = 50 * time.Millisecond
)

// churn changes the memory as a running application does: small edits all over
// the data, and fresh random bytes that go round the random part.
type churn struct {
	m            *memory
	r            *random
	at           int
	edits, fresh float64 // owed
	Pages, Bytes atomic.Uint64
}

func newChurn(m *memory) *churn {
	return &churn{m: m, r: newRandom(99)}
}

// run changes memory until ctx is done.
func (c *churn) run(ctx context.Context) {
	tick := time.NewTicker(churnTick)
	defer tick.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			c.step(max(0, min(now.Sub(last), maxCatchUp)))
			last = now
		}
	}
}

// step does the work of d.
func (c *churn) step(d time.Duration) {
	for c.edits += d.Seconds() * editsPerSecond; c.edits >= 1; c.edits-- {
		c.edit()
	}
	c.fresh += d.Seconds() * freshPerSecond
	n := min(int(c.fresh), len(c.m.random)-c.at)
	c.r.fill(c.m.random[c.at : c.at+n])
	c.at = (c.at + n) % len(c.m.random)
	c.fresh -= float64(n)
	c.Bytes.Add(uint64(n))
}

// edit overwrites 8 to 64 bytes within one page, chosen from all the data.
func (c *churn) edit() {
	p := c.r.below(len(c.m.all) / page)
	n := 8 + c.r.below(57)
	at := p*page + c.r.below(page-n)
	c.r.fill(c.m.all[at : at+n])
	c.Pages.Add(1)
}
