package dedupe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"stitch/dedupe/accord"
	"stitch/dedupe/store"
	"stitch/dedupe/store/storetest"
)

// layDown writes a store whose ring of sent bytes holds n chunks of a seeded
// generator, with hints or as a release without them did.
func layDown(t *testing.T, c Config, n int, hints bool) {
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
	x := newScratch()
	for i := range uint64(n) {
		generated(x.data, i)
		if hints {
			x.hints, x.anchors = hintsOf(x.hints[:0], x.data, x.anchors)
		}
		if err := s.Sent.Write(77, i, &whole, x.data, x.hints, store.Sum(i, &whole, x.data)); err != nil {
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

// limited is a disk that gives so many bytes a second, to all its readers together.
type limited struct {
	store.Disk
	rate float64
	mu   sync.Mutex
	free time.Time // when it has given what it was asked for so far
}

type limitedFile struct {
	store.File
	d *limited
}

func (d *limited) Open(name string) (store.File, error) {
	f, err := d.Disk.Open(name)
	return limitedFile{f, d}, err
}

func (f limitedFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	f.d.mu.Lock()
	if now := time.Now(); f.d.free.Before(now) {
		f.d.free = now
	}
	f.d.free = f.d.free.Add(time.Duration(float64(n) / f.d.rate * 1e9))
	wait := time.Until(f.d.free)
	f.d.mu.Unlock()
	time.Sleep(wait)
	return n, err
}

// TestLoad opens a large store: the digests are known and a summary can be sent
// at once, what is in memory is loaded and all is findable within a second for
// each GiB, in as much memory as is configured, and what lies in it is then found.
// With STITCH_LONG=1 it is 10 GiB, in STITCH_BENCH_DIR or the usual place for
// temporary files, and another time on a disk that reads 134 MB/s.
func TestLoad(t *testing.T) {
	chunks, mem := 256, int64(64<<20)
	rates := []float64{0}
	if os.Getenv("STITCH_LONG") != "" {
		chunks, mem = 10<<10, 512<<20
		rates = append(rates, 134e6)
	}
	for _, v := range []struct {
		name  string
		key   []byte
		hints bool
	}{
		{"plain", nil, true},
		{"encrypted", make([]byte, 32), true},
		{"of a release without hints", nil, false},
	} {
		t.Run(v.name, func(t *testing.T) {
			dir := t.TempDir()
			if d := os.Getenv("STITCH_BENCH_DIR"); d != "" {
				var err error
				if dir, err = os.MkdirTemp(d, "load"); err != nil {
					t.Fatal(err)
				}
				defer os.RemoveAll(dir)
			}
			c := Config{Size: int64(chunks) * chunkSize, Memory: mem, Dir: dir, Key: v.key}
			began := time.Now()
			layDown(t, c, chunks, v.hints)
			t.Logf("%d MiB written in %.1f s", chunks, time.Since(began).Seconds())
			for _, rate := range rates {
				forgetCached(t, dir)
				loadAll(t, c, chunks, rate)
			}
			loadAll(t, c, chunks, 0) // without hints the first time has made them
		})
	}
}

// loadAll opens the store of layDown, on a disk of that rate, and waits until all
// of it is loaded.
func loadAll(t *testing.T, c Config, chunks int, rate float64) {
	runtime.GC()
	time.Sleep(10 * time.Millisecond) // what the history before had mapped is given back
	before := memoryNow(t)
	user, system := cpu(t)
	began := time.Now()
	dir, err := store.OpenDir(c.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if rate > 0 {
		dir = &limited{Disk: dir, rate: rate}
	}
	h := openOn(c, dir)
	defer h.Close()
	opened := time.Since(began)
	summary := len(h.Summary())
	described := time.Since(began)
	var peak int64
	found := time.Duration(0)
	for ended := false; !ended; {
		peak = max(peak, memoryNow(t)-before)
		if s := h.Stats().Store; found == 0 && s.Found == int64(chunks)*chunkSize {
			found = time.Since(began)
		}
		select {
		case <-h.Loaded():
			ended = true
		case <-time.After(10 * time.Millisecond):
		}
	}
	loaded := time.Since(began)
	if found == 0 {
		found = loaded
	}
	userEnd, systemEnd := cpu(t)
	s := h.Stats()
	t.Logf("disk of %.0f MB/s (0: as it is): open %v, summary of %d bytes after %v, all findable after %.2f s, loaded after %.2f s (processors %.1f s and in the kernel %.1f); memory %d MiB (rings %d, index %d, page words %d)",
		rate/1e6, opened.Round(time.Millisecond), summary, described.Round(time.Millisecond), found.Seconds(), loaded.Seconds(), userEnd-user, systemEnd-system, peak>>20, 2*s.Memory>>20, s.Index>>20, 2*c.Size/pageSize*8>>20)
	if s.Store.Loaded != int64(chunks)*chunkSize || s.Store.Found != s.Store.Loaded || s.Store.Loading > 0 || s.Store.Damaged > 0 || summary > accord.MaxLen {
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

// TestWhileLoading: a side that has restarted on a slow disk carries blocks from
// the first moment, right, and sends in full what it has not yet found; as soon as
// the hints are read what is sent is looked for on the disk, before its turn; and
// when all is loaded all is found. The control has no hints, and finds nothing
// before its turn.
func TestWhileLoading(t *testing.T) {
	const each = time.Second // for a segment; there are 12, and they come newest first
	for _, hints := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			c := Config{Size: 32 << 20}
			a, b := newAgent(t, c), newAgent(t, c)
			defer a.close()
			defer b.close()
			meet(t, a.h, b.h)
			src := newSource(40, 12<<20)
			exchange(t, a, b, src.pool)
			time.Sleep(10 * time.Second)
			a.close()
			if !hints {
				a.disk.Set("sent.hints", nil)
			}
			a.disk.SetFault(func(op storetest.Op) error {
				if op.Kind == "read" && (op.File == "sent.data" || op.File == "sent.hints") {
					time.Sleep(each)
				}
				return nil
			})
			a.open()
			meet(t, a.h, b.h)
			old := src.pool[:2<<20] // its turn is last
			fresh := src.random(300_000)
			if matched, missed := exchange(t, a, b, old[:256<<10]); matched > 0 || missed > 0 {
				t.Errorf("hints %v: %d bytes found before anything was read, %d missed", hints, matched, missed)
			}
			if matched, _ := exchange(t, b, a, fresh); matched > 0 {
				t.Errorf("%d fresh bytes matched", matched)
			}
			if s := a.store(); s.State != "loading" || s.Loaded > 0 || s.Loading == 0 {
				t.Fatalf("%+v", s)
			}
			time.Sleep(each + each/2)                  // the hints are read
			exchange(t, a, b, old[256<<10:][:256<<10]) // asks for the segment
			time.Sleep(each + each/10)
			matched, missed := exchange(t, a, b, old[512<<10:][:256<<10])
			s := a.store()
			if s.Loading == 0 || missed > 0 || hints != (matched > 200<<10) || !hints && matched > 0 {
				t.Errorf("hints %v: %d bytes found while loading, %d missed: %+v", hints, matched, missed, s)
			}
			if s.LoadSeconds < 1 || s.LoadLeft <= 0 || s.LoadLeft > 20 {
				t.Errorf("after %v s it takes %v s more", s.LoadSeconds, s.LoadLeft)
			}
			<-a.h.Loaded()
			rest := src.pool[2<<20:]
			if matched, missed = exchange(t, a, b, rest); matched < len(rest)*98/100 || missed > 0 {
				t.Errorf("hints %v: %d of %d bytes found when all was loaded, %d missed", hints, matched, len(rest), missed)
			}
			if s = a.store(); s.State != "open" || s.LoadLeft != 0 || s.Damaged > 0 {
				t.Errorf("%+v", s)
			}
			a.disk.SetFault(nil)
		})
	}
}

// TestLateDisk: the side that receives has restarted and its disk is slow: a block
// whose source does not come in time is late, not lost, while the disk gives
// anything at all, and comes again; what a disk that hangs holds counts as lost.
func TestLateDisk(t *testing.T) {
	for _, c := range []struct {
		each time.Duration
		want error
	}{{10 * time.Millisecond, nil}, {500 * time.Millisecond, ErrLate}, {time.Hour, ErrGone}} {
		synctest.Test(t, func(t *testing.T) {
			a, b := newAgent(t, both), newAgent(t, both)
			defer a.close()
			meet(t, a.h, b.h)
			src := newSource(41, 12<<20)
			exchange(t, a, b, src.pool)
			time.Sleep(10 * time.Second)
			b.close()
			hang := make(chan struct{})
			b.disk.SetFault(func(op storetest.Op) error {
				if op.Kind == "read" && op.File == "received.data" {
					select {
					case <-hang:
					case <-time.After(c.each):
					}
				}
				return nil
			})
			b.open()
			meet(t, a.h, b.h)
			w, r := a.h.NewWriter(WriterOptions{}), b.h.NewReader()
			defer w.Close()
			old := src.pool[:MaxBlock]
			blk, err := w.Put(old)
			if err != nil || blk.Matched < len(old)*9/10 {
				t.Fatalf("%d matched, %v", blk.Matched, err)
			}
			began := time.Now()
			out, _, err := r.Rebuild(nil, blk.Tokens, literals(old, blk.Tokens))
			if c.want == ErrGone && errors.Is(err, ErrLate) {
				time.Sleep(silence)
				began = time.Now()
				_, _, err = r.Rebuild(nil, blk.Tokens, literals(old, blk.Tokens))
			}
			if !errors.Is(err, c.want) || err == nil && !bytes.Equal(out, old) || time.Since(began) > 2*patience {
				t.Errorf("%v each: %v after %v", c.each, err, time.Since(began))
			}
			close(hang)
			<-b.h.Loaded()
			out, _, err = r.Rebuild(nil, blk.Tokens, literals(old, blk.Tokens))
			if err != nil || !bytes.Equal(out, old) {
				t.Errorf("%v each: when all was loaded: %v", c.each, err)
			}
			b.disk.SetFault(nil)
			b.close()
		})
	}
}
