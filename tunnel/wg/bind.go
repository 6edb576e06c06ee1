package wg

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// keepaliveLen is the length of a transport message without content.
const keepaliveLen = device.MessageKeepaliveSize

// binder decorates a conn.Bind: it applies the handshaker, counts, and keeps
// wireguard-go from going deaf over an error that passes.
type binder struct {
	conn.Bind
	count *counters
	log   *slog.Logger
	// left is called with the number of packets that left wireguard-go.
	left func(n int)

	backlog backlog
	// apart says that no two datagrams may leave in one call.
	apart atomic.Bool
	// unmerged says that the kernel may not hand over datagrams merged.
	unmerged atomic.Bool
	// measured says that this end finds out by itself what the path carries; it is
	// set before Open. Then nothing else is believed about that.
	measured bool
	// watching says that received has to see data messages.
	watching atomic.Bool
	// opened is what the passages count from, and headers the bytes on the WAN in
	// front of a datagram's payload.
	opened    time.Time
	headers   int
	went, got passages

	mu     sync.Mutex
	hs     handshaker
	timer  *time.Timer
	closed chan struct{} // of the current Open
	port   uint16
	// lastErr rations the log.
	lastErr time.Time
}

func newBinder(inner conn.Bind, wins bool, count *counters, log *slog.Logger, left func(int)) *binder {
	return &binder{Bind: inner, count: count, log: log, left: left, hs: handshaker{wins: wins}}
}

// Open opens the socket and wraps its receive functions.
func (b *binder) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, actual, err := b.Bind.Open(port)
	if err != nil {
		return nil, 0, err
	}
	closed := make(chan struct{})
	b.mu.Lock()
	b.closed, b.port = closed, actual
	b.mu.Unlock()
	if b.unmerged.Load() {
		b.ungro(actual)
	}
	var stamps []int
	if b.measured { // a stock peer sends no gauges
		b.disbelieve(actual)
		stamps = stampSockets(actual)
	}
	for i, fn := range fns {
		s := stamper{-1}
		if len(stamps) == len(fns) {
			s.fd = stamps[i]
		}
		fns[i] = b.receive(fn, s, closed)
	}
	return fns, actual, nil
}

// Close closes the socket; every receive function then returns net.ErrClosed.
func (b *binder) Close() error {
	b.mu.Lock()
	if b.timer != nil {
		b.timer.Stop()
	}
	if b.closed != nil {
		close(b.closed)
		b.closed = nil
	}
	b.hs.own.clear()
	b.hs.reply.clear()
	b.mu.Unlock()
	return b.Bind.Close()
}

// unmerge has the kernel hand over datagrams one at a time from now on, and
// reports whether that is new.
func (b *binder) unmerge() (news bool) {
	if b.unmerged.Swap(true) {
		return false
	}
	b.mu.Lock()
	port, open := b.port, b.closed != nil
	b.mu.Unlock()
	if open {
		b.ungro(port)
	}
	return true
}

// ungro switches UDP_GRO off on the sockets of a port, which wireguard-go switches
// on; it takes datagrams that are not merged as they are.
func (b *binder) ungro(port uint16) {
	err := eachSocket(port, func(fd int, _ bool) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 0)
	})
	if err != nil {
		b.log.Warn("receive offload stays on", "err", err)
	}
}

// disbelieve has the kernel neither fragment what leaves from a port nor heed what
// ICMP says about the path's MTU, which anybody can forge: one such packet in ten
// minutes would have the link send small fragments only.
func (b *binder) disbelieve(port uint16) {
	err := eachSocket(port, func(fd int, six bool) error {
		if six {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	})
	if err != nil {
		b.log.Warn("the path's MTU is taken from ICMP, which may be forged", "err", err)
	}
}

// eachSocket sets an option of the UDP sockets of a port; six: one of IPv6.
// wireguard-go does not give its sockets away, so they are looked for among those
// of this process.
func eachSocket(port uint16, set func(fd int, six bool) error) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || p != unix.IPPROTO_UDP {
			continue
		}
		local, err := unix.Getsockname(fd)
		four, is4 := local.(*unix.SockaddrInet4)
		six, is6 := local.(*unix.SockaddrInet6)
		if err != nil || !(is4 && four.Port == int(port) || is6 && six.Port == int(port)) {
			continue
		}
		if err := set(fd, is6); err != nil {
			return err
		}
	}
	return nil
}

// setRTT tells the handshaker the smoothed round-trip time.
func (b *binder) setRTT(rtt time.Duration) {
	b.mu.Lock()
	b.hs.rtt = rtt
	b.mu.Unlock()
}

// Send passes datagrams on.
func (b *binder) Send(bufs [][]byte, ep conn.Endpoint) error {
	if len(bufs) == 1 {
		if t := messageType(bufs[0]); t != 0 && t != device.MessageTransportType {
			if b.sending(bufs[0], ep) {
				return nil
			}
		}
	}
	data := 0
	bytes := 0
	var last []byte
	for _, p := range bufs {
		bytes += len(p)
		if len(p) > keepaliveLen && p[0] == device.MessageTransportType {
			data++
			last = p
		}
	}
	if data > 0 { // none has left before, though some may later than that
		b.went.note(passage{counterOf(last), time.Since(b.opened), b.onWire(b.count.txWire.Load()+uint64(bytes), b.count.txDatagrams.Load()+uint64(len(bufs)))})
	}
	err := b.send(bufs, ep)
	if err != nil {
		b.count.sendErrors.Add(1)
	} else {
		b.count.txDatagrams.Add(uint64(len(bufs)))
		b.count.txWire.Add(uint64(bytes))
	}
	if data > 0 {
		b.left(data)
	}
	return err
}

