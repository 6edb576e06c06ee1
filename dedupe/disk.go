package dedupe

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"stitch/dedupe/accord"
	"stitch/dedupe/store"
)

const (
	// tick is how often the writer looks for work when nobody wakes it.
	tick = 250 * time.Millisecond
	// partPause is how long a chunk may change before it is written though it
	// is not full; it doubles each time, up to partPauseMax.
	partPause    = time.Second
	partPauseMax = 30 * time.Second
	// syncEvery is how often the disk is asked to keep what was written.
	syncEvery = 5 * time.Second
	// renewEvery is how often the generation rises while there is writing.
	renewEvery = time.Minute
	// closeWait bounds what Close waits for the disk.
	closeWait = 10 * time.Second
	// queue is how many chunks may wait to be read back, of each urgency.
	queue = 64
	// fetchers read back.
	fetchers = 2
)

// disk is a History's store at work. One goroutine writes behind what the
// connections do, some load what an earlier process wrote, some read back what
// memory no longer holds. Connections never wait for it, but for Reader.await.
type disk struct {
	h     *History
	store *store.Store
	tiers [2]*tier // of tx and rx

	wake   chan struct{}
	stop   chan struct{}
	urgent chan request
	lazy   chan request
	work   sync.WaitGroup // loaders and fetchers
	done   chan struct{}  // the writer has ended
	ended  error          // of closing; read after done

	loading  loading
	answered atomic.Int64 // when the disk last gave something, or was first asked; Unix, in ns

	mu     sync.Mutex
	state  store.State // as it should be
	dirty  bool        // it is not saved
	health store.Health

	count struct{ loaded, found, written, dropped, damaged, fetched, refused atomic.Int64 }
}

// request is a chunk to be read back.
type request struct {
	t *tier
	n uint64
}

// StoreStats describes a store. Sizes are in bytes.
type StoreStats struct {
	// State is "memory" (there is no store), "loading", "open", "full" (the
	// disk is; what is there is used), "failing" or "closed".
	State   string   `json:"state"`
	Alarms  []string `json:"alarms,omitempty"` // for the operator, newest last
	Disk    int64    `json:"disk"`             // history on disk
	Loading int64    `json:"loading"`          // still to be loaded since the start
	Loaded  int64    `json:"loaded"`
	Found   int64    `json:"found"` // of both: what is not loaded yet is read when it is asked for
	// LoadSeconds is how long loading has taken, and LoadLeft how long the rest will
	// take at the rate so far; 0: there is nothing left, or it is not known.
	LoadSeconds float64 `json:"load_seconds"`
	LoadLeft    float64 `json:"load_left"`
	Written     int64   `json:"written"` // since the start, as all below
	Dropped     int64   `json:"dropped"` // left memory before the disk took it
	Damaged     int64   `json:"damaged"` // did not verify and was dropped
	Fetched     int64   `json:"fetched"` // read back into memory
	Refused     int64   `json:"refused"` // not read back: too many waiting
}

// attach puts the history on a store that has just been opened, and starts the
// work. h is new and nobody else knows it.
func (h *History) attach(s *store.Store) {
	d := &disk{
		h: h, store: s, state: s.State(), dirty: true,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
		urgent: make(chan request, queue), lazy: make(chan request, queue),
	}
	d.alarm(s.Notice)
	d.count.damaged.Store(int64(s.Sent.Damaged() + s.Received.Damaged()))
	if d.state.Epochs[0] == 0 {
		d.state.Epochs = [2]uint64{h.epoch.Load(), 0}
		s.Sent.Restart(d.state.Epochs[0])
	}
	h.epoch.Store(d.state.Epochs[0])
	h.peer.Store(d.state.Epochs[1])
	h.tied = d.state.Peer
	h.self.Store = d.state.ID
	d.tiers = [2]*tier{newTier(d, h.tx, s.Sent, ackedPrefix), newTier(d, h.rx, s.Received, h.rx.held)}
	h.tx.tier, h.rx.tier, h.disk = d.tiers[0], d.tiers[1], d
	d.start(d.adopt())
}

