package wg

import "time"

const (
	// maxInFlight is the most packets inside wireguard-go on their way out:
	// its buffers are 64 KiB each and its pools have no bound of their own, so
	// this is at most 64 MiB a link.
	maxInFlight = 1024
	// creditTimeout is how long nothing may come out before what is inside is
	// taken for lost: wireguard-go drops staged packets without a word.
	creditTimeout = time.Second
)

// credit counts the packets that went in and did not come out yet. It is not
// safe for concurrent use.
type credit struct {
	inside int
	moved  time.Time // when a packet last came out, or the first went in
}

// room returns how many packets may go in at now.
func (c *credit) room(now time.Time) int {
	if c.inside >= maxInFlight && now.Sub(c.moved) >= creditTimeout {
		c.inside = 0
	}
	return max(maxInFlight-c.inside, 0)
}

// enter counts n packets that go in.
func (c *credit) enter(n int, now time.Time) {
	if c.inside == 0 {
		c.moved = now
	}
	c.inside += n
}

// leave counts n packets that came out, and reports whether that made room
// where there was none.
func (c *credit) leave(n int, now time.Time) bool {
	full := c.inside >= maxInFlight
	c.inside = max(c.inside-n, 0)
	c.moved = now
	return full && c.inside < maxInFlight
}
