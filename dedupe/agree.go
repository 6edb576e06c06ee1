package dedupe

import (
	"crypto/rand"
	"errors"

	"stitch/dedupe/accord"
)

// ErrSuperseded is returned by Agree when the own summary is no longer true:
// take a new one and exchange summaries again.
var ErrSuperseded = errors.New("dedupe: the summary is out of date; exchange summaries anew")

// Agreement is what became of the history when two agents met.
type Agreement struct {
	// Reset: every Writer and Reader made before is stale. Reset their
	// connections.
	Reset bool
	// Sent and Received are the bytes that outlived a restart of either side,
	// whole segments counted; 0 if there was none and everything was kept.
	Sent, Received int64
	// Alarm is a sentence for the operator, "" if all is well.
	Alarm string
}

const (
	alarmSuspect     = "this site's history store is a clone or an old copy of one that the peer knows: starting cold with a new identity"
	alarmPeerSuspect = "the peer's history store is a clone or an old copy of one seen before: starting cold"
)

// Summary describes what is held, for the peer's Agree: at most
// accord.MaxLen bytes, much less for small histories. See Agree.
func (h *History) Summary() []byte {
	h.life.RLock()
	defer h.life.RUnlock()
	self := h.self
	if h.disk != nil {
		self.Generation = h.disk.generation()
	}
	s := accord.Summary{
		Size:     uint64(h.size),
		Self:     self,
		Peer:     h.tied,
		Sent:     h.describe(h.tx, h.epoch.Load()),
		Received: h.describe(h.rx, h.peer.Load()),
	}
	return s.Append(nil)
}

// describe names the chunks of a ring. Without a store there is nothing to
// name: a process that dies takes its history with it.
func (h *History) describe(r *ring, epoch uint64) accord.Ring {
	if r.tier != nil {
		return r.tier.describe(epoch)
	}
	return accord.NewRing(epoch, r.head.Load(), r.tail(), func(uint64) accord.Digest { return accord.Digest{} })
}

// Agree compares our summary with the peer's and keeps what both hold. Both
// sides exchange summaries once and call Agree with the same two; they come to
// the same result alone. What lives on both sides since they last agreed is
// kept without comparison.
//
// Summaries are exchanged on every new connection before its first block. The
// caller holds back, from its Summary until Agree has returned, the blocks of
// this one connection; established connections go on meanwhile. Connections
// that meet at the same time may agree in any order, also differently on the
// two sides: the first one decides, and the others find it done. An
// acknowledgement is taken as said only after Agree, on connections made since.
//
// ErrSuperseded means that the history has changed beneath the summary;
// accord.ErrSummary that the peer's bytes are not one, and then the caller may
// Restart and go on cold. The state is intact in both cases.
func (h *History) Agree(own, peer []byte) (Agreement, error) {
	a, err := accord.Parse(own)
	if err != nil {
		return Agreement{}, err
	}
	b, err := accord.Parse(peer)
	if err != nil {
		return Agreement{}, err
	}
	h.life.Lock()
	defer h.life.Unlock()
	if a.Self.Instance != h.self.Instance || a.Sent.Epoch != h.epoch.Load() {
		return Agreement{}, ErrSuperseded
	}
	if a.Peer.Instance != h.tied.Instance || a.Received.Epoch != h.peer.Load() {
		if h.tied.Instance == b.Self.Instance && h.peer.Load() == b.Sent.Epoch {
			return Agreement{}, nil // another connection was quicker
		}
		return Agreement{}, ErrSuperseded
	}
	h.window.Store(min(uint64(h.size), b.Size))
	v := accord.Agree(a, b)
	if v.Live {
		return Agreement{}, nil
	}
	return h.settle(&v, b.Self), nil
}

// settle does what the verdict says; the caller holds life.
func (h *History) settle(v *accord.Verdict, peer accord.Identity) Agreement {
	h.gen++
	h.alloc.Lock()
	defer h.alloc.Unlock()
	clear(h.retained)
	own := h.epoch.Swap(v.Sent.Epoch) != v.Sent.Epoch
	other := h.peer.Swap(v.Received.Epoch) != v.Received.Epoch
	h.tx.keep(v.Sent.Kept, v.Sent.Head)
	if other {
		h.rx.forget()
	}
	h.rx.keep(v.Received.Kept, v.Received.Head)
	h.tied = peer
	out := Agreement{Reset: true, Sent: total(v.Sent.Kept), Received: total(v.Received.Kept)}
	switch {
	case v.Suspect:
		out.Alarm = alarmSuspect
		_, _ = rand.Read(h.self.Store[:]) // never fails
	case v.PeerSuspect:
		out.Alarm = alarmPeerSuspect
	}
	if h.disk != nil {
		h.disk.settle([2][]accord.Range{v.Sent.Kept, v.Received.Kept}, [2]bool{own, other}, v.Suspect)
		h.disk.alarm(out.Alarm)
	}
	return out
}

func total(rs []accord.Range) (bytes int64) {
	for _, r := range rs {
		bytes += int64(r.To-r.From) * chunkSize
	}
	return bytes
}

// keep drops all but the kept chunks and goes on at head, which is not below
// the present one. The owner excludes everything else.
func (r *ring) keep(kept []accord.Range, head uint64) {
	at := r.tail() / pageSize * pageSize
	for _, k := range kept {
		r.clear(at, k.From*chunkSize)
		at = max(at, k.To*chunkSize)
	}
	r.clear(at, head)
	r.head.Store(head)
	if len(kept) == 0 {
		r.floor.Store(head)
	}
}

// clear forgets the pages of [from, to), at most one lap of them.
func (r *ring) clear(from, to uint64) {
	for from = max(from, to-min(to, r.size)); from < to; from += pageSize {
		r.wordAt(from).Store(0)
	}
}
