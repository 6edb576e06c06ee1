package stream

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// RawSockets sends IP packets as they are, by a socket for each device and family
// that stays open until the process ends: a burst of connections that pass must not
// cost one each. The zero value is ready. Safe for concurrent use.
type RawSockets struct {
	mu  sync.Mutex
	fds map[rawKey]int
}

type rawKey struct {
	device string
	six    bool
}

// open opens the sockets of a device, so that packets pass also when descriptors
// have run out. A host without IPv6 has one.
func (r *RawSockets) open(device string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.socket(rawKey{device, false}, true); err != nil {
		return err
	}
	if _, err := r.socket(rawKey{device, true}, true); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return err
	}
	return nil
}

// send sends a packet, which it borrows, into a device. A socket whose device has
// gone, as when the link process begins anew, is opened again, once.
func (r *RawSockets) send(device string, packet []byte) error {
	if len(packet) < ip4Header {
		return errNotSYN
	}
	k := rawKey{device, packet[0]>>4 == 6}
	var to unix.Sockaddr
	switch {
	case !k.six:
		to = &unix.SockaddrInet4{Addr: [4]byte(packet[16:20])}
	case len(packet) < ip6Header:
		return errNotSYN
	default:
		to = &unix.SockaddrInet6{Addr: [16]byte(packet[24:40])}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	for try := range 2 {
		fd, failed := r.socket(k, try > 0)
		if failed != nil {
			return failed
		}
		if err = unix.Sendto(fd, packet, 0, to); err == nil || !stale(err) {
			break
		}
	}
	return wrap("send into "+device, err)
}

// socket returns the socket that is kept, with anew another one. mu is held.
func (r *RawSockets) socket(k rawKey, anew bool) (int, error) {
	fd, kept := r.fds[k]
	if kept && !anew {
		return fd, nil
	}
	if kept {
		unix.Close(fd)
		delete(r.fds, k)
	}
	fd, err := openRaw(k)
	if err != nil {
		return -1, err
	}
	if r.fds == nil {
		r.fds = make(map[rawKey]int)
	}
	r.fds[k] = fd
	return fd, nil
}

// stale reports whether an error may mean that the device is another one now.
func stale(err error) bool {
	for _, e := range []unix.Errno{unix.ENODEV, unix.ENXIO, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.EINVAL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// openRaw opens a socket that is bound to a device.
func openRaw(k rawKey) (int, error) {
	family, level, option := unix.AF_INET, unix.IPPROTO_IP, unix.IP_HDRINCL
	if k.six {
		family, level, option = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_HDRINCL
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return -1, fmt.Errorf("raw socket: %w", err)
	}
	if err := cmpErr(unix.SetsockoptInt(fd, level, option, 1), unix.BindToDevice(fd, k.device)); err != nil {
		return -1, errors.Join(fmt.Errorf("raw socket into %s: %w", k.device, err), unix.Close(fd))
	}
	return fd, nil
}
