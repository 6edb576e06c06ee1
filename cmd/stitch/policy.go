package main

import (
	"fmt"
	"time"
)

// Restart delays: the first restart is immediate, because a crash is most
// often alone; those that follow within healthyAfter double from firstDelay.
const (
	firstDelay   = 200 * time.Millisecond
	maxDelay     = 5 * time.Second
	healthyAfter = 30 * time.Second
)

// exit is how a process ended.
type exit struct {
	code      int           // -1: by a signal, or it never started
	signal    string        // name of that signal
	complaint string        // what it said last, or its panic
	panicked  bool          // the Go runtime ended it, also with code 2
	hung      bool          // the watchdog ended it
	ran       time.Duration // from start to end
}

// String says it in one line.
func (e exit) String() string {
	switch {
	case e.hung:
		return fmt.Sprintf("hung: no sign of life for %v, killed", hangAfter)
	case e.signal != "":
		return "ended by signal: " + e.signal
	case e.code < 0:
		return "not started: " + e.complaint
	case e.code == 0 || e.complaint == "":
		return fmt.Sprintf("exit code %d", e.code)
	}
	return fmt.Sprintf("exit code %d: %s", e.code, e.complaint)
}

// policy decides about the restarts of one process. It is pure and not safe
// for concurrent use.
type policy struct {
	exits int // all of them
	quick int // in a row, each soon after its start
}

// next returns how long to wait before the next start, or false to give up:
// a process that refuses its first start (code 2) would refuse all others.
func (p *policy) next(e exit) (time.Duration, bool) {
	p.exits++
	if p.exits == 1 && e.code == 2 && !e.panicked && !e.hung {
		return 0, false
	}
	if e.ran >= healthyAfter {
		p.quick = 0
	}
	p.quick++
	if p.quick == 1 {
		return 0, true
	}
	return min(firstDelay<<min(p.quick-2, 10), maxDelay), true
}
