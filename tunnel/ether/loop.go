package ether

import (
	"fmt"
	"time"
)

const (
	// probeEvery is how often a probe goes into the LAN.
	probeEvery = 300 * time.Millisecond
	// yieldWithin is how long another agent that is to block may go on.
	yieldWithin = 3*probeEvery - probeEvery/3
	// loopOver is how long no probe may have been seen for the loop to be over.
	loopOver = 5 * time.Second
	// probeVLANs is how many VLANs are probed at a time, in turn.
	probeVLANs = 64
)

// guard finds loops: a second way between LANs that a segment joins. Every
// agent puts probes into its LAN, and no segment carries them. So a probe of
// our own that comes back shows a loop within the LAN, and a probe of another
// agent shows that its LAN and ours are joined without us. Then one of the two
// has to block its segment: the one with the greater id, at once. The other
// one follows if that does not happen soon, as when it hears us not. What
// agents carry on other layers is not touched.
//
// A host that sends a probe back makes a loop, or cannot be told from one.
// guard is pure and not safe for concurrent use.
type guard struct {
	id      uint64
	vlans   []uint16 // carried besides the untagged network
	turn    int      // of vlans
	next    time.Duration
	blocked bool
	since   time.Duration
	last    time.Duration // when a probe was last heard that asks us to block
	// doubt and doubted are the first and the last time that a greater id was
	// heard that did not block, without a pause between.
	doubt, doubted time.Duration
	loops          uint64
	cause          Loop
}

// Loop says why a segment is blocked.
type Loop struct {
	// Segment is that of the probe, Own whether it was this port's.
	Segment uint16 `json:"segment"`
	Own     bool   `json:"own"`
}

// String says what was seen.
func (l *Loop) String() string {
	if l.Own {
		return "this edge's own probe came back from the LAN"
	}
	return fmt.Sprintf("a probe of another edge (segment %d) came from the LAN", l.Segment)
}

// Loop returns why the segment is blocked, nil if it is not.
func (s *Switch) Loop() *Loop {
	if !s.agents.loop.blocked {
		return nil
	}
	cause := s.agents.loop.cause
	return &cause
}

// tick reports whether probes are due, and ends the block when the loop is
// over.
func (g *guard) tick(now time.Duration) (probe bool) {
	if g.blocked && now-g.last >= loopOver {
		g.blocked = false
	}
	if now < g.next {
		return false
	}
	g.next = now + probeEvery
	return true
}

// appendProbes appends the probes of now.
func (g *guard) appendProbes(dst []Outgoing, segment uint16) []Outgoing {
	m := agentMsg{kind: msgProbe, segment: segment, id: g.id}
	if g.blocked {
		m.flags = flagBlocked
	}
	dst = append(dst, Outgoing{Local, m.appendFrame(nil, 0)})
	for range min(probeVLANs, len(g.vlans)) {
		dst = append(dst, Outgoing{Local, m.appendFrame(nil, g.vlans[g.turn])})
		g.turn = (g.turn + 1) % len(g.vlans)
	}
	return dst
}

// heard takes a probe from the LAN and reports whether it begins a block.
func (g *guard) heard(now time.Duration, id uint64, segment uint16, yields bool) (began bool) {
	if id > g.id {
		switch {
		case yields:
			return false
		case g.doubted == 0 || now-g.doubted > yieldWithin:
			g.doubt = now
		}
		if g.doubted = now; now-g.doubt < yieldWithin {
			return false
		}
	}
	g.last = now
	if g.blocked {
		return false
	}
	g.blocked, g.since, g.cause = true, now, Loop{Segment: segment, Own: id == g.id}
	g.loops++
	return true
}
