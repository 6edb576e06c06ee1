package wan

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// maxPending bounds the datagrams on their way to one Bind. When it is reached
// the newest is dropped and counted in Overflow.
const maxPending = 1 << 16

// Net is an IP network in memory. Its hosts are WireGuard binds; every ordered
// pair of addresses has a Model. Time is package time's, so it runs inside a
// testing/synctest bubble; it starts no goroutine. All methods are safe for
// concurrent use.
type Net struct {
	base time.Time

	mu    sync.Mutex
	def   Params
	paths map[[2]netip.Addr]*Model
	binds map[netip.AddrPort]*Bind
	over  uint64
	port  uint16
}

// NewNet returns a network whose paths all begin with the given parameters;
// each path's seed is derived from def.Seed and the order of first use.
func NewNet(def Params) (*Net, error) {
	if err := def.Validate(); err != nil {
		return nil, err
	}
	return &Net{base: time.Now(), def: def, port: 32768,
		paths: map[[2]netip.Addr]*Model{}, binds: map[netip.AddrPort]*Bind{}}, nil
}

// Pipe returns a network of two hosts, 192.0.2.1 and 192.0.2.2, and their
// binds. Both directions begin with p.
func Pipe(p Params) (n *Net, a, b *Bind, err error) {
	if n, err = NewNet(p); err != nil {
		return nil, nil, nil, err
	}
	return n, n.Bind(netip.AddrFrom4([4]byte{192, 0, 2, 1})), n.Bind(netip.AddrFrom4([4]byte{192, 0, 2, 2})), nil
}

// Set changes the path from one address to the other, one way.
func (n *Net) Set(from, to netip.Addr, p Params) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.path(from, to).Set(p)
}

// Cut takes both directions between two addresses down, or up again.
func (n *Net) Cut(a, b netip.Addr, down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range []*Model{n.path(a, b), n.path(b, a)} {
		p := m.Params()
		p.Down = down
		_ = m.Set(p) // valid before, and Down is a bool
	}
}

// Counters returns the counters of the path from one address to the other.
func (n *Net) Counters(from, to netip.Addr) Counters {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.path(from, to).Counters()
}

// Overflow is the number of datagrams dropped because too many were on their
// way to one bind, or because nobody was bound to their destination.
func (n *Net) Overflow() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.over
}

// path returns the model of one direction; the caller holds mu.
func (n *Net) path(from, to netip.Addr) *Model {
	key := [2]netip.Addr{from, to}
	m := n.paths[key]
	if m == nil {
		p := n.def
		p.Seed += uint64(len(n.paths))
		m, _ = NewModel(p) // def is valid
		n.paths[key] = m
	}
	return m
}

// deliver runs one datagram through its path. It copies data.
func (n *Net) deliver(from, to netip.AddrPort, data []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	header := 28
	if to.Addr().Is6() {
		header = 48
	}
	v := n.path(from.Addr(), to.Addr()).Enqueue(time.Since(n.base), len(data)+header)
	if v.Copies == 0 {
		return
	}
	b := n.binds[to]
	for range v.Copies {
		if b == nil || b.due.len() >= maxPending {
			n.over++
			continue
		}
		b.push(v.At, from, data)
	}
}

// Bind is a host's UDP socket in a Net, as wireguard-go's conn.Bind.
type Bind struct {
	net  *Net
	addr netip.Addr

	// All below is guarded by net.mu.
	local  netip.AddrPort // zero when closed
	due    schedule
	parcel map[uint32]parcel
	slot   uint32
	wake   chan struct{} // capacity 1: due has a new head
	closed chan struct{}
}

// parcel is a datagram on its way.
type parcel struct {
	from netip.AddrPort
	data []byte
}

// Bind returns a new bind of the host with that address. It is closed until
// Open and may be opened again after Close.
func (n *Net) Bind(addr netip.Addr) *Bind { return &Bind{net: n, addr: addr} }

