package dedupe

import (
	"bytes"
	"errors"
	"testing"
)

// TestWriterResumes: a Writer that goes on has the same blocks to send again, in the
// same places, and fills its extent where it is the same history; elsewhere it begins
// another one, behind all positions that were given out.
func TestWriterResumes(t *testing.T) {
	src := newSource(40, 100_000).pool
	h := NewHistory(4 << 20)
	w := h.NewWriter(WriterOptions{})
	for i := range 5 {
		if _, err := w.Put(src[i*1000 : (i+1)*1000]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Acked(2); err != nil {
		t.Fatal(err)
	}
	s, err := w.State()
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	sent, received := h.Heads()
	other := NewHistory(4 << 20)
	for name, to := range map[string]*History{"the same": h, "another": other} {
		if err := to.Continue(sent, received); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		w := to.Resume(s, WriterOptions{})
		for seq := uint64(2); seq < 5; seq++ {
			got, b, err := w.Again(nil, seq)
			if err != nil || !bytes.Equal(got, src[seq*1000:(seq+1)*1000]) || b.Spans != s.Kept[seq-2].Spans {
				t.Errorf("%s: block %d: %d bytes at %v, %v", name, seq, len(got), b.Spans, err)
			}
		}
		if _, _, err := w.Again(nil, 1); !errors.Is(err, ErrGone) {
			t.Errorf("%s: an acknowledged block: %v", name, err)
		}
		b, err := w.Put(src[5000:5100])
		if err != nil || b.Seq != 5 {
			t.Fatalf("%s: block %d, %v", name, b.Seq, err)
		}
		if goesOn := b.Spans[0].Pos == s.Next; goesOn != (to == h) || to != h && b.Spans[0].Pos < sent {
			t.Errorf("%s: it goes on at %v; its rest was at %d, the head at %d", name, b.Spans, s.Next, sent)
		}
		if err := w.Acked(6); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		w.Close()
	}
	h.Restart()
	if _, err := w.State(); !errors.Is(err, ErrStale) {
		t.Errorf("after a restart: %v", err)
	}
}

// TestContinue: a history that was opened anew has the heads of the one before to the
// byte, and one that has more than the heads say is not the one they are from.
func TestContinue(t *testing.T) {
	c := Config{Size: 4 << 20, Dir: t.TempDir()}
	open := func() *History {
		h, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	h := open()
	src := newSource(41, 100_000).pool
	w := h.NewWriter(WriterOptions{})
	if _, err := w.Put(src[:50_000]); err != nil || w.Acked(1) != nil {
		t.Fatal(err)
	}
	h.peer.Store(5)
	b := Block{TxHead: 70_000, Spans: [2]Span{{Pos: 0, Len: 50_000}}}
	if err := h.NewReader().Put(src[50_000:], &b); err != nil {
		t.Fatal(err)
	}
	sent, received := h.Heads()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = open()
	defer h.Close()
	if _, r := h.Heads(); r == received {
		t.Error("the control: a history that was opened anew knows its head by itself")
	}
	if err := h.Continue(sent, received); err != nil {
		t.Fatal(err)
	}
	if s, r := h.Heads(); s < sent || r != received {
		t.Errorf("heads %d and %d, they were %d and %d", s, r, sent, received)
	}
	if err := NewHistory(4<<20).Continue(maxPos+1, 0); !errors.Is(err, ErrAhead) {
		t.Errorf("a position that no ring has: %v", err)
	}
	more := NewHistory(4 << 20)
	more.rx.raise(3 << 20)
	if err := more.Continue(0, 1<<20); !errors.Is(err, ErrAhead) {
		t.Errorf("less than there is: %v", err)
	}
}
