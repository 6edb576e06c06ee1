package stream

import (
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRawSockets: one socket for each device and family, a new one when the device
// is another of the same name, and an error without it.
func TestRawSockets(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: a network namespace")
	}
	ns := "raw" + strconv.Itoa(os.Getpid())
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	ip("netns", "add", ns)
	defer exec.Command("ip", "netns", "del", ns).Run()
	device := func() {
		ip("-n", ns, "link", "add", "st-x", "type", "veth", "peer", "name", "y")
		ip("-n", ns, "link", "set", "y", "up")
		ip("-n", ns, "link", "set", "st-x", "arp", "off", "up")
		ip("-n", ns, "addr", "add", "10.9.0.1/24", "dev", "st-x")
		ip("-n", ns, "addr", "add", "fd09::1/64", "dev", "st-x", "nodad")
	}
	device()
	packets := [][]byte{rawSYN("10.1.0.1:1", "10.9.0.2:2"), rawSYN("[fd01::1]:1", "[fd09::2]:2")}
	err := onThread(func() error {
		f, err := os.Open("/run/netns/" + ns)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		var r RawSockets
		defer func() {
			for _, fd := range r.fds {
				unix.Close(fd)
			}
		}()
		sent := func(what string, want int) {
			for range 3 {
				for _, p := range packets {
					if err := r.send("st-x", p); err != nil {
						t.Errorf("%s: %v", what, err)
					}
				}
			}
			if len(r.fds) != 2 {
				t.Errorf("%s: %d sockets, want one for each family", what, len(r.fds))
			}
			if n := counter(t, ns); n < want {
				t.Errorf("%s: the device has sent %d packets, want %d", what, n, want)
			}
		}
		sent("at first", 6)
		ip("-n", ns, "link", "del", "st-x")
		if err := r.send("st-x", packets[0]); err == nil {
			t.Error("sent without a device")
		}
		device()
		sent("another device", 6)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// rawSYN is a TCP packet without checksums.
func rawSYN(src, dst string) []byte {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	if s.Addr().Is4() {
		b := make([]byte, 40)
		b[0], b[3], b[8], b[9] = 0x45, 40, 64, protoTCP
		copy(b[12:], s.Addr().AsSlice())
		copy(b[16:], d.Addr().AsSlice())
		return b
	}
	b := make([]byte, 60)
	b[0], b[5], b[6], b[7] = 0x60, 20, protoTCP, 64
	copy(b[8:], s.Addr().AsSlice())
	copy(b[24:], d.Addr().AsSlice())
	return b
}

// counter is how many packets the device of the calling thread's namespace has sent.
func counter(t *testing.T, ns string) int {
	t.Helper()
	out, err := exec.Command("ip", "netns", "exec", ns, "cat", "/sys/class/net/st-x/statistics/tx_packets").Output()
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(string(out[:len(out)-1]))
	return n
}
