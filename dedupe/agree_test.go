package dedupe

import (
	"errors"
	"testing"

	"stitch/dedupe/accord"
)

// meet exchanges summaries once.
func meet(t *testing.T, a, b *History) (x, y Agreement) {
	t.Helper()
	sa, sb := a.Summary(), b.Summary()
	x, err := a.Agree(sa, sb)
	if err == nil {
		y, err = b.Agree(sb, sa)
	}
	if err != nil {
		t.Fatal(err)
	}
	if x.Reset != y.Reset || x.Sent != y.Received || x.Received != y.Sent {
		t.Fatalf("one side: %+v, the other: %+v", x, y)
	}
	return x, y
}

// TestAgreeInMemory: histories without a store stay while both processes live
// and go when one of them restarts, whichever it is.
func TestAgreeInMemory(t *testing.T) {
	src := newSource(20, 60_000)
	for name, c := range map[string]struct {
		change func(a, b *side)
		kept   bool
	}{
		"nothing happened": {func(_, _ *side) {}, true},
		"a restarted":      {func(a, _ *side) { a.h = NewHistory(minSize) }, false},
		"b restarted":      {func(_, b *side) { b.h = NewHistory(minSize) }, false},
		"both restarted":   {func(a, b *side) { a.h, b.h = NewHistory(minSize), NewHistory(minSize) }, false},
		"a went cold":      {func(a, _ *side) { a.h.Restart() }, false},
		"b went cold":      {func(_, b *side) { b.h.Restart() }, false},
	} {
		a, b := newSide(minSize), newSide(minSize)
		if x, _ := meet(t, a.h, b.h); !x.Reset {
			t.Errorf("%s: a first meeting must settle", name)
		}
		old := dial(t, a, b)
		old.send(src.pool)
		old.deliver()
		old.ack()
		c.change(a, b)
		if x, _ := meet(t, a.h, b.h); x.Reset == c.kept {
			t.Errorf("%s: reset %v", name, x.Reset)
		}
		if x, _ := meet(t, a.h, b.h); x.Reset {
			t.Errorf("%s: the next meeting settled again", name)
		}
		a.bytes, a.who = a.bytes[:0], a.who[:0]
		a.mark([2]Span{{0, int(a.h.tx.head.Load())}}, everybody)
		copy(a.bytes, src.pool)
		fresh := dial(t, a, b)
		got := fresh.send(src.pool).Matched
		if missed := fresh.deliver(); missed || c.kept != (got > 59_000) || !c.kept && got > 0 {
			t.Errorf("%s: %d bytes matched, missed %v", name, got, missed)
		}
	}
}

// TestAgreeSuperseded: connections that meet at the same time agree in any
// order; summaries that were overtaken by a cold start are refused.
func TestAgreeSuperseded(t *testing.T) {
	a, b := NewHistory(minSize), NewHistory(minSize)
	a1, b1, a2, b2 := a.Summary(), b.Summary(), a.Summary(), b.Summary()
	for i, c := range []struct {
		h         *History
		own, peer []byte
		reset     bool
	}{{a, a1, b1, true}, {a, a2, b2, false}, {b, b2, a2, true}, {b, b1, a1, false}} {
		if x, err := c.h.Agree(c.own, c.peer); err != nil || x.Reset != c.reset {
			t.Errorf("%d: %+v, %v", i, x, err)
		}
	}
	if x, _ := meet(t, a, b); x.Reset {
		t.Error("settled again")
	}
	a1, b1 = a.Summary(), b.Summary()
	a.Restart()
	if _, err := a.Agree(a1, b1); !errors.Is(err, ErrSuperseded) {
		t.Errorf("own epoch gone: %v", err)
	}
	for _, bad := range [][]byte{nil, b1[:50], append(b1, 1)} {
		if _, err := a.Agree(a.Summary(), bad); !errors.Is(err, accord.ErrSummary) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
}

// TestPlant: bytes that both sides planted are found in both directions.
func TestPlant(t *testing.T) {
	src := newSource(21, 100_000)
	for _, try := range []struct{ planted, back bool }{{false, false}, {false, true}, {true, false}, {true, true}} {
		a, b := newSide(minSize), newSide(minSize)
		seed := dial(t, a, b)
		if try.planted {
			blk, err := seed.w.Plant(src.pool)
			if err != nil || len(blk.Tokens) > 0 {
				t.Fatalf("%+v, %v", blk, err)
			}
			a.record(blk.Spans, src.pool, everybody)
			if err := seed.r.Put(src.pool, &blk); err != nil { // the peer's own copy
				t.Fatal(err)
			}
			if err := seed.w.Acked(1); err != nil {
				t.Fatal(err)
			}
		}
		seed.w.Close()
		c := dial(t, a, b)
		if try.back {
			c = dial(t, b, a)
		}
		got := c.send(src.pool).Matched
		if missed := c.deliver(); missed || try.planted != (got > 99_000) || !try.planted && got > 0 {
			t.Errorf("%+v: %d bytes matched, missed %v", try, got, missed)
		}
	}
	a := newSide(minSize)
	w := a.h.NewWriter(WriterOptions{})
	a.h.Restart()
	if _, err := w.Plant(src.pool); !errors.Is(err, ErrStale) {
		t.Errorf("stale: %v", err)
	}
}

// TestSkim: a repeat of skimmed bytes is found from the first anchor on that a
// stripe has, at any alignment; of a short one there is mostly none.
func TestSkim(t *testing.T) {
	src := newSource(22, 200_000)
	a, b := newSide(minSize), newSide(minSize)
	skim := dial(t, a, b)
	blk, err := skim.w.Skim(src.pool)
	if err != nil || len(blk.Tokens) > 0 {
		t.Fatalf("%+v, %v", blk, err)
	}
	a.record(blk.Spans, src.pool, everybody)
	if err := skim.r.Put(src.pool, &blk); err != nil {
		t.Fatal(err)
	}
	if err := skim.w.Acked(1); err != nil {
		t.Fatal(err)
	}
	c := dial(t, a, b)
	if got := c.send(src.pool[777:]).Matched; c.deliver() || got < 190_000 {
		t.Errorf("of 199,223 bytes skimmed before %d matched", got)
	}
	a.h.Restart()
	if _, err := skim.w.Skim(src.pool); !errors.Is(err, ErrStale) {
		t.Errorf("stale: %v", err)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{{Size: -1}, {Memory: -1}, {Key: make([]byte, 31)}} {
		if _, err := Open(c); !errors.Is(err, ErrConfig) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	h, err := Open(Config{Size: 5<<20 + 7, Memory: 3 << 20})
	if err != nil || h.Size() != 3<<20 {
		t.Errorf("without a store Memory is all there is: %d, %v", h.Size(), err)
	}
	if err := errors.Join(h.Close(), h.Close()); err != nil {
		t.Error(err)
	}
}
