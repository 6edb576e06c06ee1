package stream

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestJudge holds the marks: closed below the high one, open again above twice that,
// by the place that is worst off.
func TestJudge(t *testing.T) {
	const mb = 1 << 20
	host := func(free uint64) Memory { return Memory{"host", free * mb, 64 << 30} }
	group := func(free uint64) Memory { return Memory{"cgroup /a", free * mb, 1600 * mb} }
	for i, c := range []struct {
		places      []Memory
		short, want bool
		place       string
		mark        uint64
	}{
		{nil, false, false, "", 0},
		{nil, true, false, "", 0}, // not known
		{[]Memory{host(513)}, false, false, "host", 512},
		{[]Memory{host(511)}, false, true, "host", 512},
		{[]Memory{host(1023)}, true, true, "host", 512},
		{[]Memory{host(1025)}, true, false, "host", 512},
		{[]Memory{group(101)}, false, false, "cgroup /a", 100},
		{[]Memory{group(99)}, false, true, "cgroup /a", 100},
		{[]Memory{group(199)}, true, true, "cgroup /a", 100},
		{[]Memory{group(201)}, true, false, "cgroup /a", 100},
		{[]Memory{host(500), group(300)}, false, true, "host", 512},
		{[]Memory{host(9000), group(90)}, false, true, "cgroup /a", 100},
	} {
		if got := judge(c.places, c.short); got.Short != c.want || got.Place != c.place || got.Mark != c.mark*mb {
			t.Errorf("%d: %+v", i, got)
		}
	}
}

// TestRoom: of those that begin at once only as many enter as there is room for above
// the mark; a look at what they have really taken makes room again.
func TestRoom(t *testing.T) {
	g := gate{max: 1000}
	enter := func() (n int) {
		for range 100 {
			if why, _ := g.enter(t0); why == 0 {
				n++
			} else if why != MemoryShort {
				t.Errorf("not in because of %d", why)
			}
		}
		return n
	}
	if n := enter(); n != 100 {
		t.Errorf("%d are in before memory is known", n)
	}
	look := func(free uint64) { g.remember(judge([]Memory{{"host", free, 1 << 30}}, false)) }
	look(64<<20 + 60*streamTakes) // after which half of the 100 count as fresh
	if n := enter(); n != 10 {
		t.Errorf("%d are in, want 10", n)
	}
	look(64<<20 + 60*streamTakes)
	if n := enter(); n != 30 {
		t.Errorf("%d are in after the next look, want 30", n)
	}
	var s Stats
	if g.stats(&s, t0); s.Memory.Turned != 90+70 || !s.Memory.Lately || s.Memory.Short {
		t.Errorf("%+v", s.Memory)
	}
	if g.stats(&s, t0.Add(lackLife)); s.Memory.Lately {
		t.Errorf("later: %+v", s.Memory)
	}
}

// TestHeapLimit: the collector leaves free what others need, and never collects without
// end for them.
func TestHeapLimit(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct{ total, free, own, want uint64 }{
		{1600, 1400, 100, 1300}, // all but twice the mark of 100
		{1600, 100, 1400, 1300}, // its own is what has filled it
		{1600, 100, 300, 800},   // others are
		{64 << 10, 100, 300, 32 << 10},
	} {
		m := judge([]Memory{{"host", c.free * mb, c.total * mb}}, false)
		if got := m.heapLimit(c.own * mb); got != c.want*mb {
			t.Errorf("%d of %d free, %d own: %d", c.free, c.total, c.own, got/mb)
		}
	}
}

