package wg

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"stitch/tunnel/netdev"
	"stitch/tunnel/wg/carrier"
)

const (
	// frameQueue and controlQueue are the most packets that wait for
	// wireguard-go's reader; both drop the newest.
	frameQueue   = 512
	controlQueue = 64
	// slotLen is the buffer of one packet read from the TUN device, which may
	// have any MTU. Only the pages that packets touch become memory.
	slotLen = netdev.MinOffset + 1<<16
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
	mtu   int
	stock bool
	log   *slog.Logger
	count *counters
	recv  receiver
	id    atomic.Uint32
	// arrived is called with the nonce counter of every packet that came out
	// of wireguard-go.
	arrived func(counter uint64)

	events    chan tun.Event
	closed    chan struct{}
	closeOnce sync.Once
	wake      chan struct{} // there is something to do for Read

	// The TUN device's reader fills batch and hands it over through ready;
	// free gives it back.
	batch      batch
	ready      chan int
	free       chan struct{}
	readerDone chan struct{}

	// Owned by Read.
	scratch [][]byte
	backlog []*held // released, to be sent
	blocked bool    // there is work and no credit

	// Owned by Write.
	inbox inbox

	dropsMu sync.Mutex
	drops   carrier.Drops

	mu      sync.Mutex
	up      bool
	control *queue
	frames  *queue
	hold    hold
	credit  credit
}

// batch is one read of the TUN device and how far it has been sent.
type batch struct {
	bufs  [][]byte
	sizes []int
	n     int
	pos   int
}

func newMux(path carrier.Path, cfg *Config, count *counters, recv receiver, log *slog.Logger) *mux {
	m := &mux{
		path: path, dev: cfg.TUN, mtu: cfg.InnerMTU, stock: cfg.Stock, log: log, count: count, recv: recv,
		events: make(chan tun.Event), closed: make(chan struct{}), wake: make(chan struct{}, 1),
		ready: make(chan int), free: make(chan struct{}), readerDone: make(chan struct{}),
		scratch: make([][]byte, conn.IdealBatchSize),
		control: newQueue(controlQueue), frames: newQueue(frameQueue),
	}
	// A receiver may still have parts of our predecessor's messages.
	m.id.Store(rand.Uint32())
	n := min(max(cfg.TUN.BatchSize(), 1), conn.IdealBatchSize)
	m.batch = batch{bufs: make([][]byte, n), sizes: make([]int, n)}
	all := make([]byte, n*slotLen)
	for i := range m.batch.bufs {
		m.batch.bufs[i] = all[i*slotLen : (i+1)*slotLen : (i+1)*slotLen]
	}
	return m
}

// The parts of tun.Device that need no thought. MTU is the inner MTU: padding
// to 16 bytes stops there.
func (m *mux) File() *os.File           { return nil }
func (m *mux) MTU() (int, error)        { return m.mtu, nil }
func (m *mux) Name() (string, error)    { return m.dev.Name(), nil }
func (m *mux) Events() <-chan tun.Event { return m.events }
func (m *mux) BatchSize() int           { return conn.IdealBatchSize }

// Close ends Read and Write. It leaves the TUN device open.
func (m *mux) Close() error {
	m.closeOnce.Do(func() {
		close(m.closed)
		close(m.events)
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

// signal tells Read that there is something to do.
func (m *mux) signal() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// setUp says whether packets may leave. When they may again, those that were
// held go first.
func (m *mux) setUp(up bool) {
	m.mu.Lock()
	if up && !m.up {
		m.credit = credit{}
	}
	m.up = up
	m.mu.Unlock()
	m.signal()
}

// left notes that n packets left wireguard-go.
func (m *mux) left(n int) {
	now := time.Now()
	m.mu.Lock()
	signal := m.credit.leave(n, now)
	m.mu.Unlock()
	if signal {
		m.signal()
	}
}

// readTUN reads the TUN device until it or the mux is closed. An error that is
// not the end is counted, and never reaches wireguard-go, which would close
// itself.
func (m *mux) readTUN() {
	defer close(m.readerDone)
	for {
		n, err := m.dev.Read(m.batch.bufs, m.batch.sizes, netdev.MinOffset)
		if n > 0 && !m.handOver(n) {
			return
		}
		switch {
		case err == nil || errors.Is(err, tun.ErrTooManySegments):
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrClosed):
			if !m.isClosed() {
				m.log.Error("the TUN device is gone: plain packets stop until the agent is restarted", "device", m.dev.Name())
			}
			return
		default:
			m.count.tunReadErrors.Add(1)
			if !m.pause(10 * time.Millisecond) {
				return
			}
		}
	}
}

// handOver gives a batch to Read and waits until it has been sent.
func (m *mux) handOver(n int) bool {
	select {
	case m.ready <- n:
	case <-m.closed:
		return false
	}
	select {
	case <-m.free:
		return true
	case <-m.closed:
		return false
	}
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

// interrupt makes readTUN end if the device can do that, and waits for it.
func (m *mux) interrupt() {
	d, ok := m.dev.(interface{ SetReadDeadline(time.Time) error })
	if !ok || d.SetReadDeadline(time.Unix(1, 0)) != nil {
		return // it ends with the device
	}
	<-m.readerDone
	_ = d.SetReadDeadline(time.Time{}) // fails only on a closed device
}

// sendFrame queues a frame, or holds it while the link is down.
func (m *mux) sendFrame(segment uint16, frame []byte) bool {
	parts, _ := carrier.Split(len(frame), m.mtu)
	if parts == 0 || segment == 0 || m.stock {
		m.count.dropFrameInvalid.Add(1)
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.isClosed():
		return false
	case !m.up:
		return m.holdLocked(segment, frame)
	case !m.frames.room(parts):
		m.count.dropFrameQueue.Add(1)
		return false
	}
	m.split(carrier.Frame, segment, frame, m.frames.push)
	m.count.txFrames.Add(1)
	m.signal()
	return true
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
	m.split(kind, 0, msg, m.control.push)
	m.signal()
	return true
}

// split writes a message as the packets that next returns. The message must
// be one that carrier.Split can cut.
func (m *mux) split(kind carrier.Kind, segment uint16, msg []byte, next func(int) []byte) {
	parts, size := carrier.Split(len(msg), m.mtu)
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
