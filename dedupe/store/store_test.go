package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"stitch/dedupe/accord"
	"stitch/dedupe/store"
	"stitch/dedupe/store/storetest"
)

// long is whether the long form of a test was asked for by STITCH_LONG=1.
var long = os.Getenv("STITCH_LONG") != ""

// rounds is how often a test repeats.
func rounds(short, all int) int {
	if long {
		return all
	}
	return short
}

var key = bytes.Repeat([]byte{7}, 32)

const epoch = 77

// segment makes a version of a segment: some pages full, one part full.
func segment(n uint64, version byte) (*store.Map, []byte) {
	r := rand.New(rand.NewPCG(n, uint64(version)))
	var m store.Map
	for i := range 1 + r.IntN(store.Pages) {
		m[i] = store.PageSize
	}
	m[r.IntN(store.Pages)] = uint16(r.IntN(store.PageSize))
	data := make([]byte, store.Segment, store.Buffer)
	fill := rand.NewChaCha8([32]byte{byte(n), version, 1})
	for i, v := range m {
		_, _ = fill.Read(data[i*store.PageSize:][:v]) // never fails
	}
	return &m, data
}

// hints are those of a version of a segment; some have none.
func hints(n uint64, version byte) []byte {
	if version%3 == 2 {
		return nil
	}
	return bytes.Repeat([]byte{byte(n), version}, 5+int(n*n*1000)%(store.MaxHints/2-5))
}

