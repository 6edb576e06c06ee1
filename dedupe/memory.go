package dedupe

import (
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From offHeap on a ring, and from offHeapSlots on an index, lies outside the
// Go heap. Below, a ring is where the race detector sees it. An index is read
// all over, and only memory of its own can have huge pages.
const (
	offHeap      = 64 << 20
	offHeapSlots = 2 << 20
)

// newBytes returns n zero bytes that cost nothing until touched. Large ones
// are anonymous memory outside the heap, so that a history of gigabytes does
// not double the garbage collector's target; they are unmapped when owner is
// collected. Nothing may keep the slice longer than owner.
func newBytes[T any](owner *T, n int) []byte {
	if n >= offHeap {
		if b := mapBytes(owner, n); b != nil {
			return b
		}
	}
	return make([]byte, n)
}

// newSlots is newBytes for n 64-bit slots.
func newSlots[T any](owner *T, n int) []uint64 {
	if 8*n >= offHeapSlots {
		if b := mapBytes(owner, 8*n); b != nil {
			return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), n)
		}
	}
	return make([]uint64, n)
}

// newWords is newBytes for n page words.
func newWords[T any](owner *T, n int) []atomic.Uint64 {
	if 8*n < offHeap {
		return make([]atomic.Uint64, n)
	}
	b := newBytes(owner, 8*n)
	return unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(unsafe.SliceData(b))), n)
}

// mapBytes maps n bytes for owner; nil if there are none to be had.
func mapBytes[T any](owner *T, n int) []byte {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil
	}
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // an aid: fewer TLB misses
	runtime.AddCleanup(owner, unmap, b)
	return b
}

func unmap(b []byte) { _ = unix.Munmap(b) }
