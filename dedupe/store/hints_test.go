package store_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"stitch/dedupe/accord"
	"stitch/dedupe/store"
	"stitch/dedupe/store/storetest"
)

// hinted returns the hints that the log tells of, by segment; a wrong digest or map
// fails the test.
func hinted(t *testing.T, l *store.Log) map[uint64][]byte {
	t.Helper()
	out := map[uint64][]byte{}
	var scratch []byte
	for i := range l.HintBatches() {
		scratch = l.Hints(i, scratch, func(h *store.Hint) {
			if sum, ok := l.Find(h.Segment); !ok || sum != h.Digest || h.Pages.Bytes() == 0 {
				t.Fatalf("segment %d: digest %v, map of %d bytes", h.Segment, h.Digest, h.Pages.Bytes())
			}
			if out[h.Segment] != nil {
				t.Fatalf("segment %d comes twice", h.Segment)
			}
			out[h.Segment] = bytes.Clone(h.Hints)
		})
	}
	return out
}

// versions writes 60 segments, some of them again, and returns which version is
// the last one of each.
func versions(t *testing.T, s *store.Store) map[uint64]byte {
	t.Helper()
	out := map[uint64]byte{}
	for n := range uint64(60) {
		out[n] = byte(n%3) + 1
		write(t, s.Sent, n, out[n])
	}
	for n := uint64(0); n < 60; n += 7 {
		out[n] += 3
		write(t, s.Sent, n, out[n])
	}
	return out
}

// TestHints: each segment's hints are there again, those of its last version, and
// nothing readable of them on an encrypted disk; what was written without hints has
// none until it is given some; a missing, cut or foreign file costs the hints alone.
func TestHints(t *testing.T) {
	for _, k := range [][]byte{nil, key} {
		d, o := storetest.New(), store.Options{Segments: 60, Key: k, Machine: "here"}
		s := open(t, d, o)
		last := versions(t, s)
		closeStore(t, s)
		if plain := bytes.Contains(d.Bytes("sent.hints"), hints(2, last[2])[:10]); plain != (k == nil) {
			t.Errorf("hints lie readable: %v", plain)
		}
		for name, c := range map[string]struct {
			ruin func(*storetest.Disk)
			most int
		}{
			"whole":     {func(*storetest.Disk) {}, 60},
			"missing":   {func(d *storetest.Disk) { d.Remove("sent.hints") }, 0},
			"cut":       {func(d *storetest.Disk) { d.Set("sent.hints", d.Bytes("sent.hints")[:60<<10]) }, 2},
			"exchanged": {func(d *storetest.Disk) { b := d.Bytes("sent.hints"); copy(b, b[40<<10:80<<10]) }, 129},
		} {
			c2 := d.Copy()
			c.ruin(c2)
			s := open(t, c2, o)
			got, want := hinted(t, s.Sent), 0
			for n, v := range last {
				if h := hints(n, v); h != nil && (got[n] != nil || name == "whole") {
					want++
					if !bytes.Equal(got[n], h) {
						t.Errorf("%s: segment %d: %d bytes instead of %d", name, n, len(got[n]), len(h))
					}
				}
			}
			if len(got) != want || want > c.most || len(s.Sent.Segments()) != 60 {
				t.Errorf("%s: %d hints instead of %d, %d segments", name, len(got), want, len(s.Sent.Segments()))
			}
			sum, _ := s.Sent.Find(1)
			err := s.Sent.WriteHints(1, sum, []byte("later"))
			if again := hinted(t, s.Sent)[1]; err != nil || string(again) != "later" {
				t.Errorf("%s: given later: %q, %v", name, again, err)
			}
			if err := s.Sent.WriteHints(1, accord.Digest{1}, []byte("of another version")); err == nil {
				t.Error("hints for a version that is no more were taken")
			}
			closeStore(t, s)
		}
	}
}

// TestHintFlips: no flipped bit in the hints file goes unnoticed, none costs more
// than a segment's hints, and no segment (D-05). The long form is 10,000 flips, with
// and without encryption.
func TestHintFlips(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	for _, k := range [][]byte{nil, key} {
		d, o := storetest.New(), store.Options{Segments: 2, Key: k, Machine: "here"}
		s := open(t, d, o)
		write(t, s.Sent, 0, 1)
		write(t, s.Sent, 1, 1)
		closeStore(t, s)
		size := len(d.Bytes("sent.hints"))
		lost := 0
		for i := range rounds(300, 10_000) {
			c := d.Copy()
			bit := 0
			if i > 0 { // the first is the control
				bit = r.IntN(8 * size)
				c.Bytes("sent.hints")[bit/8] ^= 1 << (bit % 8)
			}
			s := open(t, c, o)
			got := hinted(t, s.Sent)
			for n, h := range got {
				if !bytes.Equal(h, hints(n, 1)) {
					t.Fatalf("bit %d: wrong hints of segment %d were believed", bit, n)
				}
			}
			if i == 0 && len(got) != 2 || len(got) < 1 || len(s.Sent.Segments()) != 2 {
				t.Fatalf("bit %d: %d hints, %d segments", bit, len(got), len(s.Sent.Segments()))
			}
			lost += 2 - len(got)
			closeStore(t, s)
		}
		if lost == 0 {
			t.Error("no flip cost anything")
		}
	}
}
