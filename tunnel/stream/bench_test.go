package stream_test

import (
	"context"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/bench/far"
	"stitch/tunnel/stream"
)

// realWorld is two sites that know each other, in real time: sockets are real.
func realWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, time.Millisecond)
	w.a.start()
	w.b.start()
	t.Cleanup(w.a.kill)
	t.Cleanup(w.b.kill)
	soon(t, "they know each other", func() bool { return w.a.proxy.Stats().Peers[0].Ready > 0 && w.b.proxy.Stats().Peers[0].Ready > 0 })
	return w
}

// soon waits until cond holds.
func soon(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not so: " + what)
		}
	}
}

// sockets returns a connected pair.
func sockets(t *testing.T) (ends [2]*net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return ends
}

// bench opens a service at the other site.
func (s *site) bench(t *testing.T, ctx context.Context, service far.Service) (*net.UnixConn, chan error) {
	t.Helper()
	ends := sockets(t)
	accepted, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- s.proxy.Bench(ctx, s.link.Peer, service, func(stream.Link) (*net.UnixConn, error) {
			close(accepted)
			return ends[0], nil
		})
	}()
	select {
	case <-accepted:
	case err := <-done:
		done <- err
	case <-time.After(10 * time.Second):
		t.Fatal("not accepted")
	}
	return ends[1], done
}

// TestBench: what is sent to a sink arrives whole and is found again, an echo
// comes back, and nothing of it is in the domain's history. Sockets are real, so
// time is too.
func TestBench(t *testing.T) {
	w := realWorld(t)
	data := text(5, 2<<20)
	before := w.wire()
	c, done := w.a.bench(t, t.Context(), far.Sink)
	go func() {
		for range 3 {
			_, _ = c.Write(data)
		}
		_ = c.CloseWrite()
	}()
	var last far.Count
	for !last.Last {
		var err error
		if last, err = far.ReadCount(c); err != nil {
			t.Fatal(err, <-done)
		}
	}
	want := crc32.Update(crc32.Update(crc32.Checksum(data, far.Table), far.Table, data), far.Table, data)
	if last.N != uint64(3*len(data)) || last.Sum != want {
		t.Errorf("%d bytes with sum %x, want %d with %x", last.N, last.Sum, 3*len(data), want)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := w.wire() - before; got > int64(len(data)) {
		t.Errorf("three times the same %d bytes took %d", len(data), got)
	}
	c, done = w.b.bench(t, t.Context(), far.Echo)
	for range 10 {
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
			t.Fatalf("%q, %v", b, err)
		}
	}
	_ = c.CloseWrite()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, s := range []*site{w.a, w.b} {
		p := s.proxy.Stats().Peers[0]
		if p.Total != 0 || p.Domains[0].History.Sent+p.Domains[0].History.Received > 0 {
			t.Errorf("%s: %+v", s.cfg.Site, p)
		}
	}
}

// TestBenchRefused: one sink at a time is served, an unknown peer and an ended
// context are errors, and afterwards all places are free.
func TestBenchRefused(t *testing.T) {
	w := realWorld(t)
	if err := w.a.proxy.Bench(t.Context(), "dc9", far.Sink, nil); !errors.Is(err, stream.ErrBench) {
		t.Errorf("unknown peer: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	first, firstDone := w.a.bench(t, ctx, far.Sink)
	if _, err := first.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, done := w.a.bench(t, t.Context(), far.Sink); !errors.Is(<-done, stream.ErrBench) {
		t.Error("a second sink was served")
	}
	cancel()
	if err := <-firstDone; err == nil {
		t.Error("one that was cut short ended well")
	}
	soon(t, "no stream is left", func() bool { return w.a.proxy.Stats().Admitted+w.b.proxy.Stats().Admitted == 0 })
	c, done := w.a.bench(t, t.Context(), far.Sink)
	_ = c.CloseWrite()
	if n, err := far.ReadCount(c); err != nil || !n.Last || n.N != 0 {
		t.Errorf("%+v, %v", n, err)
	}
	if err := <-done; err != nil {
		t.Errorf("control case, all are free: %v", err)
	}
}