// ackedPrefix is what of a tx page the peer has.
func ackedPrefix(_ uint64, w word) int { return w.acked() }

// adopt makes what is on disk pending and returns it, newest first.
func (d *disk) adopt() (list []request) {
	for _, t := range d.tiers {
		for i, n := range t.log.Segments() {
			if i == 0 {
				t.ring.head.Store((n + 1) * chunkSize)
				t.left = t.ring.resident() / chunkSize
			}
			if (n+1)*chunkSize <= t.ring.tail() {
				break
			}
			sum, _ := t.log.Find(n)
			*t.of(n) = chunkState{number: n, pending: true, written: true, sum: sum}
			t.unloaded.Add(1)
			list = append(list, request{t, n})
		}
	}
	age := func(r request) uint64 { return r.t.ring.head.Load()/chunkSize - r.n }
	slices.SortStableFunc(list, func(a, b request) int { return int(age(a)) - int(age(b)) })
	return list
}

func (d *disk) start(list []request) {
	d.loading.begin()
	var loaders sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		d.work.Add(1)
		loaders.Go(func() {
			defer d.work.Done()
			d.loader(list)
		})
	}
	go func() {
		loaders.Wait()
		d.loading.end()
	}()
	for range fetchers {
		d.work.Go(d.fetcher)
	}
	go d.writer()
}

// loader makes what is on disk findable and then loads the chunks of the list,
// until none is left.
func (d *disk) loader(list []request) {
	s := newScratch()
	for !d.closed() {
		i := int(d.loading.hints.Add(1) - 1)
		t := d.tiers[0]
		if n := t.log.HintBatches(); i >= n {
			t, i = d.tiers[1], i-n
		}
		if i >= t.log.HintBatches() {
			break
		}
		s.slots = t.log.Hints(i, s.slots, func(x *store.Hint) { t.hinted(x, s) })
	}
	s.slots = nil
	d.loading.read(d.unloaded())
	for !d.closed() {
		select {
		case r := <-d.urgent: // somebody waits
			d.fetch(r, s)
			continue
		default:
		}
		i := d.loading.chunks.Add(1) - 1
		if i >= int64(len(list)) {
			return
		}
		if r := list[i]; r.t.pending(r.n) {
			r.t.load(r.n, false, s)
		}
	}
}

// fetcher reads back what is asked for, urgent requests first.
func (d *disk) fetcher() {
	s := newScratch()
	for {
		var r request
		select {
		case <-d.stop:
			return
		case r = <-d.urgent:
		default:
			select {
			case <-d.stop:
				return
			case r = <-d.urgent:
			case r = <-d.lazy:
			}
		}
		d.fetch(r, s)
	}
}

// fetch reads back what was asked for.
func (d *disk) fetch(r request, s *scratch) {
	if r.t.missing(r.n) { // else it was asked for twice
		r.t.load(r.n, true, s)
		d.count.fetched.Add(1)
	}
	r.t.fetched(r.n)
}

// enqueue adds a request; when the queue is full it refuses and counts.
func (d *disk) enqueue(r request, urgent bool) bool {
	q := d.lazy
	if urgent {
		q = d.urgent
	}
	select {
	case q <- r:
		return true
	default:
		d.count.refused.Add(1)
		return false
	}
}

func (d *disk) poke() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// writer writes behind until the store is closed.
func (d *disk) writer() {
	defer close(d.done)
	buf := newScratch()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	synced, renewed := time.Now(), time.Now()
	safe, old := int64(-1), int64(0) // chunks written before the last sync, the last rise of the generation
	for {
		select {
		case <-d.stop:
			d.finish(buf)
			return
		case <-d.wake:
		case <-ticker.C:
		}
		for _, t := range d.tiers {
			t.flushAll(buf, false)
		}
		now, n := time.Now(), d.count.written.Load()
		if n != old && now.Sub(renewed) >= renewEvery {
			// A copy of the store made before is now known to be old.
			d.change(func(s *store.State) { s.Generation++ })
			renewed, old = now, n
		}
		if d.save() {
			safe = -1
		}
		if n != safe && now.Sub(synced) >= syncEvery {
			d.sync()
			synced, safe = time.Now(), n
		}
	}
}

