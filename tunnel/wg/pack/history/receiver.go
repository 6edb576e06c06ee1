package history

const (
	// openRecords is how many records are being put together of packets at a
	// time; spans is in how many pieces each may be, besides holes.
	openRecords, spans = 128, 8
	// oldEpochs is how many of the latest epochs are known not to come again.
	oldEpochs = 8
	// reportAfter is after how many records the sender should be told.
	reportAfter = 8
)

// Receiver is the history of what was received. It is not safe for concurrent
// use. Its memory is taken when the first record comes.
type Receiver struct {
	size     int
	instance uint32
	ring     ring
	epoch    uint32
	left     []uint32 // epochs before
	top      uint32   // the latest sequence number
	missed   []uint32
	fresh    int // records since the last report
	open     []watch
}

// NewReceiver returns a history of size bytes, MinSize to MaxSize. The instance
// is a random number.
func NewReceiver(size int, instance uint32) *Receiver {
	return &Receiver{size: size, instance: instance}
}

// Enter makes sure that the history is of the epoch. False: it is over.
func (r *Receiver) Enter(epoch uint32) bool {
	if r.ring.buf == nil {
		r.ring = newRing(r.size)
		r.epoch = epoch
		return true
	}
	if epoch == r.epoch {
		return true
	}
	for _, e := range r.left {
		if e == epoch {
			return false
		}
	}
	if len(r.left) == oldEpochs {
		r.left = r.left[:copy(r.left, r.left[1:])]
	}
	r.left = append(r.left, r.epoch)
	r.ring.empty()
	r.epoch, r.top, r.fresh = epoch, 0, 0
	r.missed, r.open = r.missed[:0], r.open[:0]
	return true
}

// Get returns n bytes from at of a record, lent until the next record; false if
// it is not there: then the sender is told so.
func (r *Receiver) Get(seq uint32, at, n int) ([]byte, bool) {
	rec := r.ring.get(seq)
	if rec == nil || rec.state != held || at < 0 || n < 0 || at > int(rec.n) || n > int(rec.n)-at {
		r.miss(seq)
		return nil, false
	}
	return r.ring.bytes(rec)[at:][:n], true
}

// miss notes that the sender is to forget a record.
func (r *Receiver) miss(seq uint32) {
	if len(r.missed) < maxMissed {
		r.missed = append(r.missed, seq)
	}
}

// Doubt notes that what tokens refer to, which Covered has accepted, is not what
// the sender has.
func (r *Receiver) Doubt(b []byte, base uint32) {
	for len(b) > 0 {
		var t Token
		t, b, _ = next(b, base)
		r.miss(t.Seq)
	}
}

// place makes room for a record; nil if it is there already, or was.
func (r *Receiver) place(seq uint32, n int) *record {
	if seq == 0 || n < MinRecord || n > MaxRecord {
		return nil
	}
	if old := r.ring.slot(seq); r.ring.get(seq) != nil || old.lap == r.ring.lap && int32(old.seq-seq) > 0 {
		return nil
	}
	if r.top == 0 || int32(seq-r.top) > 0 {
		r.top = seq
	}
	rec := r.ring.place(seq, n)
	rec.n = rec.room
	return rec
}

// watch is a record that is being put together of packets.
type watch struct {
	Note
	got  [spans][2]int // bytes that are there, apart from each other
	have int           // how many of those
}

// Watch begins with a record whose bytes follow. Of too many the oldest is given
// up.
func (r *Receiver) Watch(n Note) {
	if !r.Enter(n.Epoch) || r.place(n.Seq, n.Len) == nil {
		return
	}
	if len(r.open) == openRecords {
		r.open = r.open[:copy(r.open, r.open[1:])]
	}
	r.open = append(r.open, watch{Note: n})
}

// Watching reports whether Saw has any use.
func (r *Receiver) Watching() bool { return len(r.open) > 0 }

// Saw takes the payload of a TCP packet, of which it copies what records want.
func (r *Receiver) Saw(flow uint64, tcp uint32, p []byte) {
	for i := 0; i < len(r.open); i++ {
		w := &r.open[i]
		if w.Flow != flow {
			continue
		}
		off := int(int32(tcp - w.TCP))
		from, to := max(off, 0), min(off+len(p), w.Len)
		if from >= to {
			continue
		}
		rec := r.ring.get(w.Seq)
		if rec != nil && rec.state == pending {
			copy(r.ring.bytes(rec)[from:to], p[from-off:])
			if w.add(from, to) {
				continue
			}
			if w.have == 1 && w.got[0] == [2]int{0, w.Len} {
				rec.state = held
				r.fresh++
			}
		}
		r.open = append(r.open[:i], r.open[i+1:]...)
		i--
	}
}

// add notes that bytes are there; false if there is nothing more to wait for:
// all are, or they come in too many pieces.
func (w *watch) add(from, to int) bool {
	k := 0
	for _, g := range w.got[:w.have] {
		if g[1] < from || g[0] > to {
			w.got[k] = g
			k++
			continue
		}
		from, to = min(from, g[0]), max(to, g[1])
	}
	if k == spans {
		w.have = k
		return false
	}
	w.got[k] = [2]int{from, to}
	w.have = k + 1
	return to-from < w.Len
}

// Due reports whether the sender should be told at once what is held: something
// was missed, or much is new.
func (r *Receiver) Due() bool { return len(r.missed) > 0 || r.fresh >= reportAfter }

// Fresh reports whether there is anything new to tell.
func (r *Receiver) Fresh() bool { return r.fresh > 0 }

// Report returns what to tell the sender; it lends Missed until the next call.
func (r *Receiver) Report() Report {
	m := Report{Size: uint16(r.size >> 20), Instance: r.instance, Epoch: r.epoch, Top: r.top, Missed: r.missed}
	for i := range reportSpan {
		if rec := r.ring.get(r.top - uint32(i)); rec != nil && rec.state == held {
			m.Held[i/8] |= 1 << (i % 8)
		}
	}
	r.missed, r.fresh = r.missed[:0], 0
	return m
}
