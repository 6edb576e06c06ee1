package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// talk tells the person in front of the demo what happens: lines that stay,
// and one that is rewritten. It is safe for concurrent use.
type talk struct {
	mu       sync.Mutex
	start    time.Time
	terminal bool
	shown    time.Time // when a line of progress was last written to a file
	open     bool      // a line of progress is on the screen
}

func newTalk() *talk {
	_, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS)
	return &talk{start: time.Now(), terminal: err == nil}
}

// say writes a line that stays.
func (t *talk) say(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	fmt.Fprintf(os.Stderr, "%6.1f s  %s\n", time.Since(t.start).Seconds(), fmt.Sprintf(format, args...))
}

// progress shows how far something is: on a terminal it replaces what it said
// before, in a file it speaks every five seconds.
func (t *talk) progress(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.terminal && time.Since(t.shown) < 5*time.Second {
		return
	}
	t.clear()
	t.shown = time.Now()
	fmt.Fprintf(os.Stderr, "%6.1f s  ... %s", time.Since(t.start).Seconds(), fmt.Sprintf(format, args...))
	if t.open = t.terminal; !t.open {
		fmt.Fprintln(os.Stderr)
	}
}

// clear removes the line of progress.
func (t *talk) clear() {
	if t.open {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
		t.open = false
	}
}
