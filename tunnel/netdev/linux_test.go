package netdev

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inNamespace runs the test in a network namespace of its own, on a thread
// that dies with it.
func inNamespace(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: TUN devices and network namespaces")
	}
	if _, err := os.Stat(clonePath); err != nil {
		t.Skip("needs ", clonePath)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the thread ends here
		ns, err := netns.New()
		if err != nil {
			t.Error(err)
			return
		}
		defer ns.Close()
		f(t)
	}()
	<-done
}

func attrs(t *testing.T, name string) *netlink.LinkAttrs {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Error(err)
		return &netlink.LinkAttrs{}
	}
	return l.Attrs()
}

func TestPersistentTUN(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		var o Linux
		d, err := o.OpenTUN("st-test", 1500)
		if err != nil {
			t.Error(err)
			return
		}
		first := attrs(t, "st-test")
		if first.MTU != 1500 || first.Flags&net.FlagUp == 0 || first.TxQLen != queueLen || d.BatchSize() != 128 || d.Name() != "st-test" {
			t.Errorf("mtu %d flags %v queue %d batch %d", first.MTU, first.Flags, first.TxQLen, d.BatchSize())
		}
		if _, err := o.OpenTUN("st-test", 1500); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "device st-test is in use by another process") {
			t.Errorf("second agent: %v", err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		d, err = o.OpenTUN("st-test", 1400)
		if err != nil {
			t.Error(err)
			return
		}
		if again := attrs(t, "st-test"); again.Index != first.Index || again.MTU != 1400 {
			t.Errorf("adopted with index %d mtu %d, want %d and 1400", again.Index, again.MTU, first.Index)
		}
		if _, err := o.OpenTAP("st-test", 1500); !errors.Is(err, unix.EINVAL) {
			t.Errorf("TAP over a TUN: %v", err)
		}
		if err := d.(Sizer).SetMTU(1300); err != nil || attrs(t, "st-test").MTU != 1300 {
			t.Errorf("mtu %d after it was set to 1300: %v", attrs(t, "st-test").MTU, err)
		}
		d.Close()
		for range 2 { // the second has nothing to remove
			if err := o.Remove("st-test"); err != nil {
				t.Error(err)
			}
		}
		if _, err := netlink.LinkByName("st-test"); err == nil {
			t.Error("still there after Remove")
		}
		if err := d.(Sizer).SetMTU(1400); err == nil || !strings.Contains(err.Error(), "device st-test to 1400") {
			t.Errorf("set the MTU of a device that is gone: %v", err)
		}
	})
}

func TestTAPStaysAsItIs(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		var o Linux
		d, err := o.OpenTAP("sg-1", 1500)
		if err != nil {
			t.Error(err)
			return
		}
		if a := attrs(t, "sg-1"); a.Flags&net.FlagUp != 0 {
			t.Error("a new TAP is up")
		}
		l, _ := netlink.LinkByName("sg-1")
		if err := netlink.LinkSetUp(l); err != nil {
			t.Error(err)
		}
		if addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL); err != nil || len(addrs) != 0 {
			t.Errorf("addresses %v, %v", addrs, err)
		}
		d.Close()
		if d, err = o.OpenTAP("sg-1", 1500); err != nil {
			t.Error(err)
			return
		}
		defer d.Close()
		if a := attrs(t, "sg-1"); a.Flags&net.FlagUp == 0 {
			t.Error("adopting took the TAP down")
		}
	})
}

func TestRemoveLeavesOthersAlone(t *testing.T) {
	inNamespace(t, func(t *testing.T) {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}); err != nil {
			t.Error(err)
			return
		}
		if err := (Linux{}).Remove("br0"); err == nil {
			t.Error("removed a bridge")
		}
		if _, err := (Linux{}).OpenTUN("br0", 1500); !errors.Is(err, unix.EINVAL) {
			t.Errorf("a TUN called like a bridge: %v", err)
		}
	})
}

