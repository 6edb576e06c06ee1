package netdev

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"stitch/tunnel/netdev/super"
)

// maxRefused is how many super-packets the kernel may refuse, though it takes
// their packets one by one, before no more are made.
const maxRefused = 3

// ErrNoJoin is returned once by Write when the kernel refuses super-packets:
// from then on packets are written one by one, and none was lost.
var ErrNoJoin = errors.New("the kernel refuses super-packets: writing packets one by one from now on")

// device is a TUN or TAP.
type device struct {
	name string
	file *os.File
	raw  syscall.RawConn
	link super.Link
	// headers: a super.Header is in front of each packet on the descriptor.
	headers bool
	limit   atomic.Int32 // of CutTo
	// closed is set before the file is: the runtime has no error value for
	// a file closed under RawConn.Read.
	closed atomic.Bool

	in    reader
	outMu sync.Mutex
	out   writer
}

var _ SuperWriter = (*device)(nil)

// reader is the state of Read.
type reader struct {
	buf   []byte // a super-packet, header first; only a TUN's
	split super.Splitter
	pack  Packer // nil: nobody takes super-packets

	// Of the current call.
	bufs   [][]byte
	sizes  []int
	offset int
	n      int
	err    error
	// Made once, so that a call allocates nothing.
	fill func(fd uintptr) bool
	poll func(fd uintptr)
}

// writer is the state of Write.
type writer struct {
	merger  super.Merger
	join    super.Join
	refused int
	pieces  [][]byte
	iov     []unix.Iovec
	err     error
	put     func(fd uintptr) bool // writes iov
	header  [super.HeaderLen]byte // of WriteSuper
}

// newDevice wraps fd, which must be non-blocking, and takes it.
func newDevice(name string, fd int, link super.Link, headers bool, join super.Join, mtu int) (*device, error) {
	// The runtime's poller gets it, so that Close unblocks Read.
	f := os.NewFile(uintptr(fd), clonePath)
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open device %s: %w", name, err), f.Close())
	}
	d := &device{name: name, file: f, raw: raw, link: link, headers: headers}
	d.CutTo(mtu)
	d.in.fill, d.in.poll = d.fill, func(fd uintptr) { d.fill(fd) }
	if headers && link == super.IP {
		d.in.buf = make([]byte, super.HeaderLen+super.MaxPacket)
	}
	d.out.join = join
	d.out.put = d.put
	return d, nil
}

func (d *device) Name() string   { return d.name }
func (d *device) BatchSize() int { return super.MaxBatch }

// CutTo implements Cutter.
func (d *device) CutTo(n int) { d.limit.Store(int32(n)) }

// Offer implements Cutter.
func (d *device) Offer(p Packer) { d.in.pack = p }

// Wake uses the descriptor's read deadline; Read takes it off again.
func (d *device) Wake() { _ = d.file.SetReadDeadline(time.Unix(1, 0)) } // fails only when closed

// Close closes the device; a second one returns net.ErrClosed.
func (d *device) Close() error {
	d.closed.Store(true)
	return closedError(d.file.Close())
}

// Read implements Device. Packets of a super-packet for which there was no
// room come first in the next Read.
func (d *device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	d.in.start(bufs, sizes, offset)
	err := d.raw.Read(d.in.fill)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		_ = d.file.SetReadDeadline(time.Time{})
		err = nil
	} else if err == nil && d.in.n == 0 {
		err = d.in.err
	}
	return d.finish(err)
}

// Poll implements Device.
func (d *device) Poll(bufs [][]byte, sizes []int, offset int) (int, error) {
	d.in.start(bufs, sizes, offset)
	err := d.raw.Control(d.in.poll)
	if err == nil && d.in.n == 0 && d.in.err != unix.EAGAIN {
		err = d.in.err
	}
	return d.finish(err)
}

// start begins a call.
func (r *reader) start(bufs [][]byte, sizes []int, offset int) {
	r.bufs, r.sizes, r.offset, r.n, r.err = bufs, sizes, offset, 0, nil
	r.cut()
}

// finish ends a call.
func (d *device) finish(err error) (int, error) {
	d.in.bufs, d.in.sizes = nil, nil
	if err != nil && d.closed.Load() {
		return 0, net.ErrClosed
	}
	return d.in.n, closedError(err)
}

// fill reads packets until there is none left or no room; false if it has to
// wait for the first.
func (d *device) fill(fd uintptr) bool {
	r := &d.in
	for r.n < len(r.bufs) {
		if r.err = d.readOne(int(fd)); r.err == super.ErrHeader {
			continue // not one that was asked for: nobody could use it
		}
		if r.err != nil {
			break
		}
	}
	return r.n > 0 || r.err != unix.EAGAIN
}

