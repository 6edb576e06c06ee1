package stream

import (
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
)

// maxPendingAcks bounds the bytes of control frames that wait while the path
// to the peer is full; beyond it acknowledgements, which are cumulative, are
// left to the next one. Everything else is bounded by itself: a limit that
// grows, one FIN, one DONE, a resend per miss.
const maxPendingAcks = 64 << 10

// frameWriter writes frames to an inter-agent connection. Control frames never
// block their sender: what cannot be written at once is written after the data
// frame in progress, or by a goroutine of its own. That keeps the reading side
// reading, without which two full connections could wait for each other.
type frameWriter struct {
	conn    Conn
	spawn   func(func())
	written atomic.Int64

	mu      sync.Mutex
	idle    *sync.Cond
	pending []byte
	busy    bool
	last    bool // nothing may follow what is pending
	held    bool // nothing is written any more, all stays pending
	err     error
}

func newFrameWriter(c Conn, spawn func(func())) *frameWriter {
	w := &frameWriter{conn: c, spawn: spawn}
	w.idle = sync.NewCond(&w.mu)
	return w
}

// control queues a frame, which it copies.
func (w *frameWriter) control(frame []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue(frame, false)
}

// finish queues a last frame (or none) after which the connection's sending
// direction is closed.
func (w *frameWriter) finish(frame []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue(frame, true)
}

// ack queues an acknowledgement unless too much waits; it reports whether it did.
func (w *frameWriter) ack(frame []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pending)+len(frame) > maxPendingAcks {
		return false
	}
	w.queue(frame, false)
	return true
}

func (w *frameWriter) queue(frame []byte, last bool) {
	if w.err != nil || w.last {
		return
	}
	w.pending = append(w.pending, frame...)
	w.last = last
	if !w.busy && !w.held {
		w.busy = true
		w.spawn(func() { w.flush(nil) })
	}
}

// data writes one frame and whatever control frames wait. It borrows frame.
func (w *frameWriter) data(frame []byte) error {
	w.mu.Lock()
	for w.busy && !w.held {
		w.idle.Wait()
	}
	if w.held {
		defer w.mu.Unlock()
		w.pending = append(w.pending, frame...)
		return w.err
	}
	if w.err != nil || w.last {
		defer w.mu.Unlock()
		return cmpErr(w.err, errClosed)
	}
	w.busy = true
	w.mu.Unlock()
	return w.flush(frame)
}

// wait returns when nothing is being written.
func (w *frameWriter) wait() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.busy {
		w.idle.Wait()
	}
}

// hold ends the writing: what is not written yet, and what comes, stays pending. A
// write in progress ends when its deadline does.
func (w *frameWriter) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = true
	w.idle.Broadcast()
}

// rest returns what is pending, when nothing is being written.
func (w *frameWriter) rest() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pending
}

// flush writes frame and then control frames until none wait. Its caller has
// set busy.
func (w *frameWriter) flush(frame []byte) error {
	for {
		n, err := w.write(frame)
		w.mu.Lock()
		if w.held && (err == nil || errors.Is(err, os.ErrDeadlineExceeded)) {
			defer w.mu.Unlock()
			w.pending, w.busy = slices.Concat(frame[n:], w.pending), false
			w.idle.Broadcast()
			return nil
		}
		w.err = cmpErr(w.err, err)
		if w.err != nil || len(w.pending) == 0 {
			return w.settle()
		}
		frame, w.pending = w.pending, nil
		w.mu.Unlock()
	}
}

// settle ends a flush; mu is held and released.
func (w *frameWriter) settle() error {
	defer w.mu.Unlock()
	w.pending, w.busy = nil, false
	w.idle.Broadcast()
	if w.last && w.err == nil {
		w.err = cmpErr(w.conn.CloseWrite(), errClosed)
		return nil
	}
	return w.err
}

func (w *frameWriter) write(b []byte) (n int, err error) {
	if len(b) > 0 {
		n, err = w.conn.Write(b)
		w.written.Add(int64(n))
	}
	return n, err
}

// cmpErr returns the first error that is not nil.
func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
