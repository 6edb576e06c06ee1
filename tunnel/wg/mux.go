package wg

import (
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev"
	"stitch/tunnel/netdev/super"
	"stitch/tunnel/wg/carrier"
)

const (
	// frameQueue and frameQueueBytes bound the frames and super-frames that
	// wait for wireguard-go's reader: 15 super-frames, or 128 short frames.
	// Its buffers, which are kept, are at most 8 MiB a link.
	frameQueue      = 128
	frameQueueBytes = 1 << 20
	// framePatience is how long a sender waits for room: the kernel's queue in
	// front of its TAP is where a burst is to wait, and where its sender sees
	// that it is too fast. A link that moves nothing for so long is stuck, and
	// holds up nobody any more.
	framePatience = 100 * time.Millisecond
	// controlQueue is the most control datagrams and probes that wait; it
	// drops the newest.
	controlQueue = 64
)

// mux is the tun.Device that wireguard-go has: it merges the packets of the
// TUN device with probes, control datagrams and frames on the way out, and
// takes them apart on the way in (demux.go).
//
// Read is called by one goroutine and so is Write, as wireguard-go does;
// everything else is safe for concurrent use.
type mux struct {
	path  carrier.Path
	dev   netdev.Device
	inner atomic.Int32 // the largest packet that gets through
	stock bool
	cfg   *Config
	// learned is the link's rate in bits a second where none is configured; 0: none.
	learned atomic.Int64
	log     *slog.Logger
	count   *counters
	recv    receiver
	id      atomic.Uint32
	// arrived is called with the nonce counter of every packet that came out
	// of wireguard-go.
	arrived func(counter uint64)

	events    chan tun.Event
	closed    chan struct{}
	closeOnce sync.Once
	wake      chan struct{} // there is something to do for Read

	// Owned by Read.
	mtu      int // inner, as of now
	out      sink
	place    func(int) []byte // out.next, made once
	scratch  [][]byte
	backlog  []*held // released, to be sent
	left     leftover
	sending  frame // being cut
	cut      super.Splitter
	whole    []byte  // a frame that leaves in parts
	plain    bool    // the TUN device had packets last time
	tunGone  bool    // and will have none any more
	controls int     // of out, the first ones
	shaped   *shaped // nil: packets have always left as fast as they came

	classes []classCount // of cfg.Classes

	packing packing
	past    past

	// Owned by Write.
	inbox inbox

	dropsMu sync.Mutex
	drops   carrier.Drops

	mu      sync.Mutex
	space   *sync.Cond // frames has room, or never will
	up      bool
	control *queue
	frames  frameRing
	stuck   bool // nothing left frames for framePatience
	hold    hold
	credit  credit
	reading bool // Read waits in the TUN device's
	nudged  bool // a shaped packet may leave: Read must not wait there
	blocked bool // there is work and no credit
}

func newMux(path carrier.Path, cfg *Config, count *counters, recv receiver, log *slog.Logger) *mux {
	m := &mux{
		path: path, dev: cfg.TUN, stock: cfg.Stock, log: log, count: count, recv: recv,
		events: make(chan tun.Event), closed: make(chan struct{}), wake: make(chan struct{}, 1),
		scratch: make([][]byte, conn.IdealBatchSize), control: newQueue(controlQueue),
	}
	m.past.start(cfg)
	m.packing.start(m)
	m.space, m.place = sync.NewCond(&m.mu), m.out.next
	m.cfg = cfg
	m.classes = make([]classCount, len(cfg.Classes))
	// A receiver may still have parts of our predecessor's messages.
	m.id.Store(rand.Uint32())
	m.setMTU(cfg.InnerMTU)
	return m
}

// setMTU says how large packets may be from now on.
func (m *mux) setMTU(n int) {
	m.inner.Store(int32(n))
	if c, ok := m.dev.(netdev.Cutter); ok {
		c.CutTo(n)
	}
}

// The parts of tun.Device that need no thought. MTU, which wireguard-go asks
// for once, is where padding to 16 bytes stops.
func (m *mux) File() *os.File           { return nil }
func (m *mux) MTU() (int, error)        { return int(m.inner.Load()), nil }
func (m *mux) Name() (string, error)    { return m.dev.Name(), nil }
func (m *mux) Events() <-chan tun.Event { return m.events }
func (m *mux) BatchSize() int           { return conn.IdealBatchSize }

// Close ends Read and Write. It leaves the TUN device open.
func (m *mux) Close() error {
	m.closeOnce.Do(func() {
		close(m.closed)
		close(m.events)
		m.dev.Wake()
		m.tick()
	})
	return nil
}

func (m *mux) isClosed() bool {
	select {
	case <-m.closed:
		return true
	default:
		return false
	}
}

