package dedupe

import (
	"sync"
	"sync/atomic"

	"stitch/dedupe/accord"
)

const (
	pageSize    = 4 << 10
	segmentSize = 256 << 10
	// minSize is the smallest ring: a few blocks.
	minSize = 1 << 20
	// chunkSize is the unit of the store and of agreements.
	chunkSize = accord.Segment
	// maxSize is what an agreement can describe: 64 GiB.
	maxSize = accord.MaxSize
	// maxPos bounds positions from the wire, so that sums cannot overflow.
	maxPos = 1 << 60
)

// ring is one direction's bytes: the newest mem of them in memory, older ones,
// if there are any, behind tier on disk. Bytes and page words of a segment are
// written under its lock and after head covers them; a reader that holds the
// lock and finds a position in memory therefore reads bytes of that position's
// lap and nothing can overwrite them until it lets go.
type ring struct {
	size  uint64        // positions below head that are remembered
	mem   uint64        // those whose bytes are in data
	head  atomic.Uint64 // positions below it have been given out
	floor atomic.Uint64 // positions below it are forgotten
	data  []byte
	words []atomic.Uint64 // one for each page: see word
	locks []sync.RWMutex  // one for each segment of data
	tier  *tier           // nil: memory only
	// touched is memory that the kernel has given ahead.
	touched touching
}

func newRing(size, mem int64) *ring {
	r := &ring{
		size:  uint64(size),
		mem:   uint64(mem),
		locks: make([]sync.RWMutex, mem/segmentSize),
	}
	r.words = newWords(r, int(size/pageSize))
	r.data = newBytes(r, int(mem))
	return r
}

// word packs what is known of a page: its tag (tx: the owner's number; rx: the
// lap + 1), how many leading bytes the peer has acknowledged, and how many are
// filled.
type word uint64

func newWord(tag uint32, acked, filled int) word {
	return word(uint64(tag)<<32 | uint64(acked)<<16 | uint64(filled))
}
func (w word) tag() uint32 { return uint32(w >> 32) }
func (w word) acked() int  { return int(w >> 16 & 0xffff) }
func (w word) filled() int { return int(w & 0xffff) }

func (r *ring) wordAt(pos uint64) *atomic.Uint64 {
	return &r.words[pos%r.size/pageSize]
}

// lap is the tag of an rx page.
func (r *ring) lap(pos uint64) uint32 { return uint32(pos/r.size) + 1 }

// tail is the lowest position whose byte is still held.
func (r *ring) tail() uint64 {
	head := r.head.Load()
	return max(r.floor.Load(), head-min(head, r.size))
}

// resident is the lowest position whose byte is in memory.
func (r *ring) resident() uint64 {
	head := r.head.Load()
	return max(r.floor.Load(), head-min(head, r.mem))
}

// raise lifts head to at least pos.
func (r *ring) raise(pos uint64) {
	for {
		old := r.head.Load()
		if pos <= old {
			return
		}
		if r.head.CompareAndSwap(old, pos) {
			r.tier.advanced(old, pos)
			r.touchAhead()
			return
		}
	}
}

// segment locks the segment of pos for reading and returns the whole segment
// and where pos is in it; nil, unlocked, if pos is not held, or is on disk and
// not yet back in memory. The caller unlocks. The bytes are lent until then.
func (r *ring) segment(pos uint64) (seg []byte, at int, mu *sync.RWMutex) {
	off := int(pos % r.mem)
	n := off / segmentSize
	mu = &r.locks[n]
	mu.RLock()
	if pos >= r.resident() && pos < r.head.Load() {
		return r.data[n*segmentSize:][:segmentSize:segmentSize], off % segmentSize, mu
	}
	mu.RUnlock()
	if r.tier == nil || pos < r.tail() || pos >= r.head.Load() {
		return nil, 0, nil
	}
	return r.tier.segment(pos)
}

// read copies len(dst) bytes from pos; false if any of them is not held.
func (r *ring) read(dst []byte, pos uint64) bool {
	if pos+uint64(len(dst)) > r.head.Load() {
		return false
	}
	for len(dst) > 0 {
		seg, at, mu := r.segment(pos)
		if seg == nil {
			return false
		}
		n := copy(dst, seg[at:])
		mu.RUnlock()
		dst, pos = dst[n:], pos+uint64(n)
	}
	return true
}

// write stores src at pos, below head, and calls filled under the lock for
// each page it touched with how far the page is now filled. What has been
// recycled meanwhile is left out.
func (r *ring) write(pos uint64, src []byte, filled func(page uint64, from, to int)) {
	for len(src) > 0 {
		off := int(pos % r.mem)
		at := off % segmentSize
		n := min(len(src), segmentSize-at)
		mu := &r.locks[off/segmentSize]
		mu.Lock()
		if pos >= r.resident() {
			copy(r.data[off:], src[:n])
			eachPage(pos, n, filled)
		}
		mu.Unlock()
		r.tier.mark(pos)
		src, pos = src[n:], pos+uint64(n)
	}
}

// eachPage calls f for each page of [pos, pos+n) with the range inside it.
func eachPage(pos uint64, n int, f func(page uint64, from, to int)) {
	for n > 0 {
		from := int(pos % pageSize)
		to := min(from+n, pageSize)
		f(pos-uint64(from), from, to)
		n -= to - from
		pos += uint64(to - from)
	}
}

// claim resets the words of fresh pages to their owner.
func (r *ring) claim(pos, end uint64, owner uint32) {
	for ; pos < end; pos += pageSize {
		r.wordAt(pos).Store(uint64(newWord(owner, 0, 0)))
	}
}

// update changes the word of a page if it still has the tag.
func (r *ring) update(page uint64, tag uint32, f func(word) word) {
	p := r.wordAt(page)
	for {
		old := word(p.Load())
		if old.tag() != tag || p.CompareAndSwap(uint64(old), uint64(f(old))) {
			return
		}
	}
}

// prefix is how many leading bytes of pos's page the view may refer to.
type prefix func(pos uint64, w word) int

// forward is how much of [pos, pos+n) is good, from pos on.
func (r *ring) forward(pos uint64, n int, good prefix) int {
	done := 0
	for done < n {
		at := int(pos % pageSize)
		ok := good(pos, word(r.wordAt(pos).Load())) - at
		if ok <= 0 {
			break
		}
		step := min(ok, n-done)
		done += step
		if at+step < pageSize {
			break
		}
		pos += uint64(step)
	}
	return done
}

// ownedBy says whether the pages of [pos, end) all have the tag.
func (r *ring) ownedBy(tag uint32, pos, end uint64) bool {
	for pos -= pos % pageSize; pos < end; pos += pageSize {
		if word(r.wordAt(pos).Load()).tag() != tag {
			return false
		}
	}
	return true
}

// backward is how much of [pos-n, pos) is good, from pos down.
func (r *ring) backward(pos uint64, n int, good prefix) int {
	done := 0
	for done < n {
		last := pos - 1
		at := int(last%pageSize) + 1
		if good(last, word(r.wordAt(last).Load())) < at {
			break
		}
		step := min(at, n-done)
		done += step
		pos -= uint64(step)
	}
	return done
}

// forget drops everything and starts again at position 0.
func (r *ring) forget() {
	for i := range r.words {
		r.words[i].Store(0)
	}
	r.head.Store(0)
	r.floor.Store(0)
}
