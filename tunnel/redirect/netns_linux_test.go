package redirect

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// netns is a network namespace of the test, deleted at its end.
type netns struct {
	t    *testing.T
	name string
}

// newNetns makes a namespace with a name of this process only.
func newNetns(t *testing.T, short string) *netns {
	t.Helper()
	n := &netns{t, fmt.Sprintf("rdt%d-%s", os.Getpid(), short)}
	run(t, "ip netns add "+n.name)
	t.Cleanup(func() { run(t, "ip netns del "+n.name) })
	n.sh("ip link set lo up")
	return n
}

// run executes one command without a shell.
func run(t *testing.T, command string) string {
	t.Helper()
	args := strings.Fields(command)
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// sh executes a shell script in the namespace.
func (n *netns) sh(script string) string {
	n.t.Helper()
	out, err := exec.Command("ip", "netns", "exec", n.name, "sh", "-ec", script).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: %s: %v\n%s", n.name, script, err, out)
	}
	return string(out)
}

// do runs f on a thread that is in the namespace. The thread is thrown away.
func (n *netns) do(f func() error) error {
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		errs <- func() error {
			file, err := os.Open("/run/netns/" + n.name)
			if err != nil {
				return err
			}
			defer file.Close()
			if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-errs
}

// tryDial opens a TCP connection from a socket of the namespace.
func (n *netns) tryDial(from, to string) (c net.Conn, err error) {
	err = n.do(func() (err error) {
		d := net.Dialer{Timeout: connTimeout}
		if from != "" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		c, err = d.Dial("tcp4", to)
		return err
	})
	return c, err
}

func (n *netns) dial(from, to string) net.Conn {
	n.t.Helper()
	c, err := n.tryDial(from, to)
	if err != nil {
		n.t.Fatalf("%s: dial %s: %v", n.name, to, err)
	}
	n.t.Cleanup(func() { c.Close() })
	return c
}

// dialLater dials in the background.
func (n *netns) dialLater(to string) func() net.Conn {
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result, 1)
	go func() {
		c, err := n.tryDial("", to)
		done <- result{c, err}
	}()
	return func() net.Conn {
		n.t.Helper()
		r := <-done
		if r.err != nil {
			n.t.Fatalf("%s: dial %s: %v", n.name, to, r.err)
		}
		n.t.Cleanup(func() { r.c.Close() })
		return r.c
	}
}

func (n *netns) listen(addr string) net.Listener {
	n.t.Helper()
	var l net.Listener
	err := n.do(func() (err error) {
		l, err = net.Listen("tcp4", addr)
		return err
	})
	if err != nil {
		n.t.Fatalf("%s: listen %s: %v", n.name, addr, err)
	}
	n.t.Cleanup(func() { l.Close() })
	return l
}

// veth joins two namespaces.
func veth(a *netns, nameA string, b *netns, nameB string) {
	a.t.Helper()
	run(a.t, fmt.Sprintf("ip link add %s netns %s type veth peer name %s netns %s", nameA, a.name, nameB, b.name))
	a.sh("ip link set " + nameA + " up")
	b.sh("ip link set " + nameB + " up")
}

// linkVeth joins two edges as a link would: a point-to-point device without
// address resolution. Both ends have one MAC, which is where a device without
// ARP sends everything.
func linkVeth(a *netns, nameA string, b *netns, nameB string) {
	a.t.Helper()
	run(a.t, fmt.Sprintf("ip link add %s netns %s type veth peer name %s netns %s", nameA, a.name, nameB, b.name))
	for n, dev := range map[*netns]string{a: nameA, b: nameB} {
		n.sh("ip link set " + dev + " address 02:00:00:00:00:99 arp off up")
	}
}