// notifyLocked tells Read that there is something to do.
func (m *mux) notifyLocked() {
	if m.reading {
		m.reading = false
		m.dev.Wake()
		return
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// setUp says whether packets may leave. When they may again, those that were
// held go first.
func (m *mux) setUp(up bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if up && !m.up {
		m.credit = credit{}
	}
	m.up = up
	m.space.Broadcast()
	m.notifyLocked()
}

// departed notes that n packets left wireguard-go.
func (m *mux) departed(n int) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.credit.leave(n, now) {
		m.notifyLocked()
	}
}

// tick lets senders that wait for room see that time passes.
func (m *mux) tick() {
	m.mu.Lock()
	m.space.Broadcast()
	m.mu.Unlock()
}

// pause waits for d; false means that the mux was closed.
func (m *mux) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-m.closed:
		return false
	}
}

// sendFrame queues a frame or super-frame, or holds it while the link is down.
// If buf is not nil, data is a part of *buf, which may be kept: another one is
// then in its place.
func (m *mux) sendFrame(segment uint16, data []byte, h super.Header, buf *[]byte) bool {
	limit := carrier.MaxMessage
	if h.Kind != super.None {
		limit = super.MaxPacket
	}
	if parts, _ := carrier.Split(min(len(data), carrier.MaxMessage), int(m.inner.Load())); parts == 0 || len(data) > limit || segment == 0 || m.stock {
		m.count.dropFrameInvalid.Add(1)
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.awaitRoomLocked()
	switch {
	case m.isClosed():
		return false
	case !m.up:
		return m.holdFrameLocked(segment, data, h)
	case !m.frames.room():
		m.count.dropFrameQueue.Add(1)
		return false
	}
	m.frames.push(segment, h, data, buf)
	if !m.blocked {
		m.notifyLocked()
	}
	return true
}

// sendBench queues a message of a train that is measured, among the frames. False
// means that it was not: the link is down or stuck.
func (m *mux) sendBench(msg []byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.awaitRoomLocked()
	if m.isClosed() || !m.up || !m.frames.room() {
		return false
	}
	m.frames.push(0, super.Header{}, msg, nil)
	if !m.blocked {
		m.notifyLocked()
	}
	return true
}

// awaitRoomLocked waits until a frame finds room, or no longer makes sense.
func (m *mux) awaitRoomLocked() {
	if m.frames.room() {
		return
	}
	for start := time.Now(); m.up && !m.stuck && !m.frames.room() && !m.isClosed(); m.space.Wait() {
		m.stuck = time.Since(start) >= framePatience
	}
}

// holdFrameLocked keeps a frame, of a super-frame the first packet: it is the
// one its receiver waits for.
func (m *mux) holdFrameLocked(segment uint16, data []byte, h super.Header) bool {
	var s super.Splitter
	if s.Start(slices.Clone(data), h, super.Ethernet, config.MaxFrame(int(m.inner.Load()))) != nil {
		m.count.dropFrameInvalid.Add(1)
		return false
	}
	first := make([]byte, s.Len())
	s.Next(first)
	return m.holdLocked(segment, first)
}

// sendControl queues a probe or control datagram; probes also while the link
// is down.
func (m *mux) sendControl(kind carrier.Kind, msg []byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.isClosed():
		return false
	case kind == carrier.Control && !m.up:
		m.count.dropControlDown.Add(1)
		return false
	case !m.control.room(1):
		m.count.dropControlQueue.Add(1)
		return false
	}
	m.putWhole(kind, msg)
	m.notifyLocked()
	return true
}

// sendProbes queues n copies of a probe, so that they leave together, if there
// is room for all.
func (m *mux) sendProbes(msg []byte, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.isClosed() || !m.control.room(n) {
		return
	}
	for range n {
		m.putWhole(carrier.Probe, msg)
	}
	m.notifyLocked()
}

// putWhole queues a probe or control datagram as one packet; m.mu is held, and
// there must be room.
func (m *mux) putWhole(kind carrier.Kind, msg []byte) {
	b := m.control.push(carrier.HeaderLen + len(msg))
	m.path.Put(b, carrier.Header{Kind: kind}, len(msg))
	copy(b[carrier.HeaderLen:], msg)
}

// split writes a message as the packets of at most mtu bytes that next
// returns. The message must be one that carrier.Split can cut.
func (m *mux) split(kind carrier.Kind, segment uint16, msg []byte, mtu int, next func(int) []byte) {
	parts, size := carrier.Split(len(msg), mtu)
	h := carrier.Header{Kind: kind, Segment: segment, Last: uint8(parts - 1)}
	if parts > 1 {
		h.ID = m.id.Add(1)
		m.count.txParts.Add(uint64(parts))
	}
	for len(msg) > 0 {
		n := min(size, len(msg))
		b := next(carrier.HeaderLen + n)
		m.path.Put(b, h, n)
		copy(b[carrier.HeaderLen:], msg[:n])
		msg = msg[n:]
		h.Index++
	}
}

// holdLocked keeps a packet for the time the link is up again.
func (m *mux) holdLocked(segment uint16, data []byte) bool {
	replaced, ok := m.hold.put(segment, data)
	switch {
	case !ok:
		m.count.dropHoldFull.Add(1)
	case replaced:
		m.count.dropHoldOlder.Add(1)
	}
	return ok
}

// held returns the number of packets that wait for the link to come up.
func (m *mux) held() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.hold.flows)
}
