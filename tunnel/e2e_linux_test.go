package tunnel_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"stitch/tunnel/control"
	"stitch/tunnel/lab"
	"stitch/tunnel/stream"
)

// These tests run two whole agents as their own processes, with real devices,
// real nftables and an emulated WAN between them. They need root.

// program builds stitch once for all tests.
var program = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(programDir, "stitch")
	cmd := exec.Command("go", "build", "-o", bin, "stitch/cmd/stitch")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

// programDir is where the program is built; TestMain makes and removes it.
var programDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "stitch-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programDir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// world starts a lab of its own for a test.
func world(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	if o.Name, err = labName(); err != nil {
		t.Fatal(err)
	}
	o.Stitch = bin
	if o.History == "" {
		o.History = "128MiB"
	}
	l := lab.Start(t, o)
	if o.Streams { // they are ready a moment after the link; until then nothing is split
		for _, e := range []string{"e1", "e2"} {
			eventually(t, 15*time.Second, "streams of "+e+" are ready", func() bool {
				peers := streamStats(t, l, e).Peers
				return len(peers) == 1 && peers[0].Ready > 0
			})
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, e := range []string{"e1", "e2"} {
				if text, err := os.ReadFile(filepath.Join(l.Options().Dir, e+".log")); err == nil {
					t.Logf("%s.log:\n%s", e, text[max(0, len(text)-3000):])
				}
			}
		}
	})
	return l
}

// labName is the prefix of this run's labs.
var labName = sync.OnceValues(func() (string, error) { return lab.Claim("e2e") })

// wan100 is the WAN most tests use.
var wan100 = lab.Options{Rate: 100e6, RTT: 40 * time.Millisecond, Streams: true}

