package tunnel_test

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"stitch/tunnel/lab"
)

const (
	// rateLimit is what leaves e1; e2, the control case, has no limit.
	rateLimit = 8e6
	rateBytes = 3 << 20
)

// TestE2ERate: what leaves an edge with a rate keeps it, whether split or carried
// as packets; a stream with four shares gets more than one with one; every byte
// arrives.
func TestE2ERate(t *testing.T) {
	l := world(t, lab.Options{Rate: 1e9, RTT: 20 * time.Millisecond, Streams: true, Edit: limited})
	for _, c := range []struct {
		name, from, to string
		rate           float64
	}{{"limited", "h1", "10.2.0.10", rateLimit}, {"control: the way back", "h2", "10.1.0.10", 0}} {
		before := wanCounters(t, l)
		start := time.Now()
		other := map[string]string{"h1": "h2", "h2": "h1"}[c.from]
		many := beginUpload(t, l, c.from, other, c.to+":5000", rateBytes) // four shares
		one := beginUpload(t, l, c.from, other, c.to+":4000", rateBytes)
		packets := beginUpload(t, l, c.from, other, c.to+":3900", rateBytes/4) // covered by no rule
		many.wait(t)
		behind := one.received()
		one.wait(t)
		packets.wait(t)
		took := time.Since(start)
		after := wanCounters(t, l)
		sent := after.E1toE2.Counters.Bytes - before.E1toE2.Counters.Bytes
		t.Logf("%s: %v, %d bytes on the WAN from e1, one share had %d bytes when four had %d", c.name, took, sent, behind, rateBytes)
		least := time.Duration(float64(rateBytes*9/4) * 8 / rateLimit * float64(time.Second))
		if c.rate == 0 {
			if took > least/2 {
				t.Errorf("%s: it took %v; so a limit proves nothing here", c.name, took)
			}
			continue
		}
		// A slow machine makes it take longer, never shorter.
		if got := float64(sent) * 8 / took.Seconds(); got > 1.03*rateLimit {
			t.Errorf("%s: %.0f bit/s left, the rate is %.0f", c.name, got, rateLimit)
		}
		if behind < rateBytes/10 || behind > rateBytes/2 {
			t.Errorf("%s: one share had %d bytes when four had %d", c.name, behind, rateBytes)
		}
	}
}

// limited gives e1 a rate, and the streams to port 5000 four shares of it.
func limited(host, toml string) string {
	if host != "e1" {
		return toml
	}
	toml = strings.Replace(toml, "listen_port =", "rate = \"8mbit\"\nlisten_port =", 1)
	at := strings.Index(toml, "[[stream]]")
	rule := toml[at:strings.Index(toml, "[[dial]]")]
	return toml[:at] + strings.Replace(rule, `"4000-5999"`, "5000", 1) + "share = 4\n\n" +
		strings.Replace(toml[at:], `"4000-5999"`, `"4000-4999"`, 1)
}

// upload is made data on its way.
type upload struct {
	name string
	got  *bytes.Buffer
	mu   sync.Mutex // guards got
	done chan error
	want [sha256.Size]byte
}

// beginUpload begins to send n bytes.
func beginUpload(t *testing.T, l *lab.Lab, from, to, addr string, n int) *upload {
	t.Helper()
	var key [32]byte
	copy(key[:], from+addr)
	data := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(data)
	c := &upload{name: from + " to " + addr, got: &bytes.Buffer{}, done: make(chan error, 1), want: sha256.Sum256(data)}
	ln := listen(t, l, to, addr)
	go func() {
		in, err := ln.Accept()
		ln.Close()
		if err == nil {
			defer in.Close()
			_, err = io.Copy(c, in)
		}
		c.done <- err
	}()
	conn, err := dial(l, from, addr)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer conn.Close()
		if _, err := conn.Write(data); err == nil {
			_ = conn.CloseWrite()
		}
		_, _ = io.Copy(io.Discard, net.Conn(conn))
	}()
	return c
}

// Write takes what arrives.
func (c *upload) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.got.Write(b)
}

func (c *upload) received() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.got.Len()
}

// wait fails the test unless all arrives as it was sent.
func (c *upload) wait(t *testing.T) {
	t.Helper()
	select {
	case err := <-c.done:
		if err != nil || sha256.Sum256(c.got.Bytes()) != c.want {
			t.Errorf("%s: %d bytes arrived, not what was sent: %v", c.name, c.got.Len(), err)
		}
	case <-time.After(2 * time.Minute):
		t.Fatalf("%s: %d bytes after two minutes", c.name, c.received())
	}
}

func wanCounters(t *testing.T, l *lab.Lab) lab.Traffic {
	t.Helper()
	c, err := l.WAN().Counters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}
