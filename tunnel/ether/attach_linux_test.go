package ether

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev"
	"stitch/tunnel/netdev/super"
)

// newNamespace puts the test's thread into a network namespace of its own,
// which ends with the thread: it is never unlocked.
func newNamespace(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes bridges and TAPs in a network namespace")
	}
	runtime.LockOSThread()
	ns, err := netns.New()
	must(t, err)
	t.Cleanup(func() { ns.Close() })
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// inNamespace runs f in another namespace on the calling, locked thread.
func inNamespace(t *testing.T, ns netns.NsHandle, f func()) {
	t.Helper()
	back, err := netns.Get()
	must(t, err)
	defer back.Close()
	must(t, netns.Set(ns))
	f()
	must(t, netns.Set(back))
}

func addBridge(t *testing.T, name string, mtu int) netlink.Link {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	link, err := netlink.LinkByName(name)
	must(t, err)
	must(t, netlink.LinkSetUp(link))
	return link
}

func openTAP(t *testing.T, name string) netdev.Device {
	t.Helper()
	tap, err := netdev.Linux{}.OpenTAP(name, 1500)
	if err != nil {
		t.Skipf("needs /dev/net/tun: %v", err)
	}
	t.Cleanup(func() { tap.Close() })
	return tap
}

func TestAttach(t *testing.T) {
	newNamespace(t)
	bridge := addBridge(t, "eth-br", 1400)
	before := bridge.Attrs().HardwareAddr
	openTAP(t, "eth-sg")
	seg := config.Segment{ID: 100, Bridge: "eth-br", GatewayMAC: macGW}
	var log bytes.Buffer
	a, err := Attach(seg, "eth-sg", slog.New(slog.NewTextHandler(&log, nil)))
	must(t, err)
	tap, err := netlink.LinkByName("eth-sg")
	must(t, err)
	if at := tap.Attrs(); at.MasterIndex != bridge.Attrs().Index || at.MTU != 1400 || at.Flags&net.FlagUp == 0 {
		t.Errorf("master %d, MTU %d, flags %v", at.MasterIndex, at.MTU, at.Flags)
	}
	if got := bridgeMAC(t); !bytes.Equal(got, macGW[:]) {
		t.Errorf("the bridge has %v, want the gateway's", got)
	}
	if want := []config.MAC{macGW, config.MAC(tap.Attrs().HardwareAddr)}; !slices.Equal(a.Own, want) {
		t.Errorf("own %v, want %v", a.Own, want)
	}
	if log.Len() > 0 {
		t.Errorf("warned without need: %s", &log)
	}
	must(t, a.Close())
	must(t, a.Close())
	tap, err = netlink.LinkByName("eth-sg")
	must(t, err)
	if at := tap.Attrs(); at.MasterIndex != 0 || at.Flags&net.FlagUp != 0 {
		t.Errorf("after Close: master %d, flags %v", at.MasterIndex, at.Flags)
	}
	if got := bridgeMAC(t); !bytes.Equal(got, before) {
		t.Errorf("after Close the bridge has %v, before %v", got, before)
	}
}

func bridgeMAC(t *testing.T) net.HardwareAddr {
	t.Helper()
	link, err := netlink.LinkByName("eth-br")
	must(t, err)
	return link.Attrs().HardwareAddr
}

func TestAttachErrors(t *testing.T) {
	newNamespace(t)
	bridge := addBridge(t, "eth-br", 1500)
	for _, c := range []struct{ bridge, tap, want string }{
		{"br-app", "eth-sg", "segment 100: bridge br-app does not exist: create it or correct `bridge`"},
		{"lo", "eth-sg", "segment 100: lo is a device device, not a bridge: correct `bridge`"},
		{"eth-br", "eth-sg", "segment 100: find TAP eth-sg: Link not found"},
	} {
		_, err := Attach(config.Segment{ID: 100, Bridge: c.bridge}, c.tap, nil)
		if err == nil || err.Error() != c.want {
			t.Errorf("got  %v\nwant %s", err, c.want)
		}
	}
	openTAP(t, "eth-sg")
	must(t, netlink.LinkSetDown(bridge))
	spanningTree(t, bridge)
	var log bytes.Buffer
	a, err := Attach(config.Segment{ID: 100, Bridge: "eth-br"}, "eth-sg", slog.New(slog.NewTextHandler(&log, nil)))
	must(t, err)
	if s := log.String(); !strings.Contains(s, "spanning tree") || !strings.Contains(s, "is down") {
		t.Errorf("warnings: %s", s)
	}
	must(t, netdev.Linux{}.Remove("eth-sg"))
	if err := a.Close(); err != nil {
		t.Errorf("Close after the TAP was deleted: %v", err)
	}
}

// spanningTree turns STP on.
func spanningTree(t *testing.T, bridge netlink.Link) {
	t.Helper()
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(bridge.Attrs().Index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.IFLA_BR_STP_STATE, nl.Uint32Attr(1))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	must(t, err)
}

// site is a bridge, a TAP in it, a port, and a host behind a veth.
type site struct {
	port  *Port
	host  netns.NsHandle
	mac   config.MAC
	other *site
}