// run runs a command on a host and fails the test when it fails.
func run(t *testing.T, l *lab.Lab, host string, args ...string) string {
	t.Helper()
	out, err := l.Command(host, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", host, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// listen returns a listener on a host.
func listen(t *testing.T, l *lab.Lab, host, addr string) *net.TCPListener {
	t.Helper()
	var ln net.Listener
	ns, err := l.Namespace(host)
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() (err error) { ln, err = net.Listen("tcp", addr); return }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}

// dial connects from a host.
func dial(l *lab.Lab, host, addr string) (*net.TCPConn, error) {
	return dialFor(l, host, addr, 10*time.Second)
}

// dialFor is dial with a patience.
func dialFor(l *lab.Lab, host, addr string, patience time.Duration) (*net.TCPConn, error) {
	ns, err := l.Namespace(host)
	if err != nil {
		return nil, err
	}
	var c net.Conn
	err = ns.Do(func() (err error) { c, err = net.DialTimeout("tcp", addr, patience); return })
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// mustDial is dial that fails the test.
func mustDial(t *testing.T, l *lab.Lab, host, addr string) *net.TCPConn {
	t.Helper()
	c, err := dial(l, host, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// status asks the agent of an edge.
func status(t *testing.T, l *lab.Lab, edge string) control.Status {
	t.Helper()
	s, err := agentStatus(l, edge)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func agentStatus(l *lab.Lab, edge string) (control.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := control.NewClient(filepath.Join(l.Options().Dir, edge, control.Socket)).Status(ctx)
	if err != nil {
		return control.Status{}, err
	}
	return *s, nil
}

// streamStats are the counters of an edge's stream process.
func streamStats(t *testing.T, l *lab.Lab, edge string) (out stream.Stats) {
	t.Helper()
	if doc := status(t, l, edge).Streams; doc != nil {
		if err := json.Unmarshal(doc, &out); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// kill sends SIGKILL to a child of an edge's agent and returns its pid.
func kill(t *testing.T, l *lab.Lab, edge, child string) int {
	t.Helper()
	return signal(t, l, edge, child, syscall.SIGKILL)
}

// signal sends a signal to a child of an edge's agent and returns its pid.
func signal(t *testing.T, l *lab.Lab, edge, child string, s syscall.Signal) int {
	t.Helper()
	for _, p := range status(t, l, edge).Processes {
		if p.Name == child && p.Pid > 0 {
			if err := syscall.Kill(p.Pid, s); err != nil {
				t.Fatal(err)
			}
			return p.Pid
		}
	}
	t.Fatalf("no %s process at %s", child, edge)
	return 0
}

// restarted waits until a child of an edge's agent runs with another pid.
func restarted(t *testing.T, l *lab.Lab, edge, child string, old int) {
	t.Helper()
	eventually(t, 15*time.Second, child+" of "+edge+" runs again", func() bool {
		s, err := agentStatus(l, edge)
		if err != nil {
			return false
		}
		for _, p := range s.Processes {
			if p.Name == child && p.Pid > 0 && p.Pid != old && p.State == "running" {
				return true
			}
		}
		return false
	})
}

// eventually polls until cond holds.
func eventually(t *testing.T, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// mix is data of which a third each is pseudo-random, text and repeats.
func mix(n int, seed uint64) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	r := rand.NewChaCha8(key)
	out := make([]byte, n)
	_, _ = r.Read(out[:n/3])
	words := strings.Fields("tunnel site edge link segment stream history workload service owner claim frame packet route mark")
	src := rand.New(r)
	for i := n / 3; i < 2*n/3; {
		i += copy(out[i:2*n/3], words[src.IntN(len(words))]+fmt.Sprintf(" %d ", src.IntN(100000)))
	}
	for i := 2 * n / 3; i < n; {
		i += copy(out[i:], out[:min(65536, max(1, n/3))])
	}
	return out
}

// TestE2EPaths shows the layer-2 and layer-3 path between hosts that know
// nothing of stitch.
func TestE2EPaths(t *testing.T) {
	l := world(t, wan100)
	run(t, l, "h1", "ping", "-c3", "-i0.2", "-W2", "10.2.0.10")
	run(t, l, "h2", "ping", "-c3", "-i0.2", "-W2", "10.1.0.10")
	run(t, l, "s1", "ping", "-c3", "-i0.2", "-W2", "-s1472", "-Mdo", "10.1.0.12") // ARP crosses, 1500-byte frames cross
	run(t, l, "s2", "ping", "-c3", "-i0.2", "-W2", "-s1472", "-Mdo", "10.1.0.11")
	run(t, l, "s1", "ping", "-6", "-c3", "-i0.2", "-W2", "-s1452", "-Mdo", "fd00:1::12") // neighbour discovery
	run(t, l, "s2", "ping", "-c2", "-i0.2", "-W2", "10.1.0.1")                           // its gateway, here
	run(t, l, "s2", "ping", "-c2", "-i0.2", "-W2", "10.1.1.20")                          // routed, at the other site
	segmentUDP(t, l)
	for _, way := range [][2]string{{"s1", "10.1.0.12:4000"}, {"h1", "10.2.0.10:80"}, {"h1", "10.2.0.10:4000"}} {
		host := map[string]string{"10.1.0.12:4000": "s2", "10.2.0.10:80": "h2", "10.2.0.10:4000": "h2"}[way[1]]
		echo(t, l, way[0], host, way[1], mix(1<<20, 7))
	}
	if n := streamsTotal(t, l, "e1"); n != 1 {
		t.Errorf("%d connections were split at e1, want 1: only 10.2.0.10:4000 is listed", n)
	}
	flows(t, l)
}

// flows has an open connection of each kind, and wants both edges to say how it
// is carried and why.
func flows(t *testing.T, l *lab.Lab) {
	open := map[string]string{}
	for _, addr := range []string{"10.2.0.10:80", "10.2.0.10:4000"} {
		go echoAll(listen(t, l, "h2", addr))
		c := mustDial(t, l, "h1", addr)
		if err := exchangeLine(c, "to "+addr); err != nil {
			t.Fatal(err)
		}
		open[addr] = c.LocalAddr().String()
	}
	const datagram = "10.2.0.10:9999"
	ns, err := l.Namespace("h1")
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() error {
		c, err := net.Dial("udp", datagram)
		if err != nil {
			return err
		}
		defer c.Close()
		open[datagram] = c.LocalAddr().String()
		_, err = c.Write([]byte("is counted, though nobody hears it"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		edge, to, side, carried string
		reason                  stream.Reason
	}{
		{"e1", "10.2.0.10:4000", "near", "full", 0},
		{"e2", "10.2.0.10:4000", "far", "full", 0},
		{"e1", "10.2.0.10:80", "near", "packets", stream.NoStreamRule},
		{"e2", "10.2.0.10:80", "far", "packets", stream.BegunThere},
		{"e1", datagram, "near", "packets", stream.NotTCP},
	} {
		var list stream.FlowList
		out := run(t, l, c.edge, programPath(t), "flows", "--json", "--run-dir", filepath.Join(l.Options().Dir, c.edge))
		if err := json.Unmarshal([]byte(out), &list); err != nil || list.Incomplete != "" {
			t.Fatal(err, list.Incomplete)
		}
		var found []stream.Flow
		for _, f := range list.Flows {
			if f.Dst.String() == c.to && f.Src.String() == open[c.to] {
				found = append(found, f)
			}
		}
		if len(found) != 1 || found[0].Side != c.side || found[0].Carried != c.carried || found[0].Reason != c.reason {
			t.Errorf("%s: to %s: %+v, want %s, %s, reason %d", c.edge, c.to, found, c.side, c.carried, c.reason)
		}
	}
}

// programPath is the program under test.
func programPath(t *testing.T) string {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// segmentUDP sends datagrams of every size around the fragmentation limit.
func segmentUDP(t *testing.T, l *lab.Lab) {
	t.Helper()
	var pc net.PacketConn
	ns, _ := l.Namespace("s2")
	if err := ns.Do(func() (err error) { pc, err = net.ListenPacket("udp", "10.1.0.12:9000"); return }); err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	var c net.Conn
	ns, _ = l.Namespace("s1")
	if err := ns.Do(func() (err error) { c, err = net.Dial("udp", "10.1.0.12:9000"); return }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 2000)
	for _, n := range []int{1, 64, 1357, 1358, 1359, 1370, 1400, 1471, 1472} {
		want := mix(n, uint64(n))
		if _, err := c.Write(want); err != nil {
			t.Fatal(err)
		}
		_ = pc.SetReadDeadline(time.Now().Add(3 * time.Second))
		got, _, err := pc.ReadFrom(buf)
		if err != nil || !bytes.Equal(buf[:got], want) {
			t.Fatalf("datagram of %d bytes: got %d, %v", n, got, err)
		}
	}
}

// echoAll answers every connection with what it sends, until ln is closed.
func echoAll(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() { _, _ = io.Copy(c, c); c.Close() }()
	}
}

// echo sends data through a connection and wants it back, then a clean end.
func echo(t *testing.T, l *lab.Lab, from, to, addr string, data []byte) {
	t.Helper()
	ln := listen(t, l, to, addr)
	go echoAll(ln)
	c := mustDial(t, l, from, addr)
	go func() {
		_, _ = c.Write(data)
		_ = c.CloseWrite()
	}()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("echo %s -> %s: %d of %d bytes, %v", from, addr, len(got), len(data), err)
	}
	ln.Close()
}

// streamsTotal is the number of connections an edge has split.
func streamsTotal(t *testing.T, l *lab.Lab, edge string) (n uint64) {
	t.Helper()
	for _, p := range streamStats(t, l, edge).Peers {
		n += p.Total
	}
	return n
}

// bulk is how many bytes TestE2EStreams sends each way.
func bulk() int {
	if os.Getenv("STITCH_BULK") != "" {
		return 1 << 30
	}
	return 48 << 20
}

// TestE2EStreams moves data both ways at once through one split connection.
func TestE2EStreams(t *testing.T) {
	l := world(t, lab.Options{Rate: 400e6, RTT: 20 * time.Millisecond, Streams: true, History: "256MiB"})
	there, back := mix(bulk(), 1), mix(bulk(), 2)
	ln := listen(t, l, "h2", "10.2.0.10:4001")
	type end struct {
		sum [32]byte
		err error
	}
	far := make(chan end, 1)
	go func() {
		c, err := ln.AcceptTCP()
		if err != nil {
			far <- end{err: err}
			return
		}
		far <- func() end { s, err := both(c, back); return end{s, err} }()
	}()
	start := time.Now()
	near, err := both(mustDial(t, l, "h1", "10.2.0.10:4001"), there)
	if err != nil {
		t.Fatal("near:", err)
	}
	f := <-far
	if f.err != nil {
		t.Fatal("far:", f.err)
	}
	if near != sha256.Sum256(back) || f.sum != sha256.Sum256(there) {
		t.Fatal("the data changed on the way")
	}
	p := streamStats(t, l, "e1").Peers[0]
	t.Logf("%d MiB each way in %v, out: %d bytes as %d on the wire", bulk()>>20, time.Since(start).Round(time.Millisecond), p.BytesOut, p.WireOut)
	if p.Total != 1 || p.WireOut*10 > p.BytesOut*7 {
		t.Errorf("%d streams, %d bytes crossed as %d: want one stream, and a third of the bytes (the repeats) all but gone", p.Total, p.BytesOut, p.WireOut)
	}
}

// both writes data and reads until the other end's FIN.
func both(c *net.TCPConn, data []byte) (sum [32]byte, err error) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Minute))
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		wrote <- errors.Join(err, c.CloseWrite())
	}()
	h := sha256.New()
	if _, err := io.Copy(h, c); err != nil {
		return sum, err
	}
	return [32]byte(h.Sum(nil)), <-wrote
}
