package dedupe

import (
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"stitch/dedupe/store"
	"stitch/dedupe/store/storetest"
)

// rounds is how often a test repeats: STITCH_LONG=1 asks for all.
func rounds(short, all int) int {
	if os.Getenv("STITCH_LONG") != "" {
		return all
	}
	return short
}

// agent is a side with a store.
type agent struct {
	side
	t    *testing.T
	disk *storetest.Disk
	c    Config
}

func newAgent(t *testing.T, c Config) *agent {
	a := &agent{t: t, disk: storetest.New(), c: c}
	a.open()
	return a
}

func (a *agent) open() {
	c := a.c
	c.Dir = "in memory" // so that check sees a store
	c, err := c.check()
	if err != nil {
		a.t.Fatal(err)
	}
	a.h = openOn(c, a.disk)
}

func (a *agent) close() {
	a.t.Helper()
	if err := a.h.Close(); err != nil {
		a.t.Error(err)
	}
}

// kill ends the process as a SIGKILL would: the disk stays as it is now.
func (a *agent) kill() {
	left := a.disk.Copy()
	_ = a.h.Close() // only ends its goroutines
	a.disk = left
}

// store is the store's statistics.
func (a *agent) store() StoreStats { return a.h.Stats().Store }

// exchange sends b one way in blocks, with acknowledgement, and returns how
// much of it was matched and how often a block was missed.
func exchange(t *testing.T, from, to *agent, b []byte) (matched, missed int) {
	t.Helper()
	c := dial(t, &from.side, &to.side)
	defer c.w.Close()
	for len(b) > 0 {
		n := min(len(b), 64<<10)
		matched += c.send(b[:n]).Matched
		if c.deliver() {
			missed++
		}
		c.ack()
		b = b[n:]
	}
	return matched, missed
}

// loaded waits until nothing is to be loaded any more.
func (a *agent) loaded() {
	a.t.Helper()
	for range 1000 {
		if a.store().Loading == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	a.t.Fatalf("%d bytes are still to be loaded", a.store().Loading)
}

var both = Config{Size: 16 << 20}

// TestRestart: whichever side restarts, and however it ended, what both sides
// have is found again in both directions; a side without its store makes both
// cold, without an error (D-02).
func TestRestart(t *testing.T) {
	encrypted := both
	encrypted.Key = make([]byte, 32)
	for name, c := range map[string]struct {
		c      Config
		change func(a, b *agent)
		kept   bool
	}{
		"nobody":            {both, func(_, _ *agent) {}, true},
		"a":                 {both, func(a, _ *agent) { a.close(); a.open() }, true},
		"b":                 {both, func(_, b *agent) { b.close(); b.open() }, true},
		"both":              {both, func(a, b *agent) { a.close(); b.close(); a.open(); b.open() }, true},
		"a, encrypted":      {encrypted, func(a, _ *agent) { a.close(); a.open() }, true},
		"a was killed":      {both, func(a, _ *agent) { a.kill(); a.open() }, true},
		"both were killed":  {both, func(a, b *agent) { a.kill(); b.kill(); a.open(); b.open() }, true},
		"a lost its store":  {both, func(a, _ *agent) { a.close(); a.disk = storetest.New(); a.open() }, false},
		"b lost its store":  {both, func(_, b *agent) { b.close(); b.disk = storetest.New(); b.open() }, false},
		"a began anew":      {both, func(a, _ *agent) { a.h.Restart(); time.Sleep(time.Second); a.close(); a.open() }, false},
		"b began anew only": {both, func(_, b *agent) { b.h.Restart() }, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, b := newAgent(t, c.c), newAgent(t, c.c)
			defer a.close()
			defer b.close()
			src := newSource(30, 3<<20)
			forth, back := src.pool[:2<<20], src.pool[2<<20:]
			meet(t, a.h, b.h)
			exchange(t, a, b, forth)
			exchange(t, b, a, back)
			time.Sleep(10 * time.Second)
			c.change(a, b)
			got, _ := meet(t, a.h, b.h)
			a.loaded()
			b.loaded()
			for what, s := range map[string]struct {
				from, to *agent
				b        []byte
			}{"forth again": {a, b, forth}, "forth returned": {b, a, forth}, "back returned": {a, b, back}} {
				if !c.kept && what == "forth returned" {
					continue // it was just sent
				}
				matched, missed := exchange(t, s.from, s.to, s.b)
				if missed > 0 || c.kept != (matched > len(s.b)*95/100) || !c.kept && matched > 0 {
					t.Errorf("%s: %s: %d of %d bytes matched, %d missed; kept %+v; %+v", name, what, matched, len(s.b), missed, got, a.store())
				}
			}
		})
	}
}

