package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/control"
	"stitch/tunnel/lab"
)

const (
	// sender and receiver are the lab's hosts, and where the receiver listens:
	// ports that the lab's rules optimise.
	sender, receiver = "h1", "h2"
	receiverAddr     = "10.2.0.10"
	sinkPort         = 4000
	echoPort         = 4001
	// packetPort is in none of the rules: what goes there crosses as packets.
	packetPort = 3901
	// messageSize and messageEvery are those of the small connection.
	messageSize  = 64
	messageEvery = 20 * time.Millisecond
	// streamsWait bounds the wait for the agents' streams.
	streamsWait = 15 * time.Second
)

// hosts are the two ends of the transfers.
type hosts struct {
	l        *lab.Lab
	sink     net.Listener
	echoes   []net.Listener
	got      chan arrived
	received atomic.Int64 // of the current transfer
	incoming atomic.Pointer[net.TCPConn]
}

// arrived is what the receiver had of a connection.
type arrived struct {
	n   int64
	err error
}

func newHosts(l *lab.Lab) (*hosts, error) {
	h := &hosts{l: l, got: make(chan arrived, 1)}
	ns, err := l.Namespace(receiver)
	if err != nil {
		return nil, err
	}
	err = ns.Do(func() (err error) {
		h.sink, err = net.Listen("tcp", net.JoinHostPort(receiverAddr, strconv.Itoa(sinkPort)))
		for _, port := range []int{echoPort, packetPort} {
			if err == nil {
				var l net.Listener
				l, err = net.Listen("tcp", net.JoinHostPort(receiverAddr, strconv.Itoa(port)))
				h.echoes = append(h.echoes, l)
			}
		}
		return err
	})
	if err != nil {
		h.close()
		return nil, err
	}
	for _, l := range h.echoes {
		go serve(l, func(c net.Conn) { _, _ = io.Copy(c, c) })
	}
	go serve(h.sink, func(c net.Conn) {
		h.incoming.Store(c.(*net.TCPConn))
		n, err := io.Copy(counter{&h.received}, c)
		h.got <- arrived{n, err}
	})
	return h, nil
}

func (h *hosts) close() {
	for _, l := range append(h.echoes, h.sink) {
		if l != nil {
			_ = l.Close()
		}
	}
}

// serve hands connections to f until l is closed.
func serve(l net.Listener, f func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			f(c)
		}()
	}
}

// counter counts what is written.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

// waitStreams waits until the agents have connections to each other ready; until
// then nothing is optimised.
func (h *hosts) waitStreams(ctx context.Context) error {
	c := control.NewClient(filepath.Join(h.l.Options().Dir, "e1", control.Socket))
	for end := time.Now().Add(streamsWait); ; {
		if st, err := c.Status(ctx); err == nil && ready(st.Streams) {
			return nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return cmp.Or(ctx.Err(), fmt.Errorf("the agents' streams are not ready after %v", streamsWait))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func ready(streams json.RawMessage) bool {
	var s struct {
		Peers []struct {
			Ready int `json:"ready"`
		} `json:"peers"`
	}
	return json.Unmarshal(streams, &s) == nil && len(s.Peers) == 1 && s.Peers[0].Ready > 0
}

// dial connects from the sender with a congestion control.
func (h *hosts) dial(ctx context.Context, port int, congestion string) (*net.TCPConn, error) {
	ns, err := h.l.Namespace(sender)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: 30 * time.Second}
	var c net.Conn
	err = ns.Do(func() (err error) {
		c, err = d.DialContext(ctx, "tcp", net.JoinHostPort(receiverAddr, strconv.Itoa(port)))
		return err
	})
	if err != nil {
		return nil, err
	}
	tcp := c.(*net.TCPConn)
	if err := setCongestion(tcp, congestion); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("congestion control %s: %w", congestion, err)
	}
	return tcp, nil
}

// setCongestion chooses a connection's congestion control; before it connects the
// route's would take precedence.
func setCongestion(c *net.TCPConn, name string) (err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	}); e != nil {
		return e
	}
	return err
}

// transfer sends data through one connection, and gives up after limit.
func (h *hosts) transfer(ctx context.Context, congestion string, data io.Reader, limit time.Duration) (Transfer, error) {
	h.received.Store(0)
	start := time.Now()
	c, err := h.dial(ctx, sinkPort, congestion)
	if err != nil {
		return Transfer{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		_ = c.SetLinger(0) // a reset: nothing more is wanted
		_ = c.Close()
	})
	defer stop()
	sent, err := io.Copy(c, data)
	if err == nil {
		err = c.CloseWrite()
	}
	var end arrived
	select {
	case end = <-h.got:
	case <-ctx.Done():
		n, took := h.received.Load(), time.Since(start)
		_ = h.incoming.Load().Close() // the reset may get lost
		<-h.got
		return Transfer{Bytes: n, Seconds: took.Seconds()}, ctxError(ctx)
	}
	took := time.Since(start)
	_ = c.Close()
	switch {
	case err != nil || end.err != nil:
		return Transfer{}, fmt.Errorf("transfer: %w", errors.Join(err, end.err))
	case end.n != sent:
		return Transfer{}, fmt.Errorf("transfer: %d of %d bytes arrived", end.n, sent)
	}
	return Transfer{Bytes: end.n, Seconds: took.Seconds(), Finished: true}, nil
}

// ctxError is nil if only the time ran out.
func ctxError(ctx context.Context) error {
	if err := ctx.Err(); !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// delays are round trips of small messages, sorted.
type delays []time.Duration

// latency sends small messages to a port and times the answers.
func (h *hosts) latency(ctx context.Context, port int, congestion string, length time.Duration) (delays, error) {
	c, err := h.dial(ctx, port, congestion)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var all delays
	b := make([]byte, messageSize)
	for end := time.Now().Add(length); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(messageEvery) {
		start := time.Now()
		_ = c.SetDeadline(start.Add(time.Minute))
		if _, err := c.Write(b); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return nil, err
		}
		all = append(all, time.Since(start))
	}
	slices.Sort(all)
	return all, ctx.Err()
}

// of is the report on delays.
func (d delays) of(carrier string, busy bool) Latency {
	l := Latency{Carrier: carrier, Busy: busy, N: len(d)}
	if len(d) > 0 {
		l.P50, l.P99, l.Max = d[len(d)/2], d[len(d)*99/100], d[len(d)-1]
	}
	return l
}
