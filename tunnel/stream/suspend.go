package stream

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"time"
)

// A stream is suspended in two steps. First intake is asked to stop where the peer's
// compressor keeps no context: the peer is told to do without, which takes a round
// trip, and all goes on meanwhile. Then pump, drain and what is being written to the
// peer are halted where they are; what they have in hand stays in the relay. Whoever
// suspends wakes those that wait for a socket by deadlines in the past, again and
// again, since they set deadlines of their own.

// pause is where a relay is on its way to be suspended. asked, past and the closing of
// halt are decided under the relay's mu.
type pause struct {
	asked   atomic.Bool
	past    bool          // intake has ended
	carries atomic.Bool   // the peer's context is in use: intake is not to be woken
	halt    chan struct{} // closed: nothing more is to be begun
	ended   chan struct{} // closed: run has returned
	state   *State        // if it was suspended; read after ended
	err     error         // why it was not; read after ended
}

func newPause() pause { return pause{halt: make(chan struct{}), ended: make(chan struct{})} }

// halting reports whether nothing more is to be begun.
func (r *relay) halting() bool {
	select {
	case <-r.pause.halt:
		return true
	default:
		return false
	}
}

// halts says whether err only means that the relay halts.
func (r *relay) halts(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) && r.halting() }

// mayPause says whether intake is to stop here; the others are then halted, too.
func (r *relay) mayPause() bool {
	if !r.pause.asked.Load() {
		return false
	}
	r.pause.carries.Store(r.dec.Carries())
	if r.dec.Carries() {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.haltAll()
}

// nudged says whether err is only that intake was woken: until the stream is over
// nothing else sets its deadline.
func (r *relay) nudged(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return false
	}
	r.pc.conn.SetReadDeadline(time.Time{})
	return true
}

// intakeEnded halts the others if that is all that is missing.
func (r *relay) intakeEnded() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pause.past = true
	r.haltAll()
}

// haltAll halts the stream if it is to be suspended and is not over; mu is held.
func (r *relay) haltAll() bool {
	if r.over || !r.pause.asked.Load() {
		return false
	}
	if !r.halting() {
		r.pc.out.hold()
		close(r.pause.halt)
	}
	return true
}

// drainPaused ends drain with its work in the queue.
func (r *relay) drainPaused() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.draining = false
}

// suspend stops the stream and returns its state; the connections are then the
// caller's, with deadlines that are past. If that cannot be done before ctx is done,
// the stream goes on. errClosed: it has ended.
func (r *relay) suspend(ctx context.Context) (*State, error) {
	r.ask()
	for wait := pollMin; ; wait = min(2*wait, pollMax) {
		r.nudge()
		t := time.NewTimer(wait)
		select {
		case <-r.pause.ended:
			t.Stop()
			return r.pause.state, r.pause.err
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			if r.unask() {
				return nil, ctx.Err()
			}
			ctx = context.WithoutCancel(ctx) // it is halted, and ends soon
		}
	}
}

// ask begins to suspend the stream.
func (r *relay) ask() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pause.asked.Store(true)
	r.pause.carries.Store(false) // what was so when last asked; intake looks when woken
	if r.pause.past {
		r.haltAll()
		return
	}
	r.askContext(contextBarred)
}

// unask lets the stream go on, unless it has been halted.
func (r *relay) unask() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.halting() {
		return false
	}
	r.pause.asked.Store(false)
	if !r.over {
		r.pc.conn.SetReadDeadline(time.Time{})
		r.askContext(contextAllowed)
	}
	return true
}

// nudge wakes what waits for a socket.
func (r *relay) nudge() {
	r.mu.Lock()
	defer r.mu.Unlock()
	past := time.Unix(1, 0)
	switch {
	case r.over:
	case r.halting():
		r.local.SetDeadline(past)
		r.pc.conn.SetDeadline(past)
	case !r.pause.carries.Load():
		r.pc.conn.SetReadDeadline(past)
	}
}

// askContext tells the peer whether its compressor may keep a context.
func (r *relay) askContext(what byte) {
	if r.pc.terms.Features&featureContexts != 0 {
		r.pc.out.control(appendFrame(nil, frameContext, []byte{what}))
	}
}

// suspended makes the state of a stream that has been halted, when nothing runs any
// more; one that has none is reset.
func (r *relay) suspended() bool {
	r.mu.Lock()
	halted := !r.over && r.halting()
	r.mu.Unlock()
	if !halted {
		r.pause.err = errClosed
		return false
	}
	if r.pause.state, r.pause.err = r.export(); r.pause.err != nil {
		r.abort(false)
		return false
	}
	r.enc.Close()
	r.dec.Close()
	return true
}
