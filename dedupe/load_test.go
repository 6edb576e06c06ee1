package dedupe

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stitch/dedupe/accord"
	"stitch/dedupe/store"
)

// layDown writes a store whose ring of sent bytes holds n chunks of a seeded
// generator.
func layDown(t *testing.T, c Config, n int) {
	t.Helper()
	d, err := store.OpenDir(c.Dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(d, store.Options{Segments: int(c.Size / chunkSize), Key: c.Key, Machine: store.MachineID()})
	if err != nil {
		t.Fatal(err)
	}
	st := s.State()
	st.Epochs = [2]uint64{77, 0}
	s.Sent.Restart(77)
	if err := s.Save(st); err != nil {
		t.Fatal(err)
	}
	var whole store.Map
	for i := range whole {
		whole[i] = pageSize
	}
	data := make([]byte, chunkSize, store.Buffer)
	for i := range uint64(n) {
		generated(data, i)
		if err := s.Sent.Write(77, i, &whole, data, store.Sum(i, &whole, data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// generated fills b with chunk n's bytes.
func generated(b []byte, n uint64) {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], n)
	_, _ = rand.NewChaCha8(seed).Read(b) // never fails
}

// forgetCached has the kernel drop what it holds of a store's files, so that
// they are read from the disk.
func forgetCached(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err == nil {
			err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
			f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestLoad opens a large store: the digests are known and a summary can be sent
// at once, all of it is loaded and indexed within a second for each GiB, in as much
// memory as is configured, and what lies in it is then found. With STITCH_LONG=1
// it is 10 GiB, in STITCH_BENCH_DIR or the usual place for temporary files.
func TestLoad(t *testing.T) {
	chunks, mem := 256, int64(64<<20)
	if os.Getenv("STITCH_LONG") != "" {
		chunks, mem = 10<<10, 512<<20
	}
	for name, key := range map[string][]byte{"plain": nil, "encrypted": make([]byte, 32)} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if d := os.Getenv("STITCH_BENCH_DIR"); d != "" {
				var err error
				if dir, err = os.MkdirTemp(d, "load"); err != nil {
					t.Fatal(err)
				}
				defer os.RemoveAll(dir)
			}
			c := Config{Size: int64(chunks) * chunkSize, Memory: mem, Dir: dir, Key: key}
			began := time.Now()
			layDown(t, c, chunks)
			t.Logf("%d MiB written in %.1f s", chunks, time.Since(began).Seconds())
			for _, cold := range []bool{true, false} {
				if cold {
					forgetCached(t, dir)
				}
				loadAll(t, c, chunks, cold)
			}
		})
	}
}

// loadAll opens the store of layDown and waits until all of it is loaded.
func loadAll(t *testing.T, c Config, chunks int, cold bool) {
	runtime.GC()
	time.Sleep(10 * time.Millisecond) // what the history before had mapped is given back
	before := memoryNow(t)
	began := time.Now()
	h, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	opened := time.Since(began)
	summary := len(h.Summary())
	described := time.Since(began)
	var peak int64
	for h.Stats().Store.Loading > 0 {
		peak = max(peak, memoryNow(t)-before)
		time.Sleep(10 * time.Millisecond)
	}
	loaded := time.Since(began)
	s := h.Stats()
	t.Logf("cold %v: open %v, summary of %d bytes after %v, loaded after %.2f s (%.2f s for 10 GiB); memory %d MiB (rings %d, index %d, page words %d)",
		cold, opened.Round(time.Millisecond), summary, described.Round(time.Millisecond), loaded.Seconds(),
		loaded.Seconds()*10*1024/float64(chunks), peak>>20, 2*s.Memory>>20, s.Index>>20, 2*c.Size/pageSize*8>>20)
	if s.Store.Loaded != int64(chunks)*chunkSize || s.Store.Damaged > 0 || summary > accord.MaxLen {
		t.Fatalf("%+v, summary of %d bytes", s.Store, summary)
	}
	// Both rings' memory, the index, the page words, what is read back, and what
	// the runtime and the loaders need.
	if most := 2*s.Memory + s.Index + 2*c.Size/pageSize*8 + s.Memory/32 + 64<<20; peak > most {
		t.Errorf("memory grew by %d MiB, more than %d", peak>>20, most>>20)
	}
	findAgain(t, h, chunks)
}

// findAgain sends two chunks anew: of the one in memory all is found at once, of
// the one on the disk what comes after the block that asked for it.
func findAgain(t *testing.T, h *History, chunks int) {
	w := h.NewWriter(WriterOptions{})
	defer w.Close()
	data := make([]byte, chunkSize)
	for _, n := range []int{chunks - 2, chunks / 2} {
		generated(data, uint64(n))
		matched, fetched := 0, h.Stats().Store.Fetched
		for at := 0; at < chunkSize; at += MaxBlock {
			b, err := w.Put(data[at:][:MaxBlock])
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range b.Tokens {
				if k.Ring == Sent && k.Pos/chunkSize == uint64(n) {
					matched += k.Len
				}
			}
			for i := 0; at == 0 && n == chunks/2 && h.Stats().Store.Fetched == fetched && i < 1000; i++ {
				time.Sleep(10 * time.Millisecond) // the disk
			}
		}
		if matched < chunkSize*2/3 {
			t.Errorf("chunk %d: %d bytes found", n, matched)
		}
	}
}
