package tunnel_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"stitch/tunnel/control"
	"stitch/tunnel/divert"
	"stitch/tunnel/lab"
	"stitch/tunnel/stream"
)

// bridged is the lab with rules for segment 100: s1 at one site, s2 at the other,
// fixed hosts of one subnet.
func bridged(o lab.Options) lab.Options {
	o.Streams = true
	o.Edit = func(edge, toml string) string {
		peer := map[string]string{"e1": "dc2", "e2": "dc1"}[edge]
		from := strings.Index(toml, "[[workload]]\nname = \"s2\"")
		to := strings.Index(toml[from:], "[[service]]") + from
		return toml[:from] + toml[to:] + fmt.Sprintf(`
[[stream]]
peer = %[1]q
segment = 100
to = ["10.1.0.0/24", "fd00:1::/64"]
ports = ["4000-5999"]
domain = "migration"

[[dial]]
peer = %[1]q
segment = 100
to = ["10.1.0.0/24", "fd00:1::/64"]
ports = ["4000-4999"]
domain = "migration"
`, peer)
	}
	return o
}

// divertStats are the counters of what an edge takes out of its segments.
func divertStats(t *testing.T, l *lab.Lab, edge string) (out divert.Stats) {
	t.Helper()
	if err := json.Unmarshal(status(t, l, edge).Divert, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// bridgedWorld starts it.
func bridgedWorld(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	l := world(t, bridged(o))
	for _, e := range []string{"e1", "e2"} {
		eventually(t, 10*time.Second, "segments of "+e+" are served", func() bool { return divertStats(t, l, e).Connected })
	}
	return l
}

// Addresses and MACs of the two hosts.
const (
	s1MAC, s2MAC = "02:53:54:01:00:11", "02:53:54:01:00:12"
	s1IP, s2IP   = "10.1.0.11", "10.1.0.12"
	s1IP6, s2IP6 = "fd00:1::11", "fd00:1::12"
)

// TestE2EBridged: connections between two hosts of one subnet are split, begun at
// either end, by IPv4 and IPv6; both ends see each other's MAC, address and port;
// what was sent before hardly crosses.
func TestE2EBridged(t *testing.T) {
	l := bridgedWorld(t, wan100)
	seen := frames(t, l)
	data := mix(6<<20, 7)
	for _, c := range []struct{ from, to, src, dst string }{
		{"s1", "s2", s1IP, s2IP}, {"s2", "s1", s2IP, s1IP}, {"s1", "s2", s1IP6, s2IP6},
	} {
		near := map[string]string{"s1": "e1", "s2": "e2"}[c.from]
		before, wire := streamsTotal(t, l, near), wanBytes(t, l)
		ln := listen(t, l, c.to, netip.AddrPortFrom(netip.MustParseAddr(c.dst), 4000).String())
		got := make(chan string, 1)
		go func() {
			server, err := ln.AcceptTCP()
			if err != nil {
				got <- err.Error()
				return
			}
			defer server.Close()
			h := sha256.New()
			_, err = io.Copy(io.MultiWriter(h, server), server)
			got <- fmt.Sprintf("%v %x %v", server.RemoteAddr(), h.Sum(nil), err)
		}()
		client := mustDial(t, l, c.from, ln.Addr().String())
		local := client.LocalAddr()
		back, err := both(client, data)
		want := fmt.Sprintf("%v %x <nil>", local, sha256.Sum256(data))
		if server := <-got; err != nil || back != sha256.Sum256(data) || server != want || local.(*net.TCPAddr).IP.String() != c.src {
			t.Errorf("%s to %s: client %v, %v; the server saw %s, want %s", c.from, c.to, local, err, server, want)
		}
		ln.Close()
		if n := streamsTotal(t, l, near); n != before+1 {
			t.Errorf("%s to %s: %d connections were split at %s, want one", c.from, c.to, n-before, near)
		}
		wire = wanBytes(t, l) - wire
		t.Logf("%s to %s: %d bytes there and back, %d on the WAN", c.from, c.to, len(data), wire)
		if c.dst == s2IP6 && wire*20 > uint64(len(data)) { // the same bytes as with IPv4
			t.Errorf("what had been sent crossed again as %d bytes of %d", wire, len(data))
		}
	}
	seen()
	for host, want := range map[string]string{"s1": s2IP + " dev eth0 lladdr " + s2MAC, "s2": s1IP + " dev eth0 lladdr " + s1MAC} {
		if out := run(t, l, host, "ip", "neigh"); !strings.Contains(out, want) {
			t.Errorf("%s: no %q in\n%s", host, want, out)
		}
	}
	bridgedPolicy(t, l)
}

// frames looks at what both hosts get, until the function it returns is called: all
// TCP of the other's address must be from the other's MAC, and for this one.
func frames(t *testing.T, l *lab.Lab) func() {
	t.Helper()
	stop := make(map[string]func())
	file := func(host string) string { return filepath.Join(t.TempDir(), host+".pcap") }
	files := map[string]string{"s1": file("s1"), "s2": file("s2")}
	for host, f := range files {
		stop[host] = sniff(t, l, host, "eth0", f)
	}
	return func() {
		for host, f := range files {
			stop[host]()
			own, other, ip, ip6 := s1MAC, s2MAC, s2IP, s2IP6
			if host == "s2" {
				own, other, ip, ip6 = s2MAC, s1MAC, s1IP, s1IP6
			}
			filter := fmt.Sprintf("tcp and (src host %s or src host %s)", ip, ip6)
			all := packets(t, f, filter)
			if wrong := packets(t, f, fmt.Sprintf("%s and not (ether src %s and ether dst %s)", filter, other, own)); all < 100 || wrong > 0 {
				t.Errorf("%s: %d of %d packets had wrong MACs", host, wrong, all)
			}
		}
	}
}

// packets counts those of a capture that match.
func packets(t *testing.T, file, filter string) int {
	t.Helper()
	out, err := exec.Command("tcpdump", "-n", "-r", file, filter).Output()
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(out, []byte("\n"))
}

// bridgedPolicy: a port without a rule, a port the peer does not dial, and a
// workload are not touched; an open connection is listed.
func bridgedPolicy(t *testing.T, l *lab.Lab) {
	newMachine(t, l) // the workload, at s1's site
	before, wire := streamsTotal(t, l, "e1")+streamsTotal(t, l, "e2"), wanBytes(t, l)
	echo(t, l, "s1", "s2", s2IP+":6000", mix(1<<20, 7)) // what has crossed before
	if wire = wanBytes(t, l) - wire; wire < 1<<20 {
		t.Errorf("a connection without a rule took %d bytes on the WAN: the counter counts something else", wire)
	}
	echo(t, l, "s1", "s2", s2IP+":5000", mix(1<<20, 8)) // no [[dial]] there
	ln := listenAt(t, lab.Namespace(l.Options().Name+"-app"), "10.1.0.50:4000")
	go echoAll(ln)
	c := mustDial(t, l, "s2", "10.1.0.50:4000")
	exchange(t, c)
	if n := streamsTotal(t, l, "e1") + streamsTotal(t, l, "e2"); n != before {
		t.Errorf("%d connections were split that must not be", n-before)
	}
	go echoAll(listen(t, l, "s2", s2IP+":4001"))
	c = mustDial(t, l, "s1", s2IP+":4001")
	exchange(t, c)
	for _, e := range []struct {
		edge, to, side, carried string
		reason                  stream.Reason
	}{
		{"e1", s2IP + ":4001", "near", "full", 0}, {"e2", s2IP + ":4001", "far", "full", 0},
		{"e1", s2IP + ":5000", "near", "packets", stream.NoDialRule}, {"e2", "10.1.0.50:4000", "near", "packets", stream.Mobile},
	} {
		var list stream.FlowList
		out := run(t, l, e.edge, programPath(t), "flows", "--json", "--run-dir", filepath.Join(l.Options().Dir, e.edge))
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(list.Flows, func(f stream.Flow) bool { return f.Dst.String() == e.to && f.Segment == 100 })
		if i < 0 || list.Flows[i].Side != e.side || list.Flows[i].Carried != e.carried || list.Flows[i].Reason != e.reason {
			t.Errorf("%s lists %+v, want one to %s as %s with reason %d", e.edge, list.Flows, e.to, e.carried, e.reason)
		}
	}
}

// listenAt returns a listener in a namespace.
func listenAt(t *testing.T, ns lab.Namespace, addr string) net.Listener {
	t.Helper()
	var ln net.Listener
	if err := ns.Do(func() (err error) { ln, err = net.Listen("tcp", addr); return }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// TestE2EBridgedFaithful compares with connections that cross as frames.
func TestE2EBridgedFaithful(t *testing.T) {
	l := bridgedWorld(t, wan100)
	verdictsOf(t, l, "s1", "s2", s2IP)
	some := scenes
	if os.Getenv("STITCH_LONG") == "" { // the rest is the same code, which TestE2EFaithful plays
		some = slices.DeleteFunc(slices.Clone(scenes), func(sc scene) bool { return sc.name == "single bytes" || sc.name == "zero window" })
	}
	compare(t, l, some, "s1", "s2", s2IP)
}

// TestE2EBridgedKills: the death of a stream process resets its connections at both
// ends, and new ones pass meanwhile and stay whole when it is back; the death of a
// link process resets none.
func TestE2EBridgedKills(t *testing.T) {
	l := bridgedWorld(t, wan100)
	go echoAll(listen(t, l, "s2", s2IP+":4000"))
	for _, edge := range []string{"e1", "e2"} {
		split := mustDial(t, l, "s1", s2IP+":4000")
		exchange(t, split)
		old, supervisor := processes(t, l, edge)
		if err := syscall.Kill(supervisor, syscall.SIGSTOP); err != nil { // else it starts another at once
			t.Fatal(err)
		}
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = split.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := split.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the client saw %v, want a reset", edge, err)
		}
		passed := mustDial(t, l, "s1", s2IP+":4000")
		exchange(t, passed)
		if err := syscall.Kill(supervisor, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		restarted(t, l, edge, "stream", old)
		eventually(t, 15*time.Second, "connections are split again", func() bool {
			before := streamsTotal(t, l, "e1")
			c := mustDial(t, l, "s1", s2IP+":4000")
			exchange(t, c)
			return streamsTotal(t, l, "e1") > before
		})
		exchange(t, passed)
	}
	for _, edge := range []string{"e1", "e2"} {
		split := mustDial(t, l, "s1", s2IP+":4000")
		exchange(t, split)
		old := kill(t, l, edge, "link")
		restarted(t, l, edge, "link", old)
		exchange(t, split)
		if st := divertStats(t, l, edge); st.Frames == 0 || st.Flows == 0 {
			t.Errorf("%s: %+v, want the connection to go on split", edge, st)
		}
	}
}

// TestE2EBridgedAgentDies kills all processes of an agent at once while connections within
// the segment are split, and starts the agent again: nothing of the old one is left in
// the way, both ends of the connections hear a reset as soon as they say something, the
// hosts go on knowing each other's MACs, and new connections are split. The control is
// that they were alive before.
func TestE2EBridgedAgentDies(t *testing.T) {
	l := bridgedWorld(t, wan100)
	ln := listen(t, l, "s2", s2IP+":4000")
	for _, edge := range []string{"e1", "e2"} {
		var ends []*net.TCPConn
		for range 5 {
			c := mustDial(t, l, "s1", s2IP+":4000")
			s, err := ln.AcceptTCP()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			ends = append(ends, c, s)
			done := make(chan struct{})
			go func() { _, _ = io.CopyN(s, s, int64(len(canary))); close(done) }()
			exchange(t, c)
			<-done
		}
		if st := divertStats(t, l, edge); st.Flows < 5 {
			t.Fatalf("%s: %+v: the connections are not split", edge, st)
		}
		devices := deviceNames(t, l, edge)
		killAgent(t, l, edge)
		startAgain(t, l, edge)
		if got := deviceNames(t, l, edge); got != devices {
			t.Errorf("%s: devices %s, before %s", edge, got, devices)
		}
		for i, c := range ends {
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			_, err := c.Write([]byte("is anybody there?"))
			if err == nil {
				_, err = c.Read(make([]byte, 1))
			}
			if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Errorf("%s died: end %d: %v, want a reset", edge, i, err)
			}
		}
		eventually(t, 20*time.Second, "connections are split again", func() bool {
			before := streamsTotal(t, l, "e1")
			c := mustDial(t, l, "s1", s2IP+":4000")
			s, err := ln.AcceptTCP()
			if err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = io.Copy(s, s); s.Close() }()
			exchange(t, c)
			c.Close()
			return streamsTotal(t, l, "e1") > before
		})
		for host, want := range map[string]string{"s1": s2IP + " dev eth0 lladdr " + s2MAC, "s2": s1IP + " dev eth0 lladdr " + s1MAC} {
			if out := run(t, l, host, "ip", "neigh"); !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", host, want, out)
			}
		}
	}
}

// deviceNames lists the devices of an edge.
func deviceNames(t *testing.T, l *lab.Lab, edge string) string {
	t.Helper()
	return run(t, l, edge, "sh", "-c", "ls /sys/class/net | sort | tr '\n' ' '")
}

// killAgent kills an edge's supervisor and its children.
func killAgent(t *testing.T, l *lab.Lab, edge string) {
	t.Helper()
	st := status(t, l, edge)
	killAll(t, &st, parentOf(t, st.Processes[0].Pid))
}

// killAll kills the processes of a status, and another, and waits until they are gone.
func killAll(t *testing.T, st *control.Status, other int) {
	t.Helper()
	pids := []int{other}
	for _, p := range st.Processes {
		pids = append(pids, p.Pid)
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL) // a child may have died with its parent
	}
	eventually(t, 10*time.Second, "the processes are gone", func() bool { return !slices.ContainsFunc(pids, alive) })
}

