package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"stitch/tunnel/bench/far"
	"stitch/tunnel/control"
)

// Path is what a path shows to trains of datagrams, which know no congestion
// control: those of the link between its two UDP endpoints, one way.
type Path struct {
	// Rate is what the path took, in bits of IP packets a second.
	Rate float64 `json:"rate"`
	// Idle are round trips when nothing else is sent, Loaded while a train fills
	// nine tenths of Rate.
	Idle   Delay `json:"idle"`
	Loaded Delay `json:"loaded"`
	// Sent datagrams of that train, of which Received arrived; Jitter is that of
	// their arrivals (RFC 3550).
	Sent     uint64        `json:"sent"`
	Received uint64        `json:"received"`
	Jitter   time.Duration `json:"jitter_ns"`
	// Steps are the trains that Rate was found by.
	Steps []Step `json:"steps"`
	// WAN is what both edges put on the wire meanwhile.
	WAN uint64 `json:"wan_bytes"`
}

// Loss is the share of the train at nine tenths that did not arrive.
func (p Path) Loss() float64 {
	if p.Sent == 0 {
		return 0
	}
	return 1 - float64(min(p.Received, p.Sent))/float64(p.Sent)
}

// PacketRate is how many packets a second arrived at most.
type PacketRate struct {
	Carrier string `json:"carrier"`
	// Layer is 2 for Ethernet frames, 3 for IP packets; Size their length in bytes.
	Layer int     `json:"layer"`
	Size  int     `json:"size"`
	Rate  float64 `json:"rate"`
	Steps []Step  `json:"steps"`
}

// Step is one train of a search: rates are a second, of bits or of packets.
type Step struct {
	Sent float64 `json:"sent"`
	Got  float64 `json:"got"`
}

const (
	// stepLength is how long a train of a search is, queueWait how long the path's
	// queue may then take to empty.
	stepLength = 250 * time.Millisecond
	queueWait  = 400 * time.Millisecond
	// firstRate and maxRate of a search, in bit/s, and its most trains.
	firstRate = 16e6
	maxRate   = 20e9
	maxSteps  = 18
	// enough is the share of a train that must arrive at the rate it was sent at
	// for a faster one to be tried, kept the share of it that must have been sent
	// in time.
	enough = 0.85
	kept   = 0.8
	// fill is the share of the path's rate that the long train takes.
	fill = 0.9
	// smallSize is the length of packets of which it is counted how many cross.
	smallSize = 512
)

// search finds the rate from which on more no longer arrives: each train is twice
// as fast as the one before. A train that did not arrive is tried once more, since
// what was lost by chance, or sent too slowly by a busy machine, says little.
// Pure; the zero value begins.
type search struct {
	target float64
	failed bool // the last train
	best   float64
	steps  []Step
}

// next returns the rate to send at; false: the search is over.
func (s *search) next(first, most float64) (float64, bool) {
	n := len(s.steps)
	if n == 0 {
		s.target = min(first, most)
		return s.target, true
	}
	last := s.steps[n-1]
	bad := last.Got < enough*last.Sent || last.Sent < kept*s.target
	switch {
	case n == maxSteps, bad && s.failed, !bad && s.target >= most:
		return 0, false
	case !bad:
		s.target = min(2*s.target, most)
	}
	s.failed = bad
	return s.target, true
}

// took notes what became of a train.
func (s *search) took(st Step) {
	s.steps = append(s.steps, st)
	s.best = max(s.best, st.Got)
}

// stepOf makes a Step of a train of messages that are so large: what arrived is
// spread over the time from the first arrival to the last.
func stepOf(sent, received uint64, took, span time.Duration, size float64) Step {
	s := Step{Sent: float64(sent) * size / took.Seconds()}
	switch {
	case received > 10 && span > 0:
		s.Got = min(float64(received-1)*size/span.Seconds(), float64(received)*size/took.Seconds())
	default:
		s.Got = float64(received) * size / took.Seconds()
	}
	return s
}

// trains measures a link by its own datagrams.
type trains struct {
	link *control.Client // of its link process
	peer string
}