// Addr is the host's address.
func (b *Bind) Addr() netip.Addr { return b.addr }

// Open implements conn.Bind.
func (b *Bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	n := b.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if b.local.IsValid() {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	for port == 0 {
		n.port++
		if n.binds[netip.AddrPortFrom(b.addr, n.port)] == nil {
			port = n.port
		}
	}
	local := netip.AddrPortFrom(b.addr, port)
	if n.binds[local] != nil {
		return nil, 0, fmt.Errorf("%v is in use: close the other bind first", local)
	}
	n.binds[local], b.local = b, local
	b.due, b.parcel = schedule{}, map[uint32]parcel{}
	b.wake, b.closed = make(chan struct{}, 1), make(chan struct{})
	return []conn.ReceiveFunc{b.receiver(b.wake, b.closed)}, port, nil
}

// Close implements conn.Bind. Datagrams on their way here are lost.
func (b *Bind) Close() error {
	b.net.mu.Lock()
	defer b.net.mu.Unlock()
	if b.local.IsValid() {
		delete(b.net.binds, b.local)
		b.local = netip.AddrPort{}
		close(b.closed)
	}
	return nil
}

// SetMark implements conn.Bind; it does nothing.
func (b *Bind) SetMark(uint32) error { return nil }

// BatchSize implements conn.Bind.
func (b *Bind) BatchSize() int { return 32 }

// ParseEndpoint implements conn.Bind.
func (b *Bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	ap, err := netip.ParseAddrPort(s)
	return endpoint{ap}, err
}

// Send implements conn.Bind. It borrows bufs and never blocks.
func (b *Bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	b.net.mu.Lock()
	local := b.local
	b.net.mu.Unlock()
	if !local.IsValid() {
		return net.ErrClosed
	}
	to, ok := ep.(endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	for _, data := range bufs {
		b.net.deliver(local, to.to, data)
	}
	return nil
}

// push schedules one datagram; the caller holds net.mu.
func (b *Bind) push(at time.Duration, from netip.AddrPort, data []byte) {
	b.slot++
	b.parcel[b.slot] = parcel{from, append([]byte(nil), data...)}
	b.due.push(at, b.slot, 0)
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// receiver returns the ReceiveFunc of one opening of the bind.
func (b *Bind) receiver(wake, closed chan struct{}) conn.ReceiveFunc {
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		for {
			select {
			case <-closed:
				return 0, net.ErrClosed
			default:
			}
			count, wait := b.take(closed, bufs, sizes, eps)
			if count > 0 {
				return count, nil
			}
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-wake:
			case <-closed:
			}
			timer.Stop()
		}
	}
}

// take fills bufs with what is due now, or says how long until something is.
func (b *Bind) take(closed chan struct{}, bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, time.Duration) {
	n := b.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if b.closed != closed {
		return 0, 0 // reopened by somebody else meanwhile: our closed is closed
	}
	now, count := time.Since(n.base), 0
	for count < len(bufs) {
		at, ok := b.due.next()
		if !ok {
			return count, time.Hour
		}
		if at > now {
			return count, at - now
		}
		slot := b.due.pop().slot
		p := b.parcel[slot]
		delete(b.parcel, slot)
		sizes[count], eps[count] = copy(bufs[count], p.data), endpoint{p.from}
		count++
	}
	return count, 0
}

// endpoint is a remote address; there is no source cache in this network.
type endpoint struct{ to netip.AddrPort }

func (e endpoint) ClearSrc()           {}
func (e endpoint) SrcToString() string { return "" }
func (e endpoint) DstToString() string { return e.to.String() }
func (e endpoint) DstToBytes() []byte  { b, _ := e.to.MarshalBinary(); return b }
func (e endpoint) DstIP() netip.Addr   { return e.to.Addr() }
func (e endpoint) SrcIP() netip.Addr   { return netip.Addr{} }
