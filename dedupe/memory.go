package dedupe

import (
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Below offHeap a ring lives on the Go heap, where the race detector sees it.
const offHeap = 64 << 20

// newBytes returns n zero bytes that cost nothing until touched. Large ones
// are anonymous memory outside the heap, so that a history of gigabytes does
// not double the garbage collector's target; they are unmapped when owner is
// collected. Nothing may keep the slice longer than owner.
func newBytes[T any](owner *T, n int) []byte {
	if n >= offHeap {
		b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err == nil {
			_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // an aid: fewer TLB misses
			runtime.AddCleanup(owner, unmap, b)
			return b
		}
	}
	return make([]byte, n)
}

func unmap(b []byte) { _ = unix.Munmap(b) }

// newSlots is newBytes for n 64-bit slots.
func newSlots[T any](owner *T, n int) []uint64 {
	if 8*n < offHeap {
		return make([]uint64, n)
	}
	b := newBytes(owner, 8*n)
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), n)
}

// newWords is newBytes for n page words.
func newWords[T any](owner *T, n int) []atomic.Uint64 {
	if 8*n < offHeap {
		return make([]atomic.Uint64, n)
	}
	b := newBytes(owner, 8*n)
	return unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(unsafe.SliceData(b))), n)
}
