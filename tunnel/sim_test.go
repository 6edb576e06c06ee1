package tunnel_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"stitch/tunnel"
	"stitch/tunnel/config"
	"stitch/tunnel/ether"
	"stitch/tunnel/netdev/netdevtest"
	"stitch/tunnel/redirect/redirecttest"
	"stitch/tunnel/stream/streamtest"
	"stitch/tunnel/wan"
	"stitch/tunnel/wg"
)

// TestTwoAgents runs two whole agents in one process on a network, devices and
// a kernel of memory, in fake time: a packet and a stream cross.
func TestTwoAgents(t *testing.T) {
	// wireguard-go's finalizers must not run outside the bubble.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	// One bubble for all: the codec's encoders are pooled, and channels made in
	// one bubble cannot be used in another.
	synctest.Test(t, func(t *testing.T) {
		for _, rtt := range []time.Duration{0, 40 * time.Millisecond, 300 * time.Millisecond} {
			twoAgents(t, rtt)
		}
	})
}

// simSite is one agent and its surroundings.
type simSite struct {
	cfg     *config.Config
	devices *netdevtest.FakeOpener
	kernel  *redirecttest.Kernel
	net     *streamtest.Net
	bind    conn.Bind
}

func twoAgents(t *testing.T, rtt time.Duration) {
	network, err := wan.NewNet(wan.Params{Rate: 100e6, Delay: rtt / 2})
	if err != nil {
		t.Fatal(err)
	}
	fabric := streamtest.New()
	fabric.Delay = rtt / 2
	a, b := simSites(t, network, fabric)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, s := range []*simSite{a, b} {
		agent := tunnel.New(s.cfg, s.seams(), nil)
		wg.Go(func() {
			if err := agent.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", s.cfg.Site, err)
			}
		})
	}
	defer wg.Wait()
	defer stop()

	time.Sleep(3 * time.Second) // connected by then at every RTT: DESIGN's bound
	synctest.Wait()
	simPacket(t, a, b)
	simStream(t, fabric, a)
	if _, applied := a.kernel.Last(); applied == 0 || len(a.kernel.Guards()) == 0 {
		t.Error("the kernel was not programmed, or has no guard routes")
	}
}

// simPacket sends an IP packet from a's link device to b's.
func simPacket(t *testing.T, a, b *simSite) {
	t.Helper()
	packet := ipv4(netip.MustParseAddr("10.1.0.10"), netip.MustParseAddr("10.2.0.10"), []byte("a packet"))
	a.devices.Device("st-dc2").In <- bytes.Clone(packet)
	select {
	case got := <-b.devices.Device("st-dc1").Out:
		if !bytes.Equal(got, packet) {
			t.Errorf("the packet arrived as %x, sent %x", got, packet)
		}
	case <-time.After(time.Second):
		t.Error("the packet did not arrive within 1 s of the third second")
	}
}

// simStream sends bytes through a split connection and wants them back.
func simStream(t *testing.T, fabric *streamtest.Fabric, a *simSite) {
	t.Helper()
	dst := netip.MustParseAddrPort("10.2.0.10:4000")
	ln := fabric.Serve(dst)
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(c, c)
		_ = c.Finish()
	}()
	c, how, err := a.net.Connect(t.Context(), netip.MustParseAddrPort("10.1.0.10:40000"), dst)
	if err != nil || how != streamtest.Split {
		t.Fatalf("connect: %q, %v, want it split", how, err)
	}
	data := mix(1<<20, 5)
	go func() { _, _ = c.Write(data); _ = c.CloseWrite() }()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes came back, %v", len(got), len(data), err)
	}
	_ = c.Finish()
}

// simSites makes two sites that know each other.
func simSites(t *testing.T, network *wan.Net, fabric *streamtest.Fabric) (a, b *simSite) {
	t.Helper()
	make1 := func(n byte) (config.Key, config.Key) {
		private, err := wg.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{n}, 32)))
		if err != nil {
			t.Fatal(err)
		}
		return private, wg.PublicKey(private)
	}
	keyA, pubA := make1(7)
	keyB, pubB := make1(9)
	site := func(name, peer, sub, peerSub, addr, peerAddr string, key, peerKey config.Key) *simSite {
		to := []netip.Prefix{netip.MustParsePrefix(peerSub)}
		own := []netip.Prefix{netip.MustParsePrefix(sub)}
		ports := []config.PortRange{{First: 4000, Last: 4000}}
		return &simSite{
			cfg: &config.Config{
				Site: name, PrivateKey: key, Subnets: own, History: config.History{Size: 4 << 20},
				Peers:   []config.Peer{{Name: peer, PublicKey: peerKey, Endpoint: peerAddr + ":51820", ListenPort: 51820, Subnets: to, UnderlayMTU: 1500}},
				Streams: []config.StreamRule{{Peer: peer, To: to, Ports: ports, Handshake: config.Faithful}},
				Dials:   []config.DialRule{{Peer: peer, To: own, Ports: ports}},
			},
			devices: &netdevtest.FakeOpener{}, kernel: &redirecttest.Kernel{},
			net: fabric.Site(own[0].Addr().Next()), bind: network.Bind(netip.MustParseAddr(addr)),
		}
	}
	return site("dc1", "dc2", "10.1.0.0/24", "10.2.0.0/24", "203.0.113.10", "198.51.100.20", keyA, pubB),
		site("dc2", "dc1", "10.2.0.0/24", "10.1.0.0/24", "198.51.100.20", "203.0.113.10", keyB, pubA)
}

// seams of a site in memory.
func (s *simSite) seams() tunnel.Seams {
	return tunnel.Seams{
		Devices: s.devices, Kernel: s.kernel, Net: s.net,
		Bind:   func(string) conn.Bind { return s.bind },
		Attach: func(config.Segment, string) (*ether.Attachment, error) { return nil, net.ErrClosed },
	}
}

// ipv4 returns a UDP-less IPv4 packet with a right header checksum.
func ipv4(src, dst netip.Addr, payload []byte) []byte {
	p := make([]byte, 20, 20+len(payload))
	p[0], p[8], p[9] = 0x45, 64, 253
	binary.BigEndian.PutUint16(p[2:], uint16(20+len(payload)))
	copy(p[12:], src.AsSlice())
	copy(p[16:], dst.AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
	return append(p, payload...)
}