// onWire is n datagrams with so many bytes of payload in bytes of IP packets.
func (b *binder) onWire(payload, n uint64) uint64 { return payload + n*uint64(b.headers) }

// counterOf returns the nonce counter of a data message.
func counterOf(msg []byte) uint64 {
	return binary.LittleEndian.Uint64(msg[device.MessageTransportOffsetCounter:])
}

// send passes datagrams on, together or one at a time. Together they are
// refused when they are too big for the device, or for what the kernel has learnt of
// the path to a stock peer; what had left already then leaves twice, and the receiver
// drops it.
func (b *binder) send(bufs [][]byte, ep conn.Endpoint) error {
	if !b.apart.Load() {
		err := b.Bind.Send(bufs, ep)
		if len(bufs) == 1 || !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EMSGSIZE) {
			return err
		}
	}
	var first error
	for i := range bufs {
		if err := b.Bind.Send(bufs[i:i+1], ep); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// sending lets the handshaker see a message and arms the timer for its copies.
// It reports whether to hold the message back.
func (b *binder) sending(msg []byte, ep conn.Endpoint) (hold bool) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed == nil {
		return false
	}
	hold = b.hs.sent(msg, ep, now)
	b.watching.Store(b.hs.reply.live())
	_, _, next := b.hs.due(now)
	b.arm(next.Sub(now))
	return hold
}

// arm sets the timer; b.mu is held.
func (b *binder) arm(d time.Duration) {
	if b.timer == nil {
		b.timer = time.AfterFunc(d, b.resend)
		return
	}
	b.timer.Reset(d)
}

// resend sends the messages that are due again.
func (b *binder) resend() {
	for {
		now := time.Now()
		b.mu.Lock()
		data, to, next := b.hs.due(now)
		data = slices.Clone(data)
		if len(data) == 0 && !next.IsZero() && b.closed != nil {
			b.arm(next.Sub(now))
		}
		b.mu.Unlock()
		if len(data) == 0 {
			return
		}
		b.count.handshakeResent.Add(1)
		// A failure is as good as a loss: the next copy follows.
		if b.Bind.Send([][]byte{data}, to) == nil {
			b.count.txDatagrams.Add(1)
			b.count.txWire.Add(uint64(len(data)))
		}
	}
}

// receive wraps one receive function. Any error while the socket is open is
// counted and tried again, at growing intervals up to 100 ms.
func (b *binder) receive(fn conn.ReceiveFunc, s stamper, closed chan struct{}) conn.ReceiveFunc {
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		b.backlog.wait(closed)
		for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
			n, err := fn(bufs, sizes, eps)
			if err == nil {
				b.inspect(bufs[:n], sizes[:n], s)
				return n, nil
			}
			t := time.NewTimer(wait)
			select {
			case <-closed:
				t.Stop()
				return 0, net.ErrClosed
			case <-t.C:
			}
			b.count.receiveErrors.Add(1)
			b.complain(err)
		}
	}
}

// obstacle is what hinders a session, when the last one began at session.
func (b *binder) obstacle(session time.Time) Obstacle {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.hs.signs.verdict(session, time.Now())
}

// complain logs an error of the socket, at most once in ten seconds.
func (b *binder) complain(err error) {
	now := time.Now()
	b.mu.Lock()
	quiet := now.Sub(b.lastErr) < 10*time.Second
	if !quiet {
		b.lastErr = now
	}
	b.mu.Unlock()
	if !quiet {
		b.log.Warn("receiving datagrams fails, trying again", "err", err)
	}
}

// inspect counts what came in and takes out what the handshaker drops.
func (b *binder) inspect(bufs [][]byte, sizes []int, s stamper) {
	bytes, data := 0, 0
	var last []byte
	for i, size := range sizes {
		p := bufs[i][:size]
		bytes += size
		switch {
		case size > keepaliveLen && p[0] == device.MessageTransportType:
			data++
			last = p
			if b.watching.Load() {
				b.received(p)
			}
		case size >= keepaliveLen:
			if b.received(p) {
				b.count.handshakeDropped.Add(1)
				sizes[i] = 0
			}
		}
	}
	b.count.rxDatagrams.Add(uint64(len(sizes)))
	b.count.rxWire.Add(uint64(bytes))
	if data > 0 {
		b.count.rxData.Add(uint64(data))
		b.backlog.entered(data, counterOf(last))
		b.got.note(passage{counterOf(last), time.Since(b.opened) - s.age(), b.onWire(b.count.rxWire.Load(), b.count.rxDatagrams.Load())})
	}
}

// received lets the handshaker see a message.
func (b *binder) received(p []byte) (drop bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	drop = b.hs.received(p, time.Now())
	b.watching.Store(b.hs.reply.live())
	return drop
}