// alive reports whether a process runs. One that nobody has waited for does not, once the
// last of its threads has ended: until then it has its sockets.
func alive(pid int) bool {
	const threads = 17 // of the fields after the name
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	return err == nil && len(f) > threads && (f[0] != "Z" || f[threads] != "0" && f[threads] != "1")
}

// startAgain starts an edge's agent, and waits until its link and its streams are there.
func startAgain(t *testing.T, l *lab.Lab, edge string) {
	t.Helper()
	cmd := l.Command(edge, programPath(t), "up", filepath.Join(l.Options().Dir, edge+".toml"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	eventually(t, 20*time.Second, edge+" serves again", func() bool {
		st, err := agentStatus(l, edge)
		return err == nil && len(st.Links) == 1 && st.Links[0].State == "up" && strings.Contains(string(st.Divert), `"connected":true`)
	})
}

// TestE2EBridgedMoves: a host that a rule treats as fixed appears at the other site all
// the same. Its connections are reset, whoever began them: the host that stays hears it,
// neither agent has them any more, and the status says what to do. (What still stands
// where the host was is not told: its site knows by then that it is elsewhere.) The
// control is a connection to a host that stays, which goes on.
func TestE2EBridgedMoves(t *testing.T) {
	l := bridgedWorld(t, wan100)
	ended := map[string]chan error{}                                                             // of s2, which stays
	for _, c := range []struct{ from, to, dst string }{{"s1", "s2", s2IP}, {"s2", "s1", s1IP}} { // s1 will move
		before := streamsTotal(t, l, "e1") + streamsTotal(t, l, "e2")
		ln := listen(t, l, c.to, c.dst+":4000")
		client := mustDial(t, l, c.from, c.dst+":4000")
		server, err := ln.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		atClient, atServer := make(chan error, 1), make(chan error, 1)
		if ended[c.from+" to "+c.to] = atClient; c.to == "s2" {
			ended[c.from+" to "+c.to] = atServer
		}
		go func() { _, err := io.Copy(server, server); atServer <- err; server.Close() }()
		exchange(t, client)
		_ = client.SetDeadline(time.Time{})
		go func() { _, err := client.Read(make([]byte, 1)); atClient <- err }()
		if n := streamsTotal(t, l, "e1") + streamsTotal(t, l, "e2"); n != before+2 {
			t.Fatalf("%s to %s: %d streams, want one at each site", c.from, c.to, n-before)
		}
	}
	other := fixedHost(t, l, "h1", "10.1.0.21", "02:53:54:01:00:21")
	go echoAll(listenAt(t, other, "10.1.0.21:4000"))
	stays := mustDial(t, l, "s2", "10.1.0.21:4000")
	exchange(t, stays)
	for _, e := range []string{"e1", "e2"} {
		if a := moveAlarms(t, l, e); len(a) > 0 {
			t.Errorf("%s before the move: %q", e, a)
		}
	}
	clone := fixedHost(t, l, "h2", "10.1.0.11", s1MAC) // s1, at the other site
	if out, err := clone.Command(t.Context(), "ping", "-c", "3", "-i", "0.2", "-W", "1", s2IP).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for end, ch := range ended {
		select {
		case err := <-ch:
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: %v, want a reset", end, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: heard nothing of the move", end)
		}
	}
	for _, e := range []string{"e1", "e2"} {
		eventually(t, 10*time.Second, "only the control is left at "+e, func() bool { return streamStats(t, l, e).Open == 1 })
	}
	eventually(t, 5*time.Second, "the alarm", func() bool { return len(moveAlarms(t, l, "e2")) == 1 })
	t.Log(moveAlarms(t, l, "e2"))
	exchange(t, stays)
}

// fixedHost joins another host to the segment, by the bridge of h1 or h2.
func fixedHost(t *testing.T, l *lab.Lab, at, addr, mac string) lab.Namespace {
	t.Helper()
	name := l.Options().Name
	ns, port := lab.Namespace(name+"-x"+mac[15:]+at), "x"+mac[15:]
	for _, args := range []string{
		"netns add " + string(ns),
		"link add eth0 netns " + string(ns) + " address " + mac + " type veth peer name " + port + " netns " + name + "-" + at,
		"-n " + name + "-" + at + " link set " + port + " master br-vm up",
		"-n " + string(ns) + " address add " + addr + "/24 dev eth0",
		"-n " + string(ns) + " link set eth0 up",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", string(ns)).Run() })
	return ns
}

// moveAlarms are those about hosts that have moved.
func moveAlarms(t *testing.T, l *lab.Lab, edge string) []string {
	t.Helper()
	return slices.DeleteFunc(status(t, l, edge).Alarms, func(a string) bool { return !strings.Contains(a, "has moved") })
}

// TestE2EBridgedRate moves data that nothing repeats between two hosts of the segment, and
// between two that a router joins, through the same edges, in turns: carrying a segment's
// connections must not be another class of cost. It says rates and processor time.
func TestE2EBridgedRate(t *testing.T) {
	if os.Getenv("STITCH_LONG") == "" {
		t.Skip("a measurement: STITCH_LONG=1 runs it")
	}
	l := bridgedWorld(t, lab.Options{})
	const size = 300 << 20
	used := map[string]time.Duration{}
	for round := range 3 {
		for i, c := range []struct{ kind, from, to, addr string }{{"routed", "h1", "h2", "10.2.0.10:4000"}, {"bridged", "s1", "s2", s2IP + ":4000"}} {
			ln := listen(t, l, c.to, c.addr)
			taken := make(chan error, 1)
			go func() {
				s, err := ln.AcceptTCP()
				if err == nil {
					_, err = io.Copy(io.Discard, s)
					s.Close()
				}
				taken <- err
			}()
			conn := mustDial(t, l, c.from, c.addr)
			before, start := l.Processor("e1", "e2"), time.Now()
			noise := rand.NewChaCha8([32]byte{byte(round), byte(i)})
			if _, err := io.Copy(conn, io.LimitReader(noise, size)); err != nil {
				t.Fatal(err)
			}
			conn.CloseWrite()
			if err := <-taken; err != nil {
				t.Fatal(err)
			}
			took, cpu := time.Since(start), l.Processor("e1", "e2")-before
			ln.Close()
			used[c.kind] += cpu
			t.Logf("%s: %.0f Mbit/s, %.2f s of processor a GB", c.kind, size*8/took.Seconds()/1e6, cpu.Seconds()/size*1e9)
		}
	}
	if used["bridged"] > 3*used["routed"] {
		t.Errorf("bridged streams took %v of processor time, routed ones %v", used["bridged"], used["routed"])
	}
}

// processes are the pids of an edge's stream process and of its supervisor.
func processes(t *testing.T, l *lab.Lab, edge string) (child, supervisor int) {
	t.Helper()
	for _, p := range status(t, l, edge).Processes {
		if p.Name == "stream" && p.Pid > 0 {
			return p.Pid, parentOf(t, p.Pid)
		}
	}
	t.Fatalf("no stream process at %s", edge)
	return 0, 0
}

// parentOf reads the parent of a process.
func parentOf(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	n, err := strconv.Atoi(strings.Fields(rest)[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
