package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev"
)

const (
	// holdMTU lets any SYN through the hold device.
	holdMTU = 1500
	// localReceive bounds what the kernel takes from a host before we read
	// it: with more, a sender that measures its socket's rate sees our buffer
	// and not the path, and its own kernel buffers twice as much again. It is a
	// full block and a good LAN's round trip. The kernel is told half.
	localReceive = 320 << 10
	// peerReceive is what the kernel may take from the peer before we read it,
	// from the start: the kernel's own growth of it stalls while a lost segment
	// holds up the ones behind it. Our credit bounds what is really there.
	peerReceive = 16 << 20
	// notSentLow keeps what the path cannot take yet out of the kernel.
	notSentLow = 256 << 10
	// peerTimeout is how long an inter-agent connection outlives silence; with
	// rtoMax it is back within a second of the path.
	peerTimeout = 15 * time.Minute
	rtoMaxMS    = 1000
	// rtoMin and ackWithin make a lost packet that nothing follows, such as the
	// answer to a key press, known sooner than Linux' 200 ms after the time it
	// should take: the peer acknowledges within ackWithin, so rtoMin is enough.
	rtoMin    = 50 * time.Millisecond
	ackWithin = 10 * time.Millisecond
)

// localKeepAlive ends connections whose host has vanished without a word,
// after some 20 minutes; a shorter one would kill what would survive directly.
var localKeepAlive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Minute, Interval: 75 * time.Second, Count: 9}

// peerKeepAlive notices a peer that is gone while connections are idle.
var peerKeepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 4}

// Linux is the real Net. It needs CAP_NET_ADMIN and CAP_NET_RAW.
type Linux struct {
	// Opener makes the private TUN for held SYNs.
	Opener netdev.Opener
	// HoldRoute, if not nil, is called with the TUN's name once it is up: it
	// makes packets marked MarkHold go there.
	HoldRoute func(device string) error
	// Raw passes packets. It is shared by copies of a Linux.
	Raw *RawSockets
}

// OpenHold implements Net.
func (l Linux) OpenHold() (netdev.Device, error) {
	d, err := l.Opener.OpenPrivateTUN(config.HoldDevice, holdMTU)
	if err != nil {
		return nil, err
	}
	if l.HoldRoute == nil {
		return d, nil
	}
	if err := l.HoldRoute(d.Name()); err != nil {
		d.Close()
		return nil, fmt.Errorf("route into %s: %w", d.Name(), err)
	}
	return d, nil
}

// Intercept implements Net. A host without IPv6 gets one listener.
func (Linux) Intercept(port uint16) ([]Listener, error) {
	var ls []Listener
	for _, network := range []string{"tcp4", "tcp6"} {
		lc := net.ListenConfig{KeepAliveConfig: localKeepAlive, Control: control(transparent(network), localBuffers, urgentInline, resetOnClose)}
		lc.SetMultipathTCP(false)
		l, err := lc.Listen(context.Background(), network, ":"+strconv.Itoa(int(port)))
		if errors.Is(err, unix.EAFNOSUPPORT) && len(ls) > 0 {
			break
		}
		if err != nil {
			closeAll(ls)
			return nil, err
		}
		ls = append(ls, listener{l.(*net.TCPListener)})
	}
	return ls, nil
}

// Dial implements Net.
func (Linux) Dial(ctx context.Context, src, dst netip.AddrPort) (Conn, error) {
	network := "tcp4"
	if dst.Addr().Is6() {
		network = "tcp6"
	}
	d := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(src), KeepAliveConfig: localKeepAlive,
		Control: control(transparent(network), reuse, mark(config.MarkSplit), localBuffers, urgentInline, resetOnClose),
	}
	d.SetMultipathTCP(false)
	c, err := d.DialContext(ctx, network, dst.String())
	if err != nil {
		return nil, err
	}
	return newTCP(c.(*net.TCPConn))
}

// ListenPeer implements Net.
func (k Linux) ListenPeer(l Link, port uint16) (Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: peerKeepAlive, Control: control(device(l.Device), free, peerOptions, resetOnClose)}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), "tcp4", netip.AddrPortFrom(l.Local, port).String())
	if err != nil {
		return nil, err
	}
	if err := k.Raw.open(l.Device); err != nil { // while there are descriptors
		return nil, errors.Join(err, ln.Close())
	}
	return listener{ln.(*net.TCPListener)}, nil
}

// DialPeer implements Net.
func (Linux) DialPeer(ctx context.Context, l Link, port uint16) (Conn, error) {
	d := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.Local, 0)), KeepAliveConfig: peerKeepAlive,
		Control: control(device(l.Device), peerOptions, resetOnClose),
	}
	d.SetMultipathTCP(false)
	c, err := d.DialContext(ctx, "tcp4", netip.AddrPortFrom(l.Remote, port).String())
	if err != nil {
		return nil, err
	}
	return newTCP(c.(*net.TCPConn))
}

