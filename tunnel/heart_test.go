package tunnel

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestHeart: it beats once a second, not while its plane hangs, and again
// afterwards.
func TestHeart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		beats := 0
		gate := make(chan struct{})
		close(gate)
		h := heart{
			prove: func() {
				mu.Lock()
				g := gate
				mu.Unlock()
				<-g
			},
			beat: func() { mu.Lock(); beats++; mu.Unlock() },
		}
		count := func(want int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if beats != want {
				t.Errorf("%d beats, want %d", beats, want)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- h.Run(ctx) }()
		time.Sleep(4*time.Second + time.Millisecond)
		count(5)
		hang := make(chan struct{})
		mu.Lock()
		gate = hang
		mu.Unlock()
		time.Sleep(time.Hour)
		count(5)
		close(hang)
		time.Sleep(2500 * time.Millisecond)
		count(9) // the one it owes, one whose tick has passed, and two
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
