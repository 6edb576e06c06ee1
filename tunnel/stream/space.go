package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stitch/tunnel/config"
	"stitch/tunnel/divert"
	"stitch/tunnel/netdev"
)

const (
	// spaceDevice is the TAP in a segment's namespace, spaceTable what comes from
	// it is looked up in.
	spaceDevice = "segment"
	spaceTable  = 100
)

// spaceSysctls make a namespace take what any host sends, and use a client's port
// again while its last connection is in TIME_WAIT: the clients decide about their
// ports.
var spaceSysctls = map[string]string{
	"ipv4/conf/all/rp_filter": "0", "ipv4/conf/" + spaceDevice + "/rp_filter": "0", "ipv4/tcp_tw_reuse": "1",
}

// spaceRules gives all TCP from the TAP to transparent sockets: to the one of its
// connection, else to the listener. ICMP errors find theirs by themselves.
var spaceRules = fmt.Sprintf(`table inet stitch {
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		iifname %[1]q meta nfproto ipv4 meta l4proto tcp tproxy ip to :%[2]d accept
		iifname %[1]q meta nfproto ipv6 meta l4proto tcp tproxy ip6 to :%[2]d accept
	}
}
`, spaceDevice, config.InterceptPort)

// space is a network namespace with a TAP in which a segment's split connections
// live. Nothing of it is left when its descriptors are closed.
type space struct {
	ns        int // the namespace
	tap       int // for the link process
	device    netdev.Device
	listeners []Listener
}

// openSpace makes one. It needs CAP_SYS_ADMIN.
func openSpace(mtu int) (*space, error) {
	s := &space{ns: -1, tap: -1}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("network namespace for a segment (needs CAP_SYS_ADMIN): %w", err)
		}
		return s.fill(mtu)
	})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// fill makes what is in the namespace of the calling thread.
func (s *space) fill(mtu int) (err error) {
	if s.ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	if s.tap, err = (netdev.Linux{}).OpenLooseTAP(spaceDevice, mtu, divert.DeviceMAC[:]); err != nil {
		return err
	}
	for key, value := range spaceSysctls {
		if err := os.WriteFile("/proc/sys/net/"+key, []byte(value), 0); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	if err := spaceRoutes(); err != nil {
		return err
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(spaceRules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	if s.listeners, err = (Linux{}).Intercept(config.InterceptPort); err != nil {
		return err
	}
	fd, err := unix.FcntlInt(uintptr(s.tap), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s.device, err = netdev.Linux{}.Adopt(spaceDevice, fd)
	return err
}

// spaceRoutes takes everything from the TAP in, and sends everything into it.
func spaceRoutes() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	tap, err := netlink.LinkByName(spaceDevice)
	if err != nil {
		return err
	}
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		dst, err := netlink.ParseIPNet(all)
		if err != nil {
			return err
		}
		family := netlink.FAMILY_V4
		if dst.IP.To4() == nil {
			family = netlink.FAMILY_V6
		}
		rule := netlink.NewRule()
		rule.Family, rule.IifName, rule.Table, rule.Priority = family, spaceDevice, spaceTable, spaceTable
		err = cmpErr(
			netlink.RouteAdd(&netlink.Route{LinkIndex: tap.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Table: spaceTable, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST}),
			netlink.RuleAdd(rule))
		if family == netlink.FAMILY_V6 && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EACCES)) {
			continue // a host without IPv6
		}
		if err != nil {
			return fmt.Errorf("routes for a segment: %w", err)
		}
	}
	return nil
}

