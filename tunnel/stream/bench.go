package stream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stitch/dedupe"
	"stitch/tunnel/bench/far"
)

const (
	// benchHistory is the size of the history of a bench stream, in memory, per
	// direction: what is measured must not push out what really crossed.
	benchHistory = 128 << 20
	// benchTime is how long a bench stream may last, at either end.
	benchTime = 5 * time.Minute
	// At a time, for all peers, an agent serves one bench stream that takes data
	// and so may have a history, and a few that answer messages.
	maxBenchSinks, maxBenchSmall = 1, 4
)

// ErrBench is wrapped by errors of Bench about its arguments, or about what the
// peer cannot do.
var ErrBench = errors.New("bench")

// benches bounds what is served to peers that measure.
type benches struct{ sinks, small chan struct{} }

func newBenches() benches {
	return benches{make(chan struct{}, maxBenchSinks), make(chan struct{}, maxBenchSmall)}
}

// of returns the places of a service.
func (b benches) of(s far.Service) chan struct{} {
	if s == far.Sink {
		return b.sinks
	}
	return b.small
}

// benchRequest is the body of BENCH: relay this stream to a service of your own.
type benchRequest struct {
	Window  uint32
	Service far.Service
}

func (r benchRequest) append(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, r.Window), byte(r.Service))
}

func parseBench(body []byte) (benchRequest, error) {
	if len(body) != 5 || far.Service(body[4]).String() == "" {
		return benchRequest{}, fmt.Errorf("%w: bench of %d bytes", errFrame, len(body))
	}
	return benchRequest{binary.BigEndian.Uint32(body), far.Service(body[4])}, nil
}

// benchMode is how a service's stream is carried: as data is by a rule without
// optimize, and what answers messages as it is.
func benchMode(s far.Service) mode {
	if s == far.Sink {
		return modeFull
	}
	return modeAccelerate
}

// Bench opens a stream to a service in the peer's agent and relays it, through
// the same codec and connections as any other, until it ends or ctx does. Its
// history is its own: nothing is matched against what crossed before, and nothing
// of it stays. accept is called once the peer has agreed, and gives the local
// end, which Bench closes. Wrong arguments and a peer whose release cannot do it
// are ErrBench.
func (p *Proxy) Bench(ctx context.Context, peer string, s far.Service, accept func(Link) (*net.UnixConn, error)) error {
	d, err := p.benchDomain(peer)
	if err != nil {
		return err
	}
	if p.enter() != 0 {
		return fmt.Errorf("%w: no stream more is opened here now, see the alarms of `stitch status`: try later", ErrBench)
	}
	defer p.gate.leave()
	ctx, cancel := context.WithTimeout(ctx, benchTime)
	defer cancel()
	pc, err := d.dial(ctx)
	if err != nil {
		return fmt.Errorf("the agent of %s cannot be reached: %w", d.q.link.Peer, err)
	}
	defer d.forget(pc)
	defer pc.conn.Close()
	stop := context.AfterFunc(ctx, func() { pc.conn.Close() })
	defer stop()
	window, err := pc.requestBench(s)
	if err != nil {
		return err
	}
	local, err := accept(d.q.link)
	if err != nil {
		return err
	}
	return pc.benchRelay(local, s, true, window)
}

// benchDomain is the one whose connections are used: any that the two sites have
// in common.
func (p *Proxy) benchDomain(peer string) (*domain, error) {
	q := p.byName[peer]
	if q == nil {
		var names []string
		for _, q := range p.peers {
			names = append(names, q.link.Peer)
		}
		return nil, fmt.Errorf("%w: no peer %q with an agent of stitch: there is %s", ErrBench, peer, strings.Join(names, ", "))
	}
	for _, d := range q.domains {
		if d.away() == 0 {
			return d, nil
		}
	}
	if len(q.domains) > 0 {
		return q.domains[0], nil
	}
	return nil, fmt.Errorf("%w: no [[stream]] or [[dial]] rule names %s: without one it gets no streams to measure", ErrBench, peer)
}

// requestBench asks for a service.
func (pc *peerConn) requestBench(s far.Service) (window uint32, err error) {
	if pc.terms.Features&featureBench == 0 {
		return 0, fmt.Errorf("%w: the release of %s cannot be measured: run the same release at both sites", ErrBench, pc.domain.q.link.Peer)
	}
	if err := pc.send(frameBench, benchRequest{startWindow, s}.append(nil)); err != nil {
		return 0, err
	}
	t, body, err := pc.expect(openTimeout, frameOpened, frameRefused)
	switch {
	case err != nil:
		return 0, fmt.Errorf("asked to be measured: %w", err)
	case t == frameRefused:
		return 0, fmt.Errorf("%w: %s is being measured already, or carries as many streams as it may: try later", ErrBench, pc.domain.q.link.Peer)
	}
	return binary.BigEndian.Uint32(body), nil
}

