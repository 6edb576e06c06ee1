package wg

import (
	"context"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev"
	"stitch/tunnel/wg/carrier"
	"stitch/tunnel/wg/pack/history"
	"stitch/tunnel/wg/quality"
)

const (
	// kickInterval is how often a link that is not up asks for a handshake;
	// wireguard-go makes one in five seconds at most.
	kickInterval = time.Second
	// stockPoll is how often a stock peer's last handshake is looked at.
	stockPoll = 200 * time.Millisecond
	// rebindAfter is how long a link that is not up and whose socket fails
	// keeps that socket.
	rebindAfter = 10 * time.Second
	// endpointInterval is how often the endpoint of a link that is not up is
	// looked up and set again.
	endpointInterval = 10 * time.Second
	maxLookupWait    = 30 * time.Second
	// fitInterval is how soon after the last time the TUN's MTU is set to what
	// it should be already.
	fitInterval = time.Second
)

// run is the link's clock: probes, state, rebinding, and the only goroutine
// that calls OnState.
func (l *Link) run(ctx context.Context) {
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	told := Connecting
	var kicked, polled time.Time
	rates := classRates{at: time.Now()}
	rebind := rebinder{last: time.Now()}
	fit := fitter{mtu: config.TUNMTU(l.cfg.InnerMTU, l.cfg.Stock)}
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.edge:
		case <-ticker.C:
			l.mux.tick()
			now := time.Now()
			rates.tick(l.mux.classes, now)
			if l.cfg.Stock {
				if now.Sub(polled) >= stockPoll {
					polled = now
					l.pollStock(now)
				}
			} else {
				// Not in one tick: the two would leave together.
				if !l.probe(now) && !l.probeSize(now) {
					l.train(now)
				}
			}
			mtu := config.TUNMTU(int(l.mux.inner.Load()), l.cfg.Stock)
			if why := fit.due(mtu, l.count.dropTooBig.Load(), now); why != "" {
				l.fitTUN(mtu, why)
			}
			if l.currentState() != Up && l.probing.Load() && now.Sub(kicked) >= kickInterval {
				kicked = now
				l.kick()
			}
			if rebind.due(l.currentState(), l.count.receiveErrors.Load(), now) {
				rebind.failed = !l.rebind()
			}
		}
		if s := l.currentState(); s != told {
			told = s
			if l.cfg.OnState != nil {
				l.cfg.OnState(s)
			}
		}
	}
}

func (l *Link) currentState() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// probe sends a probe when one is due, and reports whether it was.
func (l *Link) probe(now time.Time) (sent bool) {
	if !l.probing.Load() {
		return false
	}
	l.mu.Lock()
	request, send := l.prober.tick(now)
	l.setState(l.prober.state, now)
	l.judge()
	l.mu.Unlock()
	if send {
		var b [probeLen + 1]byte
		l.mux.sendControl(carrier.Probe, request.append(b[:0]))
	}
	return send
}

// judge takes note of the link's quality and logs what changes while it is up;
// l.mu is held.
func (l *Link) judge() {
	q := l.prober.judge(l.count.rxWire.Load(), l.count.txWire.Load())
	switch before := l.quality.Health; {
	case q.Health == before, before == "":
	case q.Health == quality.Degraded, q.Health == quality.OneWay:
		l.log.Warn("link is "+string(q.Health), "reason", q.Reason)
	case before == quality.Degraded && q.Health == quality.Good:
		l.log.Info("link is good again")
	}
	l.quality = q
	l.mux.packing.setLoss(q.LossOut)
}

// onProbe answers a probe of the peer, or takes in the answer to ours.
func (l *Link) onProbe(msg []byte, now time.Time) {
	if m, ok := parseTrain(msg); ok {
		l.onTrain(m, now)
		return
	}
	if m, ok := parseSize(msg); ok {
		l.onSize(m, now)
		return
	}
	if m, ok := parseGauge(msg); ok {
		l.onGauge(m)
		return
	}
	if m, ok := history.ParseReport(msg); ok {
		l.mux.past.onReport(m)
		return
	}
	if len(msg) > 0 && msg[0] == filler {
		return
	}
	in, ok := parseProbe(msg)
	if !ok {
		l.count.dropForeign.Add(1)
		return
	}
	l.probing.Store(true)
	l.mu.Lock()
	echo, send := l.prober.receive(in, now)
	l.setState(l.prober.state, now)
	rtt := l.prober.srtt
	l.mux.packing.taken.Store(l.prober.taken&featureUnits != 0)
	l.mux.past.taken.Store(l.prober.taken&featureHistory != 0)
	l.mu.Unlock()
	if in.echo {
		l.bind.setRTT(rtt)
	}
	if send {
		var b [probeLen + 1]byte
		l.mux.sendControl(carrier.Probe, echo.append(b[:0]))
	}
}