// Close ends the listeners and gives the descriptors back.
func (s *space) Close() error {
	closeAll(s.listeners)
	var errs []error
	if s.device != nil {
		errs = append(errs, s.device.Close())
	}
	for _, fd := range []int{s.tap, s.ns} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// inject gives the kernel a frame, which it borrows.
func (s *space) inject(frame []byte) error {
	own := append([]byte(nil), frame...)
	copy(own[:6], divert.DeviceMAC[:])
	_, err := s.device.Write([][]byte{own}, 0)
	return err
}

// dial connects from src to dst. The socket is made in the namespace, and waited
// for elsewhere.
func (s *space) dial(ctx context.Context, src, dst netip.AddrPort) (Conn, error) {
	fd := -1
	err := onThread(func() (err error) {
		if err = unix.Setns(s.ns, unix.CLONE_NEWNET); err == nil {
			fd, err = hostSocket(src)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	if err := connect(ctx, f, fd, dst); err != nil {
		return nil, err
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(errors.New("stream: not a TCP socket"), c.Close())
	}
	if err := t.SetKeepAliveConfig(localKeepAlive); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return newTCP(t)
}

// hostSocket makes a socket that has a host's address.
func hostSocket(src netip.AddrPort) (int, error) {
	family, network := unix.AF_INET, "tcp4"
	if src.Addr().Is6() {
		family, network = unix.AF_INET6, "tcp6"
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if err != nil {
		return -1, err
	}
	for _, o := range []option{transparent(network), reuse, localBuffers, urgentInline, resetOnClose} {
		if err = o(fd); err != nil {
			break
		}
	}
	if err == nil {
		err = wrap("bind", unix.Bind(fd, sockaddr(src)))
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// connect connects a non-blocking socket, the descriptor of f. The error is the
// kernel's, or that of ctx.
func connect(ctx context.Context, f *os.File, fd int, dst netip.AddrPort) error {
	stop := context.AfterFunc(ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	begun, result := false, error(nil)
	err = raw.Write(func(uintptr) bool {
		if !begun {
			begun, result = true, unix.Connect(fd, sockaddr(dst))
			return result != unix.EINPROGRESS
		}
		n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if result = err; err == nil && n != 0 {
			result = unix.Errno(n)
		}
		if result != nil {
			return true
		}
		_, err = unix.Getpeername(fd)
		return err == nil // else woken by what was before
	})
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return cmpErr(err, wrap("connect", result))
}

// onThread runs fn on a thread of its own that ends with it: whatever namespace
// it has moved to, nothing else runs there. Never on the main thread, whose
// namespace /proc shows as the process's.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		if unix.Gettid() == unix.Getpid() {
			err := onThread(fn) // this goroutine keeps the main thread busy meanwhile
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

// LinuxSegments is the real Segments. It needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
type LinuxSegments struct {
	*divert.Client
	log *slog.Logger

	mu      sync.Mutex
	spaces  map[uint16]*space
	handler SegmentHandler
	ctx     context.Context
	tasks   sync.WaitGroup
}

// NewLinuxSegments returns Segments that meet the link process at a socket. Log
// may be nil.
func NewLinuxSegments(path string, log *slog.Logger) *LinuxSegments {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &LinuxSegments{Client: divert.NewClient(path, log), log: log, spaces: map[uint16]*space{}}
}

// Run implements Segments.
func (l *LinuxSegments) Run(ctx context.Context, h SegmentHandler) {
	l.mu.Lock()
	l.handler, l.ctx = h, ctx
	l.mu.Unlock()
	l.Client.Run(ctx, devices{h, l})
	l.mu.Lock()
	for _, s := range l.spaces {
		if err := s.Close(); err != nil {
			l.log.Debug("segment", "err", err)
		}
	}
	clear(l.spaces)
	l.mu.Unlock()
	l.tasks.Wait()
}

// devices is the divert.Handler.
type devices struct {
	SegmentHandler
	l *LinuxSegments
}

// Device implements divert.Handler: the space of a segment is made when the link
// process first asks for it, and stays.
func (d devices) Device(segment uint16, mtu int) (int, error) {
	l := d.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.spaces[segment]; s != nil {
		return s.tap, nil
	}
	s, err := openSpace(mtu)
	if err != nil {
		return -1, err
	}
	l.spaces[segment] = s
	for _, ln := range s.listeners {
		l.tasks.Go(func() {
			acceptLoop(l.ctx, ln, l.handler.Failed, func(_ context.Context, c Conn) { l.handler.Accepted(segment, c) })
		})
	}
	return s.tap, nil
}

func (l *LinuxSegments) space(segment uint16) (*space, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.spaces[segment]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("stream: segment %d is not served by the link process", segment)
}

// Inject implements Segments.
func (l *LinuxSegments) Inject(segment uint16, frame []byte) error {
	s, err := l.space(segment)
	if err != nil {
		return err
	}
	return s.inject(frame)
}

// Dial implements Segments.
func (l *LinuxSegments) Dial(ctx context.Context, segment uint16, src, dst netip.AddrPort) (Conn, error) {
	s, err := l.space(segment)
	if err != nil {
		return nil, err
	}
	return s.dial(ctx, src, dst)
}
