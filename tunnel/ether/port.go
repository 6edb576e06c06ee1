package ether

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"stitch/tunnel/config"
)

const (
	// queueLen is the most frames from peers that wait for the TAP, at most
	// 9 MB when all are the longest; 60 ms of a 200 Mbit/s link.
	queueLen = 1024
	// maxBatch bounds the frames given to the TAP at once.
	maxBatch = 64
	// tickEvery is how often the switch forgets what has aged.
	tickEvery = time.Second
)

// Port joins the LAN to the peers of one segment. Its methods are safe for
// concurrent use. Two goroutines move frames: Run's own reads the TAP and
// sends, another writes what peers sent; the Switch is shared under one lock.
type Port struct {
	cfg    Config
	log    *slog.Logger
	peers  []peer
	places map[string]Place
	queue  *queue
	start  time.Time
	wake   chan struct{} // a claim changed the schedule; holds one
	done   chan struct{} // closed by Close
	close  func() error
	count  portCounts
	// blocked is what loopNews said last.
	blocked bool

	mu      sync.Mutex // guards what follows
	sw      *Switch
	relearn relearner
	alarms  limiter
}

type peer struct {
	name string
	send Sender
}

// Open returns the port of one segment, with the workloads of cfg.Static; no
// frame moves until Run. It takes cfg.TAP and panics if there are more than
// 254 peers, which no valid configuration has.
func Open(cfg Config) *Port {
	if len(cfg.Peers) > maxPeers {
		panic("ether: more than 254 peers")
	}
	p := &Port{
		cfg: cfg, log: cfg.Log, places: map[string]Place{"": Local}, queue: newQueue(queueLen),
		start: time.Now(), wake: make(chan struct{}, 1), done: make(chan struct{}),
		alarms: newLimiter(alarmsPerSecond),
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	p.log = p.log.With("segment", cfg.Segment.ID)
	for _, name := range slices.Sorted(maps.Keys(cfg.Peers)) {
		p.peers = append(p.peers, peer{name, cfg.Peers[name]})
		p.places[name] = Place(len(p.peers))
	}
	p.sw = NewSwitch(cfg.Segment, len(p.peers), cfg.Own, p.static())
	if cfg.ID != 0 {
		p.sw.Guard(cfg.ID)
	}
	p.close = sync.OnceValue(func() error {
		close(p.done)
		return cfg.TAP.Close()
	})
	return p
}

// alarmsPerSecond bounds the warnings about frozen and disputed addresses.
const alarmsPerSecond = 5

// static returns the configured workloads that are at places known here.
func (p *Port) static() []Workload {
	if p.cfg.Static == nil {
		return nil
	}
	var known []Workload
	for _, w := range p.cfg.Static() {
		at, ok := p.places[w.Peer]
		if !ok {
			p.log.Warn("workload at a site the segment is not stretched to", "mac", w.MAC, "peer", w.Peer)
			continue
		}
		known = append(known, Workload{MAC: w.MAC, IP: w.IP, At: at})
	}
	return known
}

// now is the time for the switch.
func (p *Port) now() time.Duration { return time.Since(p.start) }

// Close ends Run and closes the TAP. It does not wait for Run.
func (p *Port) Close() error { return p.close() }

// Run moves frames until ctx is done (nil), Close is called (net.ErrClosed) or
// the TAP fails (its error); then the port is closed. Only one Run per port.
func (p *Port) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { p.Close() })()
	var writer sync.WaitGroup
	writer.Go(p.write)
	err := p.read()
	p.Close()
	writer.Wait()
	switch {
	case ctx.Err() != nil:
		return nil
	case isClosed(err):
		return net.ErrClosed
	}
	return fmt.Errorf("segment %d: read %s: %w", p.cfg.Segment.ID, p.cfg.TAP.Name(), err)
}

func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) }

// read takes frames from the TAP until it fails.
func (p *Port) read() error {
	bufs := make([][]byte, p.cfg.TAP.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, MaxFrame+1) // one more shows what was cut off
	}
	sizes := make([]int, len(bufs))
	for {
		n, err := p.cfg.TAP.Read(bufs, sizes, 0)
		for i := range n {
			p.fromLAN(bufs[i][:sizes[i]])
		}
		if err != nil {
			return err
		}
	}
}

// fromLAN decides on one frame and sends it.
func (p *Port) fromLAN(frame []byte) {
	p.count.lanFrames.Add(1)
	p.count.lanBytes.Add(uint64(len(frame)))
	p.mu.Lock()
	v := p.sw.FromLAN(p.now(), frame)
	p.mu.Unlock()
	p.tell(&v)
	switch {
	case v.Drop == Answered:
		p.count.made.Add(1)
		p.toLAN(v.Reply)
	case v.Query != nil:
		p.sendOwn(All, v.Query)
	case v.Drop != Carried:
	case v.To == All:
		for i := range p.peers {
			p.send(&p.peers[i], frame)
		}
	default:
		p.send(&p.peers[v.To-1], frame)
	}
}

func (p *Port) send(to *peer, frame []byte) {
	if to.send.SendFrame(p.cfg.Segment.ID, frame) {
		p.count.toPeers.Add(1)
	} else {
		p.count.linkRefused.Add(1)
	}
}

// sendOwn sends a frame that was made here, which no counter of frames carried
// counts. A link that refuses it has it asked for again.
func (p *Port) sendOwn(to Place, frame []byte) {
	for i := range p.peers {
		if to == All || int(to) == i+1 {
			p.peers[i].send.SendFrame(p.cfg.Segment.ID, frame)
		}
	}
}

