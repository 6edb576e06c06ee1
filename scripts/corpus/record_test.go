package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"stitch/scripts/machine"
)

// station is a recorder in front of a server that answers each connection with
// what it got, byte for byte, when that has ended.
type station struct {
	socket string
	rec    *recorder

	mu  sync.Mutex
	got map[int][]byte // by the order in which the server got connections
}

// unix listens on a socket of the given name in the test's directory.
func unix(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func newStation(t *testing.T, ctx context.Context, limit int64) *station {
	t.Helper()
	dir := t.TempDir()
	s := &station{socket: filepath.Join(dir, "rec"), got: map[int][]byte{}}
	l := unix(t, filepath.Join(dir, "server"))
	go func() {
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go s.answer(n, conn)
		}
	}()
	var err error
	s.rec, err = record(ctx, s.socket, filepath.Join(dir, "server"), limit, func(n int) string {
		return filepath.Join(dir, fmt.Sprint("stream.", n))
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *station) answer(n int, conn net.Conn) {
	defer conn.Close()
	b, _ := io.ReadAll(conn)
	s.mu.Lock()
	s.got[n] = b
	s.mu.Unlock()
	_, _ = conn.Write(b)
}

func (s *station) dial(t *testing.T) *net.UnixConn {
	t.Helper()
	conn, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.UnixConn)
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

func TestRecorderKeepsEachStreamAndPassesItOn(t *testing.T) {
	s := newStation(t, t.Context(), maxRecord)
	streams := [][]byte{noise(3 << 20), nil, noise(1), noise(100_000)}
	var conns []*net.UnixConn
	for range streams {
		conns = append(conns, s.dial(t)) // all are open before the first says anything
	}
	for i, b := range streams {
		conn := conns[i]
		go func() {
			_, _ = conn.Write(b)
			_ = conn.CloseWrite()
		}()
		if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, b) {
			t.Errorf("answer of %d bytes, %v; want the %d sent", len(got), err, len(b))
		}
	}
	files, err := s.rec.close()
	if err != nil || len(files) != len(streams) {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for i, f := range files {
		if b, err := os.ReadFile(f); err != nil || !bytes.Equal(b, streams[i]) {
			t.Errorf("%s: %d bytes, %v; want the %d sent", f, len(b), err, len(streams[i]))
		}
		if !bytes.Equal(s.got[i], streams[i]) {
			t.Errorf("the server got %d bytes of stream %d, want %d", len(s.got[i]), i, len(streams[i]))
		}
	}
}

// The control is a stream of exactly the limit.
func TestRecorderLimit(t *testing.T) {
	const limit = 1000
	for _, tt := range []struct {
		bytes int
		want  error
	}{{limit, nil}, {limit + 1, machine.ErrTooLong}} {
		s := newStation(t, t.Context(), limit)
		conn := s.dial(t)
		_, _ = conn.Write(noise(tt.bytes))
		_ = conn.CloseWrite()
		_, _ = io.ReadAll(conn)
		if _, err := s.rec.close(); !errors.Is(err, tt.want) {
			t.Errorf("%d bytes: %v, want %v", tt.bytes, err, tt.want)
		}
	}
}

func TestRecorderWithoutServer(t *testing.T) {
	dir := t.TempDir()
	r, err := record(t.Context(), filepath.Join(dir, "rec"), filepath.Join(dir, "nobody"), maxRecord, func(int) string {
		return filepath.Join(dir, "stream")
	})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", filepath.Join(dir, "rec"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("an answer from nobody")
	}
	if _, err := r.close(); err == nil {
		t.Error("no error")
	}
}

func TestRecorderEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := newStation(t, ctx, maxRecord)
	conn := s.dial(t)
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is still open")
	}
	if _, err := s.rec.close(); err == nil {
		t.Error("no error")
	}
}
