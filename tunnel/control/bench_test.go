package control

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// TestBenchStream: the connection becomes the stream, also when the far end speaks
// first; what is refused comes back in the agent's words.
func TestBenchStream(t *testing.T) {
	ended := make(chan struct{}, 10)
	path := serve(t, Config{Status: fixed(Status{}), Bench: func(_ context.Context, peer, service string, accept func(BenchLink) (*net.UnixConn, error)) error {
		if peer != "dc2" {
			return errors.New("no peer like that")
		}
		c, err := accept(BenchLink{"st-dc2", "169.254.1.1", "169.254.1.2"})
		if err != nil {
			return err
		}
		defer func() { _ = c.Close(); ended <- struct{}{} }()
		_, _ = io.WriteString(c, "first "+service+":")
		_, err = io.Copy(struct{ io.Writer }{c}, c)
		return err
	}})
	c, l, err := NewClient(path).Bench(t.Context(), "dc2", "echo")
	if err != nil || l != (BenchLink{"st-dc2", "169.254.1.1", "169.254.1.2"}) {
		t.Fatal(l, err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "and back"); err != nil {
		t.Fatal(err)
	}
	_ = c.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "first echo:and back" {
		t.Errorf("%q, %v", got, err)
	}
	<-ended
	if _, _, err := NewClient(path).Bench(t.Context(), "dc3", "echo"); !errors.Is(err, ErrBenchRefused) || err.Error() != "no peer like that" {
		t.Errorf("refused: %v", err)
	}
	for name, c := range map[string]struct{ request, want string }{
		"no upgrade": {"POST /v1/bench?peer=dc2&service=echo HTTP/1.1\r\nHost: stitch\r\nContent-Length: 0\r\n\r\n", "426 "},
		"web page":   {"POST /v1/bench?peer=dc2 HTTP/1.1\r\nHost: stitch\r\nOrigin: http://evil.example\r\nUpgrade: stitch-bench\r\nContent-Length: 0\r\n\r\n", "403 "},
		"reading":    {"GET /v1/bench?peer=dc2 HTTP/1.1\r\nHost: stitch\r\n\r\n", "405 "},
	} {
		if got := raw(t, path, c.request); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %.80q", name, got)
		}
	}
	// A client that goes away ends its stream.
	c, _, err = NewClient(path).Bench(t.Context(), "dc2", "echo")
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	<-ended
}

func TestTrain(t *testing.T) {
	want := TrainResult{Sent: 7, Received: 6, RTTs: []time.Duration{time.Second}}
	path := serve(t, Config{Status: fixed(Status{}), Train: func(_ context.Context, r Train) (TrainResult, error) {
		if r.Peer != "dc2" {
			return TrainResult{}, errors.New("no peer like that")
		}
		return want, nil
	}})
	if got, err := NewClient(path).Train(t.Context(), Train{Peer: "dc2"}); err != nil || got.Sent != 7 || got.Received != 6 || len(got.RTTs) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := NewClient(path).Train(t.Context(), Train{Peer: "dc9"}); !errors.Is(err, ErrBenchRefused) || err.Error() != "no peer like that" {
		t.Errorf("refused: %v", err)
	}
	if _, _, err := NewClient(path).Bench(t.Context(), "dc2", "echo"); !errors.Is(err, ErrBenchRefused) || !strings.Contains(err.Error(), "restart it") {
		t.Errorf("an agent that cannot: %v", err)
	}
	if _, err := NewClient(path+"-gone").Train(t.Context(), Train{}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("nobody there: %v", err)
	}
	if got := raw(t, path, "POST /v1/train HTTP/1.1\r\nHost: stitch\r\nContent-Length: 9\r\n\r\n{\"a\":\"b\"}"); !strings.HasPrefix(got, "400 ") {
		t.Errorf("another request: %.80q", got)
	}
}
