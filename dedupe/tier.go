package dedupe

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"stitch/dedupe/accord"
	"stitch/dedupe/store"
)

const (
	// freshSums is how many changed chunks a summary digests itself.
	freshSums = 64
	// askTimes is how many candidates must lie in a chunk before it is read
	// from disk: one that the index invented is not followed by more.
	askTimes = 3
	// ahead is how many chunks behind one in use are read with it.
	ahead = 4
)

// tier is what stands behind one ring: its chunks on disk, those of them that
// were read back, and which chunks the disk does not have yet. Safe for
// concurrent use; a nil tier takes mark and advanced.
type tier struct {
	d     *disk
	ring  *ring
	log   *store.Log
	good  prefix          // what of a page is worth keeping
	marks []atomic.Uint32 // changes of chunk n at n % len
	cache []atomic.Pointer[chunk]
	asked [64]atomic.Uint64 // chunk number and how often, at number % len
	// unloaded is how many chunks are pending.
	unloaded atomic.Int64

	mu     sync.Mutex
	state  []chunkState // of chunk n at n % len
	flight map[uint64]chan struct{}
	left   uint64 // chunks below it have left memory
}

// chunkState is what is known of a chunk beside its pages' words.
type chunkState struct {
	number  uint64
	pending bool // on disk from an earlier life, not loaded yet
	found   bool // but in the index
	written bool // the disk has the version of mark
	mark    uint32
	sum     accord.Digest // of that version; zero: nothing valid in it
	due     time.Time     // when a chunk that is not full is written
	pause   time.Duration // and how long after that it is written again
}

// chunk is one that was read back; it never changes. The lock is what users of
// ring.segment unlock.
type chunk struct {
	number uint64
	data   []byte
	mu     sync.RWMutex
	ahead  atomic.Bool // what follows has been asked for
}

func newTier(d *disk, r *ring, l *store.Log, good prefix) *tier {
	n := int(r.size/chunkSize) + 1
	t := &tier{d: d, ring: r, log: l, good: good, flight: make(map[uint64]chan struct{})}
	t.marks = make([]atomic.Uint32, n)
	t.state = make([]chunkState, n)
	t.cache = make([]atomic.Pointer[chunk], min(max(r.mem/chunkSize/32, 16), 256))
	return t
}

// mark notes a change at pos.
func (t *tier) mark(pos uint64) {
	if t != nil {
		t.markOf(pos / chunkSize).Add(1)
	}
}

func (t *tier) markOf(n uint64) *atomic.Uint32 { return &t.marks[n%uint64(len(t.marks))] }

// advanced wakes the writer each time an eighth of the memory has been given
// out.
func (t *tier) advanced(from, to uint64) {
	if t != nil && from/(t.ring.mem/8) != to/(t.ring.mem/8) {
		t.d.poke()
	}
}

// of is chunk n's state, for n among those the ring remembers; the caller holds
// mu.
func (t *tier) of(n uint64) *chunkState {
	s := &t.state[n%uint64(len(t.state))]
	if s.number != n {
		t.reset(s, chunkState{number: n})
	}
	return s
}

// reset makes s something that is not pending; the caller holds mu.
func (t *tier) reset(s *chunkState, to chunkState) {
	if s.pending {
		t.unloaded.Add(-1)
	}
	*s = to
}

// bounds are the chunks that memory holds: [from, to).
func (t *tier) bounds() (from, to uint64) {
	to = (t.ring.head.Load() + chunkSize - 1) / chunkSize
	return (t.ring.resident() + chunkSize - 1) / chunkSize, to
}

// snapshot copies what is valid of chunk n into data and zeroes the rest; false
// if it is not wholly in memory. mark is that of the version copied, or older.
func (t *tier) snapshot(n uint64, m *store.Map, data []byte) (mark uint32, ok bool) {
	r, base := t.ring, n*chunkSize
	mark = t.markOf(n).Load()
	t.valid(n, m)
	for at := uint64(0); at < chunkSize; at += segmentSize {
		off := (base + at) % r.mem
		mu := &r.locks[off/segmentSize]
		mu.RLock()
		if base+at < r.resident() {
			mu.RUnlock()
			return mark, false
		}
		for p := at / pageSize; p < (at+segmentSize)/pageSize; p++ {
			page := data[p*pageSize:][:pageSize]
			clear(page[copy(page[:m[p]], r.data[off+p*pageSize-at:]):])
		}
		mu.RUnlock()
	}
	return mark, true
}

