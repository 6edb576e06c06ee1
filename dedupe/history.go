package dedupe

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"stitch/dedupe/accord"
	"stitch/dedupe/store"
)

var (
	// ErrStale is returned when the History was emptied since the Writer or
	// Reader was made. Its connection must be reset.
	ErrStale = errors.New("dedupe: history was emptied; reset the connection")
	// ErrGone is returned when bytes asked for are no longer (or not yet) held.
	ErrGone = errors.New("dedupe: bytes not held")
	// ErrLate is returned when bytes asked for are held, on a disk that has not
	// given them in time.
	ErrLate = errors.New("dedupe: bytes held on disk did not come in time")
	// ErrAhead is returned for a block whose sender has seen more of our bytes
	// than we ever sent: the two histories are not a pair.
	ErrAhead = errors.New("dedupe: peer is ahead of our history; exchange hellos anew")
	// ErrConfig is returned by Open for a Config that cannot be meant.
	ErrConfig = errors.New("dedupe: bad configuration")
	// ErrAck is returned for an acknowledgement of blocks never sent.
	ErrAck = errors.New("dedupe: acknowledgement of a block not sent")
)

// Ring says which bytes a Token refers to, from its Writer's point of view.
type Ring uint8

// The rings. The values are wire values.
const (
	Sent     Ring = 0 // what the writing side sent on any connection
	Received Ring = 1 // what the writing side received on any connection
	Zeros    Ring = 2 // no ring: bytes of value zero
)

// Config says how large a History is and where it is kept.
type Config struct {
	// Size is the bytes of history for each direction, cut to whole MiB
	// between 1 MiB and 64 GiB. Both sides should use the same; the smaller
	// one counts.
	Size int64
	// Memory is how many of these bytes lie in memory, the newest ones: at
	// least 1 MiB; 0, or more than Size, means Size. Without a working store
	// it is all there is. Memory is taken as it is touched, twice (once for
	// each direction), and beside it 0.2 % of Size for page words, the index
	// (Stats.Index), and with a store 1/32 of Memory for segments read back.
	Memory int64
	// Dir is the store's directory, made with mode 0700 if missing; "" means
	// memory only. It belongs to one process at a time.
	Dir string
	// Key encrypts what lies in Dir with AES-256-GCM: 32 bytes, or nil for
	// no encryption. With another key than before the store starts anew.
	Key []byte
}

// check returns c with its sizes made whole.
func (c Config) check() (Config, error) {
	if c.Size < 0 || c.Memory < 0 {
		return c, fmt.Errorf("%w: negative size", ErrConfig)
	}
	if len(c.Key) != 0 && len(c.Key) != 32 {
		return c, fmt.Errorf("%w: a key of %d bytes; it must have 32", ErrConfig, len(c.Key))
	}
	c.Size = whole(c.Size)
	if c.Memory == 0 || c.Memory > c.Size {
		c.Memory = c.Size
	}
	c.Memory = whole(c.Memory)
	if c.Dir == "" {
		c.Size = c.Memory
	}
	return c, nil
}

// whole cuts a size to what a ring can have.
func whole(n int64) int64 {
	return min(max(n, minSize), maxSize) / chunkSize * chunkSize
}

// History is the shared memory of one link and domain: the bytes we sent (tx)
// and a mirror of the bytes the peer sent (rx). It is safe for concurrent use
// by any number of connections. Its memory is freed when the last reference
// goes.
type History struct {
	size   int64
	tx, rx *ring
	index  *index
	window atomic.Uint64 // bytes of each ring that both sides hold
	epoch  atomic.Uint64
	peer   atomic.Uint64 // the epoch that rx mirrors; 0: none
	owners atomic.Uint32

	life sync.RWMutex    // held shared by operations, exclusive by agreements and restarts
	gen  uint64          // guarded by life
	self accord.Identity // its Generation is disk's; guarded by life
	tied accord.Identity // the peer as of the last agreement; guarded by life

	disk   *disk  // nil: memory only
	notice string // why there is no store though one was asked for
	closed bool   // guarded by life

	alloc    sync.Mutex
	guarded  atomic.Uint64 // positions below may be recycled; raised under alloc
	retained map[*Writer]struct{}
}

// NewHistory returns an empty history in memory of size bytes for each
// direction, as Open does; it needs no Close.
func NewHistory(size int64) *History {
	c, _ := Config{Size: max(size, 0)}.check()
	return newHistory(c.Memory, c.Memory)
}

// Open returns the history that c describes, with what an earlier process left
// in its store; that is loaded in the background and usable as it comes. The
// only error is ErrConfig: trouble with the store never stops traffic; the
// history then lives in memory, with Memory bytes for each direction, and
// Stats says why. Close it.
func Open(c Config) (*History, error) {
	c, err := c.check()
	if err != nil {
		return nil, err
	}
	if c.Dir == "" {
		return newHistory(c.Memory, c.Memory), nil
	}
	d, err := store.OpenDir(c.Dir)
	if err != nil {
		return withoutStore(c, err), nil
	}
	return openOn(c, d), nil
}

// OpenOn is Open on a disk that is not the directory c.Dir, which is not used. It
// takes disk.
func OpenOn(c Config, disk store.Disk) (*History, error) {
	c.Dir = "" // there is no path to it
	c, err := c.check()
	if err != nil {
		return nil, err
	}
	return openOn(c, disk), nil
}