// SendFrame hands a frame to the other site, as a link would.
func (s *site) SendFrame(_ uint16, frame []byte, h super.Header) bool {
	var cut super.Splitter
	if cut.Start(slices.Clone(frame), h, super.Ethernet, 1412) != nil {
		return false
	}
	var frames [][]byte
	for n := cut.Len(); n > 0; n = cut.Len() {
		b := make([]byte, n)
		cut.Next(b)
		frames = append(frames, b)
	}
	s.other.port.FromLink("peer", frames)
	return true
}

func (s *site) SendBuffer(segment uint16, _ *[]byte, frame []byte, h super.Header) bool {
	return s.SendFrame(segment, frame, h)
}

func newSite(t *testing.T, n string, ip string) *site {
	t.Helper()
	bridge := addBridge(t, "eth-br"+n, 1500)
	tap := openTAP(t, "eth-sg"+n)
	s := &site{}
	seg := config.Segment{ID: 100, Bridge: "eth-br" + n, Gateway: gateway, GatewayMAC: macGW}
	a, err := Attach(seg, "eth-sg"+n, nil)
	must(t, err)
	s.port = Open(Config{Segment: seg, TAP: tap, Own: a.Own, Peers: map[string]Sender{"peer": s}})
	s.addHost(t, n, ip, bridge)
	return s
}

func (s *site) addHost(t *testing.T, n, ip string, bridge netlink.Link) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = "eth-p"+n, bridge.Attrs().Index
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth-h" + n}))
	must(t, netlink.LinkSetUp(&netlink.Veth{LinkAttrs: attrs}))
	host, err := netlink.LinkByName("eth-h" + n)
	must(t, err)
	s.mac = config.MAC(host.Attrs().HardwareAddr)
	here, err := netns.Get()
	must(t, err)
	defer here.Close()
	s.host, err = netns.New()
	must(t, err)
	t.Cleanup(func() { s.host.Close() })
	must(t, netns.Set(here))
	must(t, netlink.LinkSetNsFd(host, int(s.host)))
	inNamespace(t, s.host, func() {
		addr, err := netlink.ParseAddr(ip + "/24")
		must(t, err)
		must(t, netlink.AddrAdd(host, addr))
		must(t, netlink.LinkSetUp(host))
	})
}

// TestTwoBridges carries full-sized datagrams between hosts on two bridges,
// and checks that a claim makes a bridge send a MAC's frames to the TAP.
func TestTwoBridges(t *testing.T) {
	newNamespace(t)
	a, b := newSite(t, "a", "10.1.0.10"), newSite(t, "b", "10.1.0.11")
	a.other, b.other = b, a
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, s := range []*site{a, b} {
		running.Go(func() {
			if err := s.port.Run(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	echo(t, a, b)
	if got, want := bridgePort(t, b.mac, "eth-sga"), true; got != want {
		t.Errorf("bridge a learnt %v behind its TAP: %v", b.mac, got)
	}
	a.port.Claim(macVM, "peer")
	poll(t, "bridge a to learn the claimed MAC", func() bool { return bridgePort(t, macVM, "eth-sga") })
	if bridgePort(t, macVM, "eth-sgb") || bridgePort(t, macVM, "eth-pb") {
		t.Error("the relearn frame crossed")
	}
	poll(t, "what the edge itself sends to be dropped", func() bool { return a.port.Stats().FromLAN["gateway-mac"] > 0 })
	cancel()
	running.Wait()
	if st := a.port.Stats(); st.MACs["peer"] != 2 {
		t.Errorf("want the other host and the workload at the peer: %+v", st)
	}
}

// echo sends the largest unfragmented datagram from a's host to b's and back.
func echo(t *testing.T, a, b *site) {
	t.Helper()
	var client, server *net.UDPConn
	addr := netip.MustParseAddrPort("10.1.0.11:7000")
	inNamespace(t, b.host, func() {
		var err error
		server, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr))
		must(t, err)
	})
	defer server.Close()
	inNamespace(t, a.host, func() {
		var err error
		client, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(addr))
		must(t, err)
	})
	defer client.Close()
	sent, got := bytes.Repeat([]byte("stitch "), 1472/7), make([]byte, 2000)
	poll(t, "an echo over both bridges", func() bool {
		client.Write(sent)
		server.SetReadDeadline(time.Now().Add(time.Second))
		n, from, err := server.ReadFromUDPAddrPort(got)
		if err != nil {
			return false
		}
		server.WriteToUDPAddrPort(got[:n], from)
		client.SetReadDeadline(time.Now().Add(time.Second))
		n, err = client.Read(got)
		return err == nil && bytes.Equal(got[:n], sent)
	})
}

// poll repeats f until it holds, up to half a minute.
func poll(t *testing.T, what string, f func() bool) {
	t.Helper()
	every := time.NewTicker(20 * time.Millisecond)
	defer every.Stop()
	for range 1500 {
		if f() {
			return
		}
		<-every.C
	}
	t.Fatalf("waited in vain for %s", what)
}

// bridgePort reports whether a bridge has learnt mac behind the port.
func bridgePort(t *testing.T, mac config.MAC, port string) bool {
	t.Helper()
	link, err := netlink.LinkByName(port)
	must(t, err)
	entries, err := netlink.NeighList(link.Attrs().Index, unix.AF_BRIDGE)
	must(t, err)
	return slices.ContainsFunc(entries, func(n netlink.Neigh) bool { return bytes.Equal(n.HardwareAddr, mac[:]) })
}
