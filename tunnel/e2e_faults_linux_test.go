package tunnel_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"stitch/tunnel/lab"
)

// TestE2ERefused: what the far side refuses is refused here, as direct TCP.
func TestE2ERefused(t *testing.T) {
	l := world(t, wan100)
	if _, err := dial(l, "h1", "10.2.0.10:4999"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a closed port: %v, want connection refused", err)
	}
	if _, err := dial(l, "h1", "10.2.0.77:4999"); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("a host that is not there: %v, want no route to host", err)
	}
	echo(t, l, "h1", "h2", "10.2.0.10:4999", []byte("control case: the port answers once somebody listens"))
}

// TestE2EKillStream: the death of either stream process resets its connections
// at both ends, hurts nothing else, and the next connections pass.
func TestE2EKillStream(t *testing.T) {
	l := world(t, wan100)
	for _, edge := range []string{"e1", "e2"} {
		pings := pinger(t, l)
		ln := listen(t, l, "h2", "10.2.0.10:4002")
		server := make(chan error, 1)
		go func() {
			c, err := ln.AcceptTCP()
			if err == nil {
				_, err = io.Copy(io.Discard, c)
				c.Close()
			}
			server <- err
		}()
		c := mustDial(t, l, "h1", "10.2.0.10:4002")
		client := make(chan error, 1)
		go func() { client <- pump(c, mix(64<<20, 3)) }()
		eventually(t, 10*time.Second, "the transfer is under way", func() bool { return streamStats(t, l, edge).Open > 0 })
		time.Sleep(300 * time.Millisecond) // well inside the transfer of several seconds
		old := kill(t, l, edge, "stream")
		if err := outcome(t, client); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("%s: the client saw %v, want a reset", edge, err)
		}
		if err := outcome(t, server); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the server saw %v, want a reset and never a clean end", edge, err)
		}
		ln.Close()
		echo(t, l, "h1", "h2", "10.2.0.10:4003", mix(1<<20, 4))
		restarted(t, l, edge, "stream", old)
		eventually(t, 10*time.Second, "connections are split again", func() bool {
			before := streamsTotal(t, l, "e1")
			echo(t, l, "h1", "h2", "10.2.0.10:4004", []byte("again"))
			return streamsTotal(t, l, "e1") > before
		})
		if lost := pings(); lost > 0 {
			t.Errorf("%s: %d pings were lost while the stream process died and came back", edge, lost)
		}
	}
	// Control case: the same transfer with nobody killed ends cleanly.
	echo(t, l, "h1", "h2", "10.2.0.10:4002", mix(4<<20, 3))
}

// TestE2EHangStream: a stream process that is stopped for 3 s goes on with its
// connections; one that stays stopped is replaced within 10 s, and new
// connections of its ports pass within 12.
func TestE2EHangStream(t *testing.T) {
	l := world(t, wan100)
	go echoAll(listen(t, l, "h2", "10.2.0.10:4006"))
	kept := mustDial(t, l, "h1", "10.2.0.10:4006")
	exchange(t, kept)
	pid := signal(t, l, "e1", "stream", syscall.SIGSTOP)
	time.Sleep(3 * time.Second)
	signal(t, l, "e1", "stream", syscall.SIGCONT)
	exchange(t, kept)

	if again := signal(t, l, "e1", "stream", syscall.SIGSTOP); again != pid {
		t.Fatalf("the stream process was replaced after a stall of 3 s: %d, then %d", pid, again)
	}
	start := time.Now()
	if c, err := dialFor(l, "h1", "10.2.0.10:4006", 2*time.Second); err == nil {
		c.Close()
		t.Error("control case: a connection was opened through a stopped process")
	}
	eventually(t, 20*time.Second, "a new connection passes", func() bool {
		c, err := dialFor(l, "h1", "10.2.0.10:4006", time.Second)
		if err != nil {
			return false
		}
		exchange(t, c)
		return c.Close() == nil
	})
	took := time.Since(start)
	t.Logf("a new connection passed %v after the hang began", took)
	if took > 12*time.Second {
		t.Errorf("a new connection passed after %v, want 12 s", took)
	}
	restarted(t, l, "e1", "stream", pid)
	for _, p := range status(t, l, "e1").Processes {
		if p.Name == "stream" && !strings.HasPrefix(p.LastExit, "hung: ") {
			t.Errorf("the status does not say why: %+v", p)
		}
	}
}

