package dedupe

import (
	"bytes"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestTouch: no byte changes, wherever the ring's head is and however much is
// asked for.
func TestTouch(t *testing.T) {
	h := NewHistory(1 << 20)
	src := bytes.Repeat([]byte("touch"), 200_000)
	for _, n := range []int64{-1, 0, 1, 5000, 300_000, 1 << 20, 1 << 40} {
		sendAll(t, h, src)
		data, slots := bytes.Clone(h.tx.data), append(h.index.slots[:0:0], h.index.slots...)
		h.Touch(Sent, n)
		h.Touch(Received, n)
		if !bytes.Equal(data, h.tx.data) {
			t.Errorf("%d bytes touched: the ring changed", n)
		}
		for i := range slots {
			if slots[i] != h.index.slots[i] {
				t.Fatalf("%d bytes touched: slot %d changed", n, i)
			}
		}
	}
}

// sendAll sends src over a connection of its own.
func sendAll(t *testing.T, h *History, src []byte) {
	t.Helper()
	w := h.NewWriter(WriterOptions{})
	defer w.Close()
	for len(src) > 0 {
		n := min(len(src), MaxBlock)
		if _, err := w.Put(src[:n]); err != nil {
			t.Fatal(err)
		}
		src = src[n:]
	}
}

// TestTouchGives: the memory asked for is resident, and no more.
func TestTouchGives(t *testing.T) {
	const size = offHeap
	h := NewHistory(size)
	if n := resident(t, h.tx.data); n != 0 {
		t.Skipf("%d pages of a new ring are resident", n)
	}
	h.Touch(Sent, size/4)
	pages := resident(t, h.tx.data)
	if pages == 0 {
		t.Skip("this kernel has no MADV_POPULATE_WRITE")
	}
	if huge := (2 << 20) / pageSize; pages < size/4/pageSize || pages > size/4/pageSize+huge {
		t.Errorf("%d pages are resident, want %d", pages, size/4/pageSize)
	}
	if n := resident(t, h.rx.data); n != 0 {
		t.Errorf("%d pages of the other ring are resident", n)
	}
}

// resident is how many pages of b are in memory.
func resident(t *testing.T, b []byte) (n int) {
	t.Helper()
	in := make([]byte, len(b)/pageSize)
	if err := mincore(b, in); err != nil {
		t.Skip("mincore: ", err)
	}
	for _, v := range in {
		n += int(v & 1)
	}
	return n
}

func mincore(b, in []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&in[0])))
	if errno != 0 {
		return errno
	}
	return nil
}