// sync asks the disk to keep what was written.
func (d *disk) sync() {
	err := d.store.Sync()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.health.Synced(err, time.Now())
}

// finish writes what is left and closes the store.
func (d *disk) finish(buf *scratch) {
	d.work.Wait()
	for _, t := range d.tiers {
		t.flushAll(buf, true)
	}
	d.save()
	d.ended = errors.Join(d.store.Sync(), d.store.Close())
}

// generation is the store's at present.
func (d *disk) generation() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state.Generation
}

// change changes the state, to be saved soon.
func (d *disk) change(f func(*store.State)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(&d.state)
	d.dirty = true
	d.poke()
}

// save writes the state if it has changed; true if it did.
func (d *disk) save() bool {
	d.mu.Lock()
	st, dirty := d.state, d.dirty
	d.dirty = false
	d.mu.Unlock()
	if !dirty {
		return false
	}
	err := d.store.Save(st)
	if err != nil {
		d.judge(err)
		d.mu.Lock()
		d.dirty = true
		d.mu.Unlock()
	}
	return err == nil
}

// settle brings the store in line with an agreement or a cold start: the epochs
// are those of the history, and kept is what is left of both rings. fresh says
// whose epoch has changed. The caller holds the History's life exclusively.
func (d *disk) settle(kept [2][]accord.Range, fresh [2]bool, renamed bool) {
	epochs := [2]uint64{d.h.epoch.Load(), d.h.peer.Load()}
	for i, t := range d.tiers {
		t.settle(kept[i], epochs[i], fresh[i])
	}
	d.change(func(s *store.State) {
		s.Epochs, s.Peer = epochs, d.h.tied
		if renamed {
			s.ID = d.h.self.Store
		}
	})
}

// flushAll writes the chunks in memory that are due, oldest first; all that
// changed if last.
func (t *tier) flushAll(buf *scratch, last bool) {
	from, to := t.bounds()
	t.leave()
	t.log.Drop(func(n uint64) bool { return (n+1)*chunkSize > t.ring.tail() })
	soon := to - min(to, t.ring.mem/chunkSize*3/4)
	for n := from; n < to && !t.d.blocked(); n++ {
		if t.due(n, last || n < soon) {
			t.flush(n, buf)
		}
	}
}

// leave counts the chunks that have left memory and are not on disk, and takes
// them out of the legal sources.
func (t *tier) leave() {
	for {
		n, ok := t.nextLeft()
		if !ok {
			return
		}
		if _, ok := t.log.Find(n); ok || (n+1)*chunkSize <= t.ring.floor.Load() {
			continue
		}
		t.mu.Lock()
		s := &t.state[n%uint64(len(t.state))]
		empty := s.number == n && s.written && s.sum == (accord.Digest{})
		t.mu.Unlock()
		if empty {
			continue
		}
		t.d.count.dropped.Add(1)
		t.clip(n, &store.Map{})
	}
}

// nextLeft takes the next chunk that has left memory; false if there is none. An
// agreement may move the ring's head between two calls, so the bounds are looked
// up anew.
func (t *tier) nextLeft() (n uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	from, _ := t.bounds()
	t.left = max(t.left, from-min(from, uint64(len(t.state)))) // a peer's head may jump
	if t.left >= from {
		return 0, false
	}
	t.left++
	return t.left - 1, true
}

// due says whether chunk n is to be written now: it has changed, and is full,
// or has waited, or cannot wait.
func (t *tier) due(n uint64, now bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.of(n)
	switch {
	case s.pending || s.written && s.mark == t.markOf(n).Load():
		return false
	case now:
		return true
	case s.due.IsZero():
		s.pause = partPause
		s.due = time.Now().Add(s.pause)
	case time.Now().After(s.due):
		s.pause = min(2*s.pause, partPauseMax)
		s.due = time.Now().Add(s.pause)
		return true
	}
	var m store.Map
	t.valid(n, &m)
	return m.Bytes() == chunkSize
}

