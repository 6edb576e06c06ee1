package dedupe

import (
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// diskDir is where benchmarks keep stores: STITCH_BENCH_DIR, or the usual place
// for temporary files.
func diskDir(b *testing.B) string {
	if d := os.Getenv("STITCH_BENCH_DIR"); d != "" {
		dir, err := os.MkdirTemp(d, "store")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = os.RemoveAll(dir) })
		return dir
	}
	return b.TempDir()
}

// cpu is the process's seconds on processors so far, in user mode and in the
// kernel. On virtual machines the latter is mostly the first touch of memory.
func cpu(b testing.TB) (user, system float64) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()) / 1e9, float64(u.Stime.Nano()) / 1e9
}

// fill puts n bytes that repeat nothing through a writer, acknowledged at once.
func fill(b *testing.B, w *Writer, first uint64, n int) uint64 {
	src := newSource(first, 64<<20).pool
	for at := 0; at < n; at += MaxBlock {
		// A few bytes that differ in every lap keep the blocks from matching.
		blk := src[at%len(src):][:MaxBlock]
		for i := 0; i < len(blk); i += 48 {
			blk[i]++
		}
		if _, err := w.Put(blk); err != nil {
			b.Fatal(err)
		}
		first++
		if err := w.Acked(first); err != nil {
			b.Fatal(err)
		}
	}
	return first
}

// BenchmarkWriteBehind is what a Put costs with and without a store, and how
// much processor time the store takes for each GB beside it.
func BenchmarkWriteBehind(b *testing.B) {
	const n = 128 << 20
	for _, v := range []struct {
		name string
		c    Config
	}{
		{"memory", Config{Size: 256 << 20}},
		{"store", Config{Size: 256 << 20, Dir: "x"}},
		{"encrypted", Config{Size: 256 << 20, Dir: "x", Key: make([]byte, 32)}},
	} {
		b.Run(v.name, func(b *testing.B) {
			c := v.c
			if c.Dir != "" {
				c.Dir = diskDir(b)
			}
			h, err := Open(c)
			if err != nil {
				b.Fatal(err)
			}
			w := h.NewWriter(WriterOptions{})
			seq := fill(b, w, 0, n) // touches the memory
			b.SetBytes(n)
			bytes := 0
			user0, system0 := cpu(b)
			for b.Loop() {
				seq = fill(b, w, seq, n)
				bytes += n
			}
			if err := h.Close(); err != nil {
				b.Fatal(err)
			}
			gb := float64(bytes) / 1e9
			user, system := cpu(b)
			b.ReportMetric((user-user0)/gb, "user-s/GB")
			b.ReportMetric((system-system0)/gb, "sys-s/GB")
			b.ReportMetric(float64(h.Stats().Store.Written)/float64(bytes), "written")
			b.ReportMetric(float64(h.Stats().Store.Dropped)/float64(bytes), "dropped")
		})
	}
}

// BenchmarkLoad opens a store of 256 MiB and waits until all of it is loaded and
// indexed.
func BenchmarkLoad(b *testing.B) {
	const n = 256 << 20
	for _, key := range [][]byte{nil, make([]byte, 32)} {
		name := "plain"
		if key != nil {
			name = "encrypted"
		}
		b.Run(name, func(b *testing.B) {
			c := Config{Size: n, Dir: diskDir(b), Key: key}
			h, err := Open(c)
			if err != nil {
				b.Fatal(err)
			}
			w := h.NewWriter(WriterOptions{})
			seq := uint64(0)
			for range 16 {
				seq = fill(b, w, seq, n/16)
				time.Sleep(100 * time.Millisecond)
			}
			if err := h.Close(); err != nil {
				b.Fatal(err)
			}
			bytes := h.Stats().Store.Disk
			b.SetBytes(bytes)
			var opening time.Duration
			var user, system float64
			for b.Loop() {
				t := time.Now()
				user0, system0 := cpu(b)
				if h, err = Open(c); err != nil {
					b.Fatal(err)
				}
				opening += time.Since(t)
				for h.Stats().Store.Loading > 0 {
					time.Sleep(time.Millisecond)
				}
				user1, system1 := cpu(b)
				user, system = user+user1-user0, system+system1-system0
				b.StopTimer()
				if s := h.Stats().Store; s.Loaded != bytes || s.Damaged > 0 {
					b.Fatalf("%+v", s)
				}
				if err := h.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			gb := float64(bytes) * float64(b.N) / 1e9
			b.ReportMetric(user/gb, "user-s/GB")
			b.ReportMetric(system/gb, "sys-s/GB")
			b.ReportMetric(float64(opening.Milliseconds())/float64(b.N), "open-ms")
		})
	}
}

// BenchmarkSummary is a history of 64 GiB each direction, most of it on disk as
// far as its state says.
func BenchmarkSummary(b *testing.B) {
	h, err := Open(Config{Size: maxSize, Memory: 64 << 20, Dir: diskDir(b)})
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	h.peer.Store(5)
	for _, r := range []*ring{h.tx, h.rx} {
		r.head.Store(2 * maxSize)
		for n := uint64(maxSize / chunkSize); n < 2*maxSize/chunkSize; n++ {
			r.tier.note(n, 0, [16]byte{byte(n), byte(n >> 8), 1}, true)
		}
	}
	size := 0
	for b.Loop() {
		size = len(h.Summary())
	}
	b.ReportMetric(float64(size), "bytes")
	runtime.KeepAlive(h)
}
