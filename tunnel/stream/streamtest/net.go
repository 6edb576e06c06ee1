// Package streamtest is a network in memory for package stream: sites with
// hosts behind them, links between their agents, and the part of the kernel
// that holds, intercepts and passes SYNs. It works inside testing/synctest.
package streamtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"stitch/tunnel/netdev"
	"stitch/tunnel/stream"
)

// room is how many bytes a connection in memory takes.
const room = 1 << 20

// Fabric joins sites. Delay is the one-way delay of the links; set it before
// use.
type Fabric struct {
	Delay time.Duration

	mu      sync.Mutex
	servers map[netip.AddrPort]*Listener
	failing map[netip.Addr]error
	peers   map[netip.AddrPort]*Listener
	waiting map[flow]chan answer
	cuts    int // links' connections still to be cut,
	cutAt   int // after so many bytes
}

// flow is a client's address and a server's.
type flow struct{ src, dst netip.AddrPort }

// answer is what a client's SYN got.
type answer struct {
	conn *Conn
	how  How
	err  error
}

// How says by what way a connection came about.
type How string

const (
	// Split: through the transparent listener.
	Split How = "split"
	// Direct: as packets.
	Direct How = "direct"
)

// New returns an empty fabric.
func New() *Fabric {
	return &Fabric{
		servers: make(map[netip.AddrPort]*Listener), failing: make(map[netip.Addr]error),
		peers: make(map[netip.AddrPort]*Listener), waiting: make(map[flow]chan answer),
	}
}

// Serve returns a server at addr.
func (f *Fabric) Serve(addr netip.AddrPort) *Listener {
	l := newListener(func(l *Listener) { f.remove(f.servers, addr, l) })
	f.mu.Lock()
	defer f.mu.Unlock()
	f.servers[addr] = l
	return l
}

// Fail makes connections to addr end with err, syscall.ETIMEDOUT after 10 s.
func (f *Fabric) Fail(addr netip.Addr, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failing[addr] = err
}

// Cut resets each of the next n connections between agents as soon as more than
// so many bytes have been written to it, both ways together.
func (f *Fabric) Cut(n, bytes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cuts, f.cutAt = n, bytes
}

func (f *Fabric) remove(m map[netip.AddrPort]*Listener, addr netip.AddrPort, l *Listener) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m[addr] == l {
		delete(m, addr)
	}
}

// connect makes a connection to a server.
func (f *Fabric) connect(ctx context.Context, src, dst netip.AddrPort) (*Conn, error) {
	f.mu.Lock()
	l, err := f.servers[dst], f.failing[dst.Addr()]
	f.mu.Unlock()
	if errors.Is(err, syscall.ETIMEDOUT) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		<-ctx.Done()
	}
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if l == nil {
		return nil, fmt.Errorf("connect: %w", syscall.ECONNREFUSED)
	}
	ours, theirs := Pipe(src, dst, room, 0)
	if !l.offer(theirs) {
		return nil, fmt.Errorf("connect: %w", syscall.ECONNREFUSED)
	}
	return ours, nil
}

// Net is one site's kernel as one stream process sees it. It implements
// stream.Net.
type Net struct {
	// Forwarded is what the kernel is said to track, Routes by which device it
	// reaches an address. Not to be changed while Flows runs.
	Forwarded []stream.Tracked
	Routes    map[netip.Addr]string

	f   *Fabric
	own netip.Addr

	taken atomic.Uint64 // memory

	mu     sync.Mutex
	hold   *tun
	accept *Listener
	conns  []*Conn
	killed bool
}

var _ stream.Net = (*Net)(nil)

// Site returns the kernel of a site whose edge has the address own.
func (f *Fabric) Site(own netip.Addr) *Net { return &Net{f: f, own: own} }

// keep remembers a connection of the process; after Kill it is reset.
func (n *Net) keep(c *Conn) *Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns = append(n.conns, c)
	if n.killed {
		c.Close()
	}
	return c
}

// Kill is kill -9 of the process: every connection of it is reset, its
// listeners and the hold device are gone.
func (n *Net) Kill() {
	n.mu.Lock()
	conns, hold, accept := n.conns, n.hold, n.accept
	n.conns, n.killed = nil, true
	n.mu.Unlock()
	if hold != nil {
		hold.Close()
	}
	if accept != nil {
		accept.Close()
	}
	for _, c := range conns {
		c.Close()
	}
}

// Vanish is the sudden death of the whole machine: the other ends of its
// connections hear nothing of it.
func (n *Net) Vanish() {
	n.mu.Lock()
	for _, c := range n.conns {
		c.vanish()
	}
	n.conns = nil
	n.mu.Unlock()
	n.Kill()
}

// Intercept implements stream.Net.
func (n *Net) Intercept(uint16) ([]stream.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.accept = newListener(nil)
	return []stream.Listener{n.accept}, nil
}

// OpenHold implements stream.Net.
func (n *Net) OpenHold() (netdev.Device, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hold = &tun{n: n, in: make(chan []byte, 1024), closed: make(chan struct{})}
	return n.hold, nil
}