// valid fills m with how much of each page is worth keeping.
func (t *tier) valid(n uint64, m *store.Map) {
	r := t.ring
	tail, head := r.tail(), r.head.Load()
	for i := range m {
		m[i] = 0
		if pos := n*chunkSize + uint64(i)*pageSize; pos >= tail && pos < head {
			m[i] = uint16(t.good(pos, word(r.wordAt(pos).Load())))
		}
	}
}

// note says that the version of mark has the digest sum.
func (t *tier) note(n uint64, mark uint32, sum accord.Digest, written bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.of(n)
	s.written = written || s.written && s.mark == mark
	s.mark, s.sum = mark, sum
}

// describe names the ring's chunks; the caller holds the History's life. Of
// the changed ones in memory the newest are digested now, others count as
// absent.
func (t *tier) describe(epoch uint64) accord.Ring {
	var buf []byte
	var m store.Map
	for _, n := range t.changed(freshSums) {
		if buf == nil {
			buf = make([]byte, chunkSize)
		}
		if mark, ok := t.snapshot(n, &m, buf); ok {
			t.note(n, mark, sumOf(n, &m, buf), false)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return accord.NewRing(epoch, t.ring.head.Load(), t.ring.tail(), func(n uint64) accord.Digest {
		s := t.of(n)
		if !s.pending && s.mark != t.markOf(n).Load() {
			return accord.Digest{}
		}
		return s.sum
	})
}

// sumOf is a chunk's digest; zero if nothing in it is valid.
func sumOf(n uint64, m *store.Map, data []byte) accord.Digest {
	if m.Bytes() == 0 {
		return accord.Digest{}
	}
	return store.Sum(n, m, data)
}

// changed returns up to limit chunks in memory that have changed since they
// were last digested, newest first.
func (t *tier) changed(limit int) (out []uint64) {
	from, to := t.bounds()
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := to; n > from && len(out) < limit; n-- {
		if s := t.of(n - 1); !s.pending && s.mark != t.markOf(n-1).Load() {
			out = append(out, n-1)
		}
	}
	return out
}

// settle keeps the chunks of an agreement under the given epoch; the caller
// holds the History's life exclusively and has told the ring.
func (t *tier) settle(kept []accord.Range, epoch uint64, fresh bool) {
	keep := func(n uint64) bool {
		for _, k := range kept {
			if n < k.To {
				return n >= k.From
			}
		}
		return false
	}
	if fresh {
		t.log.Restart(epoch)
	} else {
		t.log.Drop(keep)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.state {
		if s := &t.state[i]; fresh || !keep(s.number) {
			t.reset(s, chunkState{number: s.number, mark: t.markOf(s.number).Load(), written: true})
		}
	}
	for i := range t.cache {
		t.cache[i].Store(nil)
	}
	t.left = t.ring.resident() / chunkSize
}

// segment is ring.segment for what is not in memory: what has been read back,
// or nil, and then it is read soon if asked for often enough.
func (t *tier) segment(pos uint64) (seg []byte, at int, mu *sync.RWMutex) {
	n := pos / chunkSize
	c := t.cached(n)
	if c == nil {
		if t.ask(n) {
			t.fetch(n, false)
		}
		return nil, 0, nil
	}
	if !c.ahead.Swap(true) {
		t.prefetch(n)
	}
	c.mu.RLock()
	return c.data, int(pos % chunkSize), &c.mu
}

// cached is chunk n if it was read back.
func (t *tier) cached(n uint64) *chunk {
	if c := t.cache[n%uint64(len(t.cache))].Load(); c != nil && c.number == n {
		return c
	}
	return nil
}

// ask counts the askings for chunk n; true if there were enough. Askings for
// many different chunks make it forget.
func (t *tier) ask(n uint64) bool {
	p := &t.asked[n%uint64(len(t.asked))]
	times := uint64(1)
	if v := p.Load(); v>>8 == n {
		times = v&0xff + 1
	}
	if times >= askTimes {
		p.Store(0)
		return true
	}
	p.Store(n<<8 | times)
	return false
}

// fetch has chunk n read; the channel is closed when that has been tried. It
// is nil if the queue is full.
func (t *tier) fetch(n uint64, urgent bool) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.flight[n]; c != nil {
		if urgent { // it may be far behind in the other queue
			t.d.enqueue(request{t, n}, true)
		}
		return c
	}
	if len(t.flight) == 0 {
		t.d.answered.Store(time.Now().UnixNano()) // nothing was asked of it before
	}
	c := make(chan struct{})
	if !t.d.enqueue(request{t, n}, urgent) {
		return nil
	}
	t.flight[n] = c
	return c
}

// fetched ends a fetch.
func (t *tier) fetched(n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.flight[n]; c != nil {
		close(c)
		delete(t.flight, n)
	}
}

// missing says that chunk n is on disk and neither in memory nor read back.
func (t *tier) missing(n uint64) bool {
	return t.pending(n) || n*chunkSize < t.ring.resident() && t.cached(n) == nil
}

// pending says that chunk n was written in an earlier life and is not loaded.
// Of chunks that the ring has left behind nothing is said.
func (t *tier) pending(n uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.state[n%uint64(len(t.state))]
	return s.number == n && s.pending
}

// await waits until the disk has given what it has of [pos, pos+n); false if
// there is nothing to wait for, or it took too long.
func (t *tier) await(pos uint64, n int, until time.Time) bool {
	if pos < t.ring.tail() || pos+uint64(n) > t.ring.head.Load() {
		return false
	}
	waited := false
	for k := pos / chunkSize; k*chunkSize < pos+uint64(n); k++ {
		if !t.missing(k) {
			continue
		}
		done := t.fetch(k, true)
		if done == nil {
			return false
		}
		t.prefetch(k)
		timer := time.NewTimer(time.Until(until))
		select {
		case <-done:
			timer.Stop()
		case <-timer.C:
			return false
		case <-t.d.stop:
			timer.Stop()
			return false
		}
		waited = true
	}
	return waited
}

// late says whether [pos, pos+n), which could not be read, is on a disk that is
// only slow. known is whether its words say that it is held.
func (t *tier) late(pos uint64, n int, known bool) bool {
	if time.Since(time.Unix(0, t.d.answered.Load())) > silence {
		return false
	}
	for k := pos / chunkSize; k*chunkSize < pos+uint64(n); k++ {
		if t.pending(k) || known && t.missing(k) {
			return true
		}
	}
	return false
}

// load reads chunk n from disk. What was pending becomes known to the ring, and
// to the index if it is not yet; what is not in memory is kept in the cache if
// cache is true. Then the scratch memory's data is given away.
func (t *tier) load(n uint64, cache bool, x *scratch) {
	m, sum, err := t.log.Read(n, x.data)
	t.d.answered.Store(time.Now().UnixNano())
	h := t.d.h
	h.life.RLock()
	defer h.life.RUnlock()
	now, ok := t.log.Find(n)
	if err == nil && !ok {
		err = store.ErrAbsent // dropped while we read
	}
	if err != nil {
		t.lost(n, err)
		return
	}
	if now != sum {
		return // written anew while we read
	}
	switch pending, found := t.expected(n); {
	case !pending:
		t.clip(n, m)
	case found:
		t.restore(n, m, x.data)
		t.loaded(n)
	default:
		t.restore(n, m, x.data)
		x.hints, x.anchors = hintsOf(x.hints[:0], x.data, x.anchors)
		t.find(n, x.hints, x)
		t.loaded(n)
		_ = t.log.WriteHints(n, sum, x.hints) // an aid for the next start
	}
	if cache && n*chunkSize < t.ring.resident() {
		t.cache[n%uint64(len(t.cache))].Store(&chunk{number: n, data: x.data})
		x.data = make([]byte, chunkSize, store.Buffer)
	}
}

// scratch is the memory of a goroutine that works for the disk.
type scratch struct {
	data    []byte // of a chunk
	hints   []byte
	slots   []byte
	anchors []anchor
}

func newScratch() *scratch { return &scratch{data: make([]byte, chunkSize, store.Buffer)} }

// hinted takes what the disk has about a chunk: from now on it is found. If it lies
// on disk only that is all; else its bytes are loaded when it is its turn, or
// somebody asks for it.
func (t *tier) hinted(x *store.Hint, s *scratch) {
	h := t.d.h
	h.life.RLock()
	defer h.life.RUnlock()
	n := x.Segment
	if now, ok := t.log.Find(n); !ok || now != x.Digest || !t.pending(n) || !t.find(n, x.Hints, s) {
		return
	}
	if (n+1)*chunkSize <= t.ring.resident() {
		t.restore(n, &x.Pages, nil)
		t.loaded(n)
	}
}

// find puts the anchors that the hints tell of into the index; false if the hints
// are of no use. The caller holds the History's life.
func (t *tier) find(n uint64, hints []byte, s *scratch) bool {
	as, ok := t.d.h.index.known(s.anchors[:0], hints)
	s.anchors = as
	if !ok {
		return false
	}
	t.d.h.insert(as, t.ringName(), [2]Span{{n * chunkSize, chunkSize}})
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := &t.state[n%uint64(len(t.state))]; c.number == n && !c.found {
		c.found = true
		t.d.count.found.Add(1)
	}
	return true
}

// expected says whether chunk n is pending, and if so whether it is in the index.
func (t *tier) expected(n uint64) (pending, found bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.state[n%uint64(len(t.state))]
	if s.number != n || !s.pending {
		return false, false
	}
	return true, s.found
}

// want is told of bytes that would be looked at if they were legal. If they are to
// be loaded, and are wanted often enough, they are loaded next, and what follows.
func (t *tier) want(pos uint64) {
	if t == nil || t.unloaded.Load() == 0 {
		return
	}
	if n := pos / chunkSize; t.ask(n) && t.pending(n) {
		t.fetch(n, false)
		t.prefetch(n)
	}
}

// prefetch has the chunks behind n read that are on disk and not in memory.
func (t *tier) prefetch(n uint64) {
	for k := n + 1; k <= n+ahead; k++ {
		if t.pending(k) || t.cached(k) == nil && (k+1)*chunkSize <= t.ring.resident() {
			t.fetch(k, false)
		}
	}
}

// loaded notes that chunk n is no longer pending.
func (t *tier) loaded(n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := &t.state[n%uint64(len(t.state))]; s.number == n && s.pending {
		s.pending = false
		t.unloaded.Add(-1)
		t.d.count.loaded.Add(1)
	}
}

func (t *tier) ringName() Ring {
	if t.ring == t.d.h.tx {
		return Sent
	}
	return Received
}

// lost gives up chunk n, which could not be read.
func (t *tier) lost(n uint64, err error) {
	if !errors.Is(err, store.ErrAbsent) {
		t.d.damaged(err)
	}
	t.mu.Lock()
	s := &t.state[n%uint64(len(t.state))]
	gone := s.number == n && (s.pending || n*chunkSize < t.ring.resident())
	if gone {
		t.reset(s, chunkState{number: n, mark: t.markOf(n).Load(), written: true})
	}
	t.mu.Unlock()
	if gone {
		t.clip(n, &store.Map{})
	}
}

// restore puts a chunk of an earlier life into the ring: its bytes, if they
// belong into memory, and then its words. data is nil for one that no longer
// belongs into memory.
func (t *tier) restore(n uint64, m *store.Map, data []byte) {
	r, base := t.ring, n*chunkSize
	for at := uint64(0); at < chunkSize; at += segmentSize {
		off := (base + at) % r.mem
		mu := &r.locks[off/segmentSize]
		mu.Lock()
		resident := base+at >= r.resident()
		for p := at / pageSize; p < (at+segmentSize)/pageSize; p++ {
			pos := base + p*pageSize
			word := r.wordAt(pos)
			if m[p] == 0 || word.Load() != 0 || pos < r.tail() {
				continue // nothing there, or a later lap has the place
			}
			if resident && data != nil {
				copy(r.data[off+p*pageSize-at:][:pageSize], data[p*pageSize:])
			}
			word.CompareAndSwap(0, uint64(t.fresh(pos, int(m[p]))))
		}
		mu.Unlock()
	}
}

// fresh is the word of a page of which n bytes are known to both sides.
func (t *tier) fresh(pos uint64, n int) word {
	if t.ringName() == Sent {
		return newWord(0, n, n)
	}
	return newWord(t.ring.lap(pos), 0, n)
}

// clip lowers the words of a chunk that memory no longer holds to what the disk
// has.
func (t *tier) clip(n uint64, m *store.Map) {
	r := t.ring
	for i := range m {
		pos := n*chunkSize + uint64(i)*pageSize
		if pos < r.tail() {
			continue
		}
		p := r.wordAt(pos)
		for {
			old := word(p.Load())
			most := int(m[i])
			if t.good(pos, old) <= most && old.filled() <= most ||
				p.CompareAndSwap(uint64(old), uint64(newWord(old.tag(), min(old.acked(), most), min(old.filled(), most)))) {
				break
			}
		}
	}
}
