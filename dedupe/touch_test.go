package dedupe

import (
	"bytes"
	"runtime"
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

// TestTouchAhead: of a ring that fills as much is resident ahead as is filled, and
// of one that has taken little, or has been filled, nothing more.
func TestTouchAhead(t *testing.T) {
	const size = 4 * offHeap
	for _, c := range []struct {
		name        string
		sent        int
		least, most int // pages
	}{
		{"little", touchStep / 2, 0, 2 * touchStep / pageSize},
		{"a quarter", size / 4, size / 2 / pageSize, (size/2 + touchStep) / pageSize},
		{"most", size / 4 * 3, size / pageSize, size / pageSize},
	} {
		h := NewHistory(size)
		if n := resident(t, h.tx.data); n != 0 {
			t.Skipf("%d pages of a new ring are resident", n)
		}
		sendAll(t, h, make([]byte, c.sent))
		for h.tx.touched.busy.Load() {
			runtime.Gosched()
		}
		if c.name != "little" && h.tx.touched.to.Load() == 0 {
			t.Errorf("%s: nothing was touched", c.name)
		}
		h.Touch(Received, 1<<20)
		if resident(t, h.rx.data) == 0 {
			t.Skip("this kernel has no MADV_POPULATE_WRITE")
		}
		pages := resident(t, h.tx.data)
		// The last block's goal may be a step away; huge pages are whole.
		if pages < c.least-2*touchStep/pageSize || pages > c.most+2*touchStep/pageSize {
			t.Errorf("%s: %d pages are resident, want %d to %d", c.name, pages, c.least, c.most)
		}
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
