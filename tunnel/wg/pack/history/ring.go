package history

const (
	// MinRecord and MaxRecord are the least and most bytes of one record.
	MinRecord, MaxRecord = 8 << 10, 1<<16 - 1
	// MinSize and MaxSize are the least and most bytes of a history.
	MinSize, MaxSize = 1 << 20, 1 << 30
	// marginPart is the part of a history that the sender no longer refers to.
	marginPart = 8
)

// state is what is known of a record.
type state uint8

const (
	none state = iota
	// pending: sent, not acknowledged; or announced, not complete.
	pending
	// held: acknowledged; or complete and verified.
	held
)

// record is a stretch of a flow in a ring.
type record struct {
	pos   uint64 // of its first byte; positions are never reused
	group uint64 // who may refer to it; of a sender only
	seq   uint32
	lap   uint32 // of the ring
	n     int32  // bytes that are there
	room  int32  // bytes there may be
	state state
	phase uint8 // where its lines begin; of a sender only
}

// ring keeps the latest records. The zero value keeps none.
type ring struct {
	buf  []byte
	recs []record // by sequence number
	head uint64
	lap  uint32 // how often it was emptied
}

func newRing(size int) ring {
	return ring{buf: make([]byte, size), recs: make([]record, size/MinRecord), lap: 1}
}

// empty forgets everything.
func (r *ring) empty() { r.lap++ }

func (r *ring) slot(seq uint32) *record { return &r.recs[seq%uint32(len(r.recs))] }

// place makes room for a record of n bytes, MaxRecord at most.
func (r *ring) place(seq uint32, n int) *record {
	size := uint64(len(r.buf))
	if at := r.head % size; at+uint64(n) > size {
		r.head += size - at
	}
	rec := r.slot(seq)
	*rec = record{pos: r.head, seq: seq, lap: r.lap, room: int32(n), state: pending}
	r.head += uint64(n)
	return rec
}

// get returns a record; nil if it is not, or no longer, there.
func (r *ring) get(seq uint32) *record {
	if len(r.recs) == 0 {
		return nil
	}
	rec := r.slot(seq)
	if rec.seq != seq || rec.lap != r.lap || rec.state == none || r.age(rec) > uint64(len(r.buf)) {
		return nil
	}
	return rec
}

// age is how many bytes were placed since the record was, its own included.
func (r *ring) age(rec *record) uint64 { return r.head - rec.pos }

// bytes are those of a record that is there.
func (r *ring) bytes(rec *record) []byte {
	at := rec.pos % uint64(len(r.buf))
	return r.buf[at:][:rec.n:rec.n]
}