func TestNames(t *testing.T) {
	for _, name := range []string{"", "a-name-of-16-byt"} {
		if _, err := (Linux{}).OpenTUN(name, 1500); err == nil || !strings.Contains(err.Error(), "1 to 15 bytes") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestExplain(t *testing.T) {
	for err, want := range map[error]string{
		unix.ENOENT: "modprobe tun", unix.EPERM: "needs root (CAP_NET_ADMIN)", unix.EACCES: "needs root (CAP_NET_ADMIN)",
		unix.EBUSY: "device x is in use by another process", unix.EINVAL: "ip link del x", unix.EIO: "input/output error",
	} {
		got := explain(err, "x")
		if !strings.Contains(got.Error(), want) || !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// A packet written comes out of the kernel side and the other way round, and
// Close ends a Read that waits. The three kinds behave alike.
func TestPacketsAndClose(t *testing.T) {
	for i, open := range []func(name string) (Device, error){
		func(n string) (Device, error) { return Linux{}.OpenTUN(n, 1500) },
		func(n string) (Device, error) { return Linux{}.OpenPrivateTUN(n, 1500) },
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			inNamespace(t, func(t *testing.T) {
				d, err := open("st-test")
				if err != nil {
					t.Error(err)
					return
				}
				defer d.Close()
				roundTrip(t, d)
				closeUnblocks(t, d)
			})
		})
	}
}

// roundTrip sends a UDP datagram to 10.9.0.2 through the kernel, and an answer
// back.
func roundTrip(t *testing.T, d Device) {
	l, _ := netlink.LinkByName("st-test")
	addr, _ := netlink.ParseAddr("10.9.0.1/24")
	if err := netlink.AddrAdd(l, addr); err != nil {
		t.Error(err)
		return
	}
	c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(10, 9, 0, 2), Port: 7})
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("to the tunnel")); err != nil {
		t.Error(err)
		return
	}
	bufs, sizes := [][]byte{make([]byte, MinOffset+65536)}, []int{0}
	n, err := d.Read(bufs, sizes, MinOffset)
	if err != nil || n != 1 || !strings.HasSuffix(string(bufs[0][MinOffset:][:sizes[0]]), "to the tunnel") {
		t.Errorf("read %d packets, %v", n, err)
		return
	}
	p := bufs[0][:MinOffset+sizes[0]]
	ip := p[MinOffset:]
	for i := range 4 { // swapping addresses and ports leaves every checksum as it is
		ip[12+i], ip[16+i] = ip[16+i], ip[12+i]
	}
	for i := range 2 {
		ip[20+i], ip[22+i] = ip[22+i], ip[20+i]
	}
	if _, err := d.Write([][]byte{p}, MinOffset); err != nil {
		t.Error(err)
	}
	got := make([]byte, 100)
	if n, err := c.Read(got); err != nil || string(got[:n]) != "to the tunnel" {
		t.Errorf("answer %q, %v", got[:n], err)
	}
}

func closeUnblocks(t *testing.T, d Device) {
	ended := make(chan error)
	go func() {
		_, err := d.Read([][]byte{make([]byte, MinOffset+65536)}, []int{0}, MinOffset)
		ended <- err
	}()
	d.Wake()
	if err := <-ended; err != nil {
		t.Errorf("Read after Wake: %v", err)
	}
	d.Wake()
	d.Wake()
	if n, err := d.Read([][]byte{make([]byte, MinOffset+65536)}, []int{0}, MinOffset); n != 0 || err != nil {
		t.Errorf("the Read after a Wake: %d packets, %v", n, err)
	}
	if n, err := d.Poll([][]byte{make([]byte, MinOffset+65536)}, []int{0}, MinOffset); n != 0 || err != nil {
		t.Errorf("Poll: %d packets, %v", n, err)
	}
	go func() {
		_, err := d.Read([][]byte{make([]byte, MinOffset+65536)}, []int{0}, MinOffset)
		ended <- err
	}()
	runtime.Gosched()
	d.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}
	if _, err := d.Write([][]byte{make([]byte, 64)}, MinOffset); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
}
