package netdev

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"stitch/tunnel/netdev/super"
)

// onThread runs f on a thread that dies with the namespaces it enters.
func onThread(t *testing.T, f func() error) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: TAP devices and network namespaces")
	}
	if _, err := os.Stat(clonePath); err != nil {
		t.Skip("needs ", clonePath)
	}
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		failed <- f()
	}()
	if err := <-failed; err != nil {
		t.Error(err)
	}
}

// The kernel's own TCP, through two devices: every byte arrives, with each
// offload on and off; and with them, super-packets do cross.
func TestTCPThroughOffloads(t *testing.T) {
	for _, link := range []super.Link{super.Ethernet, super.IP} {
		for _, o := range []Linux{{}, {NoCut: true}, {NoJoin: true}, {NoCut: true, NoJoin: true}} {
			t.Run(fmt.Sprintf("link %d, %+v", link, o), func(t *testing.T) {
				onThread(t, func() error { return tcpThrough(t, o, link) })
			})
		}
	}
}

func tcpThrough(t *testing.T, o Linux, link super.Link) error {
	both, err := o.testEnds(link)
	if err != nil {
		return err
	}
	const max = 1400
	var packets, supers, long atomic.Int64
	defer both.cable(link, max, func(from int, h super.Header, cut *super.Splitter) {
		if from == 0 {
			packets.Add(int64(cut.Count()))
			if h.Kind != super.None {
				supers.Add(1)
			}
			if cut.Len() > max {
				long.Add(1)
			}
		}
	})()
	for _, ip := range []netip.Addr{both[1].ip4, both[1].ip6} {
		if err := both.send(ip, 8<<20, 30*time.Second); err != nil {
			return fmt.Errorf("%v: %w", ip, err)
		}
	}
	if n := supers.Load(); link == super.Ethernet && (n > 0) == o.NoCut {
		t.Errorf("%d super-frames", n)
	}
	// What the kernel hands over as one packet of 1500 bytes stays one.
	if n := long.Load(); n > packets.Load()/20 && !o.NoCut {
		t.Errorf("%d packets of %d are longer than asked for", n, packets.Load())
	}
	return nil
}

// A train of datagrams written at once (UDP_SEGMENT) arrives as these
// datagrams, whether the kernel hands it over whole or not, and joined or not.
func TestUDPTrains(t *testing.T) {
	for _, o := range []Linux{{}, {NoCut: true}, {NoJoin: true}} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			onThread(t, func() error {
				both, err := o.testEnds(super.Ethernet)
				if err != nil {
					return err
				}
				defer both.cable(super.Ethernet, 1400, nil)()
				return trains(&both)
			})
		})
	}
}

func trains(both *testEnds) error {
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(both[1].ip4, 7))
	in, err := net.ListenUDP("udp4", to)
	if err != nil {
		return err
	}
	defer in.Close()
	in.SetDeadline(time.Now().Add(10 * time.Second))
	if err := unix.Setns(both[0].ns, unix.CLONE_NEWNET); err != nil {
		return err
	}
	out, err := net.DialUDP("udp4", nil, to)
	if err != nil {
		return err
	}
	defer out.Close()
	const size, count = 1000, 20
	data := make([]byte, size*count-300)
	for i := range data {
		data[i] = byte(i / size)
	}
	buf := make([]byte, 2000)
	out.Write([]byte("first")) // resolves the neighbour
	if n, err := in.Read(buf); err != nil || string(buf[:n]) != "first" {
		return fmt.Errorf("%q, %w", buf[:n], err)
	}
	if _, _, err := out.WriteMsgUDP(data, segmentSize(size), nil); err != nil {
		return err
	}
	for i := range count {
		n, err := in.Read(buf)
		if want := data[i*size : min((i+1)*size, len(data))]; err != nil || !bytes.Equal(buf[:n], want) {
			return fmt.Errorf("datagram %d: %d bytes, %w", i, n, err)
		}
	}
	return nil
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

func TestSelfTest(t *testing.T) {
	for _, l := range []Linux{{}, {NoCut: true}, {NoCut: true, NoJoin: true}} {
		onThread(t, func() error {
			got, err := l.SelfTest()
			if got != l {
				t.Errorf("%+v became %+v", l, got)
			}
			return err
		})
	}
}