// TestColdTier: positions that memory no longer holds are found on disk, by
// both sides; the first block asks for them, later ones have them.
func TestColdTier(t *testing.T) {
	for _, size := range []int64{2 << 20, 32 << 20} { // the first is the control
		synctest.Test(t, func(t *testing.T) {
			c := Config{Size: size, Memory: 2 << 20}
			a, b := newAgent(t, c), newAgent(t, c)
			defer a.close()
			defer b.close()
			meet(t, a.h, b.h)
			src := newSource(31, 16<<20)
			for p := src.pool; len(p) > 0; p = p[1<<19:] {
				exchange(t, a, b, p[:1<<19])
				time.Sleep(time.Second) // a WAN is slower than a disk
			}
			for i, again := range []struct{ from, to *agent }{{a, b}, {b, a}} {
				if i > 0 && size == c.Memory {
					continue // it was just sent
				}
				matched, missed := 0, 0
				first := src.pool[3<<20 : 9<<20]
				for p := first; len(p) > 0; p = p[1<<18:] {
					x, y := exchange(t, again.from, again.to, p[:1<<18])
					matched, missed = matched+x, missed+y
					time.Sleep(time.Second)
				}
				if cold := size > c.Memory; missed > 0 || cold != (matched > len(first)*9/10) || !cold && matched > 0 {
					t.Errorf("size %d: %d of %d bytes matched, %d missed; %+v", size, matched, len(first), missed, a.store())
				}
			}
			if s := a.store(); s.Dropped > 0 || s.Damaged > 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestSlowDisk: each operation of the disk takes half a second. No block waits
// for it, what cannot be written is dropped and counted, and memory does not
// grow (D-11).
func TestSlowDisk(t *testing.T) {
	for _, slow := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a, b := newAgent(t, Config{Size: 16 << 20, Memory: 2 << 20}), newAgent(t, Config{Size: 16 << 20, Memory: 2 << 20})
			defer a.close()
			defer b.close()
			meet(t, a.h, b.h)
			if slow {
				a.disk.SetFault(func(op storetest.Op) error {
					time.Sleep(500 * time.Millisecond)
					return nil
				})
			}
			src := newSource(32, 12<<20)
			for p := src.pool; len(p) > 0; p = p[1<<18:] {
				start := time.Now()
				exchange(t, a, b, p[:1<<18])
				if d := time.Since(start); d > 0 {
					t.Fatalf("a block took %v", d)
				}
				time.Sleep(50 * time.Millisecond)
			}
			time.Sleep(20 * time.Second)
			if s := a.store(); slow != (s.Dropped > 0) || s.Written == 0 {
				t.Errorf("slow %v: %+v", slow, s)
			}
			a.disk.SetFault(nil)
		})
	}
}

// failing makes a disk fail for some kinds of operation while on.
type failing struct {
	on    atomic.Bool
	kinds string
	err   error
}

func (f *failing) fault(op storetest.Op) error {
	if f.on.Load() && strings.Contains(f.kinds, op.Kind) {
		return f.err
	}
	return nil
}

// TestFailingDisk: a full or failing disk stops the store and raises an alarm,
// never the traffic; when it is well again the store goes on (D-09, D-10).
func TestFailingDisk(t *testing.T) {
	for _, c := range []struct {
		kinds string
		err   error
		state string
		alarm string
	}{
		{"", nil, "open", ""},
		{"write", syscall.ENOSPC, "full", "full"},
		{"write", syscall.EDQUOT, "full", "full"},
		{"write", syscall.EIO, "failing", "fails"},
		{"sync", syscall.EIO, "failing", "fails"},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, b := newAgent(t, both), newAgent(t, both)
			defer a.close()
			defer b.close()
			meet(t, a.h, b.h)
			f := &failing{kinds: c.kinds, err: c.err}
			f.on.Store(true)
			a.disk.SetFault(f.fault)
			src := newSource(33, 4<<20)
			for range 18 {
				exchange(t, a, b, src.block(256<<10))
				time.Sleep(time.Second)
			}
			s := a.store()
			alarms := strings.Join(s.Alarms, "; ")
			if s.State != c.state || (alarms == "") != (c.alarm == "") || !strings.Contains(alarms, c.alarm) {
				t.Errorf("%s %v: %+v", c.kinds, c.err, s)
			}
			f.on.Store(false)
			time.Sleep(2 * time.Minute)
			was := a.store().Written
			exchange(t, a, b, src.pool[:2<<20])
			time.Sleep(time.Minute)
			if s := a.store(); s.State != "open" || s.Written == was {
				t.Errorf("%s %v: not open again: %+v", c.kinds, c.err, s)
			}
			a.disk.SetFault(nil)
		})
	}
}

