package wg

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev/super"
	"stitch/tunnel/wan"
	"stitch/tunnel/wg/carrier"
)

// arrivedAt is an IP packet that came out of a link.
type arrivedAt struct {
	packet []byte
	at     time.Time
}

// TestShaped: bulk of one flow, twice as much as the path takes, and now and
// then a small packet and a small frame. On a link with a rate the small ones
// pass the queue, and the path is never given more than the rate; a rate that is
// learned is nearly as good; without one, the control case, they wait with the bulk
// in front of the path.
func TestShaped(t *testing.T) {
	const rate = 20e6
	params := wan.Params{Rate: rate, Delay: 10 * time.Millisecond, Queue: rate / 8 / 10} // 100 ms
	for name, c := range map[string]struct {
		rate           int64
		learn          bool
		beyond, atMost time.Duration
	}{
		"rate":    {rate * 98 / 100, false, 0, 8 * time.Millisecond},
		"learned": {0, true, 0, 50 * time.Millisecond},
		"no rate": {0, false, 60 * time.Millisecond, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			out := make(chan arrivedAt, 20_000)
			frames := func(cfg *Config) {
				cfg.Rate, cfg.Overhead, cfg.Learn = c.rate, 60, c.learn
				cfg.OnFrames = each(func(_ uint16, frame []byte) { out <- arrivedAt{slices.Clone(frame[14:]), time.Now()} })
			}
			onPath(t, params, func(t *testing.T, p *path) {
				go func() {
					for b := range p.ends[1].tun.Out {
						out <- arrivedAt{b, time.Now()}
					}
				}()
				defer close(p.ends[1].tun.Out)
				time.Sleep(10 * time.Second)
				sent, wire := p.flood(t)
				time.Sleep(time.Second)
				synctest.Wait()
				worst, small := time.Duration(0), 0
				for len(out) > 0 {
					a := <-out
					if at, ok := sent[binary.BigEndian.Uint32(a.packet[28:])]; ok && len(a.packet) == smallPacket {
						small++
						worst = max(worst, a.at.Sub(at)-params.Delay)
					}
				}
				t.Logf("%d small packets waited at most %v; %.2f Mbit/s on the wire", small, worst, wire/1e6)
				if worst > c.atMost || worst < c.beyond {
					t.Errorf("small packets waited %v, want %v to %v", worst, c.beyond, c.atMost)
				}
				if c.rate == 0 {
					return
				}
				if small != len(sent) {
					t.Errorf("%d of %d small packets arrived", small, len(sent))
				}
				if wire > 1.02*float64(c.rate) || wire < 0.95*float64(c.rate) {
					t.Errorf("%.0f bit/s on the wire", wire)
				}
				if p.ends[0].Stats().Drops.Rate == 0 {
					t.Error("nothing is counted as dropped")
				}
			}, frames)
		})
	}
}

const smallPacket = 100

// flood sends 40 Mbit/s of bulk for two seconds, and small packets beside it. It
// returns when each of these was sent, and the bits a second on the wire.
func (p *path) flood(t *testing.T) (sent map[uint32]time.Time, wire float64) {
	sent = map[uint32]time.Time{}
	small := func(number int) []byte {
		b := ipPacket(smallPacket, 2)
		binary.BigEndian.PutUint32(b[28:], uint32(number))
		sent[uint32(number)] = time.Now()
		return b
	}
	before := p.Counters(pathAddrs[0], pathAddrs[1]).Bytes
	const steps = 2000
	for i := range steps {
		for range 4 {
			p.ends[0].tun.In <- ipPacket(1250, 1)
		}
		if i%20 == 10 {
			frame := append(make([]byte, 12), 8, 0)
			if !p.ends[0].SendFrame(7, append(frame, small(i)...), super.Header{}) {
				t.Error("a frame was refused")
			}
			p.ends[0].tun.In <- small(i + 1)
		}
		time.Sleep(time.Millisecond)
	}
	return sent, float64(p.Counters(pathAddrs[0], pathAddrs[1]).Bytes-before) * 8 / (steps * time.Millisecond).Seconds()
}

