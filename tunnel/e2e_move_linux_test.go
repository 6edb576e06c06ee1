package tunnel_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/config"
	"stitch/tunnel/lab"
)

// machine is a network namespace that plays the workload "app": its cable is
// moved between the hypervisor hosts as a live migration moves a guest.
type machine struct {
	t  *testing.T
	l  *lab.Lab
	ns lab.Namespace
	at string
}

// newMachine plugs the workload into h1.
func newMachine(t *testing.T, l *lab.Lab) *machine {
	m := &machine{t: t, l: l, ns: lab.Namespace(l.Options().Name + "-app"), at: "h1"}
	m.ip("netns", "add", string(m.ns))
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", string(m.ns)).Run() })
	m.ip("link", "add", "eth0", "netns", string(m.ns), "address", "52:54:00:00:00:50", "type", "veth", "peer", "name", "vm0", "netns", l.Options().Name+"-h1")
	m.ip("-n", string(m.ns), "address", "add", "10.1.0.50/24", "dev", "eth0")
	m.plug()
	m.ip("-n", string(m.ns), "route", "add", "default", "via", "10.1.0.1")
	return m
}

func (m *machine) ip(args ...string) {
	m.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		m.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// plug joins the cable to the bridge of the host it is at, and announces the
// machine as QEMU does.
func (m *machine) plug() {
	m.t.Helper()
	m.ip("-n", m.l.Options().Name+"-"+m.at, "link", "set", "vm0", "master", "br-vm", "up")
	m.ip("-n", string(m.ns), "link", "set", "eth0", "up")
	m.announce()
}

// move takes the machine to another host.
func (m *machine) move(to string) {
	m.t.Helper()
	m.ip("-n", m.l.Options().Name+"-"+m.at, "link", "set", "vm0", "netns", m.l.Options().Name+"-"+to)
	m.at = to
	m.plug()
}

// announce sends three RARP requests.
func (m *machine) announce() {
	m.t.Helper()
	mac, _ := config.ParseMAC("52:54:00:00:00:50")
	f := bytes.Repeat([]byte{0xff}, 6)
	f = append(f, mac[:]...)
	f = append(f, 0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3)
	f = append(append(append(f, mac[:]...), 0, 0, 0, 0), append(mac[:], 0, 0, 0, 0)...)
	f = append(f, make([]byte, 60-len(f))...)
	err := m.ns.Do(func() error {
		proto := binary.NativeEndian.Uint16([]byte{0x80, 0x35})
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(proto))
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		dev, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		for range 3 {
			if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: dev.Index}); err != nil {
				return err
			}
			time.Sleep(20 * time.Millisecond)
		}
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

// serve answers every connection to the machine's port 8080 with what it got.
func (m *machine) serve() {
	m.t.Helper()
	var ln net.Listener
	if err := m.ns.Do(func() (err error) { ln, err = net.Listen("tcp", "10.1.0.50:8080"); return }); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { ln.Close() })
	go echoAll(ln)
}

// dial connects from the machine itself.
func (m *machine) dial(addr string) *net.TCPConn {
	m.t.Helper()
	var c net.Conn
	if err := m.ns.Do(func() (err error) { c, err = net.DialTimeout("tcp", addr, 10*time.Second); return }); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// TestE2EMove: a workload moves to the other site and back; connections to it
// and from it go on, the name follows it, and the death of a link process while
// it is away changes nothing of that.
func TestE2EMove(t *testing.T) {
	l := world(t, wan100)
	m := newMachine(t, l)
	m.serve()
	go echoAll(listen(t, l, "d1", "10.1.1.20:5432"))
	go echoAll(listen(t, l, "c1", "192.0.2.7:7000"))
	open := map[string]*net.TCPConn{
		"client to service": mustDial(t, l, "c1", "203.0.113.10:8080"),
		"machine to d1":     m.dial("10.1.1.20:5432"),
		"machine to c1":     m.dial("192.0.2.7:7000"),
		"h1 to machine":     mustDial(t, l, "h1", "10.1.0.50:8080"),
	}
	all := func(when string) {
		t.Helper()
		for name, c := range open {
			start := time.Now()
			exchange(t, c)
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("%s: %s answered after %v", when, name, took)
			}
		}
	}
	all("at site 1")
	follows(t, l, "203.0.113.10")

	m.move("h2")
	all("at site 2")
	follows(t, l, "198.51.100.20")
	open["new client at site 2"] = mustDial(t, l, "c1", "198.51.100.20:8080")
	for _, edge := range []string{"e1", "e2"} {
		restarted(t, l, edge, "link", kill(t, l, edge, "link"))
		all("after the link process of " + edge + " died")
	}
	follows(t, l, "198.51.100.20")

	m.move("h1")
	all("back at site 1")
	follows(t, l, "203.0.113.10")
}

// follows waits until both name servers give an address for the service.
func follows(t *testing.T, l *lab.Lab, want string) {
	t.Helper()
	for _, server := range []string{"203.0.113.10", "198.51.100.20"} {
		eventually(t, 5*time.Second, "the name server "+server+" says "+want, func() bool {
			out, _ := l.Command("c1", "dig", "+short", "+tries=1", "+time=1", "@"+server, "www.app.example").Output()
			return strings.TrimSpace(string(out)) == want
		})
	}
}