// What corrupts is switched off, and nothing else; a test that could not be
// made switches nothing off.
func TestChoose(t *testing.T) {
	broken := errors.New("other bytes arrive")
	for _, c := range []struct {
		name string
		from Linux
		good func(Linux) bool
		want Linux
		says string
	}{
		{"good", Linux{}, func(Linux) bool { return true }, Linux{}, ""},
		{"joining", Linux{}, func(l Linux) bool { return l.NoJoin }, Linux{NoJoin: true}, "without joining"},
		{"cutting", Linux{}, func(l Linux) bool { return l.NoCut }, Linux{NoCut: true}, "without cutting"},
		{"both", Linux{}, func(l Linux) bool { return l.NoCut && l.NoJoin }, Linux{NoCut: true, NoJoin: true}, "all are off"},
		{"joining, cutting is off", Linux{NoCut: true}, func(l Linux) bool { return l.NoJoin }, Linux{NoCut: true, NoJoin: true}, "without joining"},
	} {
		got, err := c.from.choose(func(l Linux) error {
			if c.good(l) {
				return nil
			}
			return broken
		})
		if got != c.want || (err != nil) != (c.says != "") || err != nil && (!strings.Contains(err.Error(), c.says) || !errors.Is(err, broken)) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
	if got, err := (Linux{}).choose(func(Linux) error { return errSetUp }); got != (Linux{}) || !errors.Is(err, errSetUp) {
		t.Errorf("not tested: %+v, %v", got, err)
	}
}

// The kernel refuses super-packets, but takes their packets: after three of
// these no more are made, and nothing is lost. What it refuses singly too is
// the caller's to count.
func TestNoJoin(t *testing.T) {
	onThread(t, func() error {
		both, err := Linux{}.testEnds(super.Ethernet)
		if err != nil {
			return err
		}
		defer both.close()
		d := both[0].dev.(*device)
		put, refused := d.out.put, 0
		d.out.put = func(fd uintptr) bool {
			if len(d.out.iov) > 2 { // header and packet
				refused++
				d.out.err = unix.EINVAL
				return true
			}
			return put(fd)
		}
		var cut super.Splitter
		for i := range 5 {
			batch := train(t, &cut)
			n, err := d.Write(batch, 0)
			if n != len(batch) || (err != nil) != (i == maxRefused-1) || err != nil && !errors.Is(err, ErrNoJoin) {
				t.Errorf("train %d: %d of %d written, %v", i, n, len(batch), err)
			}
			if err != nil && !strings.Contains(err.Error(), "device test") {
				t.Error(err)
			}
		}
		if refused != maxRefused {
			t.Errorf("%d super-packets tried", refused)
		}
		d.out.put = func(uintptr) bool { d.out.err = unix.EIO; return true }
		if n, err := d.Write(train(t, &cut), 0); n != 0 || !errors.Is(err, unix.EIO) {
			t.Errorf("%d written, %v", n, err)
		}
		return nil
	})
}

// train returns packets that can be joined.
func train(t *testing.T, cut *super.Splitter) (batch [][]byte) {
	p := make([]byte, 54+1000)
	copy(p, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0x04, 0x10, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2,
		0, 7, 0, 7, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0})
	h := super.Header{Partial: true, Kind: super.TCP4, Size: 100, Start: 34, Offset: 16}
	if err := cut.Start(p, h, super.Ethernet, 1500); err != nil {
		t.Fatal(err)
	}
	for n := cut.Len(); n > 0; n = cut.Len() {
		b := make([]byte, n)
		cut.Next(b)
		batch = append(batch, b)
	}
	return batch
}

// A batch written to a TAP and packets polled from it cost no allocation.
func TestNoAllocations(t *testing.T) {
	onThread(t, func() error {
		both, err := Linux{}.testEnds(super.Ethernet)
		if err != nil {
			return err
		}
		defer both.close()
		d := both[0].dev
		var cut super.Splitter
		batch := train(t, &cut)
		bufs, sizes := [][]byte{make([]byte, BufferLen)}, []int{0}
		if n := testing.AllocsPerRun(100, func() {
			if _, err := d.Write(batch, 0); err != nil {
				t.Error(err)
			}
			if _, err := d.Poll(bufs, sizes, MinOffset); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
		return nil
	})
}
