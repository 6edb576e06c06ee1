package netdev

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// offload is a TUN with virtio-net headers.
type offload struct {
	tun.Device
	name string
}

func (o *offload) Name() string { return o.name }

func (o *offload) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := o.Device.Read(bufs, sizes, offset)
	return n, closedError(err)
}

func (o *offload) Write(bufs [][]byte, offset int) (int, error) {
	n, err := o.Device.Write(bufs, offset)
	return n, closedError(err)
}

func (o *offload) SetReadDeadline(t time.Time) error { return o.File().SetReadDeadline(t) }

// plainBatch is the most frames one Read of a plain device returns.
const plainBatch = 64

// plain is a TUN or TAP without virtio-net headers.
type plain struct {
	name string
	file *os.File
	raw  syscall.RawConn
	// closed is set before the file is: the runtime has no error value for
	// a file closed under RawConn.Read.
	closed atomic.Bool
}

// newPlain wraps fd, which must be non-blocking, and takes it.
func newPlain(name string, fd int) (*plain, error) {
	// The runtime's poller gets it, so that Close unblocks Read.
	f := os.NewFile(uintptr(fd), clonePath)
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open device %s: %w", name, err), f.Close())
	}
	return &plain{name: name, file: f, raw: raw}, nil
}

func (p *plain) Name() string                      { return p.name }
func (p *plain) BatchSize() int                    { return plainBatch }
func (p *plain) SetReadDeadline(t time.Time) error { return p.file.SetReadDeadline(t) }

// Close closes the device; a second one returns net.ErrClosed.
func (p *plain) Close() error {
	p.closed.Store(true)
	return closedError(p.file.Close())
}

// Read waits for one packet and takes what else is there already.
func (p *plain) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	var n int
	var failed error
	err := p.raw.Read(func(fd uintptr) bool {
		n, failed = drain(int(fd), bufs[:min(len(bufs), plainBatch)], sizes, offset)
		return n > 0 || failed != unix.EAGAIN
	})
	if err == nil && n == 0 {
		err = failed
	}
	if err != nil && p.closed.Load() {
		return 0, net.ErrClosed
	}
	return n, closedError(err)
}

// drain reads packets until there is none left or no room; the error is the
// one that ended it.
func drain(fd int, bufs [][]byte, sizes []int, offset int) (int, error) {
	for i := range bufs {
		k, err := unix.Read(fd, bufs[i][offset:])
		for err == unix.EINTR {
			k, err = unix.Read(fd, bufs[i][offset:])
		}
		if err != nil {
			return i, err
		}
		sizes[i] = k
	}
	return len(bufs), nil
}

// Write writes every packet it can; the error is the first one's.
func (p *plain) Write(bufs [][]byte, offset int) (int, error) {
	written := 0
	var first error
	for _, b := range bufs {
		_, err := p.file.Write(b[offset:])
		switch {
		case err == nil:
			written++
		case isClosed(err):
			return written, net.ErrClosed
		case first == nil:
			first = err
		}
	}
	return written, first
}

// closedError makes net.ErrClosed of what a closed or deleted device returns.
func closedError(err error) error {
	if err != nil && isClosed(err) {
		return net.ErrClosed
	}
	return err
}
