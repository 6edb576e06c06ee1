package netdev

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"stitch/tunnel/netdev/super"
)

// end is a device in a namespace of its own, with a host's addresses.
type end struct {
	dev Device
	ns  netns.NsHandle
	a4  netip.Addr
	a6  netip.Addr
}

// ends opens two devices in two namespaces; the caller's thread ends up in the
// second's.
func ends(t *testing.T, o Linux, link super.Link) (both [2]end, err error) {
	for i := range both {
		e := &both[i]
		if e.ns, err = netns.New(); err != nil {
			return both, err
		}
		t.Cleanup(func() { e.ns.Close() })
		if link == super.Ethernet {
			e.dev, err = o.OpenTAP("x", 1500)
		} else {
			e.dev, err = o.OpenTUN("x", 1500)
		}
		if err != nil {
			return both, err
		}
		l, _ := netlink.LinkByName("x")
		e.a4, e.a6 = netip.AddrFrom4([4]byte{10, 9, 0, byte(i + 1)}), netip.AddrFrom16([16]byte{0xfd, 15: byte(i + 1)})
		for _, a := range []string{e.a4.String() + "/24", e.a6.String() + "/64"} {
			addr, _ := netlink.ParseAddr(a)
			addr.Flags = unix.IFA_F_NODAD
			err = errors.Join(err, netlink.AddrAdd(l, addr))
		}
		if err = errors.Join(err, netlink.LinkSetUp(l)); err != nil {
			return both, err
		}
	}
	return both, nil
}

// tally is what a cable saw.
type tally struct{ packets, supers, long atomic.Int64 }

// cable carries packets from one device to the other as a link does: cut to
// max bytes, in batches. What is longer all the same crosses too.
func cable(from, to Device, link super.Link, max int, seen *tally) {
	bufs, sizes := make([][]byte, super.MaxBatch), make([]int, super.MaxBatch)
	for i := range bufs {
		bufs[i] = make([]byte, BufferLen)
	}
	var cut super.Splitter
	var batch [][]byte
	for {
		n, err := from.Read(bufs, sizes, MinOffset)
		if err != nil {
			return
		}
		batch = batch[:0]
		for i, b := range bufs[:n] {
			h := super.Header{}
			if link == super.Ethernet {
				if h, err = super.ParseHeader(b[MinOffset-super.HeaderLen:]); err != nil {
					return
				}
			}
			if h.Kind != super.None {
				seen.supers.Add(1)
			}
			if cut.Start(b[MinOffset:][:sizes[i]], h, link, max) != nil {
				return
			}
			for k := cut.Len(); k > 0; k = cut.Len() {
				p := make([]byte, k)
				cut.Next(p)
				batch = append(batch, p)
				seen.packets.Add(1)
				if k > max {
					seen.long.Add(1)
				}
			}
		}
		if _, err := to.Write(batch, 0); err != nil {
			return
		}
	}
}

// connect lays cables both ways until the test ends.
func connect(t *testing.T, both [2]end, link super.Link, max int) *[2]tally {
	seen := new([2]tally)
	var wg sync.WaitGroup
	for i := range both {
		if c, ok := both[i].dev.(Cutter); ok {
			c.CutTo(max)
		}
		wg.Go(func() { cable(both[i].dev, both[1-i].dev, link, max, &seen[i]) })
	}
	t.Cleanup(func() {
		both[0].dev.Close()
		both[1].dev.Close()
		wg.Wait()
	})
	return seen
}

// The kernel's own TCP, through two devices: every byte arrives, with each
// offload on and off; and with them, super-packets do cross.
func TestTCPThroughOffloads(t *testing.T) {
	for _, link := range []super.Link{super.Ethernet, super.IP} {
		for _, o := range []Linux{{}, {NoCut: true}, {NoJoin: true}, {NoCut: true, NoJoin: true}} {
			t.Run(fmt.Sprintf("link %d, %+v", link, o), func(t *testing.T) {
				inNamespace(t, func(t *testing.T) { tcpThrough(t, o, link) })
			})
		}
	}
}

