package tunnel_test

import (
	"context"
	"crypto/sha256"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

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
