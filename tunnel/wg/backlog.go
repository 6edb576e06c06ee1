package wg

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxBacklog is the most datagrams that wireguard-go may have taken from
	// the socket and not brought to the TUN device; it would take 131,072 of
	// 64 KiB each.
	maxBacklog = 2048
	// backlogPatience is how long the socket is left alone then, while the
	// kernel's buffer fills, before the count is taken for wrong.
	backlogPatience = 20 * time.Millisecond
)

// backlog bounds what is between the socket and the TUN device. Datagrams that
// are dropped in between (forged, replayed) never come out, so it does not
// count them one by one: it remembers the counter of one datagram, and when
// that one comes out everything received before it is out too. It is safe for
// concurrent use.
type backlog struct {
	in   atomic.Uint64 // datagrams received
	out  atomic.Uint64 // of these are certainly out
	mark atomic.Uint64 // nonce counter of the marked datagram, plus one; 0: none

	mu     sync.Mutex
	markIn uint64 // in when the mark was set
	marked time.Time
}

// entered notes n datagrams of which the last has the given nonce counter.
func (b *backlog) entered(n int, counter uint64) {
	in := b.in.Add(uint64(n))
	b.mu.Lock()
	defer b.mu.Unlock()
	// A mark that does not come out was itself dropped: try another.
	if b.mark.Load() != 0 && time.Since(b.marked) < backlogPatience {
		return
	}
	b.markIn, b.marked = in, time.Now()
	b.mark.Store(counter + 1)
}

// left notes a datagram that came out; the usual answer is that it is not the
// marked one.
func (b *backlog) left(counter uint64) {
	if b.mark.Load() != counter+1 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mark.Load() == counter+1 {
		b.out.Store(b.markIn)
		b.mark.Store(0)
	}
}

// full reports whether no more should be received.
func (b *backlog) full() bool {
	return b.in.Load()-b.out.Load() >= maxBacklog
}

// wait returns when there is room, after backlogPatience, or when closed is.
func (b *backlog) wait(closed <-chan struct{}) {
	if !b.full() {
		return
	}
	t := time.NewTicker(time.Millisecond)
	defer t.Stop()
	for start := time.Now(); b.full(); {
		select {
		case <-closed:
			return
		case now := <-t.C:
			if now.Sub(start) >= backlogPatience {
				b.out.Store(b.in.Load())
				return
			}
		}
	}
}
