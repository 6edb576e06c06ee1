package wg

import (
	"fmt"
	"net"
	"sync"
	"testing"

	"golang.zx2c4.com/wireguard/conn"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev/super"
	"stitch/tunnel/wg/carrier"
)

// ringTUN is a device that makes packets and counts those it gets, without an
// allocation.
type ringTUN struct {
	packet  []byte
	tokens  chan int // how many packets the next Read makes
	arrived chan int
	closed  chan struct{}
}

func newRingTUN(packet []byte) *ringTUN {
	return &ringTUN{packet: packet, tokens: make(chan int, 1), arrived: make(chan int, 1<<16), closed: make(chan struct{})}
}

func (r *ringTUN) Wake() {
	select {
	case r.tokens <- 0:
	default:
	}
}

func (r *ringTUN) Poll(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case n := <-r.tokens:
		return r.fill(n, bufs, sizes, offset), nil
	default:
		return 0, nil
	}
}

func (r *ringTUN) fill(n int, bufs [][]byte, sizes []int, offset int) int {
	for i := range n {
		sizes[i] = copy(bufs[i][offset:], r.packet)
	}
	return n
}

func (r *ringTUN) Name() string   { return "ring" }
func (r *ringTUN) BatchSize() int { return 128 }
func (r *ringTUN) Close() error   { close(r.closed); return nil }

func (r *ringTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-r.closed:
		return 0, net.ErrClosed
	case n := <-r.tokens:
		return r.fill(n, bufs, sizes, offset), nil
	}
}

func (r *ringTUN) Write(bufs [][]byte, _ int) (int, error) {
	r.arrived <- len(bufs)
	return len(bufs), nil
}

// ringBind is one end of a path of recycled buffers.
type ringBind struct {
	out, in, free chan []byte
	mu            sync.Mutex
	closed        chan struct{}
}

func newRingBinds() [2]*ringBind {
	free := make(chan []byte, 4096)
	for range cap(free) {
		free <- make([]byte, 0, 2048)
	}
	a, b := make(chan []byte, cap(free)), make(chan []byte, cap(free))
	return [2]*ringBind{{out: a, in: b, free: free}, {out: b, in: a, free: free}}
}

func (r *ringBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	closed := make(chan struct{})
	r.closed = closed
	var ep conn.Endpoint = simEndpoint{}
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n := 0
		for n < len(bufs) {
			var p []byte
			if n == 0 {
				select {
				case <-closed:
					return 0, net.ErrClosed
				case p = <-r.in:
				}
			} else {
				select {
				case p = <-r.in:
				default:
					return n, nil
				}
			}
			sizes[n], eps[n] = copy(bufs[n], p), ep
			n++
			r.free <- p[:0]
		}
		return n, nil
	}}, 1, nil
}

func (r *ringBind) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed != nil {
		close(r.closed)
		r.closed = nil
	}
	return nil
}

func (r *ringBind) SetMark(uint32) error                        { return nil }
func (r *ringBind) BatchSize() int                              { return 128 }
func (r *ringBind) ParseEndpoint(string) (conn.Endpoint, error) { return simEndpoint{}, nil }

func (r *ringBind) Send(bufs [][]byte, _ conn.Endpoint) error {
	for _, p := range bufs {
		r.out <- append(<-r.free, p...)
	}
	return nil
}

// openRing opens two links over rings, with the options applied, and waits
// until they are up.
func openRing(t testing.TB, options [2]func(*Config)) (links [2]*Link) {
	t.Helper()
	low, high := testKeys(7)
	keys := [2][32]byte{low, high}
	binds := newRingBinds()
	for i := range links {
		cfg := Config{
			PrivateKey: keys[i], PublicKey: PublicKey(keys[1-i]), Endpoint: "192.0.2.1:1", TUN: newRingTUN(nil), InnerMTU: 1440, Bind: binds[i],
		}
		options[i](&cfg)
		cfg.Local, cfg.Remote = LinkAddrs(PublicKey(keys[i]), PublicKey(keys[1-i]))
		l, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		links[i] = l
		t.Cleanup(func() { l.Close(); cfg.TUN.Close() })
	}
	waitFor(t, "both ends to come up", func() bool {
		return links[0].currentState() == Up && links[1].currentState() == Up
	})
	return links
}

// each makes an OnFrames of what gets every frame.
func each(onFrame func(segment uint16, frame []byte)) func(uint16, [][]byte) {
	return func(segment uint16, frames [][]byte) {
		for _, f := range frames {
			onFrame(segment, f)
		}
	}
}

// ringLinks opens two links between devices that make packets.
func ringLinks(b *testing.B, packet []byte, onFrame func(), more ...func(*Config)) (links [2]*Link, tuns [2]*ringTUN) {
	b.Helper()
	var options [2]func(*Config)
	for i := range options {
		tuns[i] = newRingTUN(packet)
		options[i] = func(c *Config) {
			c.TUN, c.OnFrames = tuns[i], each(func(uint16, []byte) { onFrame() })
			for _, o := range more {
				o(c)
			}
		}
	}
	return openRing(b, options), tuns
}

// BenchmarkPackets carries batches of 32 packets from one TUN device to the
// other, encrypted on the way.
func BenchmarkPackets(b *testing.B) {
	for _, size := range []int{100, 1440, 1500} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			const batch = 32
			_, tuns := ringLinks(b, ipPacket(size, 1), func() {})
			b.SetBytes(batch * int64(size))
			b.ReportAllocs()
			for b.Loop() {
				tuns[0].tokens <- batch
				for got := 0; got < batch; {
					got += <-tuns[1].arrived
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/packet")
		})
	}
}

// BenchmarkFrames carries 32 Ethernet frames at a time: in one part or several
// over a path of 1500 bytes, and a jumbo frame also over one that carries it whole.
func BenchmarkFrames(b *testing.B) {
	for _, c := range []struct{ size, underlay int }{{100, 1500}, {1412, 1500}, {1514, 1500}, {9014, 1500}, {9014, 9216}} {
		inner := config.InnerMTU(c.underlay, false)
		parts, _ := carrier.Split(c.size, inner)
		b.Run(fmt.Sprintf("%d/parts=%d", c.size, parts), func(b *testing.B) {
			const batch = 32
			arrived := make(chan struct{}, batch)
			wide := func(cfg *Config) { cfg.InnerMTU = inner }
			links, _ := ringLinks(b, nil, func() { arrived <- struct{}{} }, wide)
			frame := make([]byte, c.size)
			b.SetBytes(batch * int64(c.size))
			b.ReportAllocs()
			for b.Loop() {
				for range batch {
					links[0].SendFrame(1, frame, super.Header{})
				}
				for range batch {
					<-arrived
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/frame")
		})
	}
}

// A round trip of one packet, as a ping sees it.
func BenchmarkPing(b *testing.B) {
	_, tuns := ringLinks(b, ipPacket(84, 1), func() {})
	for b.Loop() {
		tuns[0].tokens <- 1
		<-tuns[1].arrived
		tuns[1].tokens <- 1
		<-tuns[0].arrived
	}
}
