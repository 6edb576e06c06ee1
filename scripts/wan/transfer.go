package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"stitch/tunnel/bench"
	"stitch/tunnel/lab"
)

const (
	// sender and receiver are the lab's hosts, the port one that its rules
	// optimise.
	sender, receiver = "h1", "h2"
	address          = "10.2.0.10:4100"
	// windowBegin and windowEnd are the seconds of a transfer whose goodput
	// counts for incompressible data, which is sent a little longer.
	windowBegin = 5 * time.Second
	windowEnd   = 65 * time.Second
	sendLonger  = time.Second
)

// transfer is what became of one connection's data.
type transfer struct {
	bytes int64         // that arrived
	took  time.Duration // from the call of connect until the last byte or the cut
	cut   bool          // off, before the end
	// window is bytes a second from windowBegin to windowEnd or the end; 0 if it
	// ended before.
	window float64
	sum    [sha256.Size]byte
}

// send sends data from one host to the other, from its beginning and at most for
// the time given (0: all of it), and cuts the transfer off after limit.
func send(ctx context.Context, l *lab.Lab, congestion string, data io.Reader, during, limit time.Duration) (t transfer, err error) {
	from, to := lab.Namespace(l.Options().Name+"-"+sender), lab.Namespace(l.Options().Name+"-"+receiver)
	var listener net.Listener
	if err := to.Do(func() (err error) {
		listener, err = net.Listen("tcp4", address)
		return err
	}); err != nil {
		return t, err
	}
	defer listener.Close()
	sink := newSink()
	go sink.serve(listener)
	defer sink.end()

	start := time.Now()
	sink.begin(start)
	var conn net.Conn
	if err := from.Do(func() (err error) {
		conn, err = (&net.Dialer{Timeout: limit}).DialContext(ctx, "tcp4", address)
		return err
	}); err != nil {
		return t, err
	}
	c := conn.(*net.TCPConn)
	if err := bench.SetCongestion(c, congestion); err != nil {
		return t, errors.Join(fmt.Errorf("congestion control %s: %w", congestion, err), c.Close())
	}
	ctx, cancel := context.WithDeadline(ctx, start.Add(limit))
	defer cancel()
	wrote := make(chan error, 1)
	go func() { wrote <- feed(c, data, start, during) }()
	select {
	case <-sink.done:
	case <-ctx.Done():
		_ = c.SetLinger(0)
	}
	t = sink.result(time.Now())
	_ = c.Close()
	err = <-wrote
	if ctx.Err() != nil {
		t.cut = true
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return t, nil
		}
		return t, ctx.Err()
	}
	return t, errors.Join(err, sink.err)
}

// feed writes data and ends the sending direction. A file goes by sendfile.
func feed(c *net.TCPConn, data io.Reader, start time.Time, during time.Duration) error {
	var err error
	if during == 0 {
		_, err = io.Copy(c, data)
	} else {
		buf := make([]byte, 256<<10)
		for err == nil && time.Since(start) < during {
			if _, err = data.Read(buf); err == nil {
				_, err = c.Write(buf)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return c.CloseWrite()
}

// sink takes one connection's bytes.
type sink struct {
	done chan struct{} // closed when the data has ended or failed
	err  error         // then

	mu    sync.Mutex
	sum   hash.Hash
	began time.Time
	n     int64
	conn  net.Conn
	over  bool
	// marks are what had arrived, and when, at the window's two ends.
	marks [2]mark
}

// mark is how much had arrived at a time.
type mark struct {
	at time.Time
	n  int64
}

func newSink() *sink { return &sink{done: make(chan struct{}), sum: sha256.New()} }

// begin sets the beginning of the time.
func (s *sink) begin(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.began = at
}

// serve takes one connection.
func (s *sink) serve(l net.Listener) {
	defer close(s.done)
	c, err := l.Accept()
	if err != nil {
		s.err = err
		return
	}
	defer c.Close()
	s.mu.Lock()
	s.conn = c
	s.mu.Unlock()
	buf := make([]byte, 256<<10)
	for {
		n, err := c.Read(buf)
		if !s.add(buf[:n], time.Now()) || errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			s.err = fmt.Errorf("receive: %w", err)
			return
		}
	}
}

// add counts bytes that came at a time. It reports false when they are not wanted
// any more.
func (s *sink) add(b []byte, at time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return false
	}
	s.sum.Write(b)
	s.n += int64(len(b))
	for i, edge := range [2]time.Duration{windowBegin, windowEnd} {
		if s.marks[i].at.IsZero() && at.Sub(s.began) >= edge {
			s.marks[i] = mark{at, s.n}
		}
	}
	return true
}

// result is what has arrived until now.
func (s *sink) result(now time.Time) transfer {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	t := transfer{bytes: s.n, took: now.Sub(s.began), sum: [sha256.Size]byte(s.sum.Sum(nil))}
	begin, end := s.marks[0], s.marks[1]
	if end.at.IsZero() {
		end = mark{now, s.n}
	}
	if took := end.at.Sub(begin.at); !begin.at.IsZero() && took >= windowBegin {
		t.window = float64(end.n-begin.n) / took.Seconds()
	}
	return t
}

// end ends the goroutine.
func (s *sink) end() {
	s.mu.Lock()
	if s.conn != nil {
		_ = s.conn.Close()
	}
	s.mu.Unlock()
}

// random is data that no codec makes smaller, the same for one seed.
func random(seed byte) io.Reader {
	block, err := aes.NewCipher([]byte{15: seed})
	if err != nil {
		panic(err) // the key has the right length
	}
	return stream{cipher.NewCTR(block, make([]byte, aes.BlockSize))}
}

type stream struct{ cipher.Stream }

func (s stream) Read(b []byte) (int, error) {
	clear(b)
	s.XORKeyStream(b, b)
	return len(b), nil
}

// verify holds what arrived against the beginning of the data; all of a file
// must have arrived unless it was cut off.
func (t transfer) verify(data io.Reader) error {
	h := sha256.New()
	if _, err := io.CopyN(h, data, t.bytes); err != nil {
		return fmt.Errorf("%d bytes arrived, there are less: %w", t.bytes, err)
	}
	if [sha256.Size]byte(h.Sum(nil)) != t.sum {
		return fmt.Errorf("the %d bytes that arrived are not those that were sent", t.bytes)
	}
	if f, ok := data.(*os.File); ok && !t.cut {
		if n, _ := f.Read(make([]byte, 1)); n > 0 {
			return fmt.Errorf("only %d bytes arrived", t.bytes)
		}
	}
	return nil
}
