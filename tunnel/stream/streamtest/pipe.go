package streamtest

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"stitch/tunnel/stream"
)

// received is how many bytes a host's kernel takes (and acknowledges) before
// its application reads.
const received = 64 << 10

// segment is bytes on their way.
type segment struct {
	data   []byte
	at     time.Time // when they arrive
	urgent bool      // one byte
}

// half is one direction of a connection; the pair's mutex guards it.
type half struct {
	segments []segment
	size     int // bytes written and not read
	fin      bool
	finAt    time.Time
	deadline [2]time.Time // of reading and of writing
}

// pair is a connection in memory.
type pair struct {
	mu     sync.Mutex
	cond   *sync.Cond
	room   int
	delay  time.Duration
	halves [2]half
	rst    bool

	limited bool // after limit more bytes it is reset
	limit   int
}

// Conn is one end of a connection in memory. It implements stream.Conn.
type Conn struct {
	p             *pair
	side          int // reads halves[side], writes halves[1-side]
	local, remote netip.AddrPort
	closed        bool // guarded by p.mu
	gather        int  // of Gather; guarded by p.mu
}

var _ stream.Conn = (*Conn)(nil)

// Pipe returns the two ends of a connection between a and b: what is written
// arrives delay later, and at most room bytes are on the way.
func Pipe(a, b netip.AddrPort, room int, delay time.Duration) (*Conn, *Conn) {
	p := &pair{room: room, delay: delay}
	p.cond = sync.NewCond(&p.mu)
	return &Conn{p: p, side: 0, local: a, remote: b}, &Conn{p: p, side: 1, local: b, remote: a}
}

func (c *Conn) in() *half  { return &c.p.halves[c.side] }
func (c *Conn) out() *half { return &c.p.halves[1-c.side] }

// failed returns the error every call gives now; mu is held.
func (c *Conn) failed(op string) error {
	switch {
	case c.closed:
		return net.ErrClosed
	case c.p.rst:
		return fmt.Errorf("%s: %w", op, syscall.ECONNRESET)
	}
	return nil
}

// wait sleeps until something changes or t comes; mu is held.
func (c *Conn) wait(t time.Time) {
	if !t.IsZero() {
		timer := time.AfterFunc(time.Until(t), func() {
			c.p.mu.Lock()
			defer c.p.mu.Unlock()
			c.p.cond.Broadcast()
		})
		defer timer.Stop()
	}
	c.p.cond.Wait()
}

func past(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// readable waits until a Read has something to say; mu is held.
func (c *Conn) readable() error {
	h := c.in()
	for waited := false; ; waited = true {
		if err := c.failed("read"); err != nil {
			return err
		}
		if past(h.deadline[0]) {
			return os.ErrDeadlineExceeded
		}
		var next time.Time
		switch {
		case len(h.segments) > 0:
			next = h.segments[0].at
			if waited {
				next = h.when(c.gather, c.p.room)
			}
		case h.fin:
			next = h.finAt
		}
		if past(next) {
			return nil
		}
		c.wait(earlier(next, h.deadline[0]))
	}
}

// when is the time from which on n bytes are there, or all that there will be before
// some are read; zero if more must be written for it.
func (h *half) when(n, room int) (at time.Time) {
	for i := range h.segments {
		at = h.segments[i].at
		if n -= len(h.segments[i].data); n <= 0 {
			return at
		}
	}
	switch {
	case h.fin:
		return h.finAt
	case h.size >= room:
		return at
	}
	return time.Time{}
}

// Gather implements stream.Conn.
func (c *Conn) Gather(n int) error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.gather = n
	return c.failed("gather")
}

