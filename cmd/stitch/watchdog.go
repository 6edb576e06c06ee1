package main

import (
	"context"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// A child beats once a second (tunnel.Seams.Beat). It may miss a stall of 3 s
// and a late beat; a hang ends within 9 s, and the next start is immediate.
const (
	watchEvery = 500 * time.Millisecond
	// maxStep is the most that counts as silence between two looks. More has
	// passed only if we did not run ourselves: the machine was stopped or
	// overloaded, and the child with us.
	maxStep = 2 * watchEvery
	// hangAfter is the silence of a child that hangs, dumpPatience how long it
	// then has to write its goroutines before it is killed, maxDump how much of
	// them is logged in bytes.
	hangAfter    = 6 * time.Second
	dumpPatience = 2 * time.Second
	maxDump      = 1 << 20
)

// remedy is what to do about a child.
type remedy uint8

const (
	leaveAlone remedy = iota
	askDump           // it hangs: have it write its goroutines, and end
	killNow
)

// watchdog decides whether a child hangs. It is pure: time comes in. Not safe
// for concurrent use.
type watchdog struct {
	armed  bool          // it has beaten once; what never did is only starting
	doomed bool          // it was asked for its goroutines: there is no way back
	silent time.Duration // of our own running time, since its last beat
	last   time.Time     // of the last look
}

// look is called every watchEvery; heard says that there was a beat since the
// last call.
func (w *watchdog) look(heard bool, now time.Time) remedy {
	step := min(now.Sub(w.last), maxStep)
	w.last = now
	if heard && !w.doomed {
		w.armed, w.silent = true, 0
		return leaveAlone
	}
	if !w.armed {
		return leaveAlone
	}
	w.silent += step
	switch {
	case w.silent >= hangAfter+dumpPatience:
		return killNow
	case w.silent >= hangAfter && !w.doomed:
		w.doomed = true
		return askDump
	}
	return leaveAlone
}

// watch ends the child p when it hangs, until ctx is done: then it is being
// stopped anyway. Every byte in beats is a beat; the caller closes it. The
// returned function, to be called once when the child has ended, ends the watch
// and reports whether the child hung.
func (k *keeper) watch(ctx context.Context, p *os.Process, beats io.Reader, said *lastLine) (end func() bool) {
	ctx, cancel := context.WithCancel(ctx)
	var heard atomic.Bool
	go func() {
		buf := make([]byte, 64)
		for n, err := 0, error(nil); err == nil; n, err = beats.Read(buf) {
			if n > 0 {
				heard.Store(true)
			}
		}
	}()
	hung := make(chan bool, 1)
	go func() { hung <- k.heal(ctx, p, &heard, said) }()
	return func() bool { cancel(); return <-hung }
}

// heal does what the watchdog says and reports whether it was anything.
func (k *keeper) heal(ctx context.Context, p *os.Process, heard *atomic.Bool, said *lastLine) bool {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	w := watchdog{last: time.Now()}
	for {
		select {
		case <-ctx.Done():
			return w.doomed
		case <-tick.C:
		}
		switch w.look(heard.Swap(false), time.Now()) {
		case askDump:
			k.log.Error("process hangs, asking for its goroutines and ending it", "process", k.name, "pid", p.Pid, "silent", w.silent.Round(watchEvery))
			said.dump.Store(true)
			_ = p.Signal(syscall.SIGQUIT) // one that has ended meanwhile is fine
		case killNow:
			_ = p.Kill()
			return true
		}
	}
}
