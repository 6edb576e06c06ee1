package stream

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev"
)

const (
	// maxStreams is Config.MaxStreams if nothing is said.
	maxStreams = 16384
	// spareDescriptors are those for everything but streams: histories, links,
	// handshakes in progress, the control socket.
	spareDescriptors = 1024
	// expireEvery is how often the hold table forgets what is too old.
	expireEvery = time.Second
)

// Config is what a Proxy is made from.
type Config struct {
	// Site is this site's name.
	Site string
	// Cfg gives the stream rules, the dial rules, the peers' subnets, the
	// workloads (never split) and the size of the history. Borrowed for good.
	Cfg *config.Config
	// Links are the links to agent peers (not stock ones).
	Links []Link
	// Net is the kernel or a fake of it.
	Net Net
	// Segments leads to the hosts of stretched segments; nil: there are none
	// whose connections are split.
	Segments Segments
	// MaxStreams is how many streams the Proxy carries at most, near and far
	// together and those being opened. Above it new connections pass as packets,
	// until a 32nd of them has ended. 0 means 16384, or fewer if there are not
	// two descriptors for each.
	MaxStreams int
	// Rand gives the nonces; nil means crypto/rand.
	Rand io.Reader
	// Log may be nil: nothing is logged.
	Log *slog.Logger
}

// Proxy is one site's stream plane. Its methods are safe for concurrent use.
type Proxy struct {
	cfg     Config
	log     *slog.Logger
	policy  *policy
	peers   []*peer
	byName  map[string]*peer
	gate    gate
	bursts  bursts
	spares  spares
	benches benches
	tasks   sync.WaitGroup
	split   splitFlows

	passedFrames passedFrames

	// holding and accepting are held by the loops of the hold device and of the
	// listeners while they work, not while they wait: see Prove.
	holding   sync.Mutex
	accepting sync.Mutex

	mu        sync.Mutex
	table     *holdTable[*opened]
	passings  passings
	device    netdev.Device
	malformed uint64
	stray     uint64
}

// opened is a stream that waits for its client; the gate counts it from
// Proxy.enter until drop or the end of near. An early one (nil pc) is opened
// when the client is there.
type opened struct {
	domain *domain
	mode   mode
	macs   hostMACs
	flow   *splitFlow // of a segment
	spare  bool       // it has one of the spares
	pc     *peerConn
	window uint32
}