// TestShapedOrder: the packets of a flow stay in order, and those in parts
// arrive.
func TestShapedOrder(t *testing.T) {
	onPath(t, wan.Params{Delay: 10 * time.Millisecond}, func(t *testing.T, p *path) {
		time.Sleep(time.Second)
		for i := range 40 {
			b := ipPacket(1500, uint16(1+i%2)) // in parts: the inner MTU is 1420
			binary.BigEndian.PutUint32(b[28:], uint32(i))
			p.ends[0].tun.In <- b
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		last := map[uint16]uint32{}
		n := len(p.ends[1].tun.Out)
		for range n {
			b := <-p.ends[1].tun.Out
			flow, number := binary.BigEndian.Uint16(b[20:]), binary.BigEndian.Uint32(b[28:])
			if number < last[flow] {
				t.Errorf("flow %d: %d after %d", flow, number, last[flow])
			}
			last[flow] = number
		}
		if n != 40 {
			t.Errorf("%d of 40 packets arrived", n)
		}
	}, func(cfg *Config) { cfg.Rate, cfg.Overhead = 2e6, 60 })
}

// TestFlowOf: frames are told apart by what is inside them, later parts belong to
// the first, and only between the agents a DSCP is a weight.
func TestFlowOf(t *testing.T) {
	local, remote := LinkAddrs(config.Key{1}, config.Key{2})
	path, err := carrier.NewPath(local, remote)
	if err != nil {
		t.Fatal(err)
	}
	m := &mux{path: path, cfg: &Config{}}
	asked := 0
	m.shaped = newShaped(m, &Config{
		Local: local, Remote: remote, Rate: 1e6, Classes: make([]config.Class, 4), Marks: []config.Mark{9: {Class: 2, Share: 5}},
		ClassOf: func(segment uint16, src, dst netip.AddrPort) int {
			asked++
			switch {
			case segment == 7 && dst == netip.MustParseAddrPort("10.2.0.1:7"):
				return 3
			case segment == 0 && src.Port() != 0:
				return 1
			}
			return 0
		},
	})
	carry := func(h carrier.Header, body []byte) []byte {
		b := make([]byte, carrier.HeaderLen+len(body))
		m.path.Put(b, h, len(body))
		copy(b[carrier.HeaderLen:], body)
		return b
	}
	marked := func(src, dst netip.Addr) []byte {
		b := ipPacket(100, 5302)
		b[1] = 9 << 2
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
		return b
	}
	frame := append(append(make([]byte, 12), 8, 0), ipPacket(100, 7)...)
	tagged := append(append(make([]byte, 12), 0x81, 0, 0, 5, 8, 0), ipPacket(100, 7)...)
	host := netip.MustParseAddr("10.1.0.1")
	flow := func(segment uint16, data []byte, class, weight int) shapedFlow {
		return shapedFlow{maphash.Comparable(m.shaped.seed, keyOf(segment, data)), class, weight}
	}
	for range 2 {
		for name, c := range map[string]struct {
			packet []byte
			flow   shapedFlow
			again  bool
		}{
			"packet":       {ipPacket(100, 7), flow(0, ipPacket(100, 7), 1, 1), false},
			"agents":       {marked(local, remote), flow(0, marked(local, remote), 2, 5), false},
			"not agents":   {marked(host, remote), flow(0, marked(host, remote), 1, 1), false},
			"frame":        {carry(carrier.Header{Kind: carrier.Frame, Segment: 7}, frame), flow(7, frame, 3, 1), false},
			"tagged":       {carry(carrier.Header{Kind: carrier.Frame, Segment: 7}, tagged), flow(7, tagged, 0, 1), false},
			"first part":   {carry(carrier.Header{Kind: carrier.IP, Last: 1}, ipPacket(100, 7)), flow(0, ipPacket(100, 7), 1, 1), false},
			"second part":  {carry(carrier.Header{Kind: carrier.IP, Index: 1, Last: 1}, ipPacket(100, 7)), shapedFlow{}, true},
			"too short":    {[]byte{0x45, 0xff}, flow(0, []byte{0x45, 0xff}, 0, 1), false},
			"no IP at all": {nil, flow(0, nil, 0, 1), false},
		} {
			if f, again := m.flowOf(c.packet); f != c.flow || again != c.again {
				t.Errorf("%s: %+v, %v, want %+v", name, f, again, c.flow)
			}
		}
	}
	if asked > 7 { // of one flow once, if its slot was not taken meanwhile
		t.Errorf("the class was asked for %d times", asked)
	}
}
