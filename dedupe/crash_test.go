package dedupe

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// mirrored checks that what one side takes for known to the other is there, byte
// for byte, and returns how much there is. Everything is in memory and loaded.
func mirrored(t *testing.T, tx, rx *ring) (known int) {
	t.Helper()
	var a, b [pageSize]byte
	for pos := tx.tail() / pageSize * pageSize; pos < tx.head.Load(); pos += pageSize {
		n := word(tx.wordAt(pos).Load()).acked()
		if n == 0 {
			continue
		}
		if held := rx.held(pos, word(rx.wordAt(pos).Load())); held < n {
			t.Fatalf("position %d: %d bytes are taken for known, the other side holds %d", pos, n, held)
		}
		if !tx.read(a[:n], pos) || !rx.read(b[:n], pos) || !bytes.Equal(a[:n], b[:n]) {
			t.Fatalf("position %d: the two sides differ", pos)
		}
		known += n
	}
	return known
}

// TestPowerCuts cuts both sides' power at random moments: they open, agree on
// what is the same, and no wrong byte is delivered (D-07). The long form is 300
// cuts.
func TestPowerCuts(t *testing.T) {
	known, damaged := 0, int64(0)
	total := rounds(25, 300)
	for seed := range uint64(total) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 3))
			a, b := newAgent(t, both), newAgent(t, both)
			meet(t, a.h, b.h)
			src := newSource(seed, 1<<20)
			for range 1 + r.IntN(8) {
				exchange(t, a, b, src.block(r.IntN(600_000)+1))
				exchange(t, b, a, src.block(r.IntN(300_000)+1))
				time.Sleep(time.Duration(r.IntN(4000)) * time.Millisecond)
			}
			for _, x := range []*agent{a, b} {
				if r.IntN(3) > 0 {
					left := x.disk.Crash(r)
					_ = x.h.Close()
					x.disk = left
					x.open()
				}
				defer x.close()
			}
			meet(t, a.h, b.h)
			a.loaded()
			b.loaded()
			if seed%2 == 0 { // else misses are repaired
				if a.store().Damaged+b.store().Damaged == 0 {
					known += mirrored(t, a.h.tx, b.h.rx) + mirrored(t, b.h.tx, a.h.rx)
				}
			}
			damaged += a.store().Damaged + b.store().Damaged
			exchange(t, a, b, src.pool)
			exchange(t, b, a, src.pool)
		})
	}
	t.Logf("%d cuts, %d bytes known to both after them, %d bytes damaged", total, known, damaged)
	if known == 0 || damaged == 0 {
		t.Error("the cuts were too harsh or too mild to show anything")
	}
}

// child is the environment variable that makes TestChild the victim.
const child = "STITCH_TEST_STORES"

func openPair(t *testing.T, dir string) (a, b *agent) {
	t.Helper()
	one := func(name string) *agent {
		h, err := Open(Config{Size: 8 << 20, Dir: filepath.Join(dir, name)})
		if err != nil {
			t.Fatal(err)
		}
		return &agent{t: t, side: side{h: h}}
	}
	return one("a"), one("b")
}

// TestChild writes to two stores until it is killed; see TestKill.
func TestChild(t *testing.T) {
	dir := os.Getenv(child)
	if dir == "" {
		t.Skip("the victim of TestKill, not a test of its own")
	}
	a, b := openPair(t, dir)
	meet(t, a.h, b.h)
	fmt.Println("ready")
	src := newSource(uint64(os.Getpid()), 4<<20)
	one, two := a.h.NewWriter(WriterOptions{}), b.h.NewWriter(WriterOptions{})
	for n := uint64(1); ; n++ {
		put(t, one, b.h, src.block(100_000), n)
		put(t, two, a.h, src.block(50_000), n)
	}
}

// put sends one block and has it acknowledged.
func put(t *testing.T, w *Writer, to *History, b []byte, n uint64) {
	blk, err := w.Put(b)
	if err == nil {
		blk.Tokens = nil
		err = to.NewReader().Put(b, &blk)
	}
	if err == nil {
		err = w.Acked(n)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestKill kills a process that writes to its stores, again and again: they
// open clean, nothing is damaged, and both sides hold the same (P-03, G-05).
// The long form is 500 kills.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	dir := t.TempDir()
	known := 0
	for range rounds(12, 500) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.v")
		cmd.Env = append(os.Environ(), child+"="+dir)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "ready"; {
		}
		time.Sleep(rand.N(300 * time.Millisecond)) // any moment will do
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed

		a, b := openPair(t, dir)
		meet(t, a.h, b.h)
		a.loaded()
		b.loaded()
		for _, s := range []StoreStats{a.store(), b.store()} {
			if s.Damaged > 0 || len(s.Alarms) > 0 || s.State != "open" {
				t.Fatalf("after a kill: %+v", s)
			}
		}
		known = max(known, mirrored(t, a.h.tx, b.h.rx)+mirrored(t, b.h.tx, a.h.rx))
		a.close()
		b.close()
	}
	if t.Logf("at most %d bytes were known to both sides after a kill", known); known < 1<<20 {
		t.Error("kills leave nothing")
	}
}
