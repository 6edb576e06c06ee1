package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serve runs a server for the time of a test and returns its socket.
func serve(t testing.TB, cfg Config) string {
	t.Helper()
	if cfg.Path == "" {
		cfg.Path = filepath.Join(t.TempDir(), Socket)
	}
	s, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(cfg.Path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	return cfg.Path
}

// fixed answers with one status.
func fixed(s Status) func(context.Context) Status {
	return func(context.Context) Status { return s }
}

func TestStatusRoundTrip(t *testing.T) {
	want := Status{
		Site: "dc1", Version: "v1", Uptime: 12.5,
		Processes: []Process{{Name: "link", Pid: 7, State: "running", Restarts: 2, LastExit: "killed"}},
		Links:     []LinkStatus{{Peer: "dc2", State: "up", Device: "st-dc2", RTTms: 40.2, LastHandshake: 3, Detail: Raw(map[string]int{"rx": 1})}},
		Segments:  []json.RawMessage{Raw(map[string]int{"segment": 100})},
		Workloads: []Workload{{Name: "app", Site: "dc2", Seq: 9}},
		Services:  []Service{{Name: "www", Workload: "app", Address: "198.51.100.20:443"}},
		Streams:   Raw(map[string]int{"open": 3}),
		Alarms:    []string{"something"},
	}
	got, err := NewClient(serve(t, Config{Status: fixed(want)})).Status(t.Context())
	if err != nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestListsAreNeverNull(t *testing.T) {
	path := serve(t, Config{Status: fixed(Status{Site: "dc1"})})
	body := raw(t, path, "GET /v1/status HTTP/1.1\r\nHost: stitch\r\n\r\n")
	if strings.Contains(body, "null") || !strings.Contains(body, `"links":[]`) {
		t.Error(body)
	}
}

// raw sends text and returns the whole answer.
func raw(t testing.TB, path, text string) string {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil && !errors.Is(err, syscall.EPIPE) {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s", resp.StatusCode, body)
}

func TestRefusals(t *testing.T) {
	var calls atomic.Int32
	path := serve(t, Config{Status: func(context.Context) Status { calls.Add(1); return Status{} }})
	for name, c := range map[string]struct{ request, want string }{
		"rebound name":  {"GET /v1/status HTTP/1.1\r\nHost: evil.example\r\n\r\n", "403 unknown host"},
		"web page":      {"GET /v1/status HTTP/1.1\r\nHost: stitch\r\nOrigin: http://evil.example\r\n\r\n", "403 requests of web pages"},
		"wrong method":  {"POST /v1/status HTTP/1.1\r\nHost: stitch\r\nContent-Length: 0\r\n\r\n", "405 "},
		"unknown path":  {"GET /debug/pprof/ HTTP/1.1\r\nHost: stitch\r\n\r\n", "404 "},
		"traversal":     {"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: stitch\r\n\r\n", "307 "},
		"no HTTP":       {"hello\r\n\r\n", "400 "},
		"large headers": {"GET /v1/status HTTP/1.1\r\nHost: stitch\r\nX: " + strings.Repeat("x", maxHeader+8<<10) + "\r\n\r\n", "431 "},
	} {
		if got := raw(t, path, c.request); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: got %.80q, want %q", name, got, c.want)
		}
	}
	if n := calls.Load(); n != 0 {
		t.Errorf("%d of them reached the agent", n)
	}
}

func TestAllowed(t *testing.T) {
	const uid, gid = 100, 200
	for _, c := range []struct {
		cred *unix.Ucred
		want bool
	}{
		{&unix.Ucred{Uid: 0, Gid: 0}, true},
		{&unix.Ucred{Uid: uid, Gid: 5}, true},
		{&unix.Ucred{Uid: 5, Gid: gid}, true},
		{&unix.Ucred{Uid: 5, Gid: 5}, false},
		{&unix.Ucred{Uid: 65534, Gid: 0}, false},
		{nil, false},
	} {
		if got := allowed(c.cred, uid, gid); got != c.want {
			t.Errorf("%+v: %v", c.cred, got)
		}
	}
}

func TestSocketMode(t *testing.T) {
	fi, err := os.Lstat(serve(t, Config{Status: fixed(Status{})}))
	if err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
}

func TestSocketInUse(t *testing.T) {
	path := serve(t, Config{Status: fixed(Status{Site: "first"})})
	if _, err := Listen(Config{Path: path, Status: fixed(Status{})}); !errors.Is(err, ErrInUse) {
		t.Errorf("a second server: %v", err)
	}
	if s, err := NewClient(path).Status(t.Context()); err != nil || s.Site != "first" {
		t.Errorf("the first one no longer answers: %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), Socket)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := NewClient(path).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a stale socket: %v", err)
	}
	serve(t, Config{Path: path, Status: fixed(Status{Site: "new"})})
	if s, err := NewClient(path).Status(t.Context()); err != nil || s.Site != "new" {
		t.Errorf("%v, %v", s, err)
	}
}

func TestOtherFilesAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), Socket)
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(Config{Path: path, Status: fixed(Status{})}); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("a file in the way: %v", err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "mine" {
		t.Error("the file was touched")
	}
}

