package netdev

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stitch/tunnel/netdev/super"
)

const (
	// testBytes are sent in a self-test, and must arrive within testLimit: some
	// 180 packets, a few milliseconds.
	testBytes = 256 << 10
	testLimit = 2 * time.Second
	// testMax is the longest packet on the way, so that super-packets are cut
	// to other sizes than their sender meant.
	testMax = 1300
)

// SelfTest sends TCP from one TAP through cutting and joining to another, in
// network namespaces of its own, and returns l with those offloads switched
// off without which everything arrives. The error says which and why, or that
// the test could not be made, which switches nothing off.
func (l Linux) SelfTest() (Linux, error) {
	return l.choose(func(try Linux) error { return try.transfer(testBytes) })
}

// choose returns the first of l, l without joining, l without cutting and l
// without both with which the transfer succeeds.
func (l Linux) choose(transfer func(Linux) error) (Linux, error) {
	err := transfer(l)
	if err == nil || errors.Is(err, errSetUp) {
		return l, err
	}
	for _, try := range []Linux{{NoCut: l.NoCut, NoJoin: true}, {NoCut: true, NoJoin: l.NoJoin}} {
		if transfer(try) == nil {
			return try, fmt.Errorf("with all offloads %w: without %s everything arrives, so that is off", err, try.difference(l))
		}
	}
	return Linux{NoCut: true, NoJoin: true}, fmt.Errorf("with all offloads %w, nor without one of them: all are off", err)
}

// difference names what l switches off and other does not.
func (l Linux) difference(other Linux) string {
	if l.NoJoin && !other.NoJoin {
		return "joining"
	}
	return "cutting"
}

// errSetUp is why a self-test could not be made.
var errSetUp = errors.New("the offloads could not be tested")

// transfer sends n bytes from one TAP to the other.
func (l Linux) transfer(n int) error {
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread dies with its namespaces
		both, err := l.testEnds(super.Ethernet)
		if err != nil {
			failed <- fmt.Errorf("%w: %w", errSetUp, err)
			return
		}
		defer both.cable(super.Ethernet, testMax, nil)()
		failed <- both.send(both[1].ip4, n, testLimit)
	}()
	return <-failed
}

// testEnd is a device in a namespace of its own, with a host's addresses.
type testEnd struct {
	dev      Device
	ns       int // the namespace
	ip4, ip6 netip.Addr
}

// testEnds are two of them.
type testEnds [2]testEnd

// testEnds opens two devices in two new namespaces. The caller's thread ends up
// in the second's, and its goroutine must be locked to it.
func (l Linux) testEnds(link super.Link) (both testEnds, err error) {
	both[0].ns, both[1].ns = -1, -1
	for i := range both {
		if err = both[i].open(l, link, byte(i+1)); err != nil {
			both.close()
			return both, err
		}
	}
	return both, nil
}

// open makes the namespace and the device in it.
func (e *testEnd) open(l Linux, link super.Link, host byte) error {
	const name = "test"
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	var err error
	if e.ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	if link == super.Ethernet {
		e.dev, err = l.OpenTAP(name, 1500)
	} else {
		e.dev, err = l.OpenTUN(name, 1500)
	}
	if err != nil {
		return err
	}
	e.ip4, e.ip6 = netip.AddrFrom4([4]byte{10, 9, 0, host}), netip.AddrFrom16([16]byte{0xfd, 15: host})
	dev, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range []string{e.ip4.String() + "/24", e.ip6.String() + "/64"} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(dev, addr); err != nil && addr.IP.To4() != nil { // a kernel may lack IPv6
			return err
		}
	}
	return netlink.LinkSetUp(dev)
}

func (both *testEnds) close() {
	for _, e := range both {
		if e.dev != nil {
			e.dev.Close()
		}
		if e.ns >= 0 {
			unix.Close(e.ns)
		}
	}
}

// cable carries packets both ways, cut to max bytes, until the returned
// function is called, which also closes the ends. seen, if not nil, gets every
// packet that was read.
func (both *testEnds) cable(link super.Link, max int, seen func(from int, h super.Header, cut *super.Splitter)) (done func()) {
	var wg sync.WaitGroup
	for i := range both {
		if c, ok := both[i].dev.(Cutter); ok {
			c.CutTo(max)
		}
		wg.Go(func() {
			carry(both[i].dev, both[1-i].dev, link, max, func(h super.Header, cut *super.Splitter) {
				if seen != nil {
					seen(i, h, cut)
				}
			})
		})
	}
	return func() {
		both.close()
		wg.Wait()
	}
}

// carry carries packets from one device to the other until one is closed.
func carry(from, to Device, link super.Link, max int, seen func(super.Header, *super.Splitter)) {
	bufs, sizes := make([][]byte, 16), make([]int, 16)
	for i := range bufs {
		bufs[i] = make([]byte, BufferLen)
	}
	for {
		n, err := from.Read(bufs, sizes, MinOffset)
		if err != nil {
			return
		}
		var batch [][]byte
		for i, b := range bufs[:n] {
			var h super.Header
			if link == super.Ethernet {
				if h, err = super.ParseHeader(b[MinOffset-super.HeaderLen:]); err != nil {
					continue
				}
			}
			var cut super.Splitter
			if cut.Start(b[MinOffset:][:sizes[i]], h, link, max) != nil {
				continue
			}
			seen(h, &cut)
			for k := cut.Len(); k > 0; k = cut.Len() {
				p := make([]byte, k)
				cut.Next(p)
				batch = append(batch, p)
			}
		}
		if _, err := to.Write(batch, 0); errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// send sends n bytes over TCP from the first end to ip at the second, whose
// namespace the calling thread is in.
func (both *testEnds) send(ip netip.Addr, n int, limit time.Duration) error {
	to := net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 7))
	in, err := net.ListenTCP("tcp", to)
	if err != nil {
		return fmt.Errorf("%w: %w", errSetUp, err)
	}
	defer in.Close()
	deadline := time.Now().Add(limit)
	_ = in.SetDeadline(deadline)
	if err := unix.Setns(both[0].ns, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("%w: %w", errSetUp, err)
	}
	dialer := net.Dialer{Deadline: deadline}
	out, err := dialer.Dial("tcp", to.String())
	if err := errors.Join(err, unix.Setns(both[1].ns, unix.CLONE_NEWNET)); err != nil {
		return err
	}
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i ^ i>>8 ^ i>>16)
	}
	go func() {
		_ = out.SetDeadline(deadline)
		_, _ = out.Write(data) // what is missing shows at the other end
		out.Close()
	}()
	c, err := in.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(deadline)
	got, err := io.ReadAll(c)
	if err == nil && !bytes.Equal(got, data) {
		err = fmt.Errorf("%d of %d bytes arrive, or others", len(got), len(data))
	}
	return err
}