// CountPeer implements Net.
func (Linux) CountPeer(l Link) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: control(device(l.Device))}
	c, err := lc.ListenPacket(context.Background(), "udp4", netip.AddrPortFrom(l.Local, streamPort).String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// Pass implements Net: the socket is bound to the link's device, so the packet
// can go nowhere else.
func (k Linux) Pass(l Link, packet []byte) error { return k.Raw.send(l.Device, packet) }

// Own implements Net.
func (Linux) Own(a netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return true // rather refuse than dial ourselves
	}
	for _, have := range addrs {
		if n, ok := have.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == a {
				return true
			}
		}
	}
	return false
}

// Descriptors implements Net. The Go runtime has raised the soft limit to the
// hard one; above that it takes CAP_SYS_RESOURCE.
func (Linux) Descriptors(n int) int {
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		return n // not known: the kernel will tell
	}
	want := unix.Rlimit{Cur: uint64(n), Max: max(uint64(n), have.Max)}
	if have.Cur >= uint64(n) || unix.Setrlimit(unix.RLIMIT_NOFILE, &want) == nil {
		return n
	}
	return int(have.Cur)
}

// Spare implements Net.
func (Linux) Spare() (io.Closer, error) { return os.Open(os.DevNull) }

// option sets something on a socket before it is bound.
type option func(fd int) error

func control(options ...option) func(string, string, syscall.RawConn) error {
	return func(_, _ string, rc syscall.RawConn) error {
		var err error
		if e := rc.Control(func(fd uintptr) {
			for _, o := range options {
				if err = o(int(fd)); err != nil {
					return
				}
			}
		}); e != nil {
			return e
		}
		return err
	}
}

func transparent(network string) option {
	return func(fd int) error {
		level, name := unix.SOL_IP, unix.IP_TRANSPARENT
		if network == "tcp6" {
			level, name = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		}
		return wrap("IP_TRANSPARENT", unix.SetsockoptInt(fd, level, name, 1))
	}
}

func mark(m int) option {
	return func(fd int) error { return wrap("SO_MARK", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, m)) }
}

func device(name string) option {
	return func(fd int) error { return wrap("bind to "+name, unix.BindToDevice(fd, name)) }
}

func free(fd int) error {
	return wrap("IP_FREEBIND", unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1))
}

// reuse lets a client's port be used towards several servers.
func reuse(fd int) error {
	return wrap("SO_REUSEADDR", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
}

func localBuffers(fd int) error {
	return wrap("SO_RCVBUFFORCE", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, localReceive/2))
}

// urgentInline leaves an urgent byte where it is among the others: outside it
// the kernel keeps only the last one, and for those who ask.
func urgentInline(fd int) error {
	return wrap("SO_OOBINLINE", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1))
}

// resetOnClose makes the socket's end a reset, also when the process dies. A
// listener hands it on to what it accepts, before we know of it.
func resetOnClose(fd int) error {
	return wrap("SO_LINGER", unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
}

// peerOptions are for the long way between the agents.
func peerOptions(fd int) error {
	if err := congestion(fd, "bbr", "cubic"); err != nil {
		return err
	}
	for _, o := range []struct {
		name          string
		option, value int
	}{ // Linux 6.15 and 6.16 have them, older ones do not
		{"TCP_RTO_MAX_MS", unix.TCP_RTO_MAX_MS, rtoMaxMS},
		{"TCP_RTO_MIN_US", unix.TCP_RTO_MIN_US, int(rtoMin / time.Microsecond)},
		{"TCP_DELACK_MAX_US", unix.TCP_DELACK_MAX_US, int(ackWithin / time.Microsecond)},
	} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, o.option, o.value); err != nil && err != unix.ENOPROTOOPT && err != unix.EINVAL {
			return wrap(o.name, err)
		}
	}
	return cmpErr(
		wrap("SO_RCVBUFFORCE", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, peerReceive)),
		wrap("TCP_USER_TIMEOUT", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(peerTimeout/time.Millisecond))),
		wrap("TCP_NOTSENT_LOWAT", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLow)))
}

// congestion chooses the first of the congestion controls that the kernel has.
// Which one that was is in PeerStats.Congestion.
func congestion(fd int, names ...string) (err error) {
	for _, name := range names {
		if err = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name); err == nil {
			break
		}
	}
	return wrap("TCP_CONGESTION", err)
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// listener accepts tcp connections.
type listener struct{ *net.TCPListener }

// Accept implements Listener.
func (l listener) Accept() (Conn, error) {
	c, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	return newTCP(c)
}