// tell passes on what a verdict says besides the frame's way.
func (p *Port) tell(v *Verdict) {
	if v.Froze {
		p.alarm(v.Source)
	}
	if v.Disputed.IsValid() && p.mayWarn() {
		p.log.Warn("machines claim one address by turns: look for a duplicate", "ip", v.Disputed, "mac", v.Source)
	}
	if v.Announce.Kind != "" && p.cfg.OnAnnounce != nil {
		p.cfg.OnAnnounce(v.Announce)
	}
}

// mayWarn bounds the warnings that frames cause.
func (p *Port) mayWarn() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.alarms.allow(p.now())
}

func (p *Port) alarm(mac config.MAC) {
	if p.mayWarn() {
		p.log.Warn("address moves between sites too often and is frozen: look for a loop or a duplicate",
			"mac", mac, "moves", maxMoves, "for", moveWindow)
	}
}

// FromLink takes a frame that peer sent. It borrows frame and never blocks:
// when the queue to the TAP is full the frame is dropped and counted, since a
// waiting receiver would hold up everything else on the link.
func (p *Port) FromLink(peer string, frame []byte) {
	p.count.linkFrames.Add(1)
	p.count.linkBytes.Add(uint64(len(frame)))
	from := p.places[peer] // Local, which no peer is, if unknown
	p.mu.Lock()
	v := p.sw.FromPeer(p.now(), from, frame)
	p.mu.Unlock()
	p.tell(&v)
	switch v.Drop {
	case Carried:
		p.toLAN(frame)
	case AgentMessage:
		p.poke() // there may be an answer
	}
}

// toLAN queues a copy of frame for the TAP.
func (p *Port) toLAN(frame []byte) {
	if !p.queue.put(frame) {
		p.count.queueFull.Add(1)
	}
}

// Claim says that the workload with this MAC is at peer; empty: at this site.
// It is obeyed at once, and when the workload went to a peer the LAN's bridge
// is told. A claim for a site the segment is not stretched to is ignored.
func (p *Port) Claim(mac config.MAC, peer string) {
	at, ok := p.places[peer]
	if !ok {
		p.log.Warn("claim by a site the segment is not stretched to", "mac", mac, "peer", peer)
		return
	}
	p.mu.Lock()
	now := p.now()
	news, froze := p.sw.Claim(now, mac, at)
	switch {
	case at == Local:
		p.relearn.stop(mac)
	case news:
		p.relearn.start(now, mac)
	}
	p.mu.Unlock()
	if froze {
		p.alarm(mac)
	}
	p.poke()
}

// poke has the writer look at the schedule.
func (p *Port) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// write gives the TAP what peers sent and what relearn says.
func (p *Port) write() {
	w := newWriter(p.cfg.TAP, p.queue, &p.count)
	timer := time.NewTimer(tickEvery)
	defer timer.Stop()
	for {
		select {
		case <-p.done:
			return
		case buf := <-p.queue.full:
			w.frames(buf)
			continue
		case <-p.wake:
		case <-timer.C:
		}
		timer.Reset(p.announce(w))
	}
}

// announce does what is due and returns the time until something is.
func (p *Port) announce(w *writer) time.Duration {
	p.mu.Lock()
	now := p.now()
	p.sw.Tick(now)
	macs, wait := p.relearn.next(now, w.macs[:0], maxBatch, tickEvery)
	w.own, wait = p.sw.Due(now, w.own[:0], maxBatch, wait)
	loop := p.sw.Loop()
	p.mu.Unlock()
	w.announce(macs)
	for _, o := range w.own {
		if o.To == Local {
			p.count.made.Add(1)
			p.toLAN(o.Frame)
		} else {
			p.sendOwn(o.To, o.Frame)
		}
	}
	p.loopNews(loop)
	return wait
}

// loopNews logs the begin and the end of a block. Only one goroutine uses it.
func (p *Port) loopNews(loop *Loop) {
	switch was := p.blocked; {
	case loop != nil && !was:
		p.log.Error("the LAN has a loop: the segment is blocked until it is gone, routed traffic is not touched",
			"seen", loop.String())
	case loop == nil && was:
		p.log.Info("the loop is gone, the segment carries again")
	}
	p.blocked = loop != nil
}

// Stats returns the counters since Open.
func (p *Port) Stats() Stats {
	st := Stats{
		Segment:   p.cfg.Segment.ID,
		LANFrames: p.count.lanFrames.Load(), LANBytes: p.count.lanBytes.Load(),
		ToPeers:    p.count.toPeers.Load(),
		LinkFrames: p.count.linkFrames.Load(), LinkBytes: p.count.linkBytes.Load(),
		ToLAN: p.count.toLAN.Load(), Made: p.count.made.Load(), Relearn: p.count.relearn.Load(),
		FromLAN: map[string]uint64{}, FromLink: map[string]uint64{}, MACs: map[string]int{},
	}
	var lan, link counts
	lan[LinkRefused] = p.count.linkRefused.Load()
	link[QueueFull], link[WriteFailed] = p.count.queueFull.Load(), p.count.writeFailed.Load()
	lan.addTo(st.FromLAN)
	link.addTo(st.FromLink)
	names := make([]string, len(p.peers))
	for i := range p.peers {
		names[i] = p.peers[i].name
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sw.addTo(&st, names)
	return st
}
