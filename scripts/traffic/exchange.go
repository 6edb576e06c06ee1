package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	headerSize   = 32
	magicRequest = 0x53545131 // "STQ1"
	magicAnswer  = 0x53544131 // "STA1"
	// MaxBody is the longest body of a request or answer in bytes.
	MaxBody = 1 << 20
)

// ErrWrong is wrapped by every error about bytes that are not as they must be.
var ErrWrong = errors.New("wrong bytes")

// header is the fixed part of a request or an answer.
type header struct {
	magic, length, arg uint32
	id, off            uint64
}

func (h header) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, h.magic)
	b = binary.BigEndian.AppendUint32(b, h.length)
	b = binary.BigEndian.AppendUint32(b, h.arg)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint64(b, h.id)
	return binary.BigEndian.AppendUint64(b, h.off)
}

// parseHeader reads a header of the given kind. It refuses lengths over MaxBody.
func parseHeader(b []byte, magic uint32) (header, error) {
	if len(b) < headerSize {
		return header{}, io.ErrUnexpectedEOF
	}
	h := header{
		magic:  binary.BigEndian.Uint32(b),
		length: binary.BigEndian.Uint32(b[4:]),
		arg:    binary.BigEndian.Uint32(b[8:]),
		id:     binary.BigEndian.Uint64(b[16:]),
		off:    binary.BigEndian.Uint64(b[24:]),
	}
	switch {
	case h.magic != magic:
		return h, fmt.Errorf("%w: magic %#x, not %#x", ErrWrong, h.magic, magic)
	case h.length > MaxBody:
		return h, fmt.Errorf("%w: a body of %d bytes", ErrWrong, h.length)
	case binary.BigEndian.Uint32(b[12:]) != 0:
		return h, fmt.Errorf("%w: reserved bits are set", ErrWrong)
	}
	return h, nil
}

// Client is the requesting end of a connection. It is not safe for concurrent
// use; its meter is.
type Client struct {
	conn           net.Conn
	id             uint64
	meter          *Meter
	reqOff, ansOff uint64
	buf            []byte
}

// NewClient returns a client on conn, which it takes; id is the number of the
// connection and both ends' pattern follows from it.
func NewClient(conn net.Conn, id uint64, meter *Meter) *Client {
	meter.Dialled(conn.RemoteAddr().String())
	return &Client{conn: conn, id: id, meter: meter}
}

// Exchange sends a request with a body of req bytes and reads and checks an
// answer of ans bytes. An error is final.
func (c *Client) Exchange(req, ans int) error {
	start := time.Now()
	h := header{magic: magicRequest, length: uint32(req), arg: uint32(ans), id: c.id, off: c.reqOff}
	c.buf = h.append(c.buf[:0])
	c.buf = append(c.buf, make([]byte, req)...)
	Fill(c.buf[headerSize:], c.id, Request, c.reqOff)
	if _, err := c.conn.Write(c.buf); err != nil {
		return err
	}
	c.reqOff += uint64(req)
	n, err := c.readAnswer(ans)
	if err != nil {
		return err
	}
	c.meter.Moved(n, len(c.buf))
	c.meter.Answered(start, time.Since(start))
	return nil
}

// readAnswer reads one answer and returns how many bytes it had.
func (c *Client) readAnswer(want int) (int, error) {
	b := make([]byte, headerSize+want)
	if _, err := io.ReadFull(c.conn, b[:headerSize]); err != nil {
		return 0, noEOF(err)
	}
	h, err := parseHeader(b, magicAnswer)
	switch {
	case err != nil:
		return 0, err
	case int(h.length) != want || h.id != c.id || h.off != c.ansOff:
		return 0, fmt.Errorf("%w: answer %d bytes of connection %d at %d, want %d of %d at %d",
			ErrWrong, h.length, h.id, h.off, want, c.id, c.ansOff)
	case h.arg != 0:
		return 0, fmt.Errorf("%w: the server got a wrong request", ErrWrong)
	}
	if _, err := io.ReadFull(c.conn, b[headerSize:]); err != nil {
		return 0, noEOF(err)
	}
	if i := Check(b[headerSize:], c.id, Answer, c.ansOff); i >= 0 {
		return 0, fmt.Errorf("%w: answer differs at %d", ErrWrong, c.ansOff+uint64(i))
	}
	c.ansOff += uint64(want)
	return len(b), nil
}