func TestNotRunning(t *testing.T) {
	_, err := NewClient(filepath.Join(t.TempDir(), "none")).Status(t.Context())
	if !errors.Is(err, ErrNotRunning) {
		t.Error(err)
	}
}

func TestCollectMergesAndAlarms(t *testing.T) {
	link := serve(t, Config{Status: fixed(Status{Site: "x", Links: []LinkStatus{{Peer: "dc2", State: "up"}}, Alarms: []string{"hot"}})})
	s := Status{Site: "dc1", Version: "v"}
	n := Collect(t.Context(), &s, 10*time.Second, []Child{{"stream", link + "-gone"}, {"link", link}})
	if n != 1 || s.Site != "dc1" || len(s.Links) != 1 || s.Links[0].State != "up" {
		t.Errorf("%+v", s)
	}
	if want := []string{"the stream process does not answer", "hot"}; !reflect.DeepEqual(s.Alarms, want) {
		t.Errorf("alarms %q", s.Alarms)
	}
}

// TestManyIdleConnections fills every place; the newest are turned away, and
// a place that becomes free is used again.
func TestManyIdleConnections(t *testing.T) {
	path := filepath.Join(t.TempDir(), Socket)
	l, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	lim := limited{l, make(chan struct{}, 2)}
	defer l.Close()
	accepted := make(chan net.Conn)
	go func() {
		for c, err := lim.Accept(); err == nil; c, err = lim.Accept() {
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	dial()
	first := <-accepted
	dial()
	<-accepted
	if _, err := dial().Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the third: %v", err)
	}
	_ = first.Close()
	_ = first.Close() // gives back one place only
	dial()
	<-accepted
	if _, err := dial().Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the fifth: %v", err)
	}
}

// FuzzRequest sends any bytes to a live server: no panic, no answer of the 5xx
// class, and the next good request is served.
func FuzzRequest(f *testing.F) {
	path := serve(f, Config{Status: fixed(Status{Site: "dc1"})})
	for _, s := range []string{
		"GET /v1/status HTTP/1.1\r\nHost: stitch\r\n\r\n", "GET / HTTP/1.0\r\n\r\n", "POST /v1/status HTTP/1.1\r\nHost: stitch\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
		"GET http://stitch/v1/status HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "\x16\x03\x01", "GET /v1/status?a=%zz HTTP/1.1\r\nHost: stitch\r\n\r\n", "",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write(data)
		_ = c.(*net.UnixConn).CloseWrite()
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented && resp.StatusCode != http.StatusHTTPVersionNotSupported {
				t.Fatalf("%s for %q", resp.Status, data)
			}
		}
		if s, err := NewClient(path).Status(t.Context()); err != nil || s.Site != "dc1" {
			t.Fatal(err)
		}
	})
}