// TestMemoryAt reads what kernels of both kinds write.
func TestMemoryAt(t *testing.T) {
	const meminfo = "MemTotal:       24684084 kB\nMemFree:        15196332 kB\nMemAvailable:   21051412 kB\nHugePages_Total:       0\n"
	host := Memory{"host", 21051412 << 10, 24684084 << 10}
	for name, c := range map[string]struct {
		files map[string]string
		want  []Memory
	}{
		"no limits": {map[string]string{"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n"}, []Memory{host}},
		"version 2": {map[string]string{
			"proc/self/cgroup": "0::/system.slice/stitch.service\n", "sys/fs/cgroup/system.slice/stitch.service/memory.max": "1000000\n",
			"sys/fs/cgroup/system.slice/stitch.service/memory.current": "700000\n",
			"sys/fs/cgroup/system.slice/stitch.service/memory.stat":    "anon 400000\ninactive_file 200000\nactive_file 100000\n",
			"sys/fs/cgroup/system.slice/memory.max":                    "1500000\n", "sys/fs/cgroup/system.slice/memory.current": "1600000\n",
		}, []Memory{host, {"cgroup /system.slice/stitch.service", 600000, 1000000}, {"cgroup /system.slice", 0, 1500000}}},
		"version 1": {map[string]string{
			"proc/self/cgroup": "9:name=systemd:/x\n4:memory:/a\n0::/\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "5000\n",
			"sys/fs/cgroup/memory/a/memory.usage_in_bytes": "3000\n", "sys/fs/cgroup/memory/a/memory.stat": "cache 0\ninactive_file 9\ntotal_inactive_file 500\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, []Memory{host, {"cgroup /a", 2500, 5000}}},
		"a container": {map[string]string{
			"proc/self/cgroup": "0::/../other\n", "sys/fs/cgroup/memory.max": "5000\n", "sys/fs/cgroup/memory.current": "1000\n",
		}, []Memory{host, {"cgroup /", 4000, 5000}}},
		"nonsense": {map[string]string{"proc/self/cgroup": "0\n::\n4:memory\n", "sys/fs/cgroup/memory.max": "\n"}, []Memory{host}},
	} {
		root := t.TempDir() + "/"
		c.files["proc/meminfo"] = meminfo
		for file, text := range c.files {
			if err := os.MkdirAll(filepath.Dir(root+file), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(root+file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := memoryAt(root); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	if got := memoryAt(t.TempDir() + "/"); got != nil {
		t.Errorf("without anything to read: %v", got)
	}
	real := Linux{}.Memory()
	if len(real) == 0 || real[0].Free == 0 || real[0].Free > real[0].Total {
		t.Errorf("here: %v", real)
	}
}

// TestLack: what has run out closes the gate for a moment, and is shown for longer;
// ports, and errors that are none of ours, do not close it.
func TestLack(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Reason
		word string // in what is shown
	}{
		{&os.SyscallError{Syscall: "accept4", Err: syscall.EMFILE}, OutOfResources, "LimitNOFILE"},
		{syscall.ENFILE, OutOfResources, "fs.file-max"},
		{syscall.ENOBUFS, OutOfResources, "tcp_mem"},
		{fmt.Errorf("%w: %w", errNoPorts, syscall.EADDRINUSE), 0, "ip_local_port_range"},
		{syscall.EADDRINUSE, 0, ""},
		{syscall.ECONNREFUSED, 0, ""},
	} {
		p := &Proxy{gate: gate{max: 10}, log: slog.New(slog.DiscardHandler)}
		p.lacks(c.err)
		now := time.Now()
		if why, _ := p.gate.enter(now); why != c.want {
			t.Errorf("%v: %d, want %d", c.err, why, c.want)
		}
		if why, _ := p.gate.enter(now.Add(lackPause)); why != 0 {
			t.Errorf("%v: closed for longer than a moment: %d", c.err, why)
		}
		var s, later Stats
		p.gate.stats(&s, now)
		p.gate.stats(&later, now.Add(lackLife))
		if !strings.Contains(s.Lack, c.word) || (s.Lack == "") != (c.word == "") || later.Lack != "" || later.Lacked != s.Lacked {
			t.Errorf("%v is shown as %q, later as %q", c.err, s.Lack, later.Lack)
		}
	}
}