// TestUnreadable: chunks that cannot be read back are dropped. If that shows
// before the agreement they are not agreed upon, else the blocks that refer to
// them are repaired; nothing wrong is delivered.
func TestUnreadable(t *testing.T) {
	for name, ruin := range map[string]func(b *agent){
		"nothing": func(*agent) {},
		"EIO":     func(b *agent) { b.disk.SetFault((&eio{"received.data"}).fault) },
		"flips": func(b *agent) {
			data := b.disk.Bytes("received.data")
			for i := 0; i < len(data); i += 100_000 {
				data[i] ^= 4
			}
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, b := newAgent(t, both), newAgent(t, both)
			defer a.close()
			defer b.close()
			meet(t, a.h, b.h)
			src := newSource(34, 3<<20)
			exchange(t, a, b, src.pool)
			time.Sleep(10 * time.Second)
			b.close()
			ruin(b)
			b.open()
			meet(t, a.h, b.h)
			b.loaded()
			matched, missed := exchange(t, a, b, src.pool)
			s := b.store()
			whole := name == "nothing"
			if whole && (missed > 0 || matched < len(src.pool)*9/10) || whole != (s.Damaged == 0) {
				t.Errorf("%s: %d matched, %d missed, %+v", name, matched, missed, s)
			}
			if (name == "EIO") != (len(s.Alarms) > 0) {
				t.Errorf("%s: alarms %q", name, s.Alarms)
			}
			b.disk.SetFault(nil)
		})
	}
}

// eio fails the reads of one file.
type eio struct{ file string }

func (e *eio) fault(op storetest.Op) error {
	if op.Kind == "read" && op.File == e.file {
		return syscall.EIO
	}
	return nil
}

