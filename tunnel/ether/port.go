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
	"sync/atomic"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev"
	"stitch/tunnel/netdev/super"
)

const (
	// readBatch is the most frames or super-frames read from the TAP at once,
	// each into 64 KiB.
	readBatch = 8
	// maxBatch bounds the announcements given to the TAP at once.
	maxBatch = 64
	// tickEvery is how often the switch forgets what has aged.
	tickEvery = time.Second
)

// Port joins the LAN to the peers of one segment. Its methods are safe for
// concurrent use. Run's goroutine reads the TAP and sends; what a peer sent is
// written to the TAP by the goroutine that received it. The Switch is shared
// under one lock.
type Port struct {
	cfg    Config
	log    *slog.Logger
	peers  []peer
	places map[string]Place
	lanes  [][][]byte // by place: what a peer sent and is to be written; empty between calls
	single [1][]byte  // of toLAN
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
		cfg: cfg, log: cfg.Log, places: map[string]Place{"": Local},
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
	p.lanes = make([][][]byte, len(p.peers)+1)
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

// portCounts are the counters of a Port that the Switch does not have.
type portCounts struct {
	lanFrames, lanBytes, toPeers, linkRefused atomic.Uint64
	linkFrames, linkBytes, toLAN, writeFailed atomic.Uint64
	tooLong, tooLongLink                      atomic.Uint64
	made, relearn                             atomic.Uint64
	diverted, returned, split                 atomic.Uint64
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
	var making sync.WaitGroup
	makes := announcer{Port: p}
	making.Go(makes.run)
	err := p.read()
	p.Close()
	making.Wait()
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
	bufs := make([][]byte, min(readBatch, p.cfg.TAP.BatchSize()))
	for i := range bufs {
		bufs[i] = make([]byte, netdev.BufferLen)
	}
	sizes := make([]int, len(bufs))
	for {
		n, err := p.cfg.TAP.Read(bufs, sizes, netdev.MinOffset)
		for i, b := range bufs[:n] {
			h, bad := super.ParseHeader(b[netdev.MinOffset-super.HeaderLen:])
			if bad == nil {
				p.fromLAN(&bufs[i], b[netdev.MinOffset:][:sizes[i]], h)
			}
		}
		if err != nil {
			return err
		}
	}
}

// fromLAN decides on one frame or super-frame, a part of *buf, and sends it; a
// link may exchange *buf.
func (p *Port) fromLAN(buf *[]byte, frame []byte, h super.Header) {
	p.count.lanFrames.Add(1)
	p.count.lanBytes.Add(uint64(len(frame)))
	if h.Kind == super.None && len(frame) > MaxFrame {
		p.count.tooLong.Add(1)
		return
	}
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
			p.sent(p.peers[i].send.SendFrame(p.cfg.Segment.ID, frame, h))
		}
	case p.cfg.Divert != nil && p.cfg.Divert.FromLAN(p.peers[v.To-1].name, frame, h):
		p.count.diverted.Add(1)
	default:
		p.sent(p.peers[v.To-1].send.SendBuffer(p.cfg.Segment.ID, buf, frame, h))
	}
}

// Carry sends a frame to a peer and reports whether the link took it. It borrows
// frame.
func (p *Port) Carry(to string, frame []byte) bool {
	at := p.places[to]
	return at != Local && p.peers[at-1].send.SendFrame(p.cfg.Segment.ID, frame, super.Header{})
}

// Deliver takes a frame that stands for one that peer sent, such as that of a
// connection split here, and puts it into the LAN if the switch would carry it.
// It borrows frame.
func (p *Port) Deliver(peer string, frame []byte, h super.Header) {
	p.count.returned.Add(1)
	p.mu.Lock()
	v := p.sw.FromPeer(p.now(), p.places[peer], frame)
	p.mu.Unlock()
	p.tell(&v)
	if v.Drop != Carried {
		return
	}
	w, ok := p.cfg.TAP.(netdev.SuperWriter)
	if ok && w.WriteSuper(frame, h) == nil {
		p.count.toLAN.Add(1)
	} else {
		p.count.writeFailed.Add(1)
	}
}

// sent counts a frame that a link took or did not.
func (p *Port) sent(ok bool) {
	if ok {
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
			p.peers[i].send.SendFrame(p.cfg.Segment.ID, frame, super.Header{})
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
			"mac", mac, "moves", p.sw.table.limit, "for", moveWindow)
	}
}

