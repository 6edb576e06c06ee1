package stream_test

import (
	"testing"
	"time"
)

// TestProve: a Proxy that works proves it, one of whose loops hangs does not,
// and does when the loop goes on. In real time: a wait for a lock is none that
// synctest knows of. A slow machine makes the test weaker, not red.
func TestProve(t *testing.T) {
	w := newWorld(t, 0)
	w.a.start()
	defer func() { w.a.stop(); <-w.a.done }()
	proved := func() <-chan struct{} {
		done := make(chan struct{})
		go func() { defer close(done); w.a.proxy.Prove() }()
		return done
	}
	<-proved() // control case
	for name, m := range w.a.proxy.Loops() {
		m.Lock()
		done := proved()
		select {
		case <-done:
			t.Errorf("%s hangs, and it was proved that it does not", name)
		case <-time.After(50 * time.Millisecond):
		}
		m.Unlock()
		<-done
	}
}
