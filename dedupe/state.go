package dedupe

import (
	"fmt"
	"slices"
)

// WriterState is a Writer between two blocks as a value: what History.Resume, also
// that of another process, makes a Writer of that goes on with it.
type WriterState struct {
	// Instance names the History in memory; where it is another one, Owner, Next,
	// End and Grow mean nothing.
	Instance uint64
	Owner    uint32 // of the pages that the Writer has filled
	Next     uint64 // the rest of its extent
	End      uint64
	Grow     int
	First    uint64 // Seq of Kept[0]
	Kept     []Kept // blocks that are not acknowledged, in order
}

// Kept is a block that may be asked for again.
type Kept struct {
	Spans   [2]Span
	Data    []byte
	Matched bool // it refers to older bytes
}

// State returns the Writer's state, with copies of the blocks it keeps; the Writer
// must not be used any more but for Close. ErrStale if the History was emptied since,
// ErrGone if it no longer has a block that it keeps.
func (w *Writer) State() (WriterState, error) {
	w.h.life.RLock()
	defer w.h.life.RUnlock()
	if w.gen != w.h.gen {
		return WriterState{}, ErrStale
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s := WriterState{
		Instance: w.h.self.Instance, Owner: w.owner,
		Next: w.next, End: w.end, Grow: w.grow, First: w.first,
	}
	for i := range w.sent {
		r := &w.sent[i]
		data := slices.Clone(r.aside)
		if r.aside == nil {
			var err error
			if data, err = w.h.tx.appendSpans(nil, r.spans); err != nil {
				return WriterState{}, err
			}
		}
		s.Kept = append(s.Kept, Kept{Spans: r.spans, Data: data, Matched: r.matched})
	}
	return s, nil
}

// Resume returns a Writer that goes on with s, which it keeps; Close it. Of the
// History that s is from at most one Writer may go on with it. In another one the
// positions that s has begun to fill are left behind.
func (h *History) Resume(s WriterState, o WriterOptions) *Writer {
	w := h.NewWriter(o)
	if h.same(s.Instance) {
		w.owner = s.Owner
		w.match = newMatcher(h, w.owner, o)
		w.next, w.end, w.grow = s.Next, s.End, s.Grow
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.first = s.First
	for _, k := range s.Kept {
		w.sent = append(w.sent, record{spans: k.Spans, aside: k.Data, matched: k.Matched})
	}
	return w
}

// same says whether a state is from this History and not from another process'.
func (h *History) same(instance uint64) bool {
	h.life.RLock()
	defer h.life.RUnlock()
	return h.self.Instance == instance
}

// Continue brings both heads to where another process left them, as its Heads said,
// in a History whose store was reopened (it knows them to the chunk) or that begins
// empty: positions are not used twice, and the peer is not told of bytes that it has
// not sent. It is for before Resume; saying it again, or in the History that the heads
// are from, does no harm. ErrAhead if there is more in the History than the heads say:
// they are not its own.
func (h *History) Continue(sent, received uint64) error {
	if sent > maxPos || received > maxPos {
		return fmt.Errorf("%w: heads %d and %d", ErrAhead, sent, received)
	}
	h.life.Lock()
	defer h.life.Unlock()
	h.alloc.Lock()
	defer h.alloc.Unlock()
	if h.owners.Load() == 0 {
		if known := h.rx.head.Load(); received < known {
			if known-received >= chunkSize {
				return fmt.Errorf("%w: %d bytes received, said to be %d", ErrAhead, known, received)
			}
			h.rx.head.Store(received)
		}
	}
	h.rx.raise(received)
	if at := h.tx.head.Load(); sent > at {
		sent = (sent + pageSize - 1) / pageSize * pageSize
		h.guard(sent)
		h.tx.clear(at, sent)
		h.tx.head.Store(sent)
		h.tx.tier.advanced(at, sent)
	}
	return nil
}
