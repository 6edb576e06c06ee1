package stream

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/divert"
)

const (
	etherHeader = 14
	// flowLinger is how long frames of a connection are given to the kernel after
	// its end: longer than TIME_WAIT.
	flowLinger = 65 * time.Second
)

// Segments is the seam towards the segments: the link process, which moves their
// frames, and the kernel's TCP in a namespace for each. All methods may be called
// concurrently.
type Segments interface {
	// Run calls h until ctx is done.
	Run(ctx context.Context, h SegmentHandler)
	// Add has the frames of a flow given to the kernel, and returns when they
	// are; Remove ends that.
	Add(ctx context.Context, f divert.Flow) error
	Remove(f divert.Flow)
	// Inject gives the kernel a frame; ToLAN sends one to a LAN as if peer had sent
	// it, ToPeer one to a peer. They borrow frame.
	Inject(segment uint16, frame []byte) error
	ToLAN(segment uint16, peer string, frame []byte) error
	ToPeer(segment uint16, peer string, frame []byte) error
	// Dial is Net.Dial within a segment; the flow must have been added.
	Dial(ctx context.Context, segment uint16, src, dst netip.AddrPort) (Conn, error)
}

// SegmentHandler is what Segments call; the methods do not block.
type SegmentHandler interface {
	// Flows are the connections that are split now.
	Flows() []divert.Flow
	// SYN takes a frame that a host of the LAN sent towards peer. It borrows frame.
	SYN(segment uint16, peer string, frame []byte)
	// Accepted takes a connection from the transparent listener of a segment.
	Accepted(segment uint16, c Conn)
	// Passed says that the SYN of a connection passed, as in divert.Handler.
	Passed(why byte, f divert.Flow)
	// Moved says that a host of a flow is elsewhere.
	Moved(f divert.Flow)
	// Failed says that a connection could not be accepted, and reports whether it
	// can be now.
	Failed(err error) bool
}

// hostMACs are those of the two hosts of a tuple; zero where they are not of a
// segment.
type hostMACs struct{ src, dst config.MAC }

// macsOf reads those of a client's frame.
func macsOf(t tuple, frame []byte) (m hostMACs) {
	if t.segment != 0 {
		m.dst, m.src = config.MAC(frame[0:6]), config.MAC(frame[6:12])
	}
	return m
}

// splitFlow is one end of a split connection of a segment.
type splitFlow struct {
	divert.Flow
	t     tuple
	ended time.Time // zero: it has not
}

// splitFlows are those whose frames the kernel gets. Safe for concurrent use.
type splitFlows struct {
	mu    sync.Mutex
	flows map[tuple]*splitFlow
}

// flowOf is the flow of a tuple: the near side has the client, the far side the
// server.
func flowOf(peer string, t tuple, m hostMACs, near bool) divert.Flow {
	f := divert.Flow{Segment: t.segment, Peer: peer, Local: t.src, Remote: t.dst, LocalMAC: m.src, RemoteMAC: m.dst}
	if !near {
		f.Local, f.Remote, f.LocalMAC, f.RemoteMAC = f.Remote, f.Local, f.RemoteMAC, f.LocalMAC
	}
	return f
}

// begin notes a flow and returns it for end.
func (s *splitFlows) begin(f divert.Flow, t tuple) *splitFlow {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flows == nil {
		s.flows = make(map[tuple]*splitFlow)
	}
	e := &splitFlow{Flow: f, t: t}
	s.flows[t] = e
	return e
}

// end notes that a flow has ended; nil: there was none. Another of the same tuple
// is not touched.
func (s *splitFlows) end(e *splitFlow, now time.Time) {
	if e == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.ended = now
}

// open reports whether the connection has not ended.
func (s *splitFlows) open(t tuple) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.flows[t]
	return e != nil && e.ended.IsZero()
}

// macs are those of the two hosts of a flow; near says which of them is here.
func (s *splitFlows) macs(t tuple, near bool) (src, dst config.MAC) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.flows[t]
	switch {
	case e == nil:
		return src, dst
	case near:
		return e.LocalMAC, e.RemoteMAC
	}
	return e.RemoteMAC, e.LocalMAC
}