// Dial implements stream.Net.
func (n *Net) Dial(ctx context.Context, src, dst netip.AddrPort) (stream.Conn, error) {
	c, err := n.f.connect(ctx, src, dst)
	if err != nil {
		return nil, err
	}
	return n.keep(c), nil
}

// ListenPeer implements stream.Net.
func (n *Net) ListenPeer(l stream.Link, port uint16) (stream.Listener, error) {
	at := netip.AddrPortFrom(l.Local, port)
	ln := newListener(func(ln *Listener) { n.f.remove(n.f.peers, at, ln) })
	ln.keep = n.keep
	n.f.mu.Lock()
	defer n.f.mu.Unlock()
	if n.f.peers[at] != nil {
		return nil, syscall.EADDRINUSE
	}
	n.f.peers[at] = ln
	return ln, nil
}

// DialPeer implements stream.Net.
func (n *Net) DialPeer(ctx context.Context, l stream.Link, port uint16) (stream.Conn, error) {
	to := netip.AddrPortFrom(l.Remote, port)
	n.f.mu.Lock()
	ln := n.f.peers[to]
	n.f.mu.Unlock()
	if ln == nil {
		return nil, fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
	}
	ours, theirs := Pipe(netip.AddrPortFrom(l.Local, 40000), to, 4*room, n.f.Delay)
	n.f.mu.Lock()
	if n.f.cuts > 0 {
		n.f.cuts--
		ours.p.limited, ours.p.limit = true, n.f.cutAt
	}
	n.f.mu.Unlock()
	if !ln.offer(theirs) {
		return nil, fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
	}
	return n.keep(ours), nil
}

// CountPeer implements stream.Net: there are no datagrams in memory.
func (n *Net) CountPeer(stream.Link) (*net.UDPConn, error) { return nil, errors.ErrUnsupported }

// Pass implements stream.Net: the SYN goes to the server as a packet.
func (n *Net) Pass(_ stream.Link, packet []byte) error {
	k, ok := flowOf(packet)
	if !ok {
		return errors.New("not a TCP packet")
	}
	go n.f.direct(k)
	return nil
}

// Own implements stream.Net.
func (n *Net) Own(a netip.Addr) bool { return a == n.own }

// Tracked implements stream.Net with Forwarded.
func (n *Net) Tracked(f func(stream.Tracked) bool) error {
	for _, t := range n.Forwarded {
		if !f(t) {
			break
		}
	}
	return nil
}

// Via implements stream.Net with Routes.
func (n *Net) Via(a netip.Addr) string { return n.Routes[a] }

// Descriptors implements stream.Net: there are always enough.
func (n *Net) Descriptors(want int) int { return want }

// Spare implements stream.Net: there are always enough.
func (n *Net) Spare() (io.Closer, error) { return io.NopCloser(nil), nil }

// Memory implements stream.Net with what SetFree said, of 1 GiB.
func (n *Net) Memory() []stream.Memory {
	const total = 1 << 30
	return []stream.Memory{{Place: "host", Free: total - n.taken.Load(), Total: total}}
}

// Collect implements stream.Net: the process is the test's.
func (n *Net) Collect(stream.MemoryStats) {}

// SetFree says how many bytes of memory are free, of 1 GiB.
func (n *Net) SetFree(free uint64) { n.taken.Store(1<<30 - free) }

// direct connects client and server without any agent.
func (f *Fabric) direct(k flow) {
	f.mu.Lock()
	silent := errors.Is(f.failing[k.dst.Addr()], syscall.ETIMEDOUT)
	f.mu.Unlock()
	if silent {
		return
	}
	c, err := f.connect(context.Background(), k.src, k.dst)
	f.answer(k, answer{c, Direct, err})
}

// answer tells the waiting client, if there still is one.
func (f *Fabric) answer(k flow, a answer) {
	f.mu.Lock()
	ch := f.waiting[k]
	delete(f.waiting, k)
	f.mu.Unlock()
	if ch != nil {
		ch <- a
	} else if a.conn != nil {
		a.conn.Close()
	}
}

