package tunnel_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stitch/scripts/traffic"
	"stitch/tunnel/lab"
	"stitch/tunnel/wg"
)

// across sends data over TCP from one host to another, checks what arrives and
// returns the bytes on the WAN. At most pace bytes a second are sent; 0: any.
func across(t *testing.T, l *lab.Lab, from, to, addr string, data []byte, pace int) uint64 {
	t.Helper()
	ln := listen(t, l, to, addr)
	defer ln.Close()
	before := wanBytes(t, l)
	got := make(chan [32]byte, 1)
	go func() {
		defer close(got)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		h := sha256.New()
		if _, err := io.Copy(h, c); err == nil {
			got <- [32]byte(h.Sum(nil))
		}
	}()
	c := mustDial(t, l, from, addr)
	if pace > 0 {
		pacing(t, c, pace)
	}
	_ = c.SetDeadline(time.Now().Add(90 * time.Second))
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if sum, ok := <-got; !ok || sum != sha256.Sum256(data) {
		t.Fatalf("%s to %s: other bytes arrived, or none", from, to)
	}
	return wanBytes(t, l) - before
}

func pacing(t *testing.T, c *net.TCPConn, rate int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, rate) })
	}
	if err != nil {
		t.Fatal(err)
	}
}

// packStats are the counters of an edge's link.
func packStats(t *testing.T, l *lab.Lab, edge string) (s wg.Stats) {
	t.Helper()
	if err := json.Unmarshal(status(t, l, edge).Links[0].Detail, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// packOff switches packing off at one edge; the other must follow.
func packOff(host, toml string) string {
	if host == "e2" {
		return "offload_off = [\"pack\"]\n" + toml
	}
	return toml
}

// paths of TCP that is not split, routed and on the segment.
var packPaths = []struct{ name, from, to, addr string }{
	{"link", "h1", "h2", "10.2.0.10:7001"}, {"segment", "s1", "s2", "10.1.0.12:7001"},
}

// TestE2EPack: what compresses crosses in less than half of its bytes, on the
// link and on the segment, byte by byte as it was; what does not crosses as it
// would without. The control case is a pair one end of which does not want it.
func TestE2EPack(t *testing.T) {
	wan := lab.Options{Rate: 100e6, RTT: 40 * time.Millisecond}
	n := 8 << 20
	on := world(t, wan)
	eventually(t, 10*time.Second, "the peer takes units", func() bool { return packStats(t, on, "e1").Pack.Peer })
	for _, p := range packPaths {
		got := across(t, on, p.from, p.to, p.addr, traffic.Log(n), 0)
		t.Logf("%s: %d bytes of text in %d on the WAN", p.name, n, got)
		if got > uint64(n)/2 {
			t.Errorf("%s: %d bytes of text took %d on the WAN, want half at most", p.name, n, got)
		}
	}
	before := packStats(t, on, "e1")
	if before.Pack.Units == 0 || packStats(t, on, "e2").Pack.Received == 0 {
		t.Errorf("no units: %+v", before.Pack)
	}
	random := across(t, on, "h1", "h2", "10.2.0.10:7001", traffic.Noise(n), 4e6)
	after := packStats(t, on, "e1")
	t.Logf("%+v, drops %+v, reassembly %+v", after.Pack, after.Drops, packStats(t, on, "e2").Reassembly)
	if after.Pack.Encrypted == before.Pack.Encrypted || after.Pack.Units != before.Pack.Units {
		t.Errorf("random data was not taken for encrypted, or packed: %+v", after.Pack)
	}

	wan.Edit = packOff
	off := world(t, wan)
	text := across(t, off, "h1", "h2", "10.2.0.10:7001", traffic.Log(n), 0)
	plain := across(t, off, "h1", "h2", "10.2.0.10:7001", traffic.Noise(n), 4e6)
	if text < uint64(n) {
		t.Errorf("off, %d bytes of text took %d on the WAN: who saved them?", n, text)
	}
	for _, e := range []string{"e1", "e2"} {
		if s := packStats(t, off, e).Pack; s.Peer || s.Units > 0 || s.Received > 0 {
			t.Errorf("%s, off: %+v", e, s)
		}
	}
	t.Logf("%d random bytes: %d on the WAN, off %d", n, random, plain)
	// No unit was made, so the packets are the same; how many acknowledgements
	// and repetitions TCP needs is not, from run to run.
	if float64(random) > 1.02*float64(plain) {
		t.Errorf("%d random bytes took %d on the WAN, %d without", n, random, plain)
	}
}

// TestE2EPackLoss: with 1 % loss and reordering of what is under way everything
// arrives as it was.
func TestE2EPackLoss(t *testing.T) {
	l := world(t, lab.Options{Rate: 100e6, RTT: 10 * time.Millisecond, Loss: 0.01})
	eventually(t, 20*time.Second, "the peer takes units", func() bool { return packStats(t, l, "e1").Pack.Peer })
	for _, p := range packPaths {
		across(t, l, p.from, p.to, p.addr, traffic.Log(4<<20), 0)
	}
	s := packStats(t, l, "e1")
	if s.Pack.Units == 0 {
		t.Errorf("no units: %+v", s.Pack)
	}
	if d := packStats(t, l, "e2").Drops; d.Unit > 0 || d.Foreign > 0 {
		t.Errorf("drops %+v", d)
	}
	t.Log(strings.TrimSpace(fmt.Sprintf("%+v", s.Pack)))
}

// packHistory gives both edges a history of packets, filled by one host of each.
func packHistory(host, toml string) string {
	from := `["10.1.0.10/32", "10.1.0.11/32"]`
	if host == "e2" {
		from = `["10.2.0.10/32"]`
	}
	return strings.Replace(toml, "[[peer]]\n", "[[peer]]\npacket_history = \"64MiB\"\npacket_history_from = "+from+"\n", 1)
}

// TestE2EPackHistory: what crossed once crosses again in a tenth of its bytes, on
// the link and on the segment, though nothing compresses it: the first time, which
// is the control, it takes all of them. A machine that is busy may give up the
// history for a while, so there is more than one second time.
func TestE2EPackHistory(t *testing.T) {
	n := 8 << 20
	l := world(t, lab.Options{Rate: 100e6, RTT: 40 * time.Millisecond, Edit: packHistory})
	eventually(t, 10*time.Second, "both keep a history", func() bool { return packStats(t, l, "e1").Pack.History })
	for _, p := range packPaths {
		data := traffic.Noise(n)
		first := across(t, l, p.from, p.to, p.addr, data, 0)
		again := across(t, l, p.from, p.to, p.addr, data, 0)
		for try := 0; try < 4 && again > uint64(n)/10; try++ {
			time.Sleep(time.Second)
			again = across(t, l, p.from, p.to, p.addr, data, 0)
		}
		s := packStats(t, l, "e1")
		t.Logf("%s: %d random bytes in %d on the WAN, then in %d; %+v, dropped there %+v", p.name, n, first, again, s.Pack, packStats(t, l, "e2").Drops)
		if again > uint64(n)/10 || first < uint64(n) {
			t.Errorf("%s: %d bytes took %d the first time, and %d again", p.name, n, first, again)
		}
	}
}
