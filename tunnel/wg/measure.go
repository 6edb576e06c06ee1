package wg

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"stitch/tunnel/wg/carrier"
)

// A link measures its path by a train of datagrams of its own UDP flow, between
// its two UDP endpoints and encrypted as everything is: paced, without any
// congestion control, numbered by nobody but counted by the peer. They wait where
// frames wait, so packets of the TUN device keep their share of the link; the
// path they share with all others. Questions leave as control does, 50 a second;
// their answers give round trips, and what has arrived so far.

const (
	// measureKind is the first byte of a message of kind carrier.Bench.
	measureCar      = 1
	measureQuestion = 2
	measureAnswer   = 3
	// measureLen is the length of a question and of an answer: none makes the
	// peer send more than it got. It is the shortest car too.
	measureLen = 44
	// measureEvery is the pause between two questions, pacerTick that between two
	// looks at what is due, pacerBurst what may be made up for after a longer one.
	measureEvery = 20 * time.Millisecond
	pacerTick    = time.Millisecond
	pacerBurst   = 20 * time.Millisecond
	// measureSettle is how long the count must have stood still when a train is
	// over, measurePatience how long that may take.
	measureSettle   = 60 * time.Millisecond
	measurePatience = 4 * time.Second
	// maxMeasure and maxMeasureRate bound a train.
	maxMeasure     = 30 * time.Second
	maxMeasureRate = 40e9
	// wireOverhead is what WireGuard, UDP and IPv4 put around a packet.
	wireOverhead = 32 + 8 + 20
)

// ErrMeasure is wrapped by errors of Link.Measure about its arguments, or about
// what the peer cannot do.
var ErrMeasure = errors.New("measure")

// Train says what Link.Measure sends.
type Train struct {
	// Size is the length of a message in bytes, at least measureLen; 0: the
	// largest that crosses whole. Longer ones, up to 1514, cross in parts as a
	// frame would.
	Size int
	// Rate is in bits of IP packets on the WAN a second; 0: only questions.
	Rate int64
	// Length is how long it sends, at most 30 s.
	Length time.Duration
}

// TrainResult is what became of a Train.
type TrainResult struct {
	// Sent messages left here, of which Received arrived; WANSize is what each
	// takes on the WAN in bytes of IP packets.
	Sent     uint64
	Received uint64
	WANSize  int
	// Took is how long the sending took, Span the time between the first arrival
	// and the last, Jitter the mean difference of two transit times that follow
	// each other (RFC 3550).
	Took   time.Duration
	Span   time.Duration
	Jitter time.Duration
	// Asked and Answered are the questions while it was sent; RTTs are how long
	// the answers took, in the order they came.
	Asked    int
	Answered int
	RTTs     []time.Duration
}

// measureMsg is a message of kind carrier.Bench: kind u8, zero u24, run u64, at
// u64 (nanoseconds since the run began; an answer has its question's), and of an
// answer count u64, span u64 and jitter u64, in nanoseconds. What follows is
// padding. Other kinds are ignored.
type measureMsg struct {
	kind         uint8
	run, at      uint64
	count        uint64
	span, jitter uint64
}

// append appends the message, padded to size.
func (m measureMsg) append(b []byte, size int) []byte {
	start := len(b)
	b = append(b, m.kind, 0, 0, 0)
	for _, v := range [...]uint64{m.run, m.at, m.count, m.span, m.jitter} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	for len(b)-start < size {
		b = append(b, 0)
	}
	return b
}

func parseMeasure(b []byte) (m measureMsg, ok bool) {
	if len(b) < measureLen || b[0] < measureCar || b[0] > measureAnswer {
		return m, false
	}
	m.kind = b[0]
	for i, v := range [...]*uint64{&m.run, &m.at, &m.count, &m.span, &m.jitter} {
		*v = binary.BigEndian.Uint64(b[4+8*i:])
	}
	return m, true
}

// meter counts the newest train that arrives, in constant space. It is pure, and
// not safe for concurrent use.
type meter struct {
	run         uint64
	count       uint64
	first, last time.Time
	at          uint64 // of the last one
	jitter      float64
}