// benchRelay relays between a local end, which it closes, and the peer.
func (pc *peerConn) benchRelay(local *net.UnixConn, s far.Service, near bool, window uint32) error {
	c, err := newUnixConn(local)
	if err != nil {
		local.Close()
		return err
	}
	if benchMode(s) == modeFull {
		h, err := dedupe.Open(dedupe.Config{Size: benchHistory})
		if err != nil {
			c.Close()
			return err
		}
		defer h.Close()
		pc.history = h
	}
	q := pc.domain.q
	link := tuple{src: netip.AddrPortFrom(q.link.Local, 0), dst: netip.AddrPortFrom(q.link.Remote, 0)}
	r := newRelay(link, near, c, pc, benchMode(s), uint64(window), &q.bufs, q.p.spawn)
	r.desync = func() {} // its history has no part in the epochs
	r.broken = func(err error) {
		if !r.isOver() {
			q.log.Warn("bench stream ended by reset", "err", err)
		}
	}
	if !r.run() {
		return errors.New("the stream was reset")
	}
	return nil
}

// serveBench is the far side of a Bench.
func (q *peer) serveBench(ctx context.Context, pc *peerConn, body []byte) error {
	req, err := parseBench(body)
	if err != nil {
		return err
	}
	places := q.p.benches.of(req.Service)
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
	default:
		return q.refuse(pc, Unable)
	}
	if q.p.enter() != 0 {
		return q.refuse(pc, Unable)
	}
	defer q.p.gate.leave()
	ctx, cancel := context.WithTimeout(ctx, benchTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { pc.conn.Close() })
	defer stop()
	local, service, err := unixPair()
	if err != nil {
		return q.refuse(pc, Unable)
	}
	q.log.Info("the peer measures", "service", req.Service)
	done := make(chan struct{})
	q.p.spawn(func() {
		defer close(done)
		defer service.Close()
		socket := func() (*net.UDPConn, netip.Addr, error) {
			u, err := q.p.cfg.Net.CountPeer(q.link)
			return u, q.link.Remote, err
		}
		if err := far.Serve(req.Service, service, socket); err != nil {
			q.log.Debug("bench", "service", req.Service, "err", err)
		}
	})
	defer func() { <-done }()
	if err := pc.out.data(appendOpened(nil, startWindow)); err != nil {
		local.Close()
		return err
	}
	return pc.benchRelay(local, req.Service, false, req.Window)
}

// unixPair returns two connected sockets.
func unixPair() (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, wrap("socketpair", err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "bench")
		c, e := net.FileConn(f)
		f.Close()
		if e != nil {
			err = e
			continue
		}
		ends[i] = c.(*net.UnixConn)
	}
	if err != nil {
		for _, c := range ends {
			if c != nil {
				c.Close()
			}
		}
		return nil, nil, err
	}
	return ends[0], ends[1], nil
}

// unixConn is a local connection as the relay needs it. It has no resets: an end
// that is too early shows in what the service counts.
type unixConn struct {
	*net.UnixConn
	peek func() error
	out  func() (int, error)
}

func newUnixConn(c *net.UnixConn) (*unixConn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &unixConn{UnixConn: c, peek: func() error { return waitReadable(raw) }, out: func() (int, error) { return outQueue(raw) }}, nil
}

// Wait implements Conn.
func (c *unixConn) Wait() error { return c.peek() }

// Unacked implements Conn: what the other end has not read.
func (c *unixConn) Unacked() (n, window int, err error) {
	n, err = c.out()
	return n, 0, err
}

// Finish implements Conn.
func (c *unixConn) Finish() error { return c.Close() }

// Gather implements Conn; it makes no difference here.
func (c *unixConn) Gather(int) error { return nil }

// AtMark implements Conn.
func (c *unixConn) AtMark() bool { return false }

// WriteUrgent implements Conn.
func (c *unixConn) WriteUrgent(b byte) error {
	_, err := c.Write([]byte{b})
	return err
}

// RTT implements Conn.
func (c *unixConn) RTT() time.Duration { return 0 }

// DeliveryRate implements Conn.
func (c *unixConn) DeliveryRate() (rate float64, limited bool) { return 0, false }

// SetMark implements Conn: nothing here leaves the host.
func (c *unixConn) SetMark(int) error { return nil }

// Anew implements Conn.
func (c *unixConn) Anew() error { return nil }

// Pace implements Conn.
func (c *unixConn) Pace() {}

// Congestion implements Conn.
func (c *unixConn) Congestion() string { return "" }