// Connect is a client of this site: its SYN meets the site's kernel, and is
// repeated every second.
func (n *Net) Connect(ctx context.Context, src, dst netip.AddrPort) (*Conn, How, error) {
	k, ch := flow{src, dst}, make(chan answer, 1)
	n.f.mu.Lock()
	n.f.waiting[k] = ch
	n.f.mu.Unlock()
	packet := SYN(src, dst, 1000)
	for {
		n.send(k, packet)
		select {
		case a := <-ch:
			return a.conn, a.how, a.err
		case <-ctx.Done():
			return nil, "", ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// send routes a SYN: into the hold device, or on if there is none.
func (n *Net) send(k flow, packet []byte) {
	n.mu.Lock()
	hold := n.hold
	n.mu.Unlock()
	if hold != nil {
		select {
		case <-hold.closed:
		case hold.in <- packet:
			return
		}
	}
	go n.f.direct(k)
}

// fromHold is what the kernel does with a packet written to the hold device.
func (n *Net) fromHold(packet []byte) {
	k, ok := flowOf(packet)
	back := flow{k.dst, k.src}
	switch flags := tcpFlags(packet); {
	case !ok:
		n.f.answer(quotedFlow(packet), answer{err: syscall.EHOSTUNREACH})
	case flags == 0x14:
		n.f.answer(back, answer{err: syscall.ECONNREFUSED})
	case flags == 0x02:
		n.mu.Lock()
		l := n.accept
		n.mu.Unlock()
		client, ours := Pipe(k.src, k.dst, room, 0)
		if n.keep(ours); l.offer(ours) {
			n.f.answer(k, answer{client, Split, nil})
		}
	}
}

// Listener accepts connections in memory. It implements stream.Listener.
type Listener struct {
	conns  chan *Conn
	closed chan struct{}
	once   sync.Once
	onEnd  func(*Listener)
	keep   func(*Conn) *Conn
}

func newListener(onEnd func(*Listener)) *Listener {
	return &Listener{conns: make(chan *Conn, 1024), closed: make(chan struct{}), onEnd: onEnd}
}

// offer hands a connection to the listener; false: nobody listens.
func (l *Listener) offer(c *Conn) bool {
	select {
	case <-l.closed:
		return false
	default:
	}
	if l.keep != nil {
		l.keep(c)
	}
	l.conns <- c
	return true
}

// Accept implements stream.Listener.
func (l *Listener) Accept() (stream.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements stream.Listener.
func (l *Listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		if l.onEnd != nil {
			l.onEnd(l)
		}
	})
	return nil
}

// tun is the hold device.
type tun struct {
	n      *Net
	in     chan []byte
	closed chan struct{}
	once   sync.Once
}

func (t *tun) Name() string   { return "st-hold" }
func (t *tun) BatchSize() int { return 1 }

func (t *tun) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case p := <-t.in:
		sizes[0] = copy(bufs[0][offset:], p)
		return 1, nil
	case <-t.closed:
		return 0, net.ErrClosed
	}
}

// Poll and Wake are not used by streams.
func (t *tun) Poll([][]byte, []int, int) (int, error) { return 0, nil }
func (t *tun) Wake()                                  {}

func (t *tun) Write(bufs [][]byte, offset int) (int, error) {
	select {
	case <-t.closed:
		return 0, net.ErrClosed
	default:
	}
	for _, b := range bufs {
		t.n.fromHold(append([]byte(nil), b[offset:]...))
	}
	return len(bufs), nil
}

func (t *tun) Close() error {
	t.once.Do(func() { close(t.closed) })
	return nil
}

// SYN builds a client's first packet.
func SYN(src, dst netip.AddrPort, seq uint32) []byte {
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp, src.Port())
	binary.BigEndian.PutUint16(tcp[2:], dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], seq)
	tcp[12], tcp[13], tcp[14] = 0x50, 0x02, 0xff
	pseudo := append(append(src.Addr().AsSlice(), dst.Addr().AsSlice()...), 0, 6, 0, 20)
	binary.BigEndian.PutUint16(tcp[16:], fold(append(pseudo, tcp...)))
	if src.Addr().Is6() {
		ip := append([]byte{0x60, 0, 0, 0, 0, 20, 6, 64}, src.Addr().AsSlice()...)
		return append(append(ip, dst.Addr().AsSlice()...), tcp...)
	}
	ip := append([]byte{0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0}, src.Addr().AsSlice()...)
	ip = append(ip, dst.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], fold(ip))
	return append(ip, tcp...)
}

// fold is the Internet checksum of whole words.
func fold(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// flowOf reads the addresses of a TCP packet.
func flowOf(p []byte) (flow, bool) {
	if len(p) >= 40 && p[0]>>4 == 4 && p[9] == 6 {
		return flowAt(p[12:16], p[16:20], p[20:]), true
	}
	if len(p) >= 60 && p[0]>>4 == 6 && p[6] == 6 {
		return flowAt(p[8:24], p[24:40], p[40:]), true
	}
	return flow{}, false
}

func flowAt(src, dst, ports []byte) flow {
	s, _ := netip.AddrFromSlice(src)
	d, _ := netip.AddrFromSlice(dst)
	return flow{netip.AddrPortFrom(s, binary.BigEndian.Uint16(ports)), netip.AddrPortFrom(d, binary.BigEndian.Uint16(ports[2:]))}
}

// tcpFlags returns the flags of a packet flowOf has accepted.
func tcpFlags(p []byte) byte {
	switch {
	case len(p) >= 40 && p[0]>>4 == 4:
		return p[33]
	case len(p) >= 60:
		return p[53]
	}
	return 0
}

// quotedFlow reads the addresses an ICMP error is about.
func quotedFlow(p []byte) flow {
	header := 20
	if p[0]>>4 == 6 {
		header = 40
	}
	k, _ := flowOf(p[header+8:])
	return k
}
