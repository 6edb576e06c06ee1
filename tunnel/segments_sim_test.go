package tunnel_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"stitch/tunnel"
	"stitch/tunnel/config"
	"stitch/tunnel/control"
	"stitch/tunnel/ether"
	"stitch/tunnel/netdev/netdevtest"
	"stitch/tunnel/redirect/redirecttest"
	"stitch/tunnel/wan"
	"stitch/tunnel/wg"
)

// meshSite is one of three whole link planes in memory.
type meshSite struct {
	cfg     *config.Config
	devices *netdevtest.FakeOpener
	addr    netip.Addr
	status  func(context.Context) control.Status
}

// meshVM is a workload of segment 100, at dc1 by configuration.
var meshVM = config.Workload{Name: "vm", MAC: config.MAC{0x52, 0x54, 0, 0, 0, 0x50}, IP: netip.MustParseAddr("10.1.0.50"), Site: "dc1", Segment: 100}

// newMesh makes dc1, dc2 and dc3, each with a link to both others. Segment 100
// is everywhere, 200 joins dc1 and dc3; dc2 has a segment 200 too, stretched to
// dc1, which knows nothing of that.
func newMesh(t *testing.T) []*meshSite {
	t.Helper()
	var list []*meshSite
	keys := make([]config.Key, 3)
	for i := range keys {
		k, err := wg.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{byte(i + 1)}, 32)))
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = k
	}
	name := func(i int) string { return fmt.Sprintf("dc%d", i+1) }
	for i := range keys {
		s := &meshSite{devices: &netdevtest.FakeOpener{}, addr: netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)})}
		s.cfg = &config.Config{Site: name(i), PrivateKey: keys[i], Workloads: []config.Workload{meshVM},
			Subnets: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 10, byte(i), 0}), 24)}}
		var others []string
		for j := range keys {
			if j == i {
				continue
			}
			others = append(others, name(j))
			s.cfg.Peers = append(s.cfg.Peers, config.Peer{
				Name: name(j), PublicKey: wg.PublicKey(keys[j]), ListenPort: uint16(50000 + j), UnderlayMTU: 1500,
				Endpoint: fmt.Sprintf("203.0.113.%d:%d", j+1, 50000+i),
				Subnets:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 10, byte(j), 0}), 24)},
			})
		}
		net, gw, mac := netip.MustParsePrefix, netip.MustParseAddr, config.MAC{2, 0x53, 0x54, 0, 1, 0}
		s.cfg.Segments = []config.Segment{
			{ID: 100, Bridge: "br-a", Subnet: net("10.1.0.0/24"), Gateway: gw("10.1.0.1"), GatewayMAC: mac, Home: "dc1", Peers: others},
			{ID: 200, Bridge: "br-b", Subnet: net("10.2.0.0/24"), Gateway: gw("10.2.0.1"), GatewayMAC: mac, Home: "dc1", Peers: []string{[]string{"dc3", "dc1", "dc1"}[i]}},
		}
		list = append(list, s)
	}
	return list
}

