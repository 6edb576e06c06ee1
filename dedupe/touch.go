package dedupe

import (
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Touch makes the kernel give memory for the next n bytes of a ring (Sent: what
// we will send) and for the index now, so that it does not have to while data
// waits: on some virtual machines that takes several times as long as matching.
// A ring that is used has some more given beside it, and up to MaxAhead bytes when it
// rests.
// It is an aid, does nothing before Linux 5.14, and changes no contents. It is
// safe for concurrent use.
func (h *History) Touch(r Ring, n int64) {
	ring := h.source(r)
	size := uint64(len(ring.data))
	head := ring.head.Load()
	at := head % size
	ahead := min(uint64(max(n, 0)), size)
	end := min(at+ahead, size)
	populate(ring.data[at:end])
	populate(ring.data[:ahead-(end-at)])
	if head < size {
		ring.touched.to.Store(max(ring.touched.to.Load(), end))
	}
	populate(h.index.slots)
}

const (
	// MaxAhead bounds the memory, in bytes, that is touched ahead of a ring's
	// head; it is not more than what the ring has taken so far, so a history of a
	// few streams stays small. Beyond nearAhead it waits until the head has rested
	// for a moment: giving memory takes processors from those who move it.
	MaxAhead  = 512 << 20
	nearAhead = 64 << 20
	restTime  = 100 * time.Millisecond
	// touchStep is what the kernel is asked for in one call: while it gives memory
	// it keeps others from changing the process's mappings.
	touchStep = 4 << 20
)

// touching is what a ring knows of its memory in its first lap: in later ones
// all of it is there.
type touching struct {
	to   atomic.Uint64 // bytes of data below are there, or on their way
	busy atomic.Bool   // a goroutine is at it
}

// touchAhead is called when the head has moved. It has the kernel give memory for
// what comes next, beside the caller.
func (r *ring) touchAhead() {
	if len(r.data) < offHeap || r.touchGoal(MaxAhead) < r.touched.to.Load()+touchStep || r.touched.busy.Swap(true) {
		return
	}
	go func() {
		defer r.touched.busy.Store(false)
		for rested := false; ; {
			head := r.head.Load()
			from := max(r.touched.to.Load(), head/touchStep*touchStep)
			if from >= r.touchGoal(MaxAhead) {
				return
			}
			if from >= r.touchGoal(nearAhead) && !rested {
				time.Sleep(restTime)
				rested = r.head.Load() == head
				continue
			}
			to := min(from+touchStep, r.touchGoal(MaxAhead))
			populate(r.data[from:to])
			r.touched.to.Store(to)
			rested = rested && r.head.Load() == head
		}
	}()
}

// touchGoal is the end of the memory that should be there now, so far ahead at most; 0
// after the first lap.
func (r *ring) touchGoal(most uint64) uint64 {
	head := r.head.Load()
	if head >= r.mem {
		return 0
	}
	return min(head+min(head, most), r.mem)
}

// populate touches the whole pages of s.
func populate[T any](s []T) {
	if len(s) == 0 {
		return
	}
	page := os.Getpagesize()
	b := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), len(s)*int(unsafe.Sizeof(s[0])))
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (page - 1)
	if whole := (len(b) - skip) / page * page; whole > 0 {
		_ = unix.Madvise(b[skip:skip+whole], unix.MADV_POPULATE_WRITE)
	}
}