func write(t *testing.T, l *store.Log, n uint64, version byte) accord.Digest {
	t.Helper()
	sum, err := try(l, n, version)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func try(l *store.Log, n uint64, version byte) (accord.Digest, error) {
	m, data := segment(n, version)
	sum := store.Sum(n, m, data)
	return sum, l.Write(epoch, n, m, data, hints(n, version), sum)
}

// same says that what Read returned is that version.
func same(n uint64, version byte, m *store.Map, data []byte) bool {
	wantMap, want := segment(n, version)
	return *m == *wantMap && bytes.Equal(data, want)
}

// open opens a store whose rings both have the test's epoch.
func open(t *testing.T, d *storetest.Disk, o store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(d, o)
	if err != nil {
		t.Fatal(err)
	}
	if st := s.State(); st.Epochs[0] == 0 {
		st.Epochs = [2]uint64{epoch, epoch}
		if err := s.Save(st); err != nil {
			t.Fatal(err)
		}
		s.Sent.Restart(epoch)
		s.Received.Restart(epoch)
	}
	return s
}

func closeStore(t *testing.T, s *store.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestReopen: what was written is there again, the newest version of it, with
// and without encryption, in both rings; and nothing readable lies on an
// encrypted disk.
func TestReopen(t *testing.T) {
	for _, k := range [][]byte{nil, key} {
		d := storetest.New()
		o := store.Options{Segments: 8, Key: k, Machine: "here"}
		s := open(t, d, o)
		for n := range uint64(5) {
			write(t, s.Sent, n, 1)
			write(t, s.Received, n+100, 2)
		}
		write(t, s.Sent, 3, 9)
		closeStore(t, s)

		s = open(t, d, o)
		if s.Notice != "" || s.State().Generation != 2 {
			t.Errorf("notice %q, generation %d", s.Notice, s.State().Generation)
		}
		if got := s.Sent.Segments(); !slices.Equal(got, []uint64{4, 3, 2, 1, 0}) || s.Received.Bytes() != 5*store.Segment {
			t.Errorf("segments %v, %d bytes", got, s.Received.Bytes())
		}
		data := make([]byte, store.Segment, store.Buffer)
		for n := range uint64(5) {
			version := byte(1)
			if n == 3 {
				version = 9
			}
			m, sum, err := s.Sent.Read(n, data)
			if found, _ := s.Sent.Find(n); err != nil || !same(n, version, m, data) || sum != store.Sum(n, m, data) || sum != found {
				t.Errorf("segment %d: %v", n, err)
			}
			if m, _, err = s.Received.Read(n+100, data); err != nil || !same(n+100, 2, m, data) {
				t.Errorf("segment %d of the mirror: %v", n+100, err)
			}
		}
		if _, _, err := s.Sent.Read(7, data); !errors.Is(err, store.ErrAbsent) {
			t.Errorf("an absent segment: %v", err)
		}
		m, plain := segment(1, 1)
		clear := bytes.Contains(d.Bytes("sent.data"), plain[:64]) && m[0] >= 64
		sum := store.Sum(1, m, plain)
		if clear = clear || bytes.Contains(d.Bytes("sent.meta"), sum[:]); clear == (k != nil) {
			t.Errorf("with a key of %d bytes the disk is readable: %v", len(k), clear)
		}
		closeStore(t, s)
	}
}

// TestLap: the newest segments stay, in the slots there are.
func TestLap(t *testing.T) {
	d := storetest.New()
	s := open(t, d, store.Options{Segments: 4})
	for n := range uint64(40) {
		s.Sent.Drop(func(k uint64) bool { return k+4 > n })
		write(t, s.Sent, n, 1)
		write(t, s.Sent, n, 2)
	}
	if size := len(d.Bytes("sent.data")); size > 20*store.Segment {
		t.Errorf("%d bytes on disk for 4 segments", size)
	}
	if got := s.Sent.Segments(); !slices.Equal(got, []uint64{39, 38, 37, 36}) {
		t.Errorf("segments %v", got)
	}
	closeStore(t, s)
}

// TestResize: a store opened with more or fewer segments keeps the newest that
// fit, gives disk back, and goes on (D-19).
func TestResize(t *testing.T) {
	d := storetest.New()
	next := uint64(0)
	for _, size := range []int{12, 12, 24, 4, 4, 10} {
		s := open(t, d, store.Options{Segments: size})
		had := s.Sent.Segments()
		if want := min(int(next), size); next > 0 && len(had) > want || len(had) < min(want, 4) || len(had) > 0 && had[0] != next-1 {
			t.Errorf("size %d: %d segments from %v on", size, len(had), had[:min(1, len(had))])
		}
		data := make([]byte, store.Segment, store.Buffer)
		for _, n := range had {
			if m, _, err := s.Sent.Read(n, data); err != nil || !same(n, 1, m, data) {
				t.Errorf("size %d, segment %d: %v", size, n, err)
			}
		}
		for range 2 * size {
			n := next
			s.Sent.Drop(func(k uint64) bool { return k+uint64(size) > n })
			write(t, s.Sent, n, 1)
			next++
		}
		closeStore(t, s)
	}
	if size := len(d.Bytes("sent.data")) / store.Segment; size > 10+16 {
		t.Errorf("%d slots on disk", size)
	}
}

func TestEpochs(t *testing.T) {
	d := storetest.New()
	s := open(t, d, store.Options{Segments: 4})
	write(t, s.Sent, 1, 1)
	s.Sent.Restart(epoch + 1)
	if got := s.Sent.Segments(); len(got) != 0 {
		t.Errorf("segments %v of a past epoch", got)
	}
	if _, err := try(s.Sent, 1, 1); !errors.Is(err, store.ErrAbsent) {
		t.Errorf("a write under a past epoch: %v", err)
	}
	closeStore(t, s)
	s = open(t, d, store.Options{Segments: 4}) // the state still names the first
	if got := s.Sent.Segments(); len(got) != 1 {
		t.Errorf("control: segments %v", got)
	}
	st := s.State()
	st.Epochs[0] = epoch + 1
	if err := s.Save(st); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	s = open(t, d, store.Options{Segments: 4})
	if got := s.Sent.Segments(); len(got) != 0 {
		t.Errorf("segments %v of a past epoch after opening", got)
	}
	closeStore(t, s)
}

// TestIdentity: a store from elsewhere is begun anew, one of a newer version
// is left alone (D-03, D-19).
func TestIdentity(t *testing.T) {
	base := storetest.New()
	o := store.Options{Segments: 4, Key: key, Machine: "here"}
	s := open(t, base, o)
	write(t, s.Sent, 1, 1)
	id := s.State().ID
	closeStore(t, s)
	for name, c := range map[string]struct {
		o    store.Options
		kept bool
	}{
		"the same":        {o, true},
		"another machine": {store.Options{Segments: 4, Key: key, Machine: "there"}, false},
		"another key":     {store.Options{Segments: 4, Key: bytes.Repeat([]byte{8}, 32), Machine: "here"}, false},
		"no key":          {store.Options{Segments: 4, Machine: "here"}, false},
	} {
		s := open(t, base.Copy(), c.o)
		if (s.State().ID == id) != c.kept || (s.Notice == "") != c.kept || (len(s.Sent.Segments()) == 1) != c.kept {
			t.Errorf("%s: notice %q, %d segments", name, s.Notice, len(s.Sent.Segments()))
		}
		closeStore(t, s)
	}
	newer := base.Copy()
	for i := range 2 {
		slot := newer.Bytes("state")[512*i:][:512]
		slot[8] = 2
		store.Seal(slot)
	}
	before := bytes.Clone(newer.Bytes("state"))
	if _, err := store.Open(newer, o); !errors.Is(err, store.ErrNewer) {
		t.Errorf("a newer version: %v", err)
	}
	if !bytes.Equal(before, newer.Bytes("state")) || !bytes.Equal(base.Bytes("sent.data"), newer.Bytes("sent.data")) {
		t.Error("a newer store was touched")
	}
}

// damage opens a damaged copy and counts the segments that are still right; a
// wrong one fails the test.
func damage(t *testing.T, d *storetest.Disk, o store.Options, want map[uint64]byte) (right int, renewed bool) {
	t.Helper()
	s, err := store.Open(d, o)
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	data := make([]byte, store.Segment, store.Buffer)
	for _, n := range s.Sent.Segments() {
		m, _, err := s.Sent.Read(n, data)
		if err != nil {
			continue
		}
		if !same(n, want[n], m, data) {
			t.Fatalf("segment %d: wrong bytes were believed", n)
		}
		right++
	}
	return right, s.Notice != ""
}

// TestFlips: no single flipped bit goes unnoticed, and none costs more than its
// segment or the state (D-05). The long form is 10,000 flips, with and without
// encryption.
func TestFlips(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for _, k := range [][]byte{nil, key} {
		o := store.Options{Segments: 1, Key: k, Machine: "here"}
		d := storetest.New()
		s := open(t, d, o)
		write(t, s.Sent, 6, 1)
		closeStore(t, s)
		closeStore(t, open(t, d, o)) // both slots of the state know the epoch
		want := map[uint64]byte{6: 1}
		if right, renewed := damage(t, d.Copy(), o, want); right != 1 || renewed {
			t.Fatalf("control: %d segments, renewed %v", right, renewed)
		}
		for i := range rounds(300, 10_000) {
			name := []string{"state", "sent.meta", "sent.data"}[i%3]
			c := d.Copy()
			bit := r.IntN(8 * len(c.Bytes(name)))
			c.Bytes(name)[bit/8] ^= 1 << (bit % 8)
			right, renewed := damage(t, c, o, want)
			if name == "state" && (right != 1 || renewed) { // the other slot is the one before
				t.Fatalf("bit %d of state: %d segments, renewed %v", bit, right, renewed)
			}
			if name != "state" && right != 0 {
				t.Fatalf("bit %d of %s went unnoticed", bit, name)
			}
		}
	}
}

// TestRuins: truncated, empty, missing and senseless files never keep a store
// from opening (D-06).
func TestRuins(t *testing.T) {
	o := store.Options{Segments: 4, Machine: "here"}
	d := storetest.New()
	s := open(t, d, o)
	want := map[uint64]byte{}
	for n := range uint64(4) {
		write(t, s.Sent, n, 1)
		want[n] = 1
	}
	closeStore(t, s)
	r := rand.New(rand.NewPCG(6, 6))
	garbage := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	for _, name := range []string{"state", "sent.meta", "sent.data", "received.meta"} {
		size := len(d.Bytes(name))
		for what, ruin := range map[string]func(c *storetest.Disk){
			"empty":     func(c *storetest.Disk) { c.Set(name, nil) },
			"missing":   func(c *storetest.Disk) { c.Remove(name) },
			"truncated": func(c *storetest.Disk) { c.Set(name, c.Bytes(name)[:size/3]) },
			"garbage":   func(c *storetest.Disk) { c.Set(name, garbage(size+777)) },
			"longer":    func(c *storetest.Disk) { c.Set(name, append(c.Bytes(name), garbage(5000)...)) },
		} {
			c := d.Copy()
			ruin(c)
			right, renewed := damage(t, c, o, want)
			if whole := what == "longer" || name == "received.meta"; whole && right != 4 {
				t.Errorf("%s %s: %d of 4 segments", name, what, right)
			}
			if renewed != (name == "state" && what != "empty" && what != "missing" && what != "longer") {
				t.Errorf("%s %s: renewed %v", name, what, renewed)
			}
			if right, _ := damage(t, c, o, want); right > 4 {
				t.Errorf("%s %s: second opening: %d", name, what, right)
			}
		}
	}
}

// TestPowerCut: whatever of the last writes reached the disk, in whatever order
// and however torn, the store opens, and every segment it believes is a version
// that was written (D-07). The long form is 500 cuts.
func TestPowerCut(t *testing.T) {
	whole := 0
	total := rounds(60, 500)
	for seed := range uint64(total) {
		r := rand.New(rand.NewPCG(seed, 7))
		o := store.Options{Segments: 4, Machine: "here"}
		if seed%2 == 1 {
			o.Key = key
		}
		d := storetest.New()
		s := open(t, d, o)
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		latest := byte(0)
		for range r.IntN(12) {
			latest++
			write(t, s.Sent, r.Uint64N(4), latest)
			if r.IntN(6) == 0 {
				if err := s.Sync(); err != nil {
					t.Fatal(err)
				}
			}
		}
		s, err := store.Open(d.Crash(r), o)
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, store.Segment, store.Buffer)
		for _, n := range s.Sent.Segments() {
			m, _, err := s.Sent.Read(n, data)
			if err != nil {
				continue
			}
			ok := false
			for v := range latest + 1 {
				ok = ok || same(n, v, m, data)
			}
			if !ok {
				t.Fatalf("seed %d: segment %d is none that was written", seed, n)
			}
			whole++
		}
		closeStore(t, s)
	}
	t.Logf("%d power cuts, %d segments survived", total, whole)
	if whole < total/2 {
		t.Error("too few segments survive a power cut")
	}
}

// TestFaults spoils every operation in turn, with each error, and goes on: no
// wrong byte, and what could be written is there after reopening (D-09, D-10).
func TestFaults(t *testing.T) {
	o := store.Options{Segments: 4, Key: key}
	run := func(d *storetest.Disk) (wrote map[uint64]byte, err error) {
		wrote = map[uint64]byte{}
		s, err := store.Open(d, o)
		if err != nil {
			return wrote, err
		}
		st := s.State()
		st.Epochs[0] = epoch
		err = s.Save(st)
		s.Sent.Restart(epoch)
		for n := range uint64(3) {
			for v := range byte(2) {
				if _, e := try(s.Sent, n, v+1); e == nil {
					wrote[n] = v + 1
				} else {
					err = errors.Join(err, e)
				}
			}
		}
		return wrote, errors.Join(err, s.Sync(), s.Close())
	}
	control := storetest.New()
	if wrote, err := run(control); err != nil || len(wrote) != 3 {
		t.Fatalf("control: %v, %v", wrote, err)
	}
	for n := 1; n <= control.Ops(); n++ {
		for _, bad := range []error{syscall.ENOSPC, syscall.EIO} {
			d := storetest.New()
			d.SetFault(func(op storetest.Op) error {
				if op.N == n {
					return bad
				}
				return nil
			})
			wrote, err := run(d)
			if err == nil {
				t.Fatalf("operation %d: %v went unnoticed", n, bad)
			}
			d.SetFault(nil)
			right, _ := damage(t, d, o, wrote)
			if right < len(wrote) && right > 0 || right == 0 && len(wrote) > 0 && !errors.Is(err, bad) {
				t.Errorf("operation %d, %v: %d segments of %v", n, bad, right, wrote)
			}
		}
	}
}

// FuzzFiles: no files make Open panic or allocate without measure.
func FuzzFiles(f *testing.F) {
	d := storetest.New()
	s, err := store.Open(d, store.Options{Segments: 2})
	if err != nil {
		f.Fatal(err)
	}
	s.Sent.Restart(epoch)
	m, data := segment(1, 1)
	if err := s.Sent.Write(epoch, 1, m, data, hints(1, 1), store.Sum(1, m, data)); err != nil {
		f.Fatal(err)
	}
	f.Add(bytes.Clone(d.Bytes("state")), bytes.Clone(d.Bytes("sent.meta")))
	f.Add([]byte{}, []byte("stS1"))
	f.Add([]byte("stitchst"), make([]byte, 3000))
	f.Fuzz(func(t *testing.T, state, meta []byte) {
		for i := 0; i+512 <= min(len(state), 1024); i += 512 { // past the checksums
			store.Seal(state[i:][:512])
		}
		for i := 0; i+1024 <= min(len(meta), 4096); i += 1024 {
			store.Seal(meta[i:][:1024])
		}
		for _, k := range [][]byte{nil, key} {
			d := storetest.New()
			d.Set("state", bytes.Clone(state))
			d.Set("sent.meta", bytes.Clone(meta))
			s, err := store.Open(d, store.Options{Segments: 2, Key: k})
			if err != nil {
				continue
			}
			for _, n := range s.Sent.Segments() {
				if _, _, err := s.Sent.Read(n, make([]byte, store.Segment, store.Buffer)); err == nil {
					t.Fatal("a segment without data was believed")
				}
			}
			closeStore(t, s)
		}
	})
}

func BenchmarkLog(b *testing.B) {
	for _, k := range [][]byte{nil, key} {
		d, err := store.OpenDir(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		s, err := store.Open(d, store.Options{Segments: 64, Key: k})
		if err != nil {
			b.Fatal(err)
		}
		s.Sent.Restart(epoch)
		m, data := segment(0, 1)
		h := make([]byte, 37<<10)
		buf := make([]byte, store.Segment, store.Buffer)
		name := "encrypted=" + strconv.FormatBool(k != nil)
		b.Run("write/"+name, func(b *testing.B) {
			b.SetBytes(store.Segment)
			n := uint64(0)
			for b.Loop() {
				copy(buf, data)
				n = (n + 1) % 64
				if err := s.Sent.Write(epoch, n, m, buf, h, store.Sum(n, m, data)); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("read/"+name, func(b *testing.B) {
			b.SetBytes(store.Segment)
			for b.Loop() {
				if _, _, err := s.Sent.Read(1, buf); err != nil {
					b.Fatal(fmt.Errorf("segment 1: %w", err))
				}
			}
		})
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