// expire forgets and returns what ended long ago.
func (s *splitFlows) expire(now time.Time) (past []divert.Flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t, e := range s.flows {
		if !e.ended.IsZero() && now.Sub(e.ended) >= flowLinger {
			past = append(past, e.Flow)
			delete(s.flows, t)
		}
	}
	return past
}

// all returns them.
func (s *splitFlows) all() (out []divert.Flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.flows {
		out = append(out, e.Flow)
	}
	return out
}

// segmentIntake is what the segments call.
type segmentIntake struct {
	*Proxy
	ctx context.Context
}

// Flows implements SegmentHandler.
func (s segmentIntake) Flows() []divert.Flow { return s.split.all() }

// SYN implements SegmentHandler.
func (s segmentIntake) SYN(segment uint16, peer string, frame []byte) {
	s.holding.Lock()
	defer s.holding.Unlock()
	if len(frame) < etherHeader {
		return
	}
	parsed, err := parseSYN(frame[etherHeader:])
	parsed.segment = segment
	rule, ok := s.policy.ruleTo(peer, parsed.tuple)
	switch {
	case err != nil || !ok: // the link process, or the host, is mistaken
		s.mu.Lock()
		s.malformed++
		s.mu.Unlock()
		if err := s.cfg.Segments.ToPeer(segment, peer, frame); err != nil {
			s.log.Debug("pass", "segment", segment, "err", err)
		}
	case s.split.open(parsed.tuple): // the client has forgotten it: its kernel will say so to ours
		s.inject(parsed.tuple, frame)
	default:
		s.hold(s.ctx, parsed, rule, frame)
	}
}

// Accepted implements SegmentHandler.
func (s segmentIntake) Accepted(segment uint16, c Conn) {
	s.accepted(s.ctx, tuple{src: addrPort(c.RemoteAddr()), dst: addrPort(c.LocalAddr()), segment: segment}, c)
}

// Failed implements SegmentHandler.
func (s segmentIntake) Failed(err error) bool { return s.acceptFailed(err) }

// Passed implements SegmentHandler.
func (s segmentIntake) Passed(why byte, f divert.Flow) {
	t := tuple{src: f.Local, dst: f.Remote, segment: f.Segment}
	s.passedFrames.note(f.Peer, t, s.policy.whyFrames(f.Peer, t, why), time.Now())
}

// whyFrames says why a connection that a rule is about passed.
func (p *policy) whyFrames(peer string, t tuple, why byte) Reason {
	rule, _ := p.covers(t.segment, peer, t.dst)
	switch {
	case why == divert.PassedTagged:
		return Tagged
	case p.mobile[t.src.Addr()] || p.mobile[t.dst.Addr()]:
		return Mobile
	case rule.Optimize == config.Off:
		return RuleOff
	case why == divert.PassedCrowded:
		return TooManyHeld
	}
	return NotNeighbours
}

// Moved implements SegmentHandler.
func (s segmentIntake) Moved(f divert.Flow) {
	s.log.Warn("a host of a split connection has moved: it is reset", "segment", f.Segment, "local", f.Local, "remote", f.Remote)
	q := s.byName[f.Peer]
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, d := range q.domains {
		for r := range d.relays {
			if t := r.tuple; t.segment == f.Segment && (t.src == f.Local && t.dst == f.Remote || t.src == f.Remote && t.dst == f.Local) {
				s.spawn(func() { r.abort(true) })
			}
		}
	}
}

// errNoSegments is returned for a connection within a segment by an agent that
// has none.
var errNoSegments = errors.New("stream: no segments here")

// divert has the frames of a connection given to the kernel; a routed one needs
// nothing, and gives nil.
func (p *Proxy) divert(ctx context.Context, peer string, t tuple, m hostMACs, near bool) (*splitFlow, error) {
	if t.segment == 0 {
		return nil, nil
	}
	if p.cfg.Segments == nil {
		return nil, errNoSegments
	}
	e := p.split.begin(flowOf(peer, t, m, near), t)
	if err := p.cfg.Segments.Add(ctx, e.Flow); err != nil {
		p.split.end(e, time.Now().Add(-flowLinger))
		return nil, err
	}
	return e, nil
}