// readOne reads one packet or super-packet.
func (d *device) readOne(fd int) error {
	r := &d.in
	b := r.buf
	if b == nil {
		b = r.bufs[r.n][r.offset-d.headerLen():]
	}
	k, err := unix.Read(fd, b)
	for err == unix.EINTR {
		k, err = unix.Read(fd, b)
	}
	switch {
	case err != nil:
		return err
	case k <= d.headerLen():
		return super.ErrHeader
	case r.buf == nil:
		r.sizes[r.n] = k - d.headerLen()
		r.n++
		return nil
	}
	h, err := super.ParseHeader(b)
	if err == nil {
		err = r.split.Start(b[super.HeaderLen:k], h, d.link, int(d.limit.Load()))
	}
	switch {
	case err != nil || r.pack == nil:
	case h.Kind != super.TCP4 && h.Kind != super.TCP6:
		r.pack.Pass(b[super.HeaderLen:k])
	case r.pack.Take(b[super.HeaderLen:k], h, &r.split):
		r.split = super.Splitter{}
	}
	r.cut()
	return err
}

func (d *device) headerLen() int {
	if d.headers {
		return super.HeaderLen
	}
	return 0
}

// cut moves packets of the current super-packet to bufs, or those in their
// place, as far as they go.
func (r *reader) cut() {
	if r.pack != nil {
		for k := r.pack.Len(); k > 0 && r.n < len(r.bufs); k = r.pack.Len() {
			r.pack.Next(r.next(k))
		}
	}
	for k := r.split.Len(); k > 0 && r.n < len(r.bufs); k = r.split.Len() {
		r.split.Next(r.next(k))
	}
}

// next returns the place of a packet of k bytes; there must be room.
func (r *reader) next(k int) []byte {
	b := r.bufs[r.n][r.offset:]
	r.sizes[r.n] = k
	r.n++
	return b
}

// Write implements Device. It joins packets of one flow.
func (d *device) Write(bufs [][]byte, offset int) (written int, first error) {
	d.outMu.Lock()
	defer d.outMu.Unlock()
	for len(bufs) > 0 && !isClosed(first) {
		n := min(len(bufs), super.MaxBatch)
		k, err := d.writeBatch(bufs[:n], offset)
		written += k
		if first == nil {
			first = err
		}
		bufs = bufs[n:]
	}
	return written, closedError(first)
}

func (d *device) writeBatch(bufs [][]byte, offset int) (written int, first error) {
	w := &d.out
	w.merger.Reset(d.link, w.join)
	for _, b := range bufs {
		w.merger.Add(b[offset:])
	}
	for g := range w.merger.Groups() {
		w.pieces = w.merger.Pieces(g, w.pieces[:0])
		n, err := w.merger.Count(g), d.send()
		if err != nil && n > 1 && !isClosed(err) {
			n, err = d.sendAlone(g)
		} else if err != nil {
			n = 0
		}
		written += n
		if first == nil {
			first = err
		}
		if isClosed(err) {
			break
		}
	}
	clear(w.pieces[:cap(w.pieces)])
	w.merger.Reset(d.link, w.join)
	return written, first
}

// WriteSuper implements SuperWriter.
func (d *device) WriteSuper(b []byte, h super.Header) error {
	d.outMu.Lock()
	defer d.outMu.Unlock()
	w := &d.out
	h.Put(w.header[:])
	w.pieces = append(w.pieces[:0], w.header[:], b)
	err := d.send()
	clear(w.pieces)
	return closedError(err)
}

// sendAlone writes the packets of a super-packet that was refused one by one.
func (d *device) sendAlone(g int) (written int, first error) {
	w := &d.out
	for i := range w.merger.Count(g) {
		w.pieces = w.merger.Alone(g, i, w.pieces[:0])
		if err := d.send(); err == nil {
			written++
		} else if first == nil {
			first = err
		}
	}
	if first == nil {
		if w.refused++; w.refused == maxRefused {
			w.join, first = super.JoinNothing, fmt.Errorf("device %s: %w", d.name, ErrNoJoin)
		}
	}
	return written, first
}

// send writes w.pieces as one packet.
func (d *device) send() error {
	w := &d.out
	w.iov = w.iov[:0]
	pieces := w.pieces
	if !d.headers {
		pieces = pieces[1:]
	}
	for _, p := range pieces {
		if len(p) > 0 {
			w.iov = append(w.iov, unix.Iovec{Base: &p[0], Len: uint64(len(p))})
		}
	}
	if len(w.iov) == 0 {
		return unix.EINVAL
	}
	err := d.raw.Write(w.put)
	clear(w.iov)
	if err == nil {
		err = w.err
	}
	if err != nil && d.closed.Load() {
		return net.ErrClosed
	}
	return err
}

// put writes the vector; it never waits, a device always takes a packet or
// drops it.
func (d *device) put(fd uintptr) bool {
	w := &d.out
	for {
		_, _, errno := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&w.iov[0])), uintptr(len(w.iov)))
		if errno == unix.EINTR {
			continue
		}
		w.err = nil
		if errno != 0 {
			w.err = errno
		}
		return true
	}
}

// closedError makes net.ErrClosed of what a closed or deleted device returns.
func closedError(err error) error {
	if err != nil && isClosed(err) {
		return net.ErrClosed
	}
	return err
}
