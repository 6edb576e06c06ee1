package divert

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// retryEvery is how often the stream process looks for the link process.
	retryEvery = 100 * time.Millisecond
	// addTimeout bounds the wait for the link process to take a flow, writeTimeout
	// that for room for a message.
	addTimeout   = 2 * time.Second
	writeTimeout = time.Second
)

// ErrAway is returned while the link process cannot be reached.
var ErrAway = errors.New("divert: the link process is not there")

// Handler is what a Client calls from Run's goroutine; it must not block.
type Handler interface {
	// Device returns the TAP of a segment, which it keeps: the Client sends a
	// copy. Any error means that the segment's connections are not split.
	Device(segment uint16, mtu int) (fd int, err error)
	// Flows are the connections that are split now.
	Flows() []Flow
	// SYN takes a frame that a host sent towards peer. It borrows frame.
	SYN(segment uint16, peer string, frame []byte)
	// Passed says why (PassedByRule and so on) the SYN of a connection passed that
	// a host of the LAN began and that a rule is about.
	Passed(why byte, f Flow)
	// Moved says that a host of a flow is elsewhere.
	Moved(f Flow)
}

// Client is the stream process' side. Its methods are safe for concurrent use.
type Client struct {
	path string
	log  *slog.Logger

	mu      sync.Mutex
	conn    *net.UnixConn // nil: away
	number  uint64
	waiting map[uint64]chan bool
}

// NewClient returns a Client for the socket at path. Log may be nil.
func NewClient(path string, log *slog.Logger) *Client {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Client{path: path, log: log, waiting: map[uint64]chan bool{}}
}

// Run keeps a connection to the link process until ctx is done.
func (c *Client) Run(ctx context.Context, h Handler) {
	for ctx.Err() == nil {
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: c.path, Net: "unixpacket"})
		if err == nil {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			err = c.serve(conn, h)
			stop()
			conn.Close()
			c.lose()
			if ctx.Err() == nil {
				c.log.Info("the link process is gone", "err", err)
			}
		}
		t := time.NewTimer(retryEvery)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

// lose ends what depends on the connection.
func (c *Client) lose() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = nil
	for n, ch := range c.waiting {
		close(ch)
		delete(c.waiting, n)
	}
}

func (c *Client) serve(conn *net.UnixConn, h Handler) error {
	buf := make([]byte, maxMessage)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		if n == 0 {
			return net.ErrClosed
		}
		if err := c.handle(conn, h, kind(buf[0]), buf[1:n]); err != nil {
			return err
		}
	}
}

// handle does what a message says.
func (c *Client) handle(conn *net.UnixConn, h Handler, k kind, body []byte) error {
	switch k {
	case msgHello:
		return c.hello(conn, h, body)
	case msgSYN:
		p, frame, err := parseFrame(body)
		if err != nil {
			return err
		}
		h.SYN(p.segment, p.peer, frame)
	case msgAdded:
		number, taken, err := parseAdded(body)
		if err != nil {
			return err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if ch := c.waiting[number]; ch != nil {
			ch <- taken
			delete(c.waiting, number)
		}
	case msgPassed:
		if len(body) == 0 {
			return errMessage
		}
		f, err := parseFlow(body[1:])
		if err != nil {
			return err
		}
		h.Passed(body[0], f)
	case msgMoved:
		f, err := parseFlow(body)
		if err != nil {
			return err
		}
		h.Moved(f)
	default:
		return errMessage
	}
	return nil
}

// hello hands over the devices, and the connections that there are already.
func (c *Client) hello(conn *net.UnixConn, h Handler, body []byte) error {
	offers, err := parseHello(body)
	if err != nil {
		return err
	}
	for _, o := range offers {
		fd, err := h.Device(o.segment, int(o.mtu))
		if err != nil {
			c.log.Warn("connections in the segment are not optimised", "segment", o.segment, "err", err)
			continue
		}
		msg := appendPlace([]byte{byte(msgDevice)}, o.segment, "")
		if _, _, err := conn.WriteMsgUnix(msg, unix.UnixRights(fd), nil); err != nil {
			return err
		}
	}
	c.mu.Lock()
	c.conn = conn
	c.mu.Unlock()
	for _, f := range h.Flows() {
		if err := c.send(appendAdd(nil, 0, &f)); err != nil {
			return err
		}
	}
	return nil
}

// send sends a message.
func (c *Client) send(msg []byte) error {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn == nil {
		return ErrAway
	}
	_ = conn.SetWriteDeadline(time.Now().Add(writeTimeout)) // fails only when closed
	_, err := conn.Write(msg)
	return err
}

// Add has a flow's frames given to the device, and returns when they are.
func (c *Client) Add(ctx context.Context, f Flow) error {
	taken := make(chan bool, 1)
	c.mu.Lock()
	c.number++
	n := c.number
	c.waiting[n] = taken
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiting, n)
	}()
	if err := c.send(appendAdd(nil, n, &f)); err != nil {
		return err
	}
	t := time.NewTimer(addTimeout)
	defer t.Stop()
	select {
	case ok := <-taken:
		if ok {
			return nil
		}
		return errors.New("divert: the link process did not take the connection")
	case <-t.C:
		return ErrAway
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Remove ends that.
func (c *Client) Remove(f Flow) { _ = c.send(f.append([]byte{byte(msgRemove)})) } // a link process that is away has forgotten it

// ToLAN sends a frame to the LAN as if peer had sent it. It borrows frame.
func (c *Client) ToLAN(segment uint16, peer string, frame []byte) error {
	return c.send(appendFrame(nil, msgLAN, segment, peer, frame))
}

// ToPeer sends a frame to peer. It borrows frame.
func (c *Client) ToPeer(segment uint16, peer string, frame []byte) error {
	return c.send(appendFrame(nil, msgPass, segment, peer, frame))
}