// TestE2EHangLink: a link process that stays stopped is replaced, and an open
// connection goes on.
func TestE2EHangLink(t *testing.T) {
	l := world(t, wan100)
	kept := mustDial(t, l, "h1", keepOpen(t, l))
	exchange(t, kept)
	answers := func() bool { return l.Command("h1", "ping", "-c1", "-W1", "10.2.0.10").Run() == nil }
	if !answers() {
		t.Fatal("control case: no answer before the hang")
	}
	pid := signal(t, l, "e1", "link", syscall.SIGSTOP)
	start := time.Now()
	if answers() {
		t.Error("control case: an answer through a stopped process")
	}
	eventually(t, 20*time.Second, "h2 answers again", answers)
	if took := time.Since(start); took > 13*time.Second {
		t.Errorf("back %v after the hang began, want 10 s and 3 for the link", took)
	}
	restarted(t, l, "e1", "link", pid)
	exchange(t, kept)
}

// pump writes data again and again until the connection breaks.
func pump(c net.Conn, data []byte) error {
	for {
		if _, err := c.Write(data); err != nil {
			return err
		}
	}
}

// outcome waits for the end of one side of a connection.
func outcome(t *testing.T, ch chan error) error {
	t.Helper()
	select {
	case err := <-ch:
		return err
	case <-time.After(10 * time.Second):
		t.Error("no outcome within 10 s: the connection hangs")
		return nil
	}
}

// pinger pings h2 from h1 every 100 ms; the returned function ends it and says
// how many were lost.
func pinger(t *testing.T, l *lab.Lab) func() int {
	t.Helper()
	var out bytes.Buffer
	cmd := l.Command("h1", "ping", "-i0.1", "-W2", "10.2.0.10")
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() int {
		time.Sleep(200 * time.Millisecond) // the last ones come back
		_ = cmd.Process.Signal(syscall.SIGINT)
		_ = cmd.Wait()
		seen := map[string]bool{}
		last := ""
		for line := range strings.Lines(out.String()) {
			if _, rest, ok := strings.Cut(line, "icmp_seq="); ok {
				last, _, _ = strings.Cut(rest, " ")
				seen[last] = true
			}
		}
		var n int
		for _, r := range last {
			n = n*10 + int(r-'0')
		}
		return n - len(seen)
	}
}

// canary is what must never be on the WAN in clear.
const canary = "CANARY-5f1d0e7c-never-in-clear"

// TestE2EKillLink: after the death of a link process everything is back within
// 3 s of its restart, and nothing leaves in clear meanwhile.
func TestE2EKillLink(t *testing.T) {
	l := world(t, wan100)
	wan, lan := filepath.Join(t.TempDir(), "wan.pcap"), filepath.Join(t.TempDir(), "lan.pcap")
	stopWAN := sniff(t, l, "wan", "e1", wan)
	stopLAN := sniff(t, l, "e1", "lan-h1", lan)
	stop := shout(t, l)
	kept := mustDial(t, l, "h1", keepOpen(t, l)) // a connection that must survive
	for _, edge := range []string{"e1", "e2"} {
		old := kill(t, l, edge, "link")
		restarted(t, l, edge, "link", old)
		start := time.Now()
		eventually(t, 10*time.Second, "h2 answers again", func() bool {
			return l.Command("h1", "ping", "-c1", "-W1", "10.2.0.10").Run() == nil
		})
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("%s: back %v after the restart, want 3 s", edge, took)
		}
		exchange(t, kept)
	}
	stop()
	stopWAN()
	stopLAN()
	if n := count(t, wan, canary); n > 0 {
		t.Errorf("the canary crossed the WAN in clear %d times", n)
	}
	if n := count(t, lan, canary); n == 0 {
		t.Error("control case: the canary is not in the capture of the LAN either")
	}
}

