package carrier

import (
	"math/bits"
	"time"
)

const (
	// MaxEntries and MaxBytes bound the memory of incomplete messages.
	MaxEntries = 256
	MaxBytes   = 1 << 20
	// Timeout is how long an incomplete message waits for its next part.
	Timeout = time.Second
)

// classes are the sizes of buffers, and how many of each are kept for reuse.
var classes = [...]struct{ size, keep int }{{2 << 10, 64}, {MaxMessage, 16}, {MaxUnit, 4}}

// Drops are what a Reassembler dropped, by cause, and what it holds.
type Drops struct {
	// Invalid parts contradict their message or exceed its limits.
	Invalid uint64 `json:"invalid"`
	// Duplicate parts were there already.
	Duplicate uint64 `json:"duplicate"`
	// TimedOut and Evicted messages stayed incomplete; evicted ones had to
	// make room.
	TimedOut uint64 `json:"timed_out"`
	Evicted  uint64 `json:"evicted"`
	// Waiting is the number of incomplete messages now, Bytes their memory.
	Waiting int `json:"waiting"`
	Bytes   int `json:"bytes"`
	// Joined counts complete messages.
	Joined uint64 `json:"joined"`
}

// Reassembler joins the parts of messages. It is not safe for concurrent use.
// The zero value is ready.
type Reassembler struct {
	entries map[uint32]*entry
	// oldest and newest are the ends of the list in the order of the last parts.
	oldest, newest *entry
	bytes          int
	free           [len(classes)][][]byte
	spare          *entry // list by next
	drops          Drops
}

// entry is one incomplete message.
type entry struct {
	header     Header
	have       uint64
	size       int       // length of every part but the final one; 0: not known
	buf        []byte    // parts at index*size
	final      []byte    // the final part until the others are there
	latest     time.Time // when its last part came
	prev, next *entry
}

func (e *entry) bytes() int { return cap(e.buf) + cap(e.final) }

// Add takes in one part; it borrows part. When the message is complete it
// returns it; the caller owns it and may give it back with Release. Otherwise
// it returns nil. A part whose message still waits is taken however late it is: a
// receiver that stood still has lost nothing.
func (r *Reassembler) Add(h Header, part []byte, now time.Time) []byte {
	parts, most := h.Kind.limits()
	if h.Last == 0 || int(h.Last) >= parts || len(part) == 0 || len(part)*int(h.Last) > most && h.Index != h.Last || len(part) > most {
		r.drops.Invalid++
		return nil
	}
	e := r.entries[h.ID]
	if e == nil {
		r.expire(now)
		e = r.insert(h)
	}
	if !e.fits(h, part) {
		r.drops.Invalid++
		return nil
	}
	if e.have&(1<<h.Index) != 0 {
		r.drops.Duplicate++
		return nil
	}
	if bits.OnesCount64(e.have) == int(h.Last) {
		return r.finish(e, h.Index, part)
	}
	r.touch(e, now)
	r.bytes -= e.bytes()
	e.store(h.Index, part, r)
	r.bytes += e.bytes()
	for r.bytes > MaxBytes {
		r.drops.Evicted++
		r.remove(r.oldest)
	}
	return nil
}

// fits reports whether part agrees with what is there of the message.
func (e *entry) fits(h Header, part []byte) bool {
	if h.Kind != e.header.Kind || h.Segment != e.header.Segment || h.Last != e.header.Last {
		return false
	}
	size, final := e.size, len(e.final)
	if h.Index == h.Last {
		final = len(part)
	} else if size == 0 {
		size = len(part)
	} else if size != len(part) {
		return false
	}
	if size == 0 || final == 0 {
		return true
	}
	// Equal parts: the final one is shorter by less than their number.
	_, most := h.Kind.limits()
	return final <= size && size-final <= int(h.Last) && size*int(h.Last)+final <= most
}

// store copies part to its place.
func (e *entry) store(index uint8, part []byte, r *Reassembler) {
	e.have |= 1 << index
	last := int(e.header.Last)
	if int(index) == last {
		e.final = append(r.take(len(part)), part...)
		return
	}
	if e.size == 0 {
		e.size = len(part)
		e.buf = r.take((last + 1) * e.size)[:last*e.size]
	}
	copy(e.buf[int(index)*e.size:], part)
}

// finish takes the entry out, whose only missing part is the given one, and
// joins the message.
func (r *Reassembler) finish(e *entry, index uint8, part []byte) []byte {
	r.bytes -= e.bytes()
	final := e.final
	if index == e.header.Last {
		final = part
	} else {
		e.store(index, part, r)
	}
	whole := append(e.buf, final...)
	r.Release(e.final)
	e.buf, e.final = nil, nil
	r.remove(e)
	r.drops.Joined++
	return whole
}

// class returns the smallest class of n bytes.
func class(n int) int {
	c := 0
	for c < len(classes)-1 && classes[c].size < n {
		c++
	}
	return c
}

// take returns an empty buffer with room for n bytes; above the largest class,
// where a hostile peer's first part may lead, it is not one that is kept.
func (r *Reassembler) take(n int) []byte {
	c := class(n)
	if k := len(r.free[c]); k > 0 && n <= classes[c].size {
		b := r.free[c][k-1]
		r.free[c] = r.free[c][:k-1]
		return b[:0]
	}
	return make([]byte, 0, max(n, classes[c].size))
}

// Release takes back a message that Add returned, for reuse.
func (r *Reassembler) Release(whole []byte) {
	if c := class(cap(whole)); cap(whole) == classes[c].size && len(r.free[c]) < classes[c].keep {
		r.free[c] = append(r.free[c], whole)
	}
}

// insert makes the entry of a message's first part, and room for it.
func (r *Reassembler) insert(h Header) *entry {
	if r.entries == nil {
		r.entries = make(map[uint32]*entry, MaxEntries)
	}
	if len(r.entries) >= MaxEntries {
		r.drops.Evicted++
		r.remove(r.oldest)
	}
	e := r.spare
	if e != nil {
		r.spare = e.next
	} else {
		e = new(entry)
	}
	*e = entry{header: h}
	r.link(e)
	r.entries[h.ID] = e
	return e
}

// touch makes an entry the newest.
func (r *Reassembler) touch(e *entry, now time.Time) {
	e.latest = now
	if e != r.newest {
		r.unlink(e)
		r.link(e)
	}
}

// link puts an entry at the end of the list.
func (r *Reassembler) link(e *entry) {
	e.prev, e.next = r.newest, nil
	if r.newest != nil {
		r.newest.next = e
	} else {
		r.oldest = e
	}
	r.newest = e
}

// remove forgets an entry.
func (r *Reassembler) remove(e *entry) {
	delete(r.entries, e.header.ID)
	r.unlink(e)
	r.bytes -= e.bytes()
	r.Release(e.final)
	r.Release(e.buf)
	*e = entry{next: r.spare}
	r.spare = e
}

// unlink takes an entry out of the list.
func (r *Reassembler) unlink(e *entry) {
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		r.oldest = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		r.newest = e.prev
	}
}

// expire forgets the messages that waited too long.
func (r *Reassembler) expire(now time.Time) {
	for r.oldest != nil && now.Sub(r.oldest.latest) >= Timeout {
		r.drops.TimedOut++
		r.remove(r.oldest)
	}
}

// Drops returns the counters, and what waits at now.
func (r *Reassembler) Drops(now time.Time) Drops {
	r.expire(now)
	d := r.drops
	d.Waiting, d.Bytes = len(r.entries), r.bytes
	return d
}
