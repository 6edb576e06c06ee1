package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// plainEvery is how often progress is written where lines cannot be rewritten.
const plainEvery = 5 * time.Second

// console tells a person what goes on. It is safe for concurrent use.
type console struct {
	mu    sync.Mutex
	w     *os.File
	tty   bool
	start time.Time
	last  time.Time // of progress where lines cannot be rewritten
	width int       // of the line to be rewritten
}

func newConsole(w *os.File) *console {
	_, err := unix.IoctlGetTermios(int(w.Fd()), unix.TCGETS)
	return &console{w: w, tty: err == nil, start: time.Now()}
}

// step writes a line that stays.
func (c *console) step(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wipe()
	fmt.Fprintf(c.w, "%s  %s\n", c.clock(), fmt.Sprintf(format, args...))
	c.last = time.Time{}
}

// progress writes a line that the next one replaces; without a terminal, a
// line now and then.
func (c *console) progress(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	line := fmt.Sprintf("%s    %s", c.clock(), fmt.Sprintf(format, args...))
	if !c.tty {
		if time.Since(c.last) >= plainEvery {
			c.last = time.Now()
			fmt.Fprintln(c.w, line)
		}
		return
	}
	c.wipe()
	fmt.Fprint(c.w, line)
	c.width = len([]rune(line))
}

// end leaves the console with a whole line.
func (c *console) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wipe()
}

func (c *console) wipe() {
	if c.width > 0 {
		fmt.Fprint(c.w, "\r"+strings.Repeat(" ", c.width)+"\r")
		c.width = 0
	}
}

func (c *console) clock() string {
	return fmt.Sprintf("%5.1fs", time.Since(c.start).Seconds())
}
