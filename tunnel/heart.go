package tunnel

import (
	"context"
	"time"
)

// beatEvery is the time between two beats of a plane.
const beatEvery = time.Second

// heart beats as long as its plane lives. It keeps no time of its own: a plane
// that hangs keeps prove from returning, and whoever counts the beats sees that.
type heart struct {
	// prove returns once every loop that the plane cannot do without has shown
	// that it goes on.
	prove func()
	beat  func()
}

// Run implements Runner.
func (h heart) Run(ctx context.Context) error {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		h.prove()
		h.beat()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// prove proves that links and segments go on: what reads and writes their
// devices takes the same locks as their statistics.
func (p *linkPlane) prove() {
	for _, s := range p.links {
		if l := s.link.Load(); l != nil {
			l.Stats()
		}
	}
	for _, s := range p.segments {
		s.port.Stats()
	}
	if p.divert != nil {
		p.divert.Stats()
	}
}
