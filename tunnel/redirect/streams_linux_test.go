package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/config"
)

// The fixed hosts of these tests are d1 (site 1) and h2 (site 2).

// transparent sets what the sockets of the stream process have.
func transparent(_, _ string, c syscall.RawConn) error {
	var err error
	c.Control(func(fd uintptr) {
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, config.MarkSplit))
	})
	return err
}

// intercept opens the transparent listener of an edge.
func (n *netns) intercept() *net.TCPListener {
	n.t.Helper()
	var l net.Listener
	err := n.do(func() (err error) {
		l, err = (&net.ListenConfig{Control: transparent}).Listen(context.Background(), "tcp4", fmt.Sprintf("0.0.0.0:%d", config.InterceptPort))
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

func (n *netns) dialTransparent(from, to string) net.Conn {
	n.t.Helper()
	var c net.Conn
	err := n.do(func() (err error) {
		local, err := net.ResolveTCPAddr("tcp4", from)
		if err != nil {
			return err
		}
		c, err = (&net.Dialer{Timeout: connTimeout, LocalAddr: local, Control: transparent}).Dial("tcp4", to)
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { c.Close() })
	return c
}

// vanish closes a socket as a crash of the whole machine would: without a word.
func vanish(t *testing.T, c net.Conn) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1) })
	if err != nil {
		t.Skip("no TCP_REPAIR here: ", err)
	}
	c.Close()
}

// accept takes the next intercepted connection and says whom it was for.
func accept(t *testing.T, l *net.TCPListener) (net.Conn, string) {
	t.Helper()
	l.SetDeadline(time.Now().Add(connTimeout))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, c.LocalAddr().String()
}

// echoOne answers one connection.
func echoOne(c net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		c.Write(buf[:n])
	}
}

func TestInterceptEarly(t *testing.T) {
	w := newWorld(t, true)
	server := fmt.Sprintf("10.2.0.10:%d", portEarly)
	seen := echo(w.h2.listen(server))

	direct := &talk{name: "nobody listens", conn: w.d1.dial("", server)}
	direct.say(t, 5)
	if got := seen(); got != "10.1.1.20" {
		t.Errorf("the server sees %s", got)
	}

	l := w.e1.intercept()
	client := &talk{name: "intercepted", conn: w.d1.dial("", server)}
	near, to := accept(t, l)
	if to != server {
		t.Errorf("intercepted for %s", to)
	}
	go echoOne(near)
	client.say(t, 50)
	direct.say(t, 5) // the older connection goes on, untouched

	far := &talk{name: "dialled with the client's address", conn: w.e2.dialTransparent("10.1.1.20:33333", server)}
	far.say(t, 50)
	if got := seen(); got != "10.1.1.20" {
		t.Errorf("the server sees %s", got)
	}

	w.orphanAtServer(server[:len(server)-1] + "2")

	// A split connection whose socket is gone is reset, not forwarded; its
	// tuple may be used again, by a connection that nobody intercepts.
	tuple := client.conn.LocalAddr().String()
	vanish(t, near)
	l.Close()
	w.orphan(client.conn, portEarly)
	again := &talk{name: "the same tuple again"}
	again.conn = w.d1.dialTransparent(tuple, server)
	again.say(t, 5)
}

// orphan writes on a connection whose split end is gone: it must be reset by
// its own edge, without a packet on the link.
func (w *world) orphan(c net.Conn, port int) {
	w.t.Helper()
	c.SetDeadline(time.Now().Add(connTimeout))
	crossed := w.during(port, func() {
		c.Write([]byte("is anybody there?"))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			w.t.Errorf("orphan of a split connection: %v, want a reset", err)
		}
	})
	if crossed.link != 0 {
		w.t.Errorf("%d packets of an orphan crossed the link", crossed.link)
	}
	c.Close()
}

// orphanAtServer is the same at the far edge, where the agent had dialled.
func (w *world) orphanAtServer(addr string) {
	w.t.Helper()
	l := w.h2.listen(addr)
	far := w.e2.dialTransparent("10.1.1.20:33334", addr)
	c, err := l.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	vanish(w.t, far)
	w.orphan(c, portEarly2)
}

// openHold opens the stream process's TUN at an edge.
func openHold(t *testing.T, n *netns) *os.File {
	t.Helper()
	var f *os.File
	err := n.do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(config.HoldDevice)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), config.HoldDevice)
		n.sh("ip link set " + config.HoldDevice + " up")
		return HoldRoute(config.HoldDevice)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// heldSYN reads the next held SYN for a port.
func heldSYN(t *testing.T, f *os.File, port uint16) []byte {
	t.Helper()
	for {
		buf := make([]byte, 2048)
		f.SetReadDeadline(time.Now().Add(connTimeout))
		n, err := f.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		p := buf[:n]
		if n >= 40 && p[0]>>4 == 4 && p[9] == unix.IPPROTO_TCP {
			if tcp := p[int(p[0]&15)*4:]; uint16(tcp[2])<<8|uint16(tcp[3]) == port && tcp[13] == 2 {
				return p
			}
		}
	}
}

func TestInterceptHeld(t *testing.T) {
	w := newWorld(t, true)
	server := fmt.Sprintf("10.2.0.10:%d", portHeld)
	echo(w.h2.listen(server))
	// A connection from before, to a port that happens to be the listener's.
	same := fmt.Sprintf("10.2.0.10:%d", config.InterceptPort)
	echo(w.h2.listen(same))
	older := &talk{name: "older, to the listener's port number", conn: w.d1.dial("", same)}
	hold := openHold(t, w.e1)
	l := w.e1.intercept()
	older.say(t, 5)

	connected := w.d1.dialLater(server)
	syn := heldSYN(t, hold, portHeld)
	if out := w.d1.sh("ss -Htn state established dst 10.2.0.10 dport = :4001"); out != "" {
		t.Fatalf("the client was answered before anybody agreed: %s", out)
	}
	if _, err := hold.Write(syn); err != nil {
		t.Fatal(err)
	}
	near, to := accept(t, l)
	if to != server {
		t.Errorf("intercepted for %s", to)
	}
	go echoOne(near)
	(&talk{name: "held, then intercepted", conn: connected()}).say(t, 50)

	// Nobody listens: the SYN that comes back from the hold device goes its way.
	l.Close()
	connected = w.d1.dialLater(server)
	if _, err := hold.Write(heldSYN(t, hold, portHeld)); err != nil {
		t.Fatal(err)
	}
	(&talk{name: "held, then let go", conn: connected()}).say(t, 5)

	// No device: nothing is held.
	hold.Close()
	(&talk{name: "not held", conn: w.d1.dial("", server)}).say(t, 5)
}