// New checks the configuration and opens the histories; nothing else is opened
// before Run. Close the Proxy if Run is never called.
func New(cfg Config) (*Proxy, error) {
	if cfg.Net == nil || cfg.Cfg == nil || cfg.Site == "" {
		return nil, errors.New("stream: Site, Cfg and Net must be set")
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxStreams == 0 {
		room := cfg.Net.Descriptors(2*maxStreams + spareDescriptors)
		cfg.MaxStreams = max((room-spareDescriptors)/2, 16)
		if cfg.MaxStreams < maxStreams {
			cfg.Log.Warn("few descriptors, so few connections are optimised at a time: raise the limit (systemd: LimitNOFILE=)", "streams", cfg.MaxStreams, "descriptors", room)
		}
	}
	p := &Proxy{gate: gate{max: cfg.MaxStreams}, benches: newBenches(), cfg: cfg, log: cfg.Log, policy: newPolicy(cfg.Cfg), byName: make(map[string]*peer), table: newHoldTable[*opened]()}
	for _, l := range cfg.Links {
		if p.byName[l.Peer] != nil || l.Peer == cfg.Site {
			return nil, errors.Join(fmt.Errorf("stream: peer %q has two links or our own name", l.Peer), p.Close())
		}
		q, err := newPeer(p, l)
		if err != nil {
			return nil, errors.Join(err, p.Close())
		}
		p.peers, p.byName[l.Peer] = append(p.peers, q), q
	}
	for _, r := range cfg.Cfg.Streams {
		if p.byName[r.Peer] == nil {
			return nil, errors.Join(fmt.Errorf("stream: a rule names peer %q, to which there is no link with an agent at its end", r.Peer), p.Close())
		}
	}
	return p, nil
}

// Close closes the histories of a Proxy that does not run, or no longer.
// Idempotent.
func (p *Proxy) Close() error {
	var errs []error
	for _, q := range p.peers {
		errs = append(errs, q.close())
	}
	return errors.Join(errs...)
}

// epoch draws a number that names a state of a history; never 0.
func (p *Proxy) epoch() (uint64, error) {
	var b [8]byte
	_, err := io.ReadFull(p.cfg.Rand, b[:])
	return binary.BigEndian.Uint64(b[:]) | 1, err
}

// spawn runs f in a goroutine that Run waits for.
func (p *Proxy) spawn(f func()) { p.tasks.Go(f) }

// Run works until ctx is done, then resets every stream, closes the Proxy and
// returns ctx's error. It returns earlier when the listeners or st-hold cannot be had or
// fail. It may be called once.
func (p *Proxy) Run(ctx context.Context) error {
	listeners, err := p.cfg.Net.Intercept(config.InterceptPort)
	if err != nil {
		return fmt.Errorf("stream: intercept: %w", err)
	}
	device, err := p.cfg.Net.OpenHold()
	if err != nil {
		closeAll(listeners)
		return fmt.Errorf("stream: hold device: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p.mu.Lock()
	p.device = device
	p.mu.Unlock()
	for _, q := range p.peers {
		p.spawn(func() { q.listen(ctx) })
		for _, d := range q.domains {
			p.spawn(func() { d.tellLoading(ctx) })
			p.spawn(func() { d.maintain(ctx) })
		}
	}
	for _, l := range listeners {
		p.spawn(func() { acceptLoop(ctx, l, p.acceptFailed, p.routed) })
	}
	if p.cfg.Segments != nil {
		p.spawn(func() { p.cfg.Segments.Run(ctx, segmentIntake{p, ctx}) })
	}
	p.spawn(func() { p.expire(ctx) })
	p.spawn(func() { p.watchMemory(ctx) })
	p.spawn(func() { cancel(p.readHold(ctx, device)) })
	<-ctx.Done()
	err = context.Cause(ctx)
	device.Close()
	closeAll(listeners)
	for _, q := range p.peers {
		q.stop()
	}
	p.tasks.Wait()
	if failed := p.Close(); failed != nil {
		p.log.Warn("close the histories", "err", failed)
	}
	return err
}

// Prove returns when the loops every new connection needs have ended the turn
// they are in, and no lock they take is kept for good. It does not return while
// one of them hangs. A connection that hangs alone does not matter to it.
func (p *Proxy) Prove() {
	for _, m := range []*sync.Mutex{&p.holding, &p.accepting, &p.mu, &p.gate.mu} {
		turnOver(m)
	}
	for _, q := range p.peers {
		turnOver(&q.mu)
	}
}

// turnOver waits until whoever has m gives it back.
func turnOver(m *sync.Mutex) {
	m.Lock()
	defer m.Unlock()
}

func closeAll(ls []Listener) {
	for _, l := range ls {
		l.Close()
	}
}

// readHold reads the SYNs that the kernel routes into the hold device.
func (p *Proxy) readHold(ctx context.Context, d netdev.Device) error {
	n := d.BatchSize()
	bufs, sizes := make([][]byte, n), make([]int, n)
	for i := range bufs {
		bufs[i] = make([]byte, 64<<10)
	}
	for {
		n, err := d.Read(bufs, sizes, 0)
		p.holding.Lock()
		for i := range n {
			p.holdPacket(ctx, bufs[i][:sizes[i]])
		}
		p.holding.Unlock()
		if err != nil {
			return fmt.Errorf("stream: hold device: %w", err)
		}
	}
}

// holdPacket decides about one packet, which it borrows.
func (p *Proxy) holdPacket(ctx context.Context, packet []byte) {
	s, err := parseSYN(packet)
	if err != nil {
		p.mu.Lock()
		p.malformed++
		p.mu.Unlock()
		return
	}
	rule, split := p.policy.rule(s.tuple)
	if !split {
		p.passUnruled(s.tuple, packet)
		return
	}
	p.hold(ctx, s, rule, packet)
}

// hold decides about a SYN that a rule covers. It borrows packet, which is a frame
// if the SYN is of a segment.
func (p *Proxy) hold(ctx context.Context, s syn, rule config.StreamRule, packet []byte) {
	o := p.planned(rule)
	o.macs = macsOf(s.tuple, packet)
	p.mu.Lock()
	v, stale, unused := p.table.SYN(s, packet, time.Now())
	if v == verdictCrowded {
		p.notePassed(o.domain.q.link.Peer, s.tuple, TooManyHeld)
	}
	p.mu.Unlock()
	if unused {
		stale.drop()
	}
	switch v {
	case verdictReinject:
		p.inject(s.tuple, packet)
	case verdictPass, verdictCrowded:
		p.pass(o.domain, s.tuple, packet)
	case verdictOpen:
		p.open(ctx, o, s.tuple, rule.Handshake == config.Early)
	}
}

// planned is a stream as its rule wants it, not opened yet.
func (p *Proxy) planned(r config.StreamRule) *opened {
	return &opened{domain: p.byName[r.Peer].domain(r.Domain), mode: modeOf(r)}
}

// passUnruled carries what should not have come here: a workload's packets, or
// those of a rule that is gone. The peer that has the destination gets it.
func (p *Proxy) passUnruled(t tuple, packet []byte) {
	for _, c := range p.cfg.Cfg.Peers {
		if q := p.byName[c.Name]; q != nil && contains(c.Subnets, t.dst.Addr()) {
			q.mu.Lock()
			q.unruled++
			q.mu.Unlock()
			p.send(q, t, packet)
			return
		}
	}
	p.mu.Lock()
	p.malformed++
	p.mu.Unlock()
}

// open finds a stream for a held SYN: at once for an early one.
func (p *Proxy) open(ctx context.Context, o *opened, t tuple, early bool) {
	away, closed := o.domain.away(), Reason(0)
	if away == 0 {
		closed = p.enterNear(o)
	}
	switch {
	case away != 0:
		p.passHeld(o.domain, t, away)
	case closed != 0:
		p.passHeld(o.domain, t, closed)
	case early && t.segment == 0:
		p.release(ctx, t, o)
	case early: // what it takes comes by whoever calls this
		p.spawn(func() { p.release(ctx, t, o) })
	default:
		p.spawn(func() { p.ask(ctx, o, t) })
	}
}

// ask has the peer connect and gives the client its answer.
func (p *Proxy) ask(ctx context.Context, o *opened, t tuple) {
	var kind Refusal
	o.pc, o.window, kind = o.domain.open(ctx, t, o.macs, o.mode)
	if kind == 0 {
		p.release(ctx, t, o)
		return
	}
	o.drop()
	switch kind {
	case Denied:
		p.passHeld(o.domain, t, NoDialRule)
	case Mismatch:
		p.passHeld(o.domain, t, OtherDomain)
	case Unable:
		p.passHeld(o.domain, t, PeerFailed)
	case unreached:
		p.passHeld(o.domain, t, PeerUnreachable)
	case unequipped:
		p.passHeld(o.domain, t, OutOfResources)
	default:
		p.mu.Lock()
		s, packet, ok := p.table.Refused(t)
		p.mu.Unlock()
		if !ok {
			return
		}
		p.answer(o.domain.q, s, packet, kind)
	}
}

// answer gives the client of a SYN what its server answered.
func (p *Proxy) answer(q *peer, s syn, packet []byte, kind Refusal) {
	if s.segment == 0 {
		if reply := buildReply(nil, s, packet, kind); reply != nil {
			p.inject(s.tuple, reply)
		}
		return
	}
	if reply := buildReply(nil, s, packet[etherHeader:], kind); reply != nil {
		frame := slices.Concat(packet[6:12], packet[0:6], packet[12:etherHeader], reply)
		if err := p.cfg.Segments.ToLAN(s.segment, q.link.Peer, frame); err != nil {
			p.log.Debug("answer", "segment", s.segment, "err", err)
		}
	}
}

// release lets the kernel complete the client's handshake.
func (p *Proxy) release(ctx context.Context, t tuple, o *opened) {
	flow, err := p.divert(ctx, o.domain.q.link.Peer, t, o.macs, true)
	if err != nil {
		p.log.Debug("divert", "segment", t.segment, "err", err)
		o.drop()
		p.passHeld(o.domain, t, SegmentAway)
		return
	}
	o.flow = flow
	p.mu.Lock()
	packet, ok := p.table.Opened(t, o, time.Now())
	p.mu.Unlock()
	if !ok {
		o.drop()
		return
	}
	p.inject(t, packet)
}

// passHeld carries a held SYN as a packet, and remembers why.
func (p *Proxy) passHeld(d *domain, t tuple, why Reason) {
	p.mu.Lock()
	packet, ok := p.table.Passed(t, time.Now())
	if ok {
		p.notePassed(d.q.link.Peer, t, why)
	}
	p.mu.Unlock()
	if ok {
		p.pass(d, t, packet)
	}
}

// notePassed remembers why a SYN was passed. mu is held.
func (p *Proxy) notePassed(peer string, t tuple, why Reason) {
	if t.segment == 0 {
		p.passings.note(t, why)
	} else {
		p.passedFrames.note(peer, t, why, time.Now())
	}
}

// pass carries the SYN of a stream that could not be had as a packet.
func (p *Proxy) pass(d *domain, t tuple, packet []byte) {
	d.count(func(s *Traffic) { s.Passed++ })
	p.send(d.q, t, packet)
}

// send sends a packet, or a frame of a segment, into the link.
func (p *Proxy) send(q *peer, t tuple, packet []byte) {
	var err error
	if t.segment == 0 {
		err = p.cfg.Net.Pass(q.link, packet)
	} else {
		err = p.cfg.Segments.ToPeer(t.segment, q.link.Peer, packet)
	}
	if err != nil {
		p.log.Debug("pass", "peer", q.link.Peer, "err", err)
	}
}

// inject gives the kernel a packet, by the hold device, or a frame of a segment.
func (p *Proxy) inject(t tuple, packet []byte) {
	if t.segment != 0 {
		if err := p.cfg.Segments.Inject(t.segment, packet); err != nil {
			p.log.Warn("segment", "segment", t.segment, "err", err)
		}
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.device.Write([][]byte{packet}, 0); err != nil && !errors.Is(err, net.ErrClosed) {
		p.log.Warn("hold device", "err", err)
	}
}

// drop ends a stream that was not to be had or that nobody wants.
func (o *opened) drop() {
	p := o.domain.q.p
	defer p.gate.leave()
	defer p.split.end(o.flow, time.Now())
	p.spares.give(o)
	if o.pc != nil {
		o.pc.conn.Close()
		o.domain.forget(o.pc)
	}
}

// routed takes a connection from the transparent listener.
func (p *Proxy) routed(ctx context.Context, c Conn) {
	p.accepted(ctx, tuple{src: addrPort(c.RemoteAddr()), dst: addrPort(c.LocalAddr())}, c)
}

// accepted joins a connection from a transparent listener to its stream.
func (p *Proxy) accepted(ctx context.Context, t tuple, c Conn) {
	p.accepting.Lock()
	defer p.accepting.Unlock()
	o := p.join(t)
	if o == nil {
		c.Close()
		return
	}
	p.spares.give(o)
	wait, done := func(context.Context) {}, func() {}
	if o.pc == nil {
		wait, done = p.bursts.begin(t)
	}
	p.spawn(func() {
		wait(ctx)
		ok := p.reach(ctx, t, o, c)
		done()
		if ok {
			p.near(t, o, c)
		}
	})
}

// join finds the stream for a connection. One that did not come through the
// hold device has none: it is opened now if its rule says early, and is
// refused otherwise (a connection to the port itself, or to this host).
func (p *Proxy) join(t tuple) *opened {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o, ok := p.table.Join(t); ok {
		return o
	}
	rule, split := p.policy.rule(t)
	if split && t.segment == 0 && rule.Handshake == config.Early && !p.cfg.Net.Own(t.dst.Addr()) && p.enter() == 0 {
		return p.planned(rule)
	}
	p.stray++
	return nil
}

// reach opens the stream of an accepted connection if it is an early one. If
// that fails the connection is reset.
func (p *Proxy) reach(ctx context.Context, t tuple, o *opened, c Conn) bool {
	if o.pc != nil {
		return true
	}
	var kind Refusal
	if o.pc, o.window, kind = o.domain.open(ctx, t, o.macs, o.mode); kind != 0 {
		c.Close()
		o.drop()
		return false
	}
	return true
}

// near is the near side of one stream.
func (p *Proxy) near(t tuple, o *opened, c Conn) {
	defer p.gate.leave()
	defer func() { p.split.end(o.flow, time.Now()) }()
	defer o.domain.forget(o.pc)
	o.domain.relay(t, true, c, o.pc, o.mode, o.window)
}

// expire forgets old tuples until ctx is done.
func (p *Proxy) expire(ctx context.Context) {
	for ctx.Err() == nil {
		sleep(ctx, expireEvery)
		p.mu.Lock()
		unused := p.table.Expire(time.Now())
		p.mu.Unlock()
		for _, o := range unused {
			o.drop()
		}
		for _, f := range p.split.expire(time.Now()) {
			p.cfg.Segments.Remove(f)
		}
	}
}