// receive takes in a car or a question; a question has an answer.
func (r *meter) receive(m measureMsg, now time.Time) (answer measureMsg, send bool) {
	if m.kind == measureQuestion {
		answer = measureMsg{kind: measureAnswer, run: m.run, at: m.at}
		if m.run == r.run {
			answer.count, answer.jitter = r.count, uint64(r.jitter)
			answer.span = uint64(max(r.last.Sub(r.first), 0))
		}
		return answer, true
	}
	if m.run != r.run || r.count == 0 {
		*r = meter{run: m.run, count: 1, first: now, last: now, at: m.at}
		return answer, false
	}
	// The differences are taken modulo 2^64: what the peer says may be anything.
	d := float64(now.Sub(r.last)) - float64(int64(m.at-r.at))
	r.jitter += (max(d, -d) - r.jitter) / 16
	r.count, r.last, r.at = r.count+1, now, m.at
	return answer, false
}

// pacer says how many messages are due. Pure.
type pacer struct {
	every float64 // nanoseconds between two
	due   float64 // messages, at last
	last  time.Time
}

func newPacer(rate int64, size int, now time.Time) pacer {
	return pacer{every: float64(size) * 8e9 / float64(rate), last: now}
}

// next returns how many are to be sent now. What could not be sent for longer
// than pacerBurst is not made up for.
func (p *pacer) next(now time.Time) int {
	p.due = min(p.due+float64(now.Sub(p.last))/p.every, float64(pacerBurst)/p.every+1)
	p.last = now
	n := int(p.due)
	p.due -= float64(n)
	return n
}

// measureRun is a train on its way, at its sender.
type measureRun struct {
	id      uint64
	began   time.Time
	asked   int
	over    bool // all sent
	result  TrainResult
	count   uint64
	changed time.Time // when the count last did
	after   bool      // an answer to a question asked when all was sent has come
	overAt  uint64
}

// answered takes in an answer.
func (r *measureRun) answered(m measureMsg, now time.Time) {
	at := time.Duration(min(m.at, uint64(maxMeasure+measurePatience)))
	if m.run != r.id || at > now.Sub(r.began) {
		return
	}
	if m.count != r.count || r.changed.IsZero() {
		r.count, r.changed = m.count, now
	}
	r.result.Received, r.result.Span, r.result.Jitter = m.count, time.Duration(m.span&(1<<62-1)), time.Duration(m.jitter&(1<<62-1))
	if r.over && m.at >= r.overAt {
		r.after = true
		return
	}
	if len(r.result.RTTs) < r.asked {
		r.result.Answered++
		r.result.RTTs = append(r.result.RTTs, now.Sub(r.began)-at)
	}
}

// settled reports whether nothing more is to come.
func (r *measureRun) settled(now time.Time) bool {
	return r.after && now.Sub(r.changed) >= measureSettle
}

// Measure sends a train to the peer and returns what arrived; one at a time.
// Wrong arguments and a peer that does not answer are ErrMeasure.
func (l *Link) Measure(ctx context.Context, t Train) (TrainResult, error) {
	inner := int(l.mux.inner.Load())
	switch {
	case l.cfg.Stock:
		return TrainResult{}, fmt.Errorf("%w: %s is a WireGuard without stitch: nobody counts there", ErrMeasure, l.cfg.Name)
	case t.Size != 0 && (t.Size < measureLen || t.Size > 1514), t.Rate < 0, t.Rate > maxMeasureRate, t.Length <= 0, t.Length > maxMeasure:
		return TrainResult{}, fmt.Errorf("%w: size %d, rate %d, length %v: use a size of 0 or %d to 1514, and at most %v at %.0g bit/s", ErrMeasure, t.Size, t.Rate, t.Length, measureLen, maxMeasure, maxMeasureRate)
	case l.currentState() != Up:
		return TrainResult{}, fmt.Errorf("%w: the link to %s is not up", ErrMeasure, l.cfg.Name)
	}
	if t.Size == 0 {
		t.Size = inner - carrier.HeaderLen
	}
	select {
	case l.measuring <- struct{}{}:
		defer func() { <-l.measuring }()
	default:
		return TrainResult{}, fmt.Errorf("%w: the link to %s is being measured: wait", ErrMeasure, l.cfg.Name)
	}
	r := &measureRun{began: time.Now()}
	r.result.WANSize = wanSize(t.Size, inner, l.info().endpoint)
	l.mu.Lock()
	l.lastRun++
	r.id = l.prober.instance + l.lastRun
	l.measured = r
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.measured = nil
	}()
	if err := l.sendTrain(ctx, t, r); err != nil {
		return TrainResult{}, err
	}
	return l.settle(ctx, r)
}