// onSize answers a probe of a size, or takes in the answer to ours.
func (l *Link) onSize(m sizeMsg, now time.Time) {
	if !m.answer {
		m.answer = true
		l.mux.sendControl(carrier.Probe, m.append(nil))
		return
	}
	l.mu.Lock()
	l.pathMTU.answered(m, now)
	l.mu.Unlock()
}

// probeSize sends a probe of a size when one is due, reports whether it was,
// and obeys what was found out.
func (l *Link) probeSize(now time.Time) (sent bool) {
	l.mu.Lock()
	var m sizeMsg
	if l.state == Up {
		m, sent = l.pathMTU.tick(now, l.prober.srtt)
	}
	size := l.pathMTU.size
	l.mu.Unlock()
	if before := int(l.mux.inner.Load()); size != before {
		l.log.Info("largest packet that gets through", "bytes", size, "before", before, "configured", l.cfg.InnerMTU)
		l.mux.setMTU(size)
	}
	if sent {
		l.mux.sendProbes(m.append(nil), 1)
	}
	return sent
}

// onTrain takes in a message about trains.
func (l *Link) onTrain(m trainMsg, now time.Time) {
	l.mu.Lock()
	reply, send := l.platform.receive(m)
	if m.kind == answer {
		l.trainer.answered(m, now)
	}
	harmful, deaf := l.trainer.harmful, l.platform.judge.harmful()
	l.mu.Unlock()
	if send {
		l.mux.sendControl(carrier.Probe, reply.append(nil))
	}
	if deaf && l.bind.unmerge() {
		l.log.Warn("datagrams that the peer sends in one call get lost on the way, one at a time they do not: " +
			"receiving them one at a time from now on, which is slower; the kernel's UDP receive offload or the network card's may be broken")
	}
	if harmful && !l.bind.apart.Swap(true) {
		l.log.Warn("datagrams that leave in one call get lost on the way, one at a time they do not: sending them one at a time from now on, which is slower; " +
			"the kernel's UDP segmentation offload or the network card's is broken")
	}
}

// train sends what the trainer has to send.
func (l *Link) train(now time.Time) {
	l.mu.Lock()
	if l.state == Up && l.trainer.idle(now) && l.quality.RateOut < calm {
		l.trainer.start(now)
	}
	cars, ask := l.trainer.tick(now)
	m := trainMsg{kind: car, id: l.trainer.id}
	if l.trainer.single {
		m.count = 1
	}
	l.mu.Unlock()
	if ask {
		m.kind, cars = question, 1
	}
	if cars > 0 {
		l.mux.sendProbes(m.append(nil), cars)
	}
}

func (l *Link) onFrames(segment uint16, frames [][]byte) {
	if l.cfg.OnFrames == nil {
		l.count.dropUnclaimed.Add(uint64(len(frames)))
		return
	}
	l.cfg.OnFrames(segment, frames)
}

func (l *Link) onControl(msg []byte) {
	l.count.rxControl.Add(1)
	if l.cfg.OnControl == nil {
		l.count.dropUnclaimed.Add(1)
		return
	}
	l.cfg.OnControl(msg)
}

// setState moves to a state; l.mu is held.
func (l *Link) setState(s State, now time.Time) {
	if s == l.state {
		return
	}
	l.log.Info("link "+string(s), "before", string(l.state), "for", now.Sub(l.since).Round(time.Millisecond))
	l.state, l.since = s, now
	if s == Up && !l.cfg.Stock && !l.cfg.Apart {
		l.trainer.start(now)
	}
	if s == Up && !l.cfg.Stock {
		l.pathMTU.start(now)
	}
	l.mux.setUp(s == Up)
	select {
	case l.edge <- struct{}{}:
	default:
	}
}

