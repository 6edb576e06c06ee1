package wan

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sizes of an AF_PACKET socket.
const (
	batchSize  = 64       // frames a system call
	frameSize  = 2048     // room for one frame
	socketBuf  = 32 << 20 // bytes in the kernel, each way
	etherTypes = unix.ETH_P_ALL
)

// socket is a raw socket on one interface. recv and send may run at the same
// time, each in one goroutine; several goroutines may send with a batch each.
type socket struct {
	fd     int
	hdrs   []unix.Mmsghdr
	iovs   []unix.Iovec
	closed bool
}

// openSocket binds a non-blocking raw socket to the interface called name in
// the calling thread's network namespace. It does not see outgoing frames
// unless both is set.
func openSocket(name string, both bool) (*socket, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("raw socket on %s (needs CAP_NET_RAW): %w", name, err)
	}
	s := &socket{fd: fd, hdrs: make([]unix.Mmsghdr, batchSize), iovs: make([]unix.Iovec, batchSize)}
	ignore := 1
	if both {
		ignore = 0
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuf),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuf),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, ignore),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(etherTypes), Ifindex: link.Index}))
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("raw socket on %s: %w", name, err)
	}
	return s, nil
}

// htons converts to network byte order.
func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// recv fills bufs (at most batchSize) with frames that are there and returns
// how many; lens[i] is -1 for a frame that did not fit. It never blocks.
func (s *socket) recv(bufs [][]byte, lens []int) (int, error) {
	for i, b := range bufs {
		s.iovs[i].Base = &b[0]
		s.iovs[i].SetLen(len(b))
		s.hdrs[i].Hdr = unix.Msghdr{Iov: &s.iovs[i], Iovlen: 1}
	}
	n, err := mmsg(unix.SYS_RECVMMSG, s.fd, s.hdrs[:len(bufs)])
	for i := range n {
		lens[i] = int(s.hdrs[i].Len)
		if s.hdrs[i].Hdr.Flags&unix.MSG_TRUNC != 0 {
			lens[i] = -1
		}
	}
	return n, err
}

// drops returns the frames the kernel dropped on this socket since the last
// call, because we did not read them in time.
func (s *socket) drops() uint64 {
	st, err := unix.GetsockoptTpacketStats(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0
	}
	return uint64(st.Drops)
}

// Close closes the socket; calls in other goroutines must have ended.
func (s *socket) Close() error {
	if s.closed {
		return net.ErrClosed
	}
	s.closed = true
	return os.NewSyscallError("close", unix.Close(s.fd))
}

// outbox collects frames for one socket. It is not safe for concurrent use.
type outbox struct {
	fd   int
	n    int
	hdrs [batchSize]unix.Mmsghdr
	iovs [batchSize]unix.Iovec
	slot [batchSize]uint32 // the owner's name for each frame
	path [batchSize]uint32
}

// add appends one frame, which must stay unchanged until flush; there must be
// room (n < batchSize).
func (o *outbox) add(frame []byte, slot, path uint32) {
	i := o.n
	o.iovs[i].Base = &frame[0]
	o.iovs[i].SetLen(len(frame))
	o.hdrs[i].Hdr = unix.Msghdr{Iov: &o.iovs[i], Iovlen: 1}
	o.slot[i], o.path[i] = slot, path
	o.n++
}

// flush sends what was collected and calls done for each frame, with whether
// the kernel took it. A frame it does not take is dropped.
func (o *outbox) flush(done func(slot, path uint32, ok bool)) {
	for i := 0; i < o.n; {
		n, err := mmsg(unix.SYS_SENDMMSG, o.fd, o.hdrs[i:o.n])
		for range n {
			done(o.slot[i], o.path[i], true)
			i++
		}
		if err != nil && i < o.n {
			done(o.slot[i], o.path[i], false)
			i++
		}
	}
	o.n = 0
}

// mmsg calls recvmmsg or sendmmsg without blocking; "nothing there" is 0, nil
// for receiving and an error for sending.
func mmsg(call uintptr, fd int, hdrs []unix.Mmsghdr) (int, error) {
	n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&hdrs[0])),
		uintptr(len(hdrs)), unix.MSG_DONTWAIT, 0, 0)
	switch {
	case errno == 0:
		return int(n), nil
	case errno == unix.EINTR, errno == unix.EAGAIN && call == unix.SYS_RECVMMSG:
		return 0, nil
	}
	return 0, errno
}