// flush writes chunk n.
func (t *tier) flush(n uint64, s *scratch) {
	h := t.d.h
	var m store.Map
	h.life.RLock()
	gen, epoch := h.gen, h.epoch.Load()
	if t.ring == h.rx {
		epoch = h.peer.Load()
	}
	mark, ok := t.snapshot(n, &m, s.data)
	h.life.RUnlock()
	if !ok || epoch == 0 {
		return
	}
	sum := sumOf(n, &m, s.data)
	if old, ok := t.log.Find(n); sum == (accord.Digest{}) || ok && old == sum {
		t.finish(n, gen, mark, sum, true)
		return
	}
	s.hints, s.anchors = hintsOf(s.hints[:0], s.data, s.anchors)
	err := t.log.Write(epoch, n, &m, s.data, s.hints, sum)
	if errors.Is(err, store.ErrAbsent) {
		return
	}
	t.d.judge(err)
	if err == nil {
		t.d.count.written.Add(1)
	}
	t.finish(n, gen, mark, sum, err == nil)
}

// finish notes that chunk n was written in generation gen, unless the history
// has been settled since: then it is taken back.
func (t *tier) finish(n, gen uint64, mark uint32, sum accord.Digest, written bool) {
	h := t.d.h
	h.life.RLock()
	defer h.life.RUnlock()
	if gen != h.gen || sum == (accord.Digest{}) {
		t.log.Drop(func(k uint64) bool { return k != n })
	}
	if gen == h.gen {
		t.note(n, mark, sum, written)
	}
}

// blocked says that the disk is left alone for a while.
func (d *disk) blocked() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.health.Rests(time.Now())
}

// judge draws the consequences of a write.
func (d *disk) judge(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.health.Wrote(err, time.Now())
}

// damaged counts a chunk that could not be read as it was written.
func (d *disk) damaged(err error) {
	d.count.damaged.Add(1)
	if !errors.Is(err, store.ErrCorrupt) {
		d.alarm(store.FailAlarm(err))
	}
}

// alarm adds a sentence for the operator; "" is none.
func (d *disk) alarm(s string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.health.Warn(s)
}

// close ends the work. It waits for the disk for a bounded time.
func (d *disk) close() error {
	close(d.stop)
	timer := time.NewTimer(closeWait)
	defer timer.Stop()
	select {
	case <-d.done:
		return d.ended
	case <-timer.C:
		return fmt.Errorf("dedupe: the disk of the history store takes longer than %v; what is not yet written is lost", closeWait)
	}
}

func (d *disk) closed() bool {
	select {
	case <-d.stop:
		return true
	default:
		return false
	}
}

// unloaded is the bytes that are to be loaded.
func (d *disk) unloaded() int64 {
	return (d.tiers[0].unloaded.Load() + d.tiers[1].unloaded.Load()) * chunkSize
}

// stats describes the store.
func (d *disk) stats() StoreStats {
	c := &d.count
	s := StoreStats{
		Disk:    d.store.Sent.Bytes() + d.store.Received.Bytes(),
		Loading: d.unloaded(),
		Loaded:  c.loaded.Load() * chunkSize,
		Found:   c.found.Load() * chunkSize,
		Written: c.written.Load() * chunkSize,
		Dropped: c.dropped.Load() * chunkSize,
		Damaged: c.damaged.Load() * chunkSize,
		Fetched: c.fetched.Load() * chunkSize,
		Refused: c.refused.Load() * chunkSize,
	}
	taken, more := d.loading.times(s.Loading)
	s.LoadSeconds, s.LoadLeft = taken.Seconds(), more.Seconds()
	d.mu.Lock()
	defer d.mu.Unlock()
	s.State, s.Alarms = d.health.State(), d.health.Alarms()
	switch {
	case d.closed():
		s.State = "closed"
	case s.State == "open" && s.Loading > 0:
		s.State = "loading"
	}
	return s
}