// FromLink takes frames that peer sent, decides on them, and writes those that
// cross to the TAP, which joins frames that follow each other. It borrows them,
// and waits for nobody: the kernel takes what is written, or drops it. Frames
// of one peer must come from one goroutine at a time.
func (p *Port) FromLink(peer string, frames [][]byte) {
	from := p.places[peer] // Local, which no peer is, if unknown
	lane := p.judge(from, frames, p.lanes[from][:0])
	if len(lane) > 0 {
		p.count.toLAN.Add(p.put(lane))
		clear(lane)
		p.lanes[from] = lane[:0]
	}
}

// judge appends to lane those of a peer's frames that go to the LAN.
func (p *Port) judge(from Place, frames, lane [][]byte) [][]byte {
	total, tooLong, split := 0, 0, 0
	p.mu.Lock()
	in := p.sw.arrivals(p.now(), from)
	for _, frame := range frames {
		total += len(frame)
		if len(frame) > MaxFrame {
			tooLong++
			continue
		}
		if in.again(frame) {
			lane = append(lane, frame)
			continue
		}
		v := in.judge(frame)
		if v.talks() {
			p.mu.Unlock()
			p.tell(&v)
			p.mu.Lock()
			in = p.sw.arrivals(p.now(), from)
		}
		switch v.Drop {
		case Carried:
			lane = append(lane, frame)
		case AgentMessage:
			p.poke() // there may be an answer
		}
	}
	p.mu.Unlock()
	if d := p.cfg.Divert; d != nil {
		n := len(lane)
		lane = slices.DeleteFunc(lane, d.FromPeer)
		split = n - len(lane)
	}
	p.count.linkFrames.Add(uint64(len(frames)))
	p.count.linkBytes.Add(uint64(total))
	p.count.tooLongLink.Add(uint64(tooLong))
	p.count.split.Add(uint64(split))
	return lane
}

// toLAN writes one frame to the TAP; only the goroutine that reads it may.
func (p *Port) toLAN(frame []byte) {
	p.single[0] = frame
	p.count.toLAN.Add(p.put(p.single[:]))
}

// put returns how many of frames the TAP took. What it did not take is
// dropped: the LAN's hosts repeat what matters, and a TAP that is gone ends
// the reader too.
func (p *Port) put(frames [][]byte) uint64 {
	if len(frames) == 0 {
		return 0
	}
	n, err := p.cfg.TAP.Write(frames, 0)
	taken := uint64(max(0, min(n, len(frames))))
	p.count.writeFailed.Add(uint64(len(frames)) - taken)
	if errors.Is(err, netdev.ErrNoJoin) {
		p.log.Warn("offload", "err", err)
	}
	return taken
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

// announcer makes the frames of the segment itself. Only one goroutine uses it.
type announcer struct {
	*Port
	macs []config.MAC
	own  []Outgoing
	lan  [][]byte
}

// run does what is due until the port is closed.
func (a *announcer) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-a.done:
			return
		case <-a.wake:
		case <-timer.C:
		}
		timer.Reset(a.due())
	}
}

// due does what is due and returns the time until something is.
func (a *announcer) due() time.Duration {
	a.mu.Lock()
	now := a.now()
	a.sw.Tick(now)
	var wait time.Duration
	a.macs, wait = a.relearn.next(now, a.macs[:0], maxBatch, tickEvery)
	a.own, wait = a.sw.Due(now, a.own[:0], maxBatch, wait)
	loop := a.sw.Loop()
	a.mu.Unlock()
	a.lan = a.lan[:0]
	for _, mac := range a.macs {
		a.lan = append(a.lan, appendRARP(nil, mac, 0))
	}
	a.count.relearn.Add(a.put(a.lan))
	a.lan = a.lan[:0]
	for _, o := range a.own {
		if o.To == Local {
			a.lan = append(a.lan, o.Frame)
		} else {
			a.sendOwn(o.To, o.Frame)
		}
	}
	a.count.made.Add(uint64(len(a.lan)))
	a.count.toLAN.Add(a.put(a.lan))
	a.loopNews(loop)
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
		Diverted: p.count.diverted.Load(), Returned: p.count.returned.Load(),
		FromLAN: map[string]uint64{}, FromLink: map[string]uint64{}, MACs: map[string]int{},
	}
	var lan, link counts
	lan[LinkRefused], lan[TooLong] = p.count.linkRefused.Load(), p.count.tooLong.Load()
	link[WriteFailed], link[TooLong], link[Split] = p.count.writeFailed.Load(), p.count.tooLongLink.Load(), p.count.split.Load()
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