func tcpThrough(t *testing.T, o Linux, link super.Link) {
	both, err := ends(t, o, link)
	if err != nil {
		t.Error(err)
		return
	}
	seen := connect(t, both, link, 1400)
	const size = 8 << 20
	data := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(data)
	for _, ip := range []netip.Addr{both[1].a4, both[1].a6} {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 7)))
		if err != nil {
			t.Error(err)
			return
		}
		sum := make(chan [32]byte, 1)
		go func() {
			defer l.Close()
			c, err := l.Accept()
			if err != nil {
				sum <- [32]byte{}
				return
			}
			c.SetDeadline(time.Now().Add(30 * time.Second))
			got, _ := io.ReadAll(c)
			sum <- sha256.Sum256(got)
			c.Close()
		}()
		if err := send(both[0].ns, both[1].ns, netip.AddrPortFrom(ip, 7), data); err != nil {
			t.Error(err)
		}
		if <-sum != sha256.Sum256(data) {
			t.Errorf("%v: other bytes arrived", ip)
		}
	}
	if supers := seen[0].supers.Load(); link == super.Ethernet && (supers > 0) == o.NoCut {
		t.Errorf("%d super-frames", supers)
	}
	// What the kernel hands over as one packet of 1500 bytes stays one.
	if long, all := seen[0].long.Load(), seen[0].packets.Load(); long > all/20 && !o.NoCut {
		t.Errorf("%d packets of %d are longer than asked for", long, all)
	}
}

// send dials from namespace from and writes data; the thread returns to back.
func send(from, back netns.NsHandle, to netip.AddrPort, data []byte) error {
	if err := netns.Set(from); err != nil {
		return err
	}
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
	if err := errors.Join(err, netns.Set(back)); err != nil {
		return err
	}
	c.SetDeadline(time.Now().Add(30 * time.Second))
	_, err = io.Copy(c, bytes.NewReader(data))
	return errors.Join(err, c.Close())
}

// A train of datagrams written at once (UDP_SEGMENT) arrives as these
// datagrams, whether the kernel hands it over whole or not, and joined or not.
func TestUDPTrains(t *testing.T) {
	for _, o := range []Linux{{}, {NoCut: true}, {NoJoin: true}} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			inNamespace(t, func(t *testing.T) {
				both, err := ends(t, o, super.Ethernet)
				if err != nil {
					t.Error(err)
					return
				}
				connect(t, both, super.Ethernet, 1400)
				trains(t, both)
			})
		})
	}
}

func trains(t *testing.T, both [2]end) {
	in, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(both[1].a4, 7)))
	if err != nil {
		t.Error(err)
		return
	}
	defer in.Close()
	in.SetDeadline(time.Now().Add(10 * time.Second))
	if err := netns.Set(both[0].ns); err != nil {
		t.Error(err)
		return
	}
	out, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(both[1].a4, 7)))
	if err != nil {
		t.Error(err)
		return
	}
	defer out.Close()
	const size, count = 1000, 20
	data := make([]byte, size*count-300)
	for i := range data {
		data[i] = byte(i / size)
	}
	out.Write([]byte("first")) // resolves the neighbour
	buf := make([]byte, 2000)
	if n, err := in.Read(buf); err != nil || string(buf[:n]) != "first" {
		t.Errorf("%q, %v", buf[:n], err)
		return
	}
	if _, _, err := out.WriteMsgUDP(data, segmentSize(size), nil); err != nil {
		t.Error(err)
		return
	}
	for i := range count {
		n, err := in.Read(buf)
		want := data[i*size : min((i+1)*size, len(data))]
		if err != nil || !bytes.Equal(buf[:n], want) {
			t.Errorf("datagram %d: %d bytes, %v", i, n, err)
			return
		}
	}
}

// segmentSize is the control message that asks for datagrams of n bytes.
func segmentSize(n uint16) []byte {
	b := make([]byte, unix.CmsgSpace(2))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	b[unix.CmsgLen(0)], b[unix.CmsgLen(0)+1] = byte(n), byte(n>>8)
	return b
}