// shout sends the canary to h2 by UDP, 200 times a second, until the returned
// function is called.
func shout(t *testing.T, l *lab.Lab) func() {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	var pc net.Conn
	ns, _ := l.Namespace("h1")
	if err := ns.Do(func() (err error) { pc, err = net.Dial("udp", "10.2.0.10:9"); return }); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(done)
		defer pc.Close()
		for ctx.Err() == nil {
			_, _ = pc.Write([]byte(canary))
			time.Sleep(5 * time.Millisecond)
		}
	}()
	return func() { cancel(); <-done }
}

// keepOpen starts an echo server on h2 and returns its address.
func keepOpen(t *testing.T, l *lab.Lab) string {
	t.Helper()
	const addr = "10.2.0.10:80"
	go echoAll(listen(t, l, "h2", addr))
	return addr
}

// exchange sends the canary over an open connection and wants it back.
func exchange(t *testing.T, c *net.TCPConn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte(canary)); err != nil {
		t.Fatal("the open connection is lost:", err)
	}
	buf := make([]byte, len(canary))
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != canary {
		t.Fatalf("the open connection is lost: %q, %v", buf, err)
	}
}

// sniff captures an interface into a file until the returned function is called.
func sniff(t *testing.T, l *lab.Lab, host, dev, file string) func() {
	t.Helper()
	cmd := l.Command(host, "tcpdump", "-i", dev, "-U", "-s0", "-Z", "root", "-w", file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "tcpdump writes", func() bool { st, err := os.Stat(file); return err == nil && st.Size() > 0 })
	return func() {
		time.Sleep(100 * time.Millisecond)
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
}

// count says how often text is in a file.
func count(t *testing.T, file, text string) int {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(data, []byte(text))
}

// TestE2EBlackout: a WAN that is dead for half a minute loses no connection,
// split or not, and they go on at once when it is back.
func TestE2EBlackout(t *testing.T) {
	l := world(t, wan100)
	plain := mustDial(t, l, "h1", keepOpen(t, l))
	exchange(t, plain)
	ln := listen(t, l, "h2", "10.2.0.10:4005")
	got := make(chan int64, 1)
	go func() {
		c, err := ln.AcceptTCP()
		if err != nil {
			return
		}
		n, err := io.Copy(io.Discard, c)
		if err != nil {
			n = -1
		}
		got <- n
	}()
	split := mustDial(t, l, "h1", "10.2.0.10:4005")
	const total = 40 << 20
	sent := make(chan error, 1)
	go func() {
		_, err := split.Write(mix(total, 9))
		sent <- errors.Join(err, split.CloseWrite())
	}()
	time.Sleep(500 * time.Millisecond)
	cut := 30 * time.Second
	if testing.Short() {
		cut = 5 * time.Second
	}
	if err := l.WAN().Cut(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	time.Sleep(cut)
	if s := status(t, l, "e1"); s.Links[0].State != "down" {
		t.Errorf("the link is %q while the WAN is dead, want down", s.Links[0].State)
	}
	if err := l.WAN().Cut(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	healed := time.Now()
	exchange(t, plain)
	t.Logf("the plain connection answered %v after the WAN was back", time.Since(healed).Round(time.Millisecond))
	select {
	case n := <-got:
		if n != total {
			t.Errorf("%d of %d bytes arrived", n, total)
		}
	case <-time.After(60 * time.Second):
		t.Fatal("the split connection hangs")
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// TestE2EStart: two agents that start at the same instant are connected within
// 3 s, whatever the round-trip time.
func TestE2EStart(t *testing.T) {
	for _, rtt := range []time.Duration{0, 10, 100, 200, 300} {
		rtt *= time.Millisecond
		t.Run(rtt.String(), func(t *testing.T) {
			l := world(t, lab.Options{Rate: 100e6, RTT: rtt})
			for _, e := range []string{"e1", "e2"} {
				s := status(t, l, e)
				if s.Links[0].State != "up" || s.Uptime > 3.5 {
					t.Errorf("%s: link %s after %.1f s", e, s.Links[0].State, s.Uptime)
				}
			}
		})
	}
}
