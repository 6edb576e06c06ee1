package stream_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"stitch/dedupe"
	"stitch/tunnel/config"
)

// overwrite puts other bytes in the place of what a history has received, without
// its sender's knowing: change is given what each block of the ring becomes.
func overwrite(h *dedupe.History, change func(block []byte)) {
	head := h.Stats().Received
	r := h.NewReader()
	b := make([]byte, dedupe.MaxBlock)
	for pos := uint64(0); pos < head; pos += uint64(len(b)) {
		n := min(head-pos, uint64(len(b)))
		change(b[:n])
		blk := dedupe.Block{TxHead: head, Spans: [2]dedupe.Span{{Pos: pos, Len: int(n)}}}
		if err := r.Put(b[:n], &blk); err != nil {
			panic(err)
		}
	}
}

// stranger is a history of the same extent as h that holds other bytes.
func stranger(h *dedupe.History, seed uint64) *dedupe.History {
	out := dedupe.NewHistory(h.Size())
	fillLike(out, h, seed)
	return out
}

// fillLike brings an empty history to the extent of h, with other bytes.
func fillLike(out, h *dedupe.History, seed uint64) {
	s := h.Stats()
	w := out.NewWriter(dedupe.WriterOptions{})
	for n := uint64(1); out.Stats().Sent < s.Sent; n++ {
		if _, err := w.Plant(data(seed+n, dedupe.MaxBlock)); err != nil || w.Acked(n) != nil {
			panic(err)
		}
	}
	blk := dedupe.Block{TxHead: s.Received, Spans: [2]dedupe.Span{{Pos: 0, Len: 1}}}
	if err := out.NewReader().Put([]byte{0}, &blk); err != nil {
		panic(err)
	}
	overwrite(out, func(b []byte) { copy(b, data(seed, len(b))) })
}

// TestDiverged: whatever happens to a history behind everybody's back, no stream
// is reset for it and no byte is wrong, in either direction. What happens to bytes in
// memory also meets the stream that is open; a machine that is set back to an earlier
// state, or is another one's copy, loses its connections, as it does in truth.
func TestDiverged(t *testing.T) {
	const size = 6 << 20
	known, answer := data(21, size), data(22, size/2)
	replace := func(f func(*dedupe.History) *dedupe.History) func(*site, string) {
		return func(s *site, peer string) { s.proxy.SetBack(peer, f) }
	}
	overwritten := func(change func(b []byte, at int)) func(*site, string) {
		return func(s *site, peer string) {
			for _, h := range s.proxy.Histories(peer) {
				at := 0
				overwrite(h, func(b []byte) {
					change(b, at)
					at += len(b)
				})
			}
		}
	}
	for name, c := range map[string]struct {
		harm     func(s *site, peer string)
		open     bool // a stream is open meanwhile
		restarts int
	}{
		"control":     {func(*site, string) {}, true, 0},
		"other bytes": {overwritten(func(b []byte, at int) { copy(b, data(uint64(at), len(b))) }), true, 0},
		"a flipped bit in every page": {overwritten(func(b []byte, at int) {
			n := copy(b, append(bytes.Clone(known), answer...)[min(at, size):])
			for i := 0; i < n; i += 4096 {
				b[i+i/4096%4096] ^= 4
			}
		}), true, 0},
		"set back to the beginning":    {replace(func(h *dedupe.History) *dedupe.History { return dedupe.NewHistory(h.Size()) }), false, 1},
		"another's of the same extent": {replace(func(h *dedupe.History) *dedupe.History { return stranger(h, 31) }), false, 0},
		"another's, and smaller": {replace(func(h *dedupe.History) *dedupe.History {
			out := dedupe.NewHistory(1 << 20)
			fillLike(out, h, 33)
			return out
		}), false, 0},
	} {
		for _, near := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, near %v", name, near), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, 20*time.Millisecond)
					for _, s := range []*site{w.a, w.b} { // nothing that is referred to is recycled on the way
						s.cfg.History = config.History{Size: 64 << 20, Memory: 64 << 20}
					}
					w.run(func() {
						cl, sv := w.split(4013)
						exchange(t, cl, sv, known, answer)
						if c.open {
							cl, sv = w.split(4014)
							io.WriteString(cl, "x")
							io.ReadFull(sv, make([]byte, 1))
						}
						time.Sleep(time.Second)
						synctest.Wait()
						if near {
							c.harm(w.a, "dc2")
						} else {
							c.harm(w.b, "dc1")
						}
						time.Sleep(5 * time.Second)
						began := time.Now()
						for i := range 4 {
							if i > 0 || !c.open {
								cl, sv = w.split(4015)
							}
							exchange(t, cl, sv, known, append(bytes.Clone(answer), known...))
						}
						took := time.Since(began)
						a, b := w.a.proxy.Stats().Peers[0], w.b.proxy.Stats().Peers[0]
						t.Logf("%d and %d blocks sent again, %d restarts, %v", a.Resent, b.Resent, a.Restarts, took)
						if a.Reset+b.Reset != 0 {
							t.Errorf("%d and %d streams were reset", a.Reset, b.Reset)
						}
						if int(a.Restarts) != c.restarts || (a.Resent+b.Resent+int64(a.Restarts) == 0) != (name == "control") {
							t.Errorf("%d and %d blocks were sent again, %d restarts", a.Resent, b.Resent, a.Restarts)
						}
					})
				})
			})
		}
	}
}
