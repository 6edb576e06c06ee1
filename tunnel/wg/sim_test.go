package wg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev/netdevtest"
)

// TestMain turns garbage collection off: wireguard-go's queue finalizers run
// outside the synctest bubble, and the runtime stops a program that touches
// a bubble's channel from there.
func TestMain(m *testing.M) {
	debug.SetGCPercent(-1)
	os.Exit(m.Run())
}

// simNet joins two binds by a path with delay and loss, in order.
type simNet struct {
	ends  [2]*simBind
	delay time.Duration
	loss  float64

	mu    sync.Mutex
	rng   *rand.Rand
	dead  bool
	deaf  [2]bool // nothing arrives at this end
	torn  bool    // what leaves in one call gets lost
	drops func(from int, p []byte) bool
	done  chan struct{}
	wg    sync.WaitGroup
}

type simPacket struct {
	at   time.Time
	data []byte
}

func newSimNet(delay time.Duration, loss float64, seed uint64) *simNet {
	n := &simNet{delay: delay, loss: loss, rng: rand.New(rand.NewPCG(seed, 1)), done: make(chan struct{})}
	for i := range n.ends {
		n.ends[i] = &simBind{net: n, self: i, wire: make(chan simPacket, 1<<16), inbox: make(chan []byte, 1<<14)}
		n.wg.Go(func() { n.carry(n.ends[i]) })
	}
	return n
}

// carry moves what end has sent to the other one.
func (n *simNet) carry(end *simBind) {
	for {
		select {
		case <-n.done:
			return
		case p := <-end.wire:
			time.Sleep(time.Until(p.at))
			other := n.ends[1-end.self]
			if n.deliverable(other.self) && other.isOpen() {
				select {
				case other.inbox <- p.data:
				default:
				}
			}
		}
	}
}

func (n *simNet) deliverable(to int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.dead && !n.deaf[to]
}

func (n *simNet) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

// close ends the network; the binds must be closed.
func (n *simNet) close() {
	close(n.done)
	n.wg.Wait()
}

type simBind struct {
	net   *simNet
	self  int
	wire  chan simPacket
	inbox chan []byte

	mu     sync.Mutex
	closed chan struct{} // nil: not open
	faults []error       // returned by the next receives
	broken bool          // receives fail until the next Open
}

type simEndpoint struct{}

func (simEndpoint) ClearSrc()           {}
func (simEndpoint) SrcToString() string { return "" }
func (simEndpoint) DstToString() string { return "192.0.2.1:1" }
func (simEndpoint) DstToBytes() []byte  { return []byte{1} }
func (simEndpoint) DstIP() netip.Addr   { return netip.AddrFrom4([4]byte{192, 0, 2, 1}) }
func (simEndpoint) SrcIP() netip.Addr   { return netip.Addr{} }

func (b *simBind) isOpen() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed != nil
}

func (b *simBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	closed := make(chan struct{})
	b.closed, b.broken = closed, false
	for len(b.inbox) > 0 {
		<-b.inbox
	}
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		if err := b.fault(); err != nil {
			return 0, err
		}
		select {
		case <-closed:
			return 0, net.ErrClosed
		case p := <-b.inbox:
			sizes[0], eps[0] = copy(bufs[0], p), simEndpoint{}
			return 1, nil
		}
	}}, 1, nil
}

func (b *simBind) fault() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken {
		return errors.New("the simulated socket is broken")
	}
	if len(b.faults) == 0 {
		return nil
	}
	err := b.faults[0]
	b.faults = b.faults[1:]
	return err
}

func (b *simBind) setBroken(broken bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.broken = broken
}

func (b *simBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		close(b.closed)
		b.closed = nil
	}
	return nil
}

func (b *simBind) SetMark(uint32) error                        { return nil }
func (b *simBind) BatchSize() int                              { return 1 }
func (b *simBind) ParseEndpoint(string) (conn.Endpoint, error) { return simEndpoint{}, nil }

func (b *simBind) Send(bufs [][]byte, _ conn.Endpoint) error {
	if !b.isOpen() {
		return net.ErrClosed
	}
	n := b.net
	n.mu.Lock()
	torn := n.torn && len(bufs) > 1
	n.mu.Unlock()
	if torn {
		return nil
	}
	for _, p := range bufs {
		n.mu.Lock()
		lost := n.loss > 0 && n.rng.Float64() < n.loss || n.drops != nil && n.drops(b.self, p)
		n.mu.Unlock()
		if lost {
			continue
		}
		select {
		case b.wire <- simPacket{at: time.Now().Add(n.delay), data: slices.Clone(p)}:
		default:
			return errors.New("simulated queue is full")
		}
	}
	return nil
}

// testKeys returns two private keys, of which the first has the lower public key.
func testKeys(seed uint64) (low, high config.Key) {
	rng := rand.New(rand.NewPCG(seed, 2))
	key := func() (k config.Key) {
		for i := 0; i < len(k); i += 8 {
			binary.LittleEndian.PutUint64(k[i:], rng.Uint64())
		}
		return k
	}
	low, high = key(), key()
	if first, _ := sorted(PublicKey(low), PublicKey(high)); first != PublicKey(low) {
		low, high = high, low
	}
	return low, high
}

// simEnd is one end of a simulated link.
type simEnd struct {
	*Link
	tun    *netdevtest.Fake
	states chan State
}

// open starts end i (0 has the lower key) with the options applied.
func (n *simNet) open(t *testing.T, i int, options ...func(*Config)) *simEnd {
	t.Helper()
	low, high := testKeys(7)
	keys := [2]config.Key{low, high}
	e := &simEnd{tun: netdevtest.NewFake(fmt.Sprint("st-", i), 128), states: make(chan State, 100)}
	local, remote := LinkAddrs(PublicKey(keys[i]), PublicKey(keys[1-i]))
	cfg := Config{
		Name: fmt.Sprint("end", 1-i), PrivateKey: keys[i], PublicKey: PublicKey(keys[1-i]), Endpoint: "192.0.2.1:1",
		TUN: e.tun, InnerMTU: 1440, Local: local, Remote: remote, Bind: n.ends[i],
		OnState: func(s State) { e.states <- s },
	}
	for _, o := range options {
		o(&cfg)
	}
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	e.Link = l
	return e
}

func (e *simEnd) close(t *testing.T) {
	t.Helper()
	if err := e.Link.Close(); err != nil {
		t.Error(err)
	}
	e.tun.Close()
}

// until waits for the state and returns how long that took, or fails after limit.
func (e *simEnd) until(t *testing.T, want State, limit time.Duration) time.Duration {
	t.Helper()
	start := time.Now()
	for time.Since(start) <= limit {
		if e.currentState() == want {
			return time.Since(start)
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("not %s after %v: %s", want, limit, e.currentState())
	return 0
}

// ipPacket returns an IPv4 packet of n bytes of UDP with the given port.
func ipPacket(n int, port uint16) []byte {
	p := make([]byte, n)
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(n))
	copy(p[12:], []byte{10, 1, 0, 1, 10, 2, 0, 1})
	binary.BigEndian.PutUint16(p[20:], port)
	binary.BigEndian.PutUint16(p[22:], port)
	for i := 28; i < n; i++ {
		p[i] = byte(i) ^ byte(port)
	}
	return p
}
