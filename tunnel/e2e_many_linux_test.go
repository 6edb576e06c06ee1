package tunnel_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/lab"
)

// manySize is how much TestE2EMany does.
type manySize struct {
	idle, active, rounds int
	short                int // connections that live for one exchange
	every                time.Duration
}

// perIdle is what an idle stream may take in each stream process, apart from
// what the process took by being busy.
const perIdle, busyTook = 64 << 10, 16 << 20

// spare is how many descriptors a stream process may have more at the end than
// just after its start: its warm connections were not all there yet.
const spare = 8

// TestE2EMany has as many connections open as a busy site, some of them at work,
// and opens and ends others at a steady rate: all are split, none fails, an idle
// one is cheap, and afterwards no descriptor is left.
func TestE2EMany(t *testing.T) {
	size := manySize{idle: 1000, active: 200, rounds: 20, short: 1000, every: 5 * time.Millisecond}
	if os.Getenv("STITCH_LONG") != "" {
		size = manySize{idle: 10_000, active: 2000, rounds: 50, short: 60 * 500, every: 2 * time.Millisecond}
	} else {
		t.Log("a tenth of the size: STITCH_LONG=1 has 10,000 connections")
	}
	if room := (descriptors(t, 2*size.idle+2000) - 2000) / 2; room < size.idle {
		t.Logf("descriptors for %d connections only", room)
		size.idle = room
	}
	l := world(t, wan100)
	ln := listen(t, l, "h2", "10.2.0.10:4000")
	go echoLines(ln)
	// The client's own ports are not what this is about.
	run(t, l, "h1", "sh", "-c", "echo 1024 65535 >/proc/sys/net/ipv4/ip_local_port_range && echo 1 >/proc/sys/net/ipv4/tcp_tw_reuse")
	edges := []string{"e1", "e2"}
	before := map[string]usage{}
	for _, e := range edges {
		before[e] = usageOf(t, l, e)
	}

	start := time.Now()
	conns := openMany(t, l, size.idle)
	t.Logf("%d connections opened in %v", len(conns), time.Since(start).Round(time.Millisecond))
	time.Sleep(2 * time.Second) // what they needed to open is not what they need idle
	for _, e := range edges {
		now, s := usageOf(t, l, e), streamStats(t, l, e)
		each := (now.rss - before[e].rss) / len(conns)
		t.Logf("%s: %d streams, %d bytes and %.1f descriptors each", e, s.Open, each, float64(now.descriptors-before[e].descriptors)/float64(len(conns)))
		if s.Open != len(conns) || now.rss-before[e].rss > len(conns)*perIdle+busyTook {
			t.Errorf("%s: %d streams for %d connections, %d bytes each, want at most %d", e, s.Open, len(conns), each, perIdle)
		}
	}

	start = time.Now()
	var tasks sync.WaitGroup
	for i, c := range conns[:size.active] {
		tasks.Go(func() {
			for n := range size.rounds {
				if err := exchangeLine(c, fmt.Sprintf("connection %d, round %d", i, n)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	tasks.Wait()
	t.Logf("%d exchanges on each of %d connections in %v", size.rounds, size.active, time.Since(start).Round(time.Millisecond))
	start = time.Now()
	short(t, l, size)
	t.Logf("%d connections of one exchange each, one every %v if there is room, in %v", size.short, size.every, time.Since(start).Round(time.Millisecond))

	for _, c := range conns {
		tasks.Go(func() {
			if err := end(c); err != nil {
				t.Error(err)
			}
		})
	}
	tasks.Wait()
	for _, e := range edges {
		eventually(t, 20*time.Second, "no stream is left at "+e, func() bool {
			s := streamStats(t, l, e)
			return s.Admitted == 0 && usageOf(t, l, e).descriptors <= before[e].descriptors+spare
		})
		s := streamStats(t, l, e)
		p := s.Peers[0]
		if want := uint64(len(conns) + size.short); p.Total != want || p.Passed+p.Refused+p.Reset != 0 || s.Full+s.HeldPassed+s.Stray != 0 {
			t.Errorf("%s: %d streams of %d connections; passed %d, refused %d, reset %d; %+v", e, p.Total, want, p.Passed, p.Refused, p.Reset, s)
		}
	}
}

// descriptors raises this process's limit to n if it may, and returns the limit.
func descriptors(t *testing.T, n int) int {
	t.Helper()
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		t.Fatal(err)
	}
	want := unix.Rlimit{Cur: uint64(n), Max: max(have.Max, uint64(n))}
	if have.Cur >= uint64(n) || unix.Setrlimit(unix.RLIMIT_NOFILE, &want) == nil {
		return n
	}
	return int(have.Cur)
}

// openMany opens n connections, a hundred at a time, and uses each once.
func openMany(t *testing.T, l *lab.Lab, n int) []*net.TCPConn {
	t.Helper()
	conns := make([]*net.TCPConn, n)
	var next atomic.Int64
	var tasks sync.WaitGroup
	for range 100 {
		tasks.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				c, err := dial(l, "h1", "10.2.0.10:4000")
				if err == nil {
					t.Cleanup(func() { c.Close() })
					conns[i] = c
					err = exchangeLine(c, fmt.Sprint("connection ", i))
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	tasks.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return conns
}

// short opens and ends connections at a steady rate, up to 500 at a time.
func short(t *testing.T, l *lab.Lab, size manySize) {
	tick := time.NewTicker(size.every)
	defer tick.Stop()
	var tasks sync.WaitGroup
	room := make(chan struct{}, 500)
	for i := range size.short {
		<-tick.C
		room <- struct{}{}
		tasks.Go(func() {
			defer func() { <-room }()
			c, err := dial(l, "h1", "10.2.0.10:4000")
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if err := exchangeLine(c, fmt.Sprint("short one ", i)); err != nil {
				t.Error(err)
			} else if err := end(c); err != nil {
				t.Error(err)
			}
		})
	}
	tasks.Wait()
}

// echoLines is echoAll with small buffers, and without the pipe that the kernel's
// splice takes two descriptors for.
func echoLines(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 512))
		}()
	}
}

// exchangeLine sends a text and wants it back.
func exchangeLine(c *net.TCPConn, text string) error {
	_ = c.SetDeadline(time.Now().Add(hangTime))
	if _, err := io.WriteString(c, text); err != nil {
		return fmt.Errorf("%s: %w", text, err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, []byte(text)) {
		return fmt.Errorf("%s: %q came back, %v", text, got, err)
	}
	return nil
}

// end ends a connection and waits for the other end.
func end(c *net.TCPConn) error {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(hangTime))
	if err := c.CloseWrite(); err != nil {
		return err
	}
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		return fmt.Errorf("at the end: %d bytes, %w", n, err)
	}
	return nil
}

// usage is what a stream process has.
type usage struct{ rss, descriptors int }

func usageOf(t *testing.T, l *lab.Lab, edge string) (u usage) {
	t.Helper()
	for _, p := range status(t, l, edge).Processes {
		if p.Name != "stream" {
			continue
		}
		dir := fmt.Sprintf("/proc/%d", p.Pid)
		fds, err := os.ReadDir(dir + "/fd")
		text, err2 := os.ReadFile(dir + "/statm")
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		pages, err := strconv.Atoi(strings.Fields(string(text))[1])
		if err != nil {
			t.Fatal(err)
		}
		return usage{pages * os.Getpagesize(), len(fds)}
	}
	t.Fatalf("no stream process at %s", edge)
	return u
}
