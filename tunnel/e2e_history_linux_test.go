package tunnel_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"stitch/dedupe"
	"stitch/tunnel/lab"
)

// transfer sends data from h1 to h2 and returns how many bytes crossed the WAN
// meanwhile, all kinds of packets counted.
func transfer(t *testing.T, l *lab.Lab, port string, data []byte) uint64 {
	t.Helper()
	before := wanBytes(t, l)
	ln := listen(t, l, "h2", "10.2.0.10:"+port)
	defer ln.Close()
	sum := make(chan [32]byte, 1)
	go func() {
		h := sha256.New()
		if c, err := ln.AcceptTCP(); err == nil {
			_, _ = io.Copy(h, c)
			c.Close()
		}
		sum <- [32]byte(h.Sum(nil))
	}()
	c := mustDial(t, l, "h1", "10.2.0.10:"+port)
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Fatal(err)
	}
	if <-sum != sha256.Sum256(data) {
		t.Fatal("the data changed on the way")
	}
	return wanBytes(t, l) - before
}

func wanBytes(t *testing.T, l *lab.Lab) uint64 {
	t.Helper()
	n, err := l.WAN().Counters(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return n.Bytes()
}

// seed runs `stitch seed` at an edge and returns what it printed.
func seed(t *testing.T, l *lab.Lab, edge, file string) string {
	t.Helper()
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(bin, "seed", "--run-dir", filepath.Join(l.Options().Dir, edge), file).CombinedOutput()
	if err != nil {
		t.Fatalf("seed at %s: %v\n%s", edge, err, out)
	}
	return string(out)
}

// TestE2ESeed: an image that both sites have seeded crosses for next to
// nothing. Control: one that nobody has seeded.
func TestE2ESeed(t *testing.T) {
	l := world(t, wan100)
	image, other := mix(24<<20, 11), mix(24<<20, 12)
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := seed(t, l, "e1", file); !strings.Contains(out, "pieces are not known at dc2") {
		t.Errorf("first site: %s", out)
	}
	before := wanBytes(t, l)
	out := seed(t, l, "e2", file)
	if !regexp.MustCompile(`: (\d+) pieces of 1 MiB, \d+ of them at both sites, \d+ in the history\n$`).MatchString(out) {
		t.Errorf("second site: %s", out) // a part that is missing would be a second line
	}
	if n := wanBytes(t, l) - before; n > 64<<10 {
		t.Errorf("seeding took %d bytes on the WAN", n)
	}
	seeded, control := transfer(t, l, "4005", image), transfer(t, l, "4006", other)
	t.Logf("24 MiB: %d bytes on the WAN after the seed, %d without", seeded, control)
	if seeded*50 > uint64(len(image)) || control < 10*seeded {
		t.Errorf("24 MiB took %d bytes after the seed, %d without", seeded, control)
	}
}

// keeping gives both agents' histories directories in dir.
func keeping(dir, memory string) lab.Options {
	o := wan100
	o.Edit = func(edge, text string) string {
		return strings.Replace(text, "[history]\n", fmt.Sprintf("[history]\ndir = %q\nmemory = %q\n", filepath.Join(dir, edge), memory), 1)
	}
	return o
}

// kept waits until an edge's history has all that was received or sent, n bytes
// at least, on disk.
func kept(t *testing.T, l *lab.Lab, edge string, n int64) {
	t.Helper()
	eventually(t, 30*time.Second, "the history of "+edge+" is on disk", func() bool {
		return history(t, l, edge).Store.Disk >= n
	})
}

// history describes the history of the lab's domain at an edge.
func history(t *testing.T, l *lab.Lab, edge string) (s dedupe.Stats) {
	t.Helper()
	for _, p := range streamStats(t, l, edge).Peers {
		for _, d := range p.Domains {
			if d.Domain == "migration" {
				s = d.History
			}
		}
	}
	return s
}

// again kills the stream process of some edges and waits until streams are
// split and the histories are in step again.
func again(t *testing.T, l *lab.Lab, edges ...string) {
	t.Helper()
	for _, e := range edges {
		restarted(t, l, e, "stream", kill(t, l, e, "stream"))
	}
	for _, e := range []string{"e1", "e2"} {
		eventually(t, 20*time.Second, "streams of "+e+" are ready again, the history is loaded", func() bool {
			peers := streamStats(t, l, e).Peers
			return len(peers) == 1 && peers[0].Ready > 0 && peers[0].Domains[0].InStep && peers[0].Domains[0].History.Store.Loading == 0
		})
	}
}

// TestE2EKept: what crossed before is still known after kill -9 of either
// stream process, or of both. Control: in memory only it is not.
func TestE2EKept(t *testing.T) {
	data := mix(24<<20, 21)
	t.Run("dir", func(t *testing.T) {
		l := world(t, keeping(t.TempDir(), "16MiB"))
		first := transfer(t, l, "4005", data)
		for i, edges := range [][]string{{"e1"}, {"e2"}, {"e1", "e2"}} {
			for _, e := range []string{"e1", "e2"} {
				kept(t, l, e, int64(len(data)-1<<20))
			}
			again(t, l, edges...)
			n := transfer(t, l, fmt.Sprint(4006+i), data)
			t.Logf("%v killed: 24 MiB took %d bytes on the WAN, %d the first time", edges, n, first)
			if n*10 > first { // what was being written is lost
				t.Errorf("%v killed: 24 MiB took %d bytes on the WAN, %d the first time", edges, n, first)
			}
		}
		for _, e := range []string{"e1", "e2"} {
			if s := status(t, l, e); len(s.Alarms) > 0 {
				t.Errorf("%s: %v", e, s.Alarms)
			}
		}
	})
	t.Run("control", func(t *testing.T) {
		l := world(t, wan100)
		first := transfer(t, l, "4005", data)
		if n := transfer(t, l, "4006", data); n*20 > first {
			t.Errorf("again without a kill: %d bytes on the WAN, %d the first time", n, first)
		}
		again(t, l, "e2")
		if n := transfer(t, l, "4007", data); n*2 < first {
			t.Errorf("in memory only, killed: %d bytes on the WAN, %d the first time", n, first)
		}
	})
}

// TestE2ELost: a site that has lost its store goes on cold; nobody sees an
// error, and the operator sees no alarm about what is no fault.
func TestE2ELost(t *testing.T) {
	data := mix(12<<20, 31)
	dir := t.TempDir()
	l := world(t, keeping(dir, "16MiB"))
	first := transfer(t, l, "4005", data)
	kept(t, l, "e2", int64(len(data)-1<<20))
	if err := os.RemoveAll(filepath.Join(dir, "e2")); err != nil {
		t.Fatal(err)
	}
	again(t, l, "e2")
	cold := transfer(t, l, "4006", data)
	warm := transfer(t, l, "4007", data)
	t.Logf("first %d bytes, after the loss %d, then %d", first, cold, warm)
	if cold*2 < first || warm*20 > first {
		t.Errorf("first %d bytes, after the loss %d, then %d", first, cold, warm)
	}
	if p := streamStats(t, l, "e1").Peers[0]; p.Resent > 0 {
		t.Errorf("blocks were asked for again: %+v", p)
	}
}

// TestE2EDiskFull: a disk that is full is an alarm, and traffic goes on.
func TestE2EDiskFull(t *testing.T) {
	data := mix(24<<20, 41)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=6m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	o := wan100
	o.Edit = func(edge, text string) string {
		if edge == "e2" {
			text = strings.Replace(text, "[history]\n", fmt.Sprintf("[history]\ndir = %q\nmemory = \"64MiB\"\n", filepath.Join(dir, "history")), 1)
		}
		return text
	}
	l := world(t, o)
	first := transfer(t, l, "4005", data)
	eventually(t, 20*time.Second, "an alarm about the disk", func() bool {
		for _, a := range status(t, l, "e2").Alarms {
			if strings.Contains(a, "history of domain migration") {
				t.Log(a)
				return true
			}
		}
		return false
	})
	if n := transfer(t, l, "4006", data); n*20 > first {
		t.Errorf("what is in memory is not used: %d bytes on the WAN, %d the first time", n, first)
	}
	if s := status(t, l, "e1"); len(s.Alarms) > 0 {
		t.Errorf("the other site: %v", s.Alarms)
	}
}
