package stream

import (
	"context"
	"net/netip"
	"sync"
)

// bursts lets the first of the early streams that one client begins at one port of
// a server at the same time be opened before the others: a client whose connections are accepted at once may tell them apart by
// the one it began first, as QEMU does with multifd before 8.0. Those that begin
// while it is being opened wait for it, which costs them a round trip, and are
// then opened side by side. (A faithful client is not answered before its server,
// so its order is the server's.) Safe for concurrent use.
type bursts struct {
	mu   sync.Mutex
	lead map[tuple]chan struct{} // by tuple without the client's port; closed when the first is opened, or is not
}

// begin is called in the order in which connections were accepted. wait must be
// called before the stream is opened and done after it.
func (b *bursts) begin(t tuple) (wait func(context.Context), done func()) {
	k := t
	k.src = netip.AddrPortFrom(t.src.Addr(), 0)
	b.mu.Lock()
	defer b.mu.Unlock()
	if first := b.lead[k]; first != nil {
		return func(ctx context.Context) {
			select {
			case <-first:
			case <-ctx.Done():
			}
		}, func() {}
	}
	if b.lead == nil {
		b.lead = make(map[tuple]chan struct{})
	}
	first := make(chan struct{})
	b.lead[k] = first
	return func(context.Context) {}, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.lead, k)
		close(first)
	}
}