// find searches for the fastest train of messages of the given size; 0: the
// largest that cross whole. Rates are in bits of IP packets on the WAN, of which
// a message takes so many.
func (t trains) find(ctx context.Context, size int) (s search, bits float64, err error) {
	for {
		rate, more := s.next(firstRate, maxRate)
		if !more {
			return s, bits, nil
		}
		r, err := t.link.Train(ctx, control.Train{Peer: t.peer, Size: size, Rate: int64(rate), Length: stepLength})
		if err != nil {
			return s, 0, err
		}
		bits = float64(8 * r.WANSize)
		s.took(stepOf(r.Sent, r.Received, r.Took, r.Span, bits))
	}
}

// path measures the path.
func (t trains) path(ctx context.Context, length time.Duration) (*Path, error) {
	idle, err := t.link.Train(ctx, control.Train{Peer: t.peer, Length: length})
	if err != nil {
		return nil, err
	}
	s, _, err := t.find(ctx, 0)
	if err != nil {
		return nil, err
	}
	p := &Path{Rate: s.best, Idle: delayOf(idle.RTTs), Steps: s.steps}
	sleep(ctx, queueWait)
	r, err := t.link.Train(ctx, control.Train{Peer: t.peer, Rate: int64(fill * s.best), Length: length})
	if err != nil {
		return nil, err
	}
	p.Loaded, p.Sent, p.Received, p.Jitter = delayOf(r.RTTs), r.Sent, r.Received, r.Jitter
	return p, nil
}

// frames counts how many frames of a segment cross.
func (t trains) frames(ctx context.Context, carrier string) (PacketRate, error) {
	s, bits, err := t.find(ctx, smallSize)
	if err != nil {
		return PacketRate{}, err
	}
	r := PacketRate{Carrier: carrier, Layer: 2, Size: smallSize, Rate: s.best / bits}
	for _, st := range s.steps {
		r.Steps = append(r.Steps, Step{st.Sent / bits, st.Got / bits})
	}
	return r, nil
}

// counted is where packets are sent to be counted.
type counted struct {
	service func(context.Context) (conn, error)
	// dial connects to the port at which the far end counts.
	dial func(ctx context.Context, port uint16) (net.Conn, error)
}

// ipUDP is the length of the headers of a datagram.
const ipUDP = 28

// packets counts how many packets cross.
func packets(ctx context.Context, carrier string, layer int, c counted) (PacketRate, error) {
	var s search
	for {
		rate, more := s.next(firstRate/8/smallSize, maxRate/8/smallSize)
		if !more {
			return PacketRate{carrier, layer, smallSize, s.best, s.steps}, nil
		}
		st, err := c.step(ctx, rate)
		if err != nil {
			return PacketRate{}, fmt.Errorf("packets: %w", err)
		}
		s.took(st)
	}
}

// step sends one train, at so many packets a second.
func (c counted) step(ctx context.Context, rate float64) (Step, error) {
	ctl, err := c.service(ctx)
	if err != nil {
		return Step{}, err
	}
	defer ctl.Close()
	stop := context.AfterFunc(ctx, func() { abort(ctl) })
	defer stop()
	_ = ctl.SetDeadline(time.Now().Add(30 * time.Second))
	port, err := far.ReadPort(ctl)
	if err != nil {
		return Step{}, fmt.Errorf("the far end counts no packets: %w", err)
	}
	u, err := c.dial(ctx, port)
	if err != nil {
		return Step{}, err
	}
	defer u.Close()
	start := time.Now()
	sent := pace(ctx, u, rate)
	took := time.Since(start)
	sleep(ctx, queueWait)
	if err := ctl.CloseWrite(); err != nil {
		return Step{}, errors.Join(ctx.Err(), err)
	}
	got, span, err := far.ReadTally(ctl)
	if err != nil {
		return Step{}, errors.Join(ctx.Err(), err)
	}
	return stepOf(sent, got, took, span, 1), nil
}

// pace sends datagrams at a rate for the length of a step. What a full socket
// does not take counts as sent.
func pace(ctx context.Context, u net.Conn, rate float64) (sent uint64) {
	b := make([]byte, smallSize-ipUDP)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for start := time.Now(); ; {
		elapsed := time.Since(start)
		if elapsed >= stepLength || ctx.Err() != nil {
			return sent
		}
		// After a pause it catches up in bursts of 20 ms.
		due := uint64(rate * elapsed.Seconds())
		for n := min(due-min(sent, due), uint64(rate*0.02)+1); n > 0; n-- {
			if time.Since(start) >= stepLength {
				return sent
			}
			_, _ = u.Write(b)
			sent++
		}
		<-tick.C
	}
}