// Wait implements stream.Conn.
func (c *Conn) Wait() error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	return c.readable()
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if err := c.readable(); err != nil {
		return 0, err
	}
	h := c.in()
	n := 0
	for n < len(b) && len(h.segments) > 0 && past(h.segments[0].at) {
		s := &h.segments[0]
		if s.urgent && n > 0 {
			break
		}
		m := copy(b[n:], s.data)
		n += m
		if s.data = s.data[m:]; len(s.data) == 0 {
			h.segments = h.segments[1:]
		}
	}
	h.size -= n
	c.p.cond.Broadcast()
	if n == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// AtMark implements stream.Conn.
func (c *Conn) AtMark() bool {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	h := c.in()
	return len(h.segments) > 0 && past(h.segments[0].at) && h.segments[0].urgent
}

// WriteUrgent implements stream.Conn.
func (c *Conn) WriteUrgent(b byte) error {
	_, err := c.write([]byte{b}, true)
	return err
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (int, error) { return c.write(b, false) }

func (c *Conn) write(b []byte, urgent bool) (int, error) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	h, done := c.out(), 0
	for done < len(b) {
		if err := c.failed("write"); err != nil {
			return done, err
		}
		if h.fin {
			return done, syscall.EPIPE
		}
		if past(h.deadline[1]) {
			return done, os.ErrDeadlineExceeded
		}
		if c.p.limited && len(b)-done > c.p.limit {
			c.p.rst = true
			c.p.cond.Broadcast()
			continue
		}
		n := min(len(b)-done, c.p.room-h.size)
		if n <= 0 {
			c.wait(h.deadline[1])
			continue
		}
		data := append([]byte(nil), b[done:done+n]...)
		h.segments = append(h.segments, segment{data, time.Now().Add(c.p.delay), urgent})
		h.size += n
		done += n
		c.p.limit -= n
		c.p.cond.Broadcast()
	}
	return done, nil
}

// CloseWrite implements stream.Conn.
func (c *Conn) CloseWrite() error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if err := c.failed("shutdown"); err != nil {
		return err
	}
	c.shut()
	return nil
}

// shut sends the FIN; mu is held.
func (c *Conn) shut() {
	if h := c.out(); !h.fin {
		h.fin, h.finAt = true, time.Now().Add(c.p.delay)
		c.p.cond.Broadcast()
	}
}

// Close implements stream.Conn: it resets.
func (c *Conn) Close() error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	if in, out := c.in(), c.out(); !in.fin || !out.fin || in.size > 0 || out.size > 0 {
		c.p.rst = true
	}
	c.p.cond.Broadcast()
	return nil
}

// vanish ends this end without a word to the other one.
func (c *Conn) vanish() {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.closed = true
	c.p.cond.Broadcast()
}

// Finish implements stream.Conn. Like a kernel, it resets if something was
// not read.
func (c *Conn) Finish() error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	if c.in().size > 0 {
		c.p.rst = true
	}
	c.shut()
	c.closed = true
	c.p.cond.Broadcast()
	return nil
}

// Unacked implements stream.Conn.
func (c *Conn) Unacked() (n, window int, err error) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if err := c.failed("write"); err != nil {
		return 0, 0, err
	}
	n, window = max(0, c.out().size-received), max(0, received-c.out().size)
	if n > 0 && c.out().fin {
		n++
	}
	return n, window, nil
}

// RTT implements stream.Conn.
func (c *Conn) RTT() time.Duration { return 2 * c.p.delay }

// DeliveryRate implements stream.Conn: it is not known.
func (c *Conn) DeliveryRate() (rate float64, limited bool) { return 0, false }

// SetMark implements stream.Conn; there is nothing to share.
func (c *Conn) SetMark(int) error { return nil }

// Anew implements stream.Conn.
func (c *Conn) Anew() error { return nil }

// Pace implements stream.Conn.
func (c *Conn) Pace() {}

// Congestion implements stream.Conn.
func (c *Conn) Congestion() string { return "memory" }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.in().deadline[0] = t
	c.p.cond.Broadcast()
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.out().deadline[1] = t
	c.p.cond.Broadcast()
	return nil
}
