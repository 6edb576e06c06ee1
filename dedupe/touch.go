package dedupe

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Touch makes the kernel give memory for the next n bytes of a ring (Sent: what
// we will send) and for the index now, so that it does not have to while data
// waits: on some virtual machines that takes several times as long as matching.
// It is an aid, does nothing before Linux 5.14, and changes no contents. It is
// safe for concurrent use.
func (h *History) Touch(r Ring, n int64) {
	ring := h.source(r)
	size := uint64(len(ring.data))
	at := ring.head.Load() % size
	ahead := min(uint64(max(n, 0)), size)
	end := min(at+ahead, size)
	populate(ring.data[at:end])
	populate(ring.data[:ahead-(end-at)])
	populate(h.index.slots)
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
