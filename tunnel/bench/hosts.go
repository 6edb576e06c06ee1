package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/bench/far"
	"stitch/tunnel/control"
	"stitch/tunnel/lab"
)

const (
	// sender and receiver are the lab's hosts. segmentAddr is that of a host
	// on the same segment as s1, at the other site.
	sender, receiver = "h1", "h2"
	receiverAddr     = "10.2.0.10"
	segmentAddr      = "10.1.0.12"
	// streamsWait bounds the wait for the agents' streams.
	streamsWait = 15 * time.Second
)

// hosts are the two ends of the transfers.
type hosts struct {
	l         *lab.Lab
	listeners []net.Listener
}

func newHosts(l *lab.Lab) (*hosts, error) {
	h := &hosts{l: l}
	for _, x := range []struct {
		host, addr string
		service    far.Service
		port       func(far.Service) string
	}{
		{receiver, receiverAddr, far.Sink, port}, {receiver, receiverAddr, far.Echo, port}, {receiver, receiverAddr, far.Packets, port},
		{receiver, receiverAddr, far.Echo, unruled}, {"s2", segmentAddr, far.Packets, port},
	} {
		if err := h.serve(x.host, x.addr, x.port(x.service), x.service); err != nil {
			h.close()
			return nil, err
		}
	}
	return h, nil
}

// serve serves s at an address of a host until close.
func (h *hosts) serve(host, addr, port string, s far.Service) error {
	ns, err := h.l.Namespace(host)
	if err != nil {
		return err
	}
	var l net.Listener
	if err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(addr, port))
		return err
	}); err != nil {
		return err
	}
	h.listeners = append(h.listeners, l)
	go serve(l, func(c net.Conn) {
		socket := func() (u *net.UDPConn, from netip.Addr, err error) {
			err = ns.Do(func() error {
				u, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(addr)})
				return err
			})
			return u, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(), err
		}
		_ = far.Serve(s, c, socket) // the client sees what became of it
	})
	return nil
}

// port is where a service is: ports that the lab's rules optimise.
func port(s far.Service) string { return strconv.Itoa(4000 + int(s)) }

// unruled is where a service is that no rule is about.
func unruled(s far.Service) string { return strconv.Itoa(3900 + int(s)) }

func (h *hosts) close() {
	for _, l := range h.listeners {
		_ = l.Close()
	}
}

// serve hands connections to f until l is closed.
func serve(l net.Listener, f func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			f(c)
		}()
	}
}

// wan is what both edges have put on the wire.
func (h *hosts) wan(ctx context.Context) (uint64, error) {
	t, err := h.l.WAN().Counters(ctx)
	return t.Bytes(), err
}

// via is the way of the hosts' connections with a congestion control.
type via struct {
	*hosts
	congestion string
	port       func(far.Service) string
	stitch     bool
}

// open implements ends.
func (v via) open(ctx context.Context, s far.Service) (conn, error) {
	c, err := v.dial(ctx, sender, receiverAddr, v.port(s))
	if err != nil {
		return nil, err
	}
	if err := SetCongestion(c, v.congestion); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("congestion control %s: %w", v.congestion, err)
	}
	return c, nil
}

// packets implements ends.
func (v via) packets() ends {
	if !v.stitch {
		return nil
	}
	return via{v.hosts, v.congestion, unruled, true}
}

// once implements ends: the agents' history outlives a connection.
func (via) once() bool { return false }

// counted counts packets from one host to another.
func (h *hosts) counted(from, addr string) counted {
	return counted{
		service: func(ctx context.Context) (conn, error) { return h.dial(ctx, from, addr, port(far.Packets)) },
		dial: func(_ context.Context, port uint16) (c net.Conn, err error) {
			ns, err := h.l.Namespace(from)
			if err != nil {
				return nil, err
			}
			err = ns.Do(func() error {
				c, err = net.Dial("udp4", net.JoinHostPort(addr, strconv.Itoa(int(port))))
				return err
			})
			return c, err
		},
	}
}

// waitStreams waits until the agents have connections to each other ready; until
// then nothing is optimised.
func (h *hosts) waitStreams(ctx context.Context) error {
	c := control.NewClient(filepath.Join(h.l.Options().Dir, "e1", control.Socket))
	for end := time.Now().Add(streamsWait); ; {
		if st, err := c.Status(ctx); err == nil && ready(st.Streams) {
			return nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return cmp.Or(ctx.Err(), fmt.Errorf("the agents' streams are not ready after %v", streamsWait))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func ready(streams json.RawMessage) bool {
	var s struct {
		Peers []struct {
			Ready int `json:"ready"`
		} `json:"peers"`
	}
	return json.Unmarshal(streams, &s) == nil && len(s.Peers) == 1 && s.Peers[0].Ready > 0
}

// dial connects from a host.
func (h *hosts) dial(ctx context.Context, from, addr, port string) (*net.TCPConn, error) {
	ns, err := h.l.Namespace(from)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: 30 * time.Second}
	var c net.Conn
	err = ns.Do(func() (err error) {
		c, err = d.DialContext(ctx, "tcp", net.JoinHostPort(addr, port))
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// SetCongestion chooses a connection's congestion control by the kernel's name for
// it, such as "bbr". Before the connection is made the route's would take precedence.
func SetCongestion(c *net.TCPConn, name string) (err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	}); e != nil {
		return e
	}
	return err
}
