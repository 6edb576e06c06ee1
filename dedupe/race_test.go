package dedupe

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"stitch/dedupe/store/storetest"
)

// TestEviction lets connections of both sides run beside the store's
// goroutines through rings that go round all the time: references whose source
// is recycled or on its way from the disk are repaired, nothing wrong arrives
// (D-18). Worth most under the race detector.
func TestEviction(t *testing.T) {
	c := Config{Size: 6 << 20, Memory: 2 << 20}
	a := &agent{t: t, disk: storetest.New(), c: c}
	b := &agent{t: t, disk: storetest.New(), c: c}
	a.open()
	b.open()
	meet(t, a.h, b.h)
	pool := newSource(50, 5<<20).pool
	var work sync.WaitGroup
	for i := range 4 {
		from, to := a.h, b.h
		if i%2 == 1 {
			from, to = to, from
		}
		work.Go(func() {
			matched, missed := traffic(t, from, to, &source{r: newSource(uint64(i), 8).r, pool: pool})
			if t.Logf("connection %d: %d bytes matched, %d blocks missed", i, matched, missed); matched == 0 {
				t.Error("nothing matched")
			}
		})
	}
	work.Wait()
	t.Logf("%+v", a.store())
	if s := a.store(); s.Damaged > 0 || s.Written == 0 {
		t.Errorf("%+v", s)
	}
	a.close()
	b.close()
}

// traffic sends blocks over a connection of its own.
func traffic(t *testing.T, from, to *History, src *source) (matched, missed int) {
	w, r := from.NewWriter(WriterOptions{}), to.NewReader()
	defer w.Close()
	for n := range uint64(rounds(120, 3000)) {
		in := src.block(60_000)
		b, err := w.Put(in)
		if err != nil {
			t.Error(err)
			return
		}
		matched += b.Matched
		out, _, err := r.Rebuild(nil, b.Tokens, literals(in, b.Tokens))
		if errors.Is(err, ErrGone) || errors.Is(err, ErrLate) {
			missed++
			b.Tokens = nil
			out, _, err = w.Again(nil, b.Seq)
		}
		if err == nil && !bytes.Equal(out, in) {
			t.Errorf("block %d is wrong", n) // the block's checksum would tell
		}
		if err == nil {
			err = r.Put(in, &b)
		}
		if err == nil {
			err = w.Acked(n + 1)
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
	return matched, missed
}

// TestOvertaken lets others take the whole ring between the moment a block got
// its place and the moment it is kept: it must be kept all the same.
func TestOvertaken(t *testing.T) {
	h := NewHistory(minSize)
	slow, fast := h.NewWriter(WriterOptions{}), h.NewWriter(WriterOptions{})
	in := newSource(60, 50_000).pool
	spans := slow.place(len(in))
	for range 2 * minSize / len(in) {
		if _, err := fast.Put(in); err != nil {
			t.Fatal(err)
		}
	}
	slow.store(in, spans)
	seq := slow.retain(in, spans, false)
	if out, _, err := slow.Again(nil, seq); err != nil || !bytes.Equal(out, in) {
		t.Errorf("%d bytes of %d are kept: %v", len(out), len(in), err)
	}
}