// openOn is OpenOn with a checked configuration.
func openOn(c Config, disk store.Disk) *History {
	s, err := store.Open(disk, store.Options{Segments: int(c.Size / chunkSize), Key: c.Key, Machine: store.MachineID()})
	if err != nil {
		return withoutStore(c, err)
	}
	h := newHistory(c.Size, c.Memory)
	h.attach(s)
	return h
}

func withoutStore(c Config, err error) *History {
	h := newHistory(c.Memory, c.Memory)
	h.notice = fmt.Sprintf("running without a history store: %v", err)
	return h
}

// newHistory makes an empty history with a random epoch.
func newHistory(size, mem int64) *History {
	h := &History{
		size:     size,
		tx:       newRing(size, mem),
		rx:       newRing(size, mem),
		index:    newIndex(size),
		retained: make(map[*Writer]struct{}),
	}
	h.window.Store(uint64(size))
	h.epoch.Store(newEpoch())
	h.self.Instance = newEpoch()
	return h
}

// Loaded returns a channel that is closed when what an earlier process left has
// been loaded, or given up.
func (h *History) Loaded() <-chan struct{} {
	if h.disk != nil {
		return h.disk.loading.done
	}
	done := make(chan struct{})
	close(done)
	return done
}

// Close ends the store: what is not yet on disk is written, for at most ten
// seconds. The caller has ended all use of the history; only Stats may follow.
// Idempotent; without a store it does nothing.
func (h *History) Close() error {
	h.life.Lock()
	closed := h.closed
	h.closed = true
	h.life.Unlock()
	if closed || h.disk == nil {
		return nil
	}
	return h.disk.close()
}

// newEpoch returns a random number that is not zero.
func newEpoch() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:]) | 1
}

// Size is the bytes kept for each direction.
func (h *History) Size() int64 { return h.size }

// Epoch is the random number of this history's positions; never 0.
func (h *History) Epoch() uint64 { return h.epoch.Load() }

// Restart empties the history and takes a new epoch: the cold start after
// three strikes. Every Writer and Reader made before is stale; the peer
// follows at the next agreement.
func (h *History) Restart() {
	h.life.Lock()
	defer h.life.Unlock()
	h.epoch.Store(newEpoch())
	h.peer.Store(0)
	h.gen++
	h.rx.forget()
	h.alloc.Lock()
	defer h.alloc.Unlock()
	h.tx.floor.Store(h.tx.head.Load())
	clear(h.retained)
	if h.disk != nil {
		h.disk.settle([2][]accord.Range{}, [2]bool{true, true}, false)
	}
}

// Heads are how many positions were given out in the epoch, and how far the
// peer's bytes are known to go.
func (h *History) Heads() (sent, received uint64) { return h.tx.head.Load(), h.rx.head.Load() }

// Stats describes a History. Sizes are in bytes.
type Stats struct {
	Size     int64      `json:"size"`     // of each ring
	Memory   int64      `json:"memory"`   // of these, in memory
	Index    int64      `json:"index"`    // memory of the anchors' index
	Sent     uint64     `json:"sent"`     // positions given out in the epoch
	Received uint64     `json:"received"` // the peer's highest position seen
	Store    StoreStats `json:"store"`
}

// Stats returns a snapshot.
func (h *History) Stats() Stats {
	s := Stats{
		Size:     h.size,
		Memory:   int64(h.tx.mem),
		Index:    int64(8 * len(h.index.slots)),
		Sent:     h.tx.head.Load(),
		Received: h.rx.head.Load(),
		Store:    StoreStats{State: "memory"},
	}
	if h.notice != "" {
		s.Store.Alarms = []string{h.notice}
	}
	if h.disk != nil {
		s.Store = h.disk.stats()
	}
	return s
}

// low is the lowest position of r a new reference may touch: a margin above
// the tail, for what is in flight on other connections.
func (h *History) low(r *ring) uint64 {
	w := h.window.Load()
	head := r.head.Load()
	return max(r.floor.Load(), head-min(head, w-w/8))
}

// extent gives owner the positions [pos, pos+n); n is a multiple of pageSize.
// An atomic add would do for the positions; the lock is for the guard, which
// must be done before head is published, and is taken once in 1 MiB.
func (h *History) extent(n int, owner uint32) (pos uint64) {
	h.alloc.Lock()
	defer h.alloc.Unlock()
	pos = h.tx.head.Load()
	end := pos + uint64(n)
	h.guard(end)
	h.tx.claim(pos, end, owner)
	h.tx.head.Store(end)
	h.tx.tier.advanced(pos, end)
	h.tx.touchAhead()
	return pos
}

// guard copies aside the unacknowledged blocks that would be recycled when
// head becomes end; an eighth of the ring ahead, so it seldom has to look.
func (h *History) guard(end uint64) {
	recycled := end - min(end, h.tx.mem)
	if recycled <= h.guarded.Load() {
		return
	}
	limit := recycled + h.tx.mem/8
	h.guarded.Store(limit)
	for w := range h.retained {
		w.copyAside(limit)
	}
}

// source finds the ring a Token's Ring means for its Writer's side.
func (h *History) source(r Ring) *ring {
	if r == Sent {
		return h.tx
	}
	return h.rx
}
