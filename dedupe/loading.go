package dedupe

import (
	"sync"
	"sync/atomic"
	"time"
)

// loading is how far the loading of a store is. It is safe for concurrent use.
type loading struct {
	hints, chunks atomic.Int64  // the parts next to be worked on
	done          chan struct{} // closed at its end

	mu    sync.Mutex
	began time.Time
	over  time.Time // zero: not yet
	// since is when the reading of data began, and whole what was to be read then.
	since time.Time
	whole int64
}

// begin is for the first of all calls.
func (l *loading) begin() {
	l.began, l.done = time.Now(), make(chan struct{})
}

// read notes that so many bytes are left, and that they are read from now on; the
// first call counts.
func (l *loading) read(left int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.since.IsZero() {
		l.since, l.whole = time.Now(), left
	}
}

// end notes that nothing is left to be done.
func (l *loading) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = time.Now()
	close(l.done)
}

// times are how long it has taken, and will take for so many bytes more at the
// rate so far; 0 if that is not known.
func (l *loading) times(left int64) (taken, more time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over.IsZero() {
		return l.over.Sub(l.began), 0
	}
	now := time.Now()
	if read := l.whole - left; read > 0 {
		more = time.Duration(float64(now.Sub(l.since)) / float64(read) * float64(left))
	}
	return now.Sub(l.began), more
}