// runMesh runs the agents and calls then when their links are up.
func runMesh(t *testing.T, sites []*meshSite, then func()) {
	network, err := wan.NewNet(wan.Params{Rate: 100e6, Delay: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var agents sync.WaitGroup
	defer agents.Wait()
	defer stop()
	for _, s := range sites {
		agent := tunnel.New(s.cfg, tunnel.Seams{
			Devices: s.devices, Kernel: &redirecttest.Kernel{},
			Bind:   func(string) conn.Bind { return network.Bind(s.addr) },
			Attach: func(config.Segment, string) (*ether.Attachment, error) { return &ether.Attachment{}, nil },
			Control: func(c control.Config) (tunnel.Runner, error) {
				s.status = c.Status
				return untilDone{}, nil
			},
		}, nil)
		agents.Go(func() {
			if err := agent.RunLink(ctx); err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", s.cfg.Site, err)
			}
		})
	}
	time.Sleep(4 * time.Second)
	synctest.Wait()
	then()
}

// untilDone is a status socket nobody asks.
type untilDone struct{}

func (untilDone) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// send puts a frame on the LAN of a segment and waits until it has crossed.
func (s *meshSite) send(segment int, frame []byte) {
	s.devices.Device(fmt.Sprintf("sg-%d", segment)).In <- bytes.Clone(frame)
	time.Sleep(50 * time.Millisecond)
	synctest.Wait()
}

// got returns the frames that reached the LAN of a segment, but agents' own.
func (s *meshSite) got(segment int) (frames [][]byte) {
	for out := s.devices.Device(fmt.Sprintf("sg-%d", segment)).Out; ; {
		select {
		case f := <-out:
			if binary.BigEndian.Uint16(f[12:]) != 0x88b7 {
				frames = append(frames, f)
			}
		default:
			return frames
		}
	}
}

// TestThreeAgents runs three whole agents with two segments.
func TestThreeAgents(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // see TestTwoAgents
	synctest.Test(t, func(t *testing.T) {
		sites := newMesh(t)
		runMesh(t, sites, func() {
			meshFrames(t, sites)
			meshMove(t, sites)
			meshForeign(t, sites)
		})
	})
}

func etherFrame(dst, src byte, tag byte) []byte {
	f := []byte{2, 0, 0, 0, 0, dst, 2, 0, 0, 0, 0, src, 0x88, 0xb5, tag}
	if dst == 0xff {
		copy(f, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	}
	return append(f, make([]byte, 40)...)
}

// meshFrames: a broadcast reaches every site of its segment once, unicast one.
func meshFrames(t *testing.T, sites []*meshSite) {
	want := func(what string, segment int, counts ...int) {
		t.Helper()
		for i, s := range sites {
			if got := len(s.got(segment)); got != counts[i] {
				t.Errorf("%s: %d frames in segment %d at dc%d, want %d", what, got, segment, i+1, counts[i])
			}
		}
	}
	sites[0].send(100, etherFrame(0xff, 0xaa, 1))
	want("broadcast of dc1", 100, 0, 1, 1)
	want("broadcast in another segment", 200, 0, 0, 0)
	sites[2].send(100, etherFrame(0xff, 0xcc, 2))
	want("broadcast of dc3", 100, 1, 1, 0)
	sites[1].send(100, etherFrame(0xcc, 0xbb, 3))
	want("unicast from dc2 to dc3", 100, 0, 0, 1)
	sites[2].send(200, etherFrame(0xff, 0xaa, 4)) // the same MAC, another network
	want("broadcast in segment 200", 200, 1, 0, 0)
	sites[1].send(100, etherFrame(0xaa, 0xbb, 5))
	want("unicast from dc2 to dc1", 100, 1, 0, 0)
}

// meshMove takes the workload to dc3 and then to dc2: all three switch.
func meshMove(t *testing.T, sites []*meshSite) {
	mac := meshVM.MAC
	rarp := append(bytes.Repeat([]byte{0xff}, 6), mac[:]...)
	rarp = append(rarp, 0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3)
	rarp = append(append(append(rarp, mac[:]...), 0, 0, 0, 0), append(mac[:], make([]byte, 22)...)...)
	for _, at := range []int{2, 1} {
		sites[at].send(100, rarp)
		time.Sleep(2 * time.Second) // relearn frames included
		for _, s := range sites {
			s.got(100)
		}
		for from, s := range sites {
			if owner := s.status(t.Context()).Workloads[0].Site; owner != sites[at].cfg.Site {
				t.Errorf("dc%d thinks the workload is at %s, want %s", from+1, owner, sites[at].cfg.Site)
			}
			if from == at {
				continue
			}
			s.send(100, slices.Concat(mac[:], etherFrame(0, byte(0xa0+from), 9)[6:]))
			for i := range sites {
				if got := len(sites[i].got(100)); got != map[bool]int{true: 1}[i == at] {
					t.Errorf("workload at dc%d, frame from dc%d: %d copies at dc%d", at+1, from+1, got, i+1)
				}
			}
		}
	}
}

// TestMeshConservation sends tagged frames of every size between three whole
// agents over paths without loss, and holds the account: what a LAN gave is
// delivered as it was, once, where its destination is, or counted as dropped.
// STITCH_LONG=1 sends two million.
func TestMeshConservation(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // see TestTwoAgents
	frames := 100_000
	if os.Getenv("STITCH_LONG") != "" {
		frames = 2_000_000
	}
	synctest.Test(t, func(t *testing.T) {
		sites := newMesh(t)
		runMesh(t, sites, func() {
			c := meshAccount{t: t, sites: sites, r: rand.New(rand.NewPCG(6, 6)), sent: map[uint64]meshFrame{}}
			for tag, round := 0, meshHosts; tag < frames; round = 50 {
				for end := min(tag+round, frames); tag < end; tag++ {
					c.send(uint64(tag))
				}
				time.Sleep(40 * time.Millisecond)
				synctest.Wait()
				c.collect()
			}
			c.settle(uint64(frames))
		})
	})
}

// meshAccount is what was sent and what came of it.
type meshAccount struct {
	t         *testing.T
	sites     []*meshSite
	r         *rand.Rand
	sent      map[uint64]meshFrame // by tag, of the last round
	delivered uint64
	wanted    uint64 // deliveries that the carried frames should lead to
}

// meshFrame is a frame and which sites may get it.
type meshFrame struct {
	bytes []byte
	at    [3]bool
}

// meshHosts is the number of hosts; host h is at site h mod 3.
const meshHosts = 12

// send puts a frame of a random host into its LAN; at first every host speaks
// to all.
func (c *meshAccount) send(tag uint64) {
	src, dst := c.r.IntN(meshHosts), c.r.IntN(meshHosts)
	f := etherFrame(byte(dst), byte(src), 0)
	var at [3]bool
	if tag < meshHosts || tag%200 == 0 {
		src = int(tag % meshHosts)
		f = etherFrame(0xff, byte(src), 0)
		at = [3]bool{true, true, true}
	}
	at[dst%3] = true
	at[src%3] = false
	f = binary.BigEndian.AppendUint64(f, tag)
	f = append(f, make([]byte, c.r.IntN(1480-len(f)))...)
	for i := len(f) - 1; i > 63; i-- {
		f[i] = byte(i) ^ byte(tag)
	}
	c.sent[tag] = meshFrame{f, at}
	for _, want := range at {
		if want {
			c.wanted++
		}
	}
	c.sites[src%3].devices.Device("sg-100").In <- bytes.Clone(f)
}

// collect checks what was delivered since the last round.
func (c *meshAccount) collect() {
	for i, s := range c.sites {
		for _, f := range s.got(100) {
			if len(f) < 63 {
				continue
			}
			tag := binary.BigEndian.Uint64(f[55:])
			sent, ok := c.sent[tag]
			switch {
			case !ok || !bytes.Equal(f, sent.bytes):
				c.t.Fatalf("at dc%d: %x was never sent", i+1, f[:63])
			case !sent.at[i]:
				c.t.Fatalf("frame %d was delivered at dc%d, again or where its destination is not", tag, i+1)
			}
			sent.at[i] = false
			c.sent[tag] = sent
			c.delivered++
		}
	}
	for _, f := range c.sent {
		for i, missing := range f.at {
			if missing {
				c.t.Fatalf("frame %x did not arrive at dc%d", f.bytes[:63], i+1)
			}
		}
	}
	clear(c.sent)
}

// settle compares the account with the counters of the agents.
func (c *meshAccount) settle(frames uint64) {
	var lan, dropped, copies, links, refused, toLAN uint64
	for _, s := range c.sites {
		var st ether.Stats
		if err := json.Unmarshal(s.status(c.t.Context()).Segments[0], &st); err != nil {
			c.t.Fatal(err)
		}
		for reason, n := range st.FromLAN {
			if dropped += n; reason != "local-destination" {
				c.t.Errorf("%s: %d frames dropped: %s", s.cfg.Site, n, reason)
			}
		}
		for reason, n := range st.FromLink {
			if reason != "agent-message" {
				refused += n
			}
		}
		lan, copies, links, toLAN = lan+st.LANFrames, copies+st.ToPeers, links+st.LinkFrames-st.FromLink["agent-message"], toLAN+st.ToLAN-st.Made
	}
	if lan != frames || copies != links || links != toLAN+refused || toLAN != c.delivered || c.delivered != c.wanted || refused != 0 {
		c.t.Errorf("%d sent, %d read, %d dropped at once; %d copies into links, %d out of them, %d refused, %d written, %d delivered, %d wanted",
			frames, lan, dropped, copies, links, refused, toLAN, c.delivered, c.wanted)
	}
}

// TestMeshPackets does the same with IP packets of 40 to 1500 bytes between the
// link devices: each arrives as it was, in order, once, from the right link.
func TestMeshPackets(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // see TestTwoAgents
	packets := 50_000
	if os.Getenv("STITCH_LONG") != "" {
		packets = 1_000_000
	}
	synctest.Test(t, func(t *testing.T) {
		sites := newMesh(t)
		runMesh(t, sites, func() {
			c := packetAccount{t: t, sites: sites, r: rand.New(rand.NewPCG(7, 7)), waiting: map[meshWay][][]byte{}}
			for n := range packets {
				c.send(uint64(n))
				if n%50 == 49 {
					time.Sleep(40 * time.Millisecond)
					synctest.Wait()
					c.collect()
				}
			}
			c.settle(uint64(packets))
		})
	})
}

// packetAccount is what was sent between the link devices.
type packetAccount struct {
	t       *testing.T
	sites   []*meshSite
	r       *rand.Rand
	waiting map[meshWay][][]byte
}

// meshWay is one direction of a link.
type meshWay struct{ from, to int }

// device is the link's device at one site, towards another.
func (c *packetAccount) device(at, towards int) *netdevtest.Fake {
	return c.sites[at].devices.Device(fmt.Sprintf("st-dc%d", towards+1))
}

// send gives a packet of random size to a random link.
func (c *packetAccount) send(tag uint64) {
	w := meshWay{from: c.r.IntN(3)}
	w.to = (w.from + 1 + c.r.IntN(2)) % 3
	body := append(binary.BigEndian.AppendUint64(nil, tag), make([]byte, 12+c.r.IntN(1461))...)
	p := ipv4(netip.AddrFrom4([4]byte{10, 10, byte(w.from), 9}), netip.AddrFrom4([4]byte{10, 10, byte(w.to), 9}), body)
	c.waiting[w] = append(c.waiting[w], p)
	c.device(w.from, w.to).In <- bytes.Clone(p)
}

// collect wants everything that was sent, and nothing else.
func (c *packetAccount) collect() {
	for w, want := range c.waiting {
		out := c.device(w.to, w.from).Out
		if len(out) != len(want) {
			c.t.Fatalf("%d packets of %d arrived from dc%d at dc%d", len(out), len(want), w.from+1, w.to+1)
		}
		for i, p := range want {
			if got := <-out; !bytes.Equal(got, p) {
				c.t.Fatalf("packet %d from dc%d to dc%d: %x, want %x", i, w.from+1, w.to+1, got[:28], p[:28])
			}
		}
	}
	clear(c.waiting)
}

// settle compares the account with the links' counters.
func (c *packetAccount) settle(packets uint64) {
	var sent, received uint64
	for _, s := range c.sites {
		for _, l := range s.status(c.t.Context()).Links {
			var st wg.Stats
			err := json.Unmarshal(l.Detail, &st)
			st.Drops.ControlDown = 0 // what the agents had to say before the link was up
			if err != nil || st.Drops != (wg.Drops{}) {
				c.t.Errorf("%s: %v, drops %+v", s.cfg.Site, err, st.Drops)
			}
			sent, received = sent+st.Tx.Packets, received+st.Rx.Packets
		}
	}
	if sent != packets || received != sent {
		c.t.Errorf("%d packets given, %d counted as sent, %d as received", packets, sent, received)
	}
}

// meshForeign: dc2 sends into segment 200, which dc1 does not stretch to it.
func meshForeign(t *testing.T, sites []*meshSite) {
	sites[1].send(200, etherFrame(0xff, 0xdd, 7))
	for i, s := range sites {
		if got := len(s.got(200)); got != 0 {
			t.Errorf("a frame of dc2 reached segment 200 at dc%d", i+1)
		}
	}
	var st ether.Stats
	status := sites[0].status(t.Context())
	if err := json.Unmarshal(status.Segments[1], &st); err != nil || st.FromLink["unknown-peer"] == 0 {
		t.Errorf("dc1 says %+v, %v; want frames of an unknown peer", st, err)
	}
	if len(status.Alarms) != 0 && !strings.Contains(status.Alarms[0], "kernel") {
		t.Errorf("alarms: %v", status.Alarms)
	}
}
