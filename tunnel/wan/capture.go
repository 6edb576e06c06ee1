package wan

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Capture writes the frames of some interfaces to a pcap file.
type Capture struct {
	file  *os.File
	out   *bufio.Writer
	socks []*socket
	stop  int
	done  chan struct{}
	once  sync.Once

	// Owned by the goroutine until done is closed.
	stats CaptureStats
}

// CaptureStats say how complete a capture is.
type CaptureStats struct {
	// Packets were written.
	Packets uint64
	// Dropped were missed because this machine was too slow.
	Dropped uint64
}

// StartCapture begins to write the frames that arrive at the named interfaces
// (and leave them, if both is set) in the calling thread's network namespace
// to a new pcap file, until Close.
func StartCapture(file string, both bool, interfaces ...string) (*Capture, error) {
	c := &Capture{stop: -1, done: make(chan struct{})}
	err := c.open(file, both, interfaces)
	if err != nil {
		c.release()
		return nil, fmt.Errorf("capture: %w", err)
	}
	go c.run()
	return c, nil
}

func (c *Capture) open(file string, both bool, interfaces []string) (err error) {
	if c.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return err
	}
	for _, name := range interfaces {
		s, err := openSocket(name, both)
		if err != nil {
			return err
		}
		c.socks = append(c.socks, s)
	}
	if c.file, err = os.Create(file); err != nil {
		return err
	}
	c.out = bufio.NewWriterSize(c.file, 1<<20)
	head := binary.NativeEndian.AppendUint32(nil, 0xa1b23c4d) // nanoseconds
	head = binary.NativeEndian.AppendUint16(head, 2)
	head = binary.NativeEndian.AppendUint16(head, 4)
	head = append(head, make([]byte, 8)...)
	head = binary.NativeEndian.AppendUint32(head, captureSize)
	head = binary.NativeEndian.AppendUint32(head, 1) // Ethernet
	_, err = c.out.Write(head)
	return err
}

// captureSize is the longest frame written; longer ones (an offload is on)
// are counted as dropped.
const captureSize = 1<<16 + 64

// run is the only reader of the sockets.
func (c *Capture) run() {
	defer close(c.done)
	bufs, lens := make([][]byte, batchSize), make([]int, batchSize)
	for i := range bufs {
		bufs[i] = make([]byte, captureSize)
	}
	fds := []unix.PollFd{{Fd: int32(c.stop), Events: unix.POLLIN}}
	for _, s := range c.socks {
		fds = append(fds, unix.PollFd{Fd: int32(s.fd), Events: unix.POLLIN})
	}
	for fds[0].Revents == 0 {
		_, _ = unix.Ppoll(fds, nil, nil)
		for _, s := range c.socks {
			for n := batchSize; n == batchSize; {
				n, _ = s.recv(bufs, lens)
				for i := range n {
					c.record(bufs[i], lens[i])
				}
			}
		}
	}
}

// record writes one frame. The time is when it was read.
func (c *Capture) record(frame []byte, n int) {
	if n < 0 {
		c.stats.Dropped++
		return
	}
	now := time.Now()
	var head [16]byte
	binary.NativeEndian.PutUint32(head[0:], uint32(now.Unix()))
	binary.NativeEndian.PutUint32(head[4:], uint32(now.Nanosecond()))
	binary.NativeEndian.PutUint32(head[8:], uint32(n))
	binary.NativeEndian.PutUint32(head[12:], uint32(n))
	_, _ = c.out.Write(head[:])
	_, _ = c.out.Write(frame[:n]) // an error stays and comes back from Flush
	c.stats.Packets++
}

// Close ends the capture after what has arrived is written, and says how
// complete it is. A second Close returns net.ErrClosed.
func (c *Capture) Close() (CaptureStats, error) {
	err := net.ErrClosed
	c.once.Do(func() {
		if _, err = unix.Write(c.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			return
		}
		<-c.done
		for _, s := range c.socks {
			c.stats.Dropped += s.drops()
		}
		err = errors.Join(c.out.Flush(), c.release())
	})
	if err != nil {
		return CaptureStats{}, fmt.Errorf("capture: %w", err)
	}
	return c.stats, nil
}

// release closes what open opened.
func (c *Capture) release() (err error) {
	for _, s := range c.socks {
		err = errors.Join(err, s.Close())
	}
	if c.stop >= 0 {
		err = errors.Join(err, unix.Close(c.stop))
	}
	if c.file != nil {
		err = errors.Join(err, c.file.Close())
	}
	return err
}