// wanSize is what a message takes on the WAN, in bytes of IP packets.
func wanSize(size, inner int, endpoint string) int {
	overhead := wireOverhead
	if a, err := netip.ParseAddrPort(endpoint); err == nil && a.Addr().Is6() {
		overhead += 20
	}
	parts, each := carrier.Split(size, inner)
	total := 0
	for range parts {
		n := min(each, size)
		size -= n
		total += min((carrier.HeaderLen+n+15)/16*16, inner) + overhead
	}
	return total
}

// sendTrain sends cars and questions for the length of the train.
func (l *Link) sendTrain(ctx context.Context, t Train, r *measureRun) error {
	tick := time.NewTicker(pacerTick)
	defer tick.Stop()
	var p pacer
	if t.Rate > 0 {
		p = newPacer(t.Rate, r.result.WANSize, r.began)
	}
	car := make([]byte, 0, t.Size)
	sent := uint64(0)
	var ask time.Time
	for now := r.began; now.Sub(r.began) < t.Length; now = time.Now() {
		if now.Sub(ask) >= measureEvery {
			ask = now
			l.ask(r, now)
		}
		due := 0
		if t.Rate > 0 {
			due = p.next(now)
		}
		for range due {
			m := measureMsg{kind: measureCar, run: r.id, at: uint64(time.Since(r.began))}
			if !l.mux.sendBench(m.append(car[:0], t.Size)) {
				continue // the link went down, or is stuck: what was not sent does not count
			}
			sent++
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r.over, r.result.Sent, r.result.Took = true, sent, time.Since(r.began)
	r.overAt = uint64(r.result.Took)
	return nil
}

// ask sends a question.
func (l *Link) ask(r *measureRun, now time.Time) {
	m := measureMsg{kind: measureQuestion, run: r.id, at: uint64(now.Sub(r.began))}
	if l.mux.sendControl(carrier.Bench, m.append(nil, measureLen)) {
		l.mu.Lock()
		defer l.mu.Unlock()
		r.asked++
		if !r.over {
			r.result.Asked++
		}
	}
}

// settle asks until all that is to arrive has arrived.
func (l *Link) settle(ctx context.Context, r *measureRun) (TrainResult, error) {
	tick := time.NewTicker(measureEvery)
	defer tick.Stop()
	for start := time.Now(); ; {
		now := time.Now()
		l.mu.Lock()
		done, heard := r.settled(now), r.after || r.result.Answered > 0
		res := r.result
		l.mu.Unlock()
		switch {
		case done, heard && now.Sub(start) >= measurePatience:
			return res, nil
		case now.Sub(start) >= measurePatience:
			return TrainResult{}, fmt.Errorf("%w: the agent of %s does not answer: it runs a release that cannot be measured, or the path is gone", ErrMeasure, l.cfg.Name)
		}
		l.ask(r, now)
		select {
		case <-ctx.Done():
			return TrainResult{}, ctx.Err()
		case <-tick.C:
		}
	}
}

// onBench counts a message of the peer's train, answers its question, or takes in
// the answer to ours.
func (l *Link) onBench(msg []byte, now time.Time) {
	m, ok := parseMeasure(msg)
	if !ok {
		l.count.dropForeign.Add(1)
		return
	}
	l.mu.Lock()
	var answer measureMsg
	send := false
	if m.kind != measureAnswer {
		answer, send = l.meter.receive(m, now)
	} else if l.measured != nil {
		l.measured.answered(m, now)
	}
	l.mu.Unlock()
	if send {
		l.mux.sendControl(carrier.Bench, answer.append(nil, measureLen))
	}
}
