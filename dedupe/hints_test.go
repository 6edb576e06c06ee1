package dedupe

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"stitch/dedupe/store"
	"stitch/dedupe/store/storetest"
)

// TestHints: what hints tell is what scanning tells, for an index of any size, in
// bytes that are random, sparse, or repeat all over, and none take more than there
// is room for.
func TestHints(t *testing.T) {
	sparse := make([]byte, chunkSize)
	copy(sparse[5000:], newSource(51, 10_000).pool)
	copy(sparse[chunkSize-9000:], newSource(52, 9_000).pool)
	for name, data := range map[string][]byte{
		"random":  newSource(50, chunkSize).pool,
		"sparse":  sparse,
		"zeros":   make([]byte, chunkSize),
		"repeats": bytes.Repeat(newSource(53, 512).pool, chunkSize/512),
	} {
		hints, _ := hintsOf(nil, data, nil)
		if len(hints) > store.MaxHints {
			t.Errorf("%s: %d bytes of hints", name, len(hints))
		}
		for _, size := range []int64{1 << 20, 100 << 20} {
			x := newIndex(size)
			want := x.scan(nil, data, 0, len(data))
			got, ok := x.known(nil, hints)
			if len(want) > maxAnchors {
				want = want[:len(got)]
			}
			if !ok || !slices.Equal(got, want) {
				t.Errorf("%s, %d bytes: %d anchors, %v, instead of %d", name, size, len(got), ok, len(want))
			}
		}
		t.Logf("%s: %d bytes", name, len(hints))
	}
	other := []byte{kindOf() ^ 3, 0, 0, 0, 0, 0, 0, 0}
	far := binary.LittleEndian.AppendUint64(slices.Clone(other), 1<<gapBits|gapMax)
	far[0] = kindOf()
	far = append(far, far[8:]...)
	far = append(far, far[8:]...)
	for name, b := range map[string][]byte{"none": nil, "other sums": other, "cut": far[:12], "behind the end": far} {
		if _, ok := hintIndex.known(nil, b); ok {
			t.Errorf("%s: believed", name)
		}
	}
}

// FuzzHints: no hints lead out of their chunk.
func FuzzHints(f *testing.F) {
	hints, _ := hintsOf(nil, newSource(54, chunkSize).pool, nil)
	f.Add(hints[:800])
	f.Add([]byte{kindOf(), 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255})
	x := newIndex(minSize)
	f.Fuzz(func(t *testing.T, b []byte) {
		as, _ := x.known(nil, b)
		for _, a := range as {
			if a.off < 0 || a.off > chunkSize-8 || int(a.bucket) >= len(x.slots)/bucketSize {
				t.Fatalf("%+v", a)
			}
		}
	})
}

// TestWrongHints: hints that verify and are of other bytes cost what they lead to
// and nothing else.
func TestWrongHints(t *testing.T) {
	for _, wrong := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a, b := newAgent(t, both), newAgent(t, both)
			defer a.close()
			defer b.close()
			meet(t, a.h, b.h)
			src := newSource(55, 3<<20)
			exchange(t, a, b, src.pool)
			time.Sleep(10 * time.Second)
			if wrong {
				l := a.h.disk.store.Sent
				for _, n := range l.Segments() {
					sum, _ := l.Find(n)
					hints, _ := hintsOf(nil, src.random(chunkSize), nil)
					if err := l.WriteHints(n, sum, hints); err != nil {
						t.Fatal(err)
					}
				}
			}
			a.close()
			a.disk.SetFault(func(op storetest.Op) error {
				if op.Kind == "read" && op.File == "sent.data" { // the hints come first
					time.Sleep(time.Second)
				}
				return nil
			})
			a.open()
			meet(t, a.h, b.h)
			<-a.h.Loaded()
			matched, missed := exchange(t, a, b, src.pool)
			if missed > 0 || wrong != (matched < 100_000) {
				t.Errorf("wrong %v: %d of %d bytes matched, %d missed", wrong, matched, len(src.pool), missed)
			}
		})
	}
}
