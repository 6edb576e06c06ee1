package wg

import (
	"context"
	"encoding/binary"
	"time"

	"stitch/tunnel/wg/carrier"
	"stitch/tunnel/wg/govern"
)

// A link without a configured rate learns one (package govern) from gauges:
// messages that leave ahead of everything, often while much is sent, and that the
// peer answers at once.

const (
	// gaugeOften is how often a gauge is sent at most while much is sent, gaugeIdle
	// while not, gaugeLook how often that is looked at.
	gaugeOften = 20 * time.Millisecond
	gaugeLook  = 50 * time.Millisecond
	gaugeIdle  = time.Second
	// gaugeBusy is what is much, in bytes a second, and gaugeLinger how long it
	// counts after it was.
	gaugeBusy   = 32 << 10
	gaugeLinger = 500 * time.Millisecond
	// Gauges are gaugeShare of what is sent at most.
	gaugeShare = 0.01
	// gaugeLen is the length of a gauge and of its answer: none makes the peer
	// send more than it got.
	gaugeLen = 33
)

// gauge is a probe of further types: type u8 (8 gauge, 9 answer; 10 is filler), then u64 each:
// sent, when it was made by the sender's clock; and of an answer, else zero: counter, the nonce
// counter of the datagram that the gauge was in; arrived and rx, when that had
// arrived by the receiver's clock and how many bytes had. Clocks count nanoseconds
// from any instant, bytes are those of IP packets on the WAN. By its counter the sender knows
// when the datagram had left, and after how many bytes.
type gauge struct {
	answer                     bool
	sent, counter, arrived, rx uint64
}

func (m gauge) append(b []byte) []byte {
	kind := byte(8)
	if m.answer {
		kind = 9
	}
	b = append(b, kind)
	for _, n := range [...]uint64{m.sent, m.counter, m.arrived, m.rx} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}

func parseGauge(b []byte) (gauge, bool) {
	if len(b) < gaugeLen || b[0] != 8 && b[0] != 9 {
		return gauge{}, false
	}
	n := func(i int) uint64 { return binary.BigEndian.Uint64(b[1+8*i:]) }
	return gauge{b[0] == 9, n(0), n(1), n(2), n(3)}, true
}

// govern sends gauges until ctx ends.
func (l *Link) govern(ctx context.Context) {
	t := time.NewTimer(0)
	defer t.Stop()
	var p pacing
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := time.Since(l.opened)
		due, again := p.due(now, l.bind.onWire(l.count.txWire.Load(), l.count.txDatagrams.Load()))
		t.Reset(again)
		l.mu.Lock()
		ready := l.state == Up && l.prober.understood&featureGauges != 0
		first := ready && l.governor.Fresh() && now >= p.busy && l.starter.due(now)
		if l.measured != nil { // a train that knows no rate
			l.governor, ready = govern.Governor{}, false
			l.mux.learned.Store(0)
		}
		l.mu.Unlock()
		switch {
		case !ready:
		case first:
			l.mux.sendAll(l.starter.train(now))
		case due:
			l.mux.sendControl(carrier.Probe, gauge{sent: uint64(now)}.append(nil))
		}
	}
}

// wireGuardLen is what WireGuard adds to a packet.
const wireGuardLen = 32

// onGauge answers a gauge of the peer, or takes in the answer to ours. It is called by
// Write's goroutine.
func (l *Link) onGauge(m gauge) {
	now := time.Since(l.opened)
	if !m.answer {
		m.answer, m.counter = true, l.mux.inbox.counter
		if p, ok := l.bind.got.find(m.counter); ok {
			m.arrived, m.rx = uint64(p.at), p.bytes
			l.mux.sendControl(carrier.Probe, m.append(nil))
		}
		return
	}
	if time.Duration(m.sent) > now || !l.cfg.Learn {
		return // not ours: a process before this one had the link
	}
	p, ok := l.bind.went.find(m.counter)
	if !ok || p.at+time.Microsecond < time.Duration(m.sent) || p.at > now { // sent may be the next number
		return // it was of another session
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.governor.Rate()
	if rate, taken := l.starter.answered(m); rate > 0 {
		l.governor.Start(now, rate)
	} else if !taken {
		l.governor.Answer(govern.Answer{Sent: p.at, Arrived: time.Duration(m.arrived), Back: now, Tx: p.bytes, Rx: m.rx})
	}
	after := l.governor.Rate()
	l.mux.learned.Store(after)
	if (before == 0) != (after == 0) {
		l.log.Debug("rate of the link", "learned", after, "queue", l.governor.Queue())
	}
}

// pacing decides when gauges are due. It is pure.
type pacing struct {
	at, last, busy time.Duration // of the last look, the last gauge, the last time that much was sent
	tx             uint64        // sent until at
}

// due takes how many bytes have left until now, and returns whether a gauge is due
// and when to ask again.
func (p *pacing) due(now time.Duration, tx uint64) (due bool, again time.Duration) {
	took := max(now-p.at, time.Millisecond)
	rate := float64(tx-p.tx) / took.Seconds()
	p.at, p.tx = now, tx
	if rate >= gaugeBusy {
		p.busy = now + gaugeLinger
	}
	every, again := gaugeIdle, gaugeLook
	if now < p.busy {
		const size = gaugeLen + 100 // with all headers
		every = time.Duration(size / (gaugeShare * max(rate, gaugeBusy)) * float64(time.Second))
		every = max(every, gaugeOften)
		again = gaugeOften
	}
	if now-p.last < every-time.Millisecond {
		return false, again
	}
	p.last = now
	return true, again
}