// kick makes wireguard-go initiate a handshake, unless it did so in the last
// five seconds. The session there may be stays in use: after a blackout it is
// still good; after a restart of the peer only a new one helps, and by itself
// wireguard-go would ask for it after 15 s.
func (l *Link) kick() {
	// An error is logged by wireguard-go, and the next kick follows.
	_ = l.peer.SendHandshakeInitiation(false)
}

// pollStock takes the state of a link to a stock peer from its last handshake.
func (l *Link) pollStock(now time.Time) {
	last := l.info().handshake
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !last.IsZero() && now.Sub(last) < device.RejectAfterTime:
		l.setState(Up, now)
	case l.state == Up:
		l.setState(Down, now)
	}
}

func (l *Link) info() peerInfo {
	text, err := l.dev.IpcGet()
	if err != nil {
		return peerInfo{}
	}
	return parseInfo(text)
}

// fitter decides when to set the MTU of the TUN device.
type fitter struct {
	mtu  int       // as set
	drop uint64    // packets that were too big when it was
	last time.Time // when that was
}

// due returns why to set mtu, "" if there is no reason to: what the link carries
// has changed, or packets came in that it does not carry, so somebody else has. A
// lower one is left to whoever set it.
func (f *fitter) due(mtu int, drop uint64, now time.Time) (why string) {
	switch {
	case mtu != f.mtu:
		why = "what the link carries has changed"
	case drop != f.drop && now.Sub(f.last) >= fitInterval:
		why = "packets came in that the link does not carry"
	default:
		return ""
	}
	f.mtu, f.drop, f.last = mtu, drop, now
	return why
}

// fitTUN sets the MTU of the TUN device. That is all there is to "packet too
// big": the kernel, which routes what comes to the device, knows the MTU by it,
// fragments where it may, and else tells the sender.
func (l *Link) fitTUN(mtu int, why string) {
	d, ok := l.cfg.TUN.(netdev.Sizer)
	if !ok {
		return
	}
	if err := d.SetMTU(mtu); err != nil {
		l.log.Warn("packets that are too big are dropped without an answer", "err", err)
		return
	}
	l.log.Info("MTU of the TUN device set", "device", l.cfg.TUN.Name(), "bytes", mtu, "because", why)
}

// rebinder decides when to open the socket anew.
type rebinder struct {
	last   time.Time // when it was last good, or opened
	errors uint64    // receive errors then
	failed bool      // the last attempt to open it
}

// due reports whether the socket has been failing for long enough.
func (r *rebinder) due(s State, errors uint64, now time.Time) bool {
	if s != Up && now.Sub(r.last) < rebindAfter {
		return false
	}
	due := s != Up && (errors > r.errors || r.failed)
	r.last, r.errors = now, errors
	return due
}

// rebind opens the UDP socket anew and reports whether that worked.
func (l *Link) rebind() bool {
	l.count.rebinds.Add(1)
	err := l.dev.BindUpdate()
	if err != nil {
		l.log.Warn("opening the UDP socket anew failed, trying again", "err", err)
	}
	return err == nil
}

// followEndpoint looks the endpoint's host up until that succeeds, and, while
// the link is not up, again and again: the peer may have moved, or we may have
// followed it to where it no longer is.
func (l *Link) followEndpoint(ctx context.Context, host string, port uint16, known bool) {
	for try := 0; ; try++ {
		wait := endpointInterval
		if !known {
			if known = l.updateEndpoint(ctx, host, port, try); !known {
				wait = min(time.Second<<min(try, 5), maxLookupWait)
			}
		} else if l.currentState() != Up {
			l.updateEndpoint(ctx, host, port, try)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// updateEndpoint looks host up and sets the endpoint to its try-th address.
func (l *Link) updateEndpoint(ctx context.Context, host string, port uint16, try int) bool {
	var addrs []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{a}
	} else if addrs, err = l.cfg.Resolver.LookupNetIP(ctx, "ip", host); err != nil || len(addrs) == 0 {
		if ctx.Err() == nil {
			l.log.Warn("looking up the peer's endpoint failed, trying again", "host", host, "err", err)
		}
		return false
	}
	endpoint := netip.AddrPortFrom(addrs[try%len(addrs)].Unmap(), port).String()
	if l.info().endpoint != endpoint {
		if err := l.dev.IpcSet(uapiEndpoint(l.cfg.PublicKey, endpoint)); err != nil {
			l.log.Warn("setting the peer's endpoint failed", "endpoint", endpoint, "err", err)
			return false
		}
	}
	l.probing.Store(true)
	return true
}