// TestDoubles: a copy of a store that meets the peer after the original, or an
// older copy that is put back, is recognised by both sides: cold, an alarm, a
// new identity; then all is well (D-03, D-04).
func TestDoubles(t *testing.T) {
	for name, c := range map[string]struct {
		older, cold bool
	}{"control": {false, false}, "older copy": {true, true}} {
		synctest.Test(t, func(t *testing.T) {
			a, b := newAgent(t, both), newAgent(t, both)
			defer a.close()
			defer b.close()
			meet(t, a.h, b.h)
			src := newSource(35, 2<<20)
			exchange(t, a, b, src.pool)
			time.Sleep(10 * time.Second)
			backup := a.disk.Copy()
			for range 3 { // lives after the backup
				a.close()
				a.open()
				meet(t, a.h, b.h)
				exchange(t, a, b, src.random(100_000))
				time.Sleep(10 * time.Second)
			}
			a.close()
			if c.older {
				a.disk = backup
			}
			a.open()
			x, y := meet(t, a.h, b.h)
			if (x.Alarm != "") != c.cold || (y.Alarm != "") != c.cold || (len(a.store().Alarms) > 0) != c.cold || (x.Sent > 0) == c.cold {
				t.Errorf("%s: %+v and %+v, alarms %q", name, x, y, a.store().Alarms)
			}
			a.loaded()
			matched, missed := exchange(t, a, b, src.pool)
			if c.cold != (matched == 0) || missed > 0 {
				t.Errorf("%s: %d bytes matched, %d missed", name, matched, missed)
			}
			time.Sleep(10 * time.Second)
			a.close()
			a.open()
			if x, _ = meet(t, a.h, b.h); x.Alarm != "" || x.Sent == 0 {
				t.Errorf("%s: not well afterwards: %+v", name, x)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		a, b := newAgent(t, both), newAgent(t, both)
		defer b.close()
		meet(t, a.h, b.h)
		time.Sleep(10 * time.Second)
		a.close()
		clone := &agent{t: t, disk: a.disk.Copy(), c: both}
		a.open()
		clone.open()
		defer a.close()
		defer clone.close()
		if x, _ := meet(t, a.h, b.h); x.Alarm != "" {
			t.Errorf("the original, first: %q", x.Alarm)
		}
		if x, y := meet(t, clone.h, b.h); x.Alarm != alarmSuspect || y.Alarm != alarmPeerSuspect {
			t.Errorf("the clone: %+v and %+v", x, y)
		}
	})
}

// TestSizeChange: a store opened with another size keeps what fits (D-19).
func TestSizeChange(t *testing.T) {
	for _, size := range []int64{16 << 20, 40 << 20, 4 << 20} {
		synctest.Test(t, func(t *testing.T) {
			a, b := newAgent(t, both), newAgent(t, both)
			defer a.close()
			defer b.close()
			meet(t, a.h, b.h)
			src := newSource(36, 10<<20)
			exchange(t, a, b, src.pool)
			time.Sleep(10 * time.Second)
			a.close()
			a.c.Size = size
			a.open()
			meet(t, a.h, b.h)
			a.loaded()
			last := src.pool[9<<20:]
			if matched, missed := exchange(t, a, b, last); matched < len(last)*9/10 || missed > 0 {
				t.Errorf("size %d: %d of %d bytes matched, %d missed", size, matched, len(last), missed)
			}
		})
	}
}

// TestNoStore: trouble with the directory costs the store and nothing else
// (D-12).
func TestNoStore(t *testing.T) {
	newer := storetest.New()
	synctest.Test(t, func(t *testing.T) {
		h := openOn(Config{Size: 8 << 20, Memory: 2 << 20}, newer)
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	})
	newer.SetFault(func(op storetest.Op) error {
		return fmt.Errorf("reading %s: %w", op.File, store.ErrNewer)
	})
	for name, h := range map[string]*History{
		"newer": openOn(Config{Size: 8 << 20, Memory: 2 << 20}, newer),
		"nowhere": func() *History {
			h, err := Open(Config{Size: 8 << 20, Memory: 2 << 20, Dir: "/proc/stitch"})
			if err != nil {
				t.Fatal(err)
			}
			return h
		}(),
	} {
		s := h.Stats()
		if s.Store.State != "memory" || len(s.Store.Alarms) != 1 || s.Size != 2<<20 || s.Memory != 2<<20 {
			t.Errorf("%s: %+v", name, s)
		}
		a, b := &agent{t: t, side: side{h: h}}, &agent{t: t, side: side{h: NewHistory(2 << 20)}}
		meet(t, a.h, b.h)
		src := newSource(37, 500_000)
		exchange(t, a, b, src.pool)
		if matched, missed := exchange(t, a, b, src.pool); matched < 490_000 || missed > 0 {
			t.Errorf("%s: %d bytes matched", name, matched)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestFarHead: a peer that says it is absurdly far ahead costs its own ring and
// no time.
func TestFarHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t, both)
		defer a.close()
		if err := a.h.NewReader().Put([]byte{1}, &Block{Spans: [2]Span{{0, 1}}, TxHead: maxPos}); err != nil {
			t.Fatal(err)
		}
		w := a.h.NewWriter(WriterOptions{})
		for n, p := uint64(1), newSource(61, 2<<20).pool; len(p) > 0; n, p = n+1, p[MaxBlock:] {
			if _, err := w.Plant(p[:MaxBlock]); err != nil {
				t.Fatal(err)
			}
			if err := w.Acked(n); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		if s := a.store(); s.Written < 2<<20 {
			t.Errorf("%+v", s)
		}
	})
}

// TestMemory: a history much larger than its memory takes no more of it than
// its configuration says.
func TestMemory(t *testing.T) {
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		t.Skip("the race detector takes memory of its own")
	}
	h, err := Open(Config{Size: 512 << 20, Memory: 16 << 20, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	src := newSource(60, 16<<20)
	w := h.NewWriter(WriterOptions{})
	before, n := memoryNow(t), uint64(0)
	for range 12 {
		for p := src.pool; len(p) > 0; p = p[MaxBlock:] {
			p[n%MaxBlock]++
			if _, err := w.Plant(p[:MaxBlock]); err != nil {
				t.Fatal(err)
			}
			if n++; w.Acked(n) != nil {
				t.Fatal("not acknowledged")
			}
		}
	}
	// The ring in memory, the index (an eighth of 512 MiB / 4), and what the
	// store and the runtime need.
	grown := memoryNow(t) - before
	t.Logf("%d MiB of history in %d MiB of memory", 12*16, grown>>20)
	if grown > (16+32+48)<<20 {
		t.Errorf("memory grew by %d MiB", grown>>20)
	}
}

// memoryNow is the process's resident memory in bytes.
func memoryNow(t *testing.T) int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip("no /proc: ", err)
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(b), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}