// Load says how a client uses its connection.
type Load struct {
	// Pace is the time from one request to the next.
	Pace time.Duration
	// Request and Answer are the body lengths of the nth exchange.
	Sizes func(n uint64) (request, answer int)
	// Stall is how long one exchange may take; beyond it the connection is
	// given up as broken.
	Stall time.Duration
}

// Run makes exchanges until ctx is done (it finishes the one it is at and
// returns nil) or the connection breaks. It closes the connection and records
// the end in the meter.
func (c *Client) Run(ctx context.Context, load Load) error {
	defer c.conn.Close()
	tick := time.NewTicker(load.Pace)
	defer tick.Stop()
	for n := uint64(0); ; n++ {
		req, ans := load.Sizes(n)
		err := c.conn.SetDeadline(time.Now().Add(load.Stall))
		if err == nil {
			err = c.Exchange(req, ans)
		}
		if err != nil {
			c.meter.Ended(err)
			return err
		}
		select {
		case <-ctx.Done():
			c.meter.Ended(nil)
			return nil
		case <-tick.C:
		}
	}
}

// Sizes is the usual mix: requests of 40 to 200 bytes, answers of 200 to 2,000.
func Sizes(id uint64) func(n uint64) (request, answer int) {
	return func(n uint64) (int, int) {
		r := mix(id<<32 + n)
		return 40 + int(r%161), 200 + int(r>>32%1801)
	}
}

// ServeConn answers requests on conn, which it takes, until the client closes
// or misbehaves. A gap is the time between two requests over pace, the time the
// client is known to leave between them.
func ServeConn(conn net.Conn, meter *Meter, pace time.Duration) error {
	defer conn.Close()
	meter.Dialled(conn.RemoteAddr().String())
	err := (&server{conn: conn, meter: meter, pace: pace}).run()
	meter.Ended(err)
	return err
}

// server is the answering end of one connection.
type server struct {
	conn           net.Conn
	meter          *Meter
	pace           time.Duration
	id             uint64
	reqOff, ansOff uint64
	last           time.Time
	buf            [headerSize]byte
}

func (s *server) run() error {
	for {
		_, err := io.ReadFull(s.conn, s.buf[:])
		if err == io.EOF {
			return nil // a clean end between two requests
		}
		if err != nil {
			return err
		}
		h, err := parseHeader(s.buf[:], magicRequest)
		if err != nil {
			return err
		}
		if err := s.answer(h); err != nil {
			return err
		}
	}
}

// answer reads the body of request h, checks it, and sends the answer.
func (s *server) answer(h header) error {
	if s.reqOff == 0 && s.ansOff == 0 {
		s.id = h.id
	}
	if h.id != s.id || h.off != s.reqOff || h.arg > MaxBody {
		return fmt.Errorf("%w: request of connection %d at %d, want %d at %d", ErrWrong, h.id, h.off, s.id, s.reqOff)
	}
	body := make([]byte, h.length)
	if _, err := io.ReadFull(s.conn, body); err != nil {
		return noEOF(err)
	}
	s.arrived()
	bad := Check(body, s.id, Request, s.reqOff)
	s.reqOff += uint64(h.length)
	a := header{magic: magicAnswer, length: h.arg, id: s.id, off: s.ansOff}
	if bad >= 0 {
		a.arg = 1
	}
	out := append(a.append(nil), make([]byte, h.arg)...)
	Fill(out[headerSize:], s.id, Answer, s.ansOff)
	s.ansOff += uint64(h.arg)
	if _, err := s.conn.Write(out); err != nil {
		return err
	}
	if bad >= 0 {
		return fmt.Errorf("%w: request differs at byte %d of its body", ErrWrong, bad)
	}
	s.meter.Moved(headerSize+len(body), len(out))
	return nil
}

// arrived notes the time of a request and the gap before it.
func (s *server) arrived() {
	now := time.Now()
	if s.last.IsZero() {
		s.last = now
	}
	s.meter.Answered(s.last, max(0, now.Sub(s.last)-s.pace))
	s.last = now
}

// noEOF turns an end of file in the middle of something into an error that
// nobody mistakes for a clean end.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
