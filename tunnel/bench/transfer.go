package bench

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"stitch/tunnel/bench/far"
)

const (
	// messageSize and messageEvery are those of the small connection.
	messageSize  = 64
	messageEvery = 20 * time.Millisecond
	// pointEvery is the time between two points of a plot.
	pointEvery = 100 * time.Millisecond
)

// conn is a connection to a service.
type conn interface {
	net.Conn
	CloseWrite() error
}

// ends is what lies between the two ends of a carrier.
type ends interface {
	// open connects to a service at the far end.
	open(ctx context.Context, s far.Service) (conn, error)
	// wan is what both edges have put on the wire, in bytes of IP packets.
	wan(ctx context.Context) (uint64, error)
	// once says that the service forgets what it took when its connection ends:
	// data that is to be known there must be sent on the same one again.
	once() bool
	// packets is the way of connections that stitch carries as packets; nil: there
	// is none.
	packets() ends
}

// abort ends a connection in the middle.
func abort(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

// upload is a connection to a sink.
type upload struct {
	c    conn
	sent uint64
	sum  uint32

	mu      sync.Mutex
	got     far.Count
	err     error
	changed chan struct{} // has a token when either has
	done    chan struct{} // closed when no more is read
}

func newUpload(c conn) *upload {
	u := &upload{c: c, changed: make(chan struct{}, 1), done: make(chan struct{})}
	go u.read()
	return u
}

// read takes in what the sink says.
func (u *upload) read() {
	defer close(u.done)
	for {
		n, err := far.ReadCount(u.c)
		u.mu.Lock()
		if err == nil {
			u.got = n
		}
		u.err = err
		u.mu.Unlock()
		select {
		case u.changed <- struct{}{}:
		default:
		}
		if err != nil || n.Last {
			return
		}
	}
}

func (u *upload) state() (far.Count, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.got, u.err
}

// close ends the connection and its goroutine.
func (u *upload) close() {
	_ = u.c.Close()
	<-u.done
}

// Write implements io.Writer: it sends, and notes what.
func (u *upload) Write(b []byte) (int, error) {
	n, err := u.c.Write(b)
	u.sum = crc32.Update(u.sum, far.Table, b[:n])
	u.sent += uint64(n)
	return n, err
}

// send sends data and returns when all of it has arrived, or after limit: then
// the connection is of no more use. Last ends the direction, and all that was ever
// sent on it must have arrived as it was.
func (u *upload) send(ctx context.Context, data io.Reader, limit time.Duration, last bool) (Transfer, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { abort(u.c) })
	defer stop()
	t, base, start := Transfer{}, u.sent, time.Now()
	wrote := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{u}, struct{ io.Reader }{data}, make([]byte, 128<<10))
		if err == nil && last {
			err = u.c.CloseWrite()
		}
		wrote <- err
	}()
	writing := true
	for {
		select {
		case err := <-wrote:
			writing = false
			wrote = nil
			if err != nil && ctx.Err() == nil {
				return t, fmt.Errorf("transfer: %w", err)
			}
		case <-u.changed:
		case <-ctx.Done():
		}
		got, err := u.state()
		t.Bytes, t.Seconds = int64(got.N-min(base, got.N)), time.Since(start).Seconds()
		t.point()
		switch {
		case ctx.Err() != nil:
			if writing {
				<-wrote
			}
			return t, ctxError(ctx)
		case err != nil:
			abort(u.c)
			if writing {
				<-wrote
			}
			return t, fmt.Errorf("transfer: the far end went away after %d bytes: %w", got.N, err)
		case writing || got.N != u.sent && !got.Last || last != got.Last:
			continue
		case got.N != u.sent || last && got.Sum != u.sum:
			return t, fmt.Errorf("transfer: %d bytes arrived of %d, or others than were sent", got.N, u.sent)
		}
		t.Finished = true
		return t, nil
	}
}

// point adds a point to the plot when it is time for one.
func (t *Transfer) point() {
	last := 0.0
	if n := len(t.Points); n > 0 {
		last = t.Points[n-1].At
	}
	if t.Seconds-last >= pointEvery.Seconds() {
		t.Points = append(t.Points, Point{t.Seconds, float64(t.Bytes)})
	}
}

// ctxError is nil if only the time ran out.
func ctxError(ctx context.Context) error {
	if err := ctx.Err(); !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// delays are round trips in the order they were begun; at says when.
type delays struct {
	rtts []time.Duration
	at   []float64
}

// latency sends small messages and times the answers.
func latency(ctx context.Context, e ends, length time.Duration) (d delays, err error) {
	c, err := e.open(ctx, far.Echo)
	if err != nil {
		return d, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { abort(c) })
	defer stop()
	b := make([]byte, messageSize)
	began := time.Now()
	for time.Since(began) < length && ctx.Err() == nil {
		start := time.Now()
		_ = c.SetDeadline(start.Add(time.Minute))
		if _, err := c.Write(b); err != nil {
			return d, errors.Join(ctx.Err(), err)
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return d, errors.Join(ctx.Err(), err)
		}
		d.rtts, d.at = append(d.rtts, time.Since(start)), append(d.at, start.Sub(began).Seconds())
		sleep(ctx, messageEvery)
	}
	return d, ctx.Err()
}

// sleep waits, but not longer than ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// of is the report on delays.
func (d delays) of(carrier string, busy bool) Latency {
	l := Latency{Carrier: carrier, Busy: busy, Delay: delayOf(d.rtts)}
	for i, rtt := range d.rtts {
		l.Points = append(l.Points, Point{d.at[i], float64(rtt) / float64(time.Millisecond)})
	}
	return l
}

// delayOf sums round trips up.
func delayOf(rtts []time.Duration) Delay {
	d := Delay{N: len(rtts)}
	if d.N == 0 {
		return d
	}
	var sum time.Duration
	for i := 1; i < d.N; i++ {
		sum += (rtts[i] - rtts[i-1]).Abs()
	}
	if d.N > 1 {
		d.Jitter = sum / time.Duration(d.N-1)
	}
	sorted := slices.Sorted(slices.Values(rtts))
	d.Min, d.P50, d.P99, d.Max = sorted[0], sorted[d.N/2], sorted[d.N*99/100], sorted[d.N-1]
	return d
}
