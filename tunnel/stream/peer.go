package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/stream/block"
)

const (
	streamPort = config.StreamPort
	// maxHandshakes bounds the incoming handshakes in progress per peer; more
	// connections are closed at once.
	maxHandshakes = 256
	// maxDials bounds the handshakes this side begins at a time; others wait.
	// Two round trips each make over 500 a second where one takes 100 ms.
	maxDials = maxHandshakes / 2
	// backoffMin and backoffMax bound the pause between two attempts to
	// reach a peer; it doubles.
	backoffMin = 100 * time.Millisecond
	backoffMax = 3 * time.Second
	// disagreeLife is how long a disagreement is shown after it was last seen.
	disagreeLife = time.Minute
)

// peer is the stream plane towards one other site. Safe for concurrent use.
type peer struct {
	p       *Proxy
	link    Link
	odd     uint64 // 1 on the side with the greater name: ids never meet
	log     *slog.Logger
	sem     chan struct{} // incoming handshakes
	out     chan struct{} // outgoing ones
	domains []*domain     // in the order of the configuration
	bufs    buffers       // the peer's share of the compressors is bounded by its shop

	mu        sync.Mutex
	lastID    uint64
	inbound   int
	unruled   uint64 // packets passed for which there is no rule
	lastCC    string
	conflict  string // what the two sites' files disagree about
	conflicts time.Time
	stopping  bool
}

func newPeer(p *Proxy, l Link) (*peer, error) {
	q := &peer{p: p, link: l, log: p.log.With("peer", l.Peer), sem: make(chan struct{}, maxHandshakes), out: make(chan struct{}, maxDials)}
	q.bufs.shop = block.NewShop(runtime.GOMAXPROCS(0))
	if p.cfg.Site > l.Peer {
		q.odd = 1
	}
	for _, u := range p.policy.domains(l.Peer) {
		keep := 0
		switch {
		case u.near:
			keep = warm
		case q.odd == 0:
			keep = 1 // the leading side brings the histories in step
		}
		d, err := newDomain(q, u.name, u.tenants, keep)
		if err != nil {
			return nil, errors.Join(err, q.close())
		}
		q.domains = append(q.domains, d)
	}
	return q, nil
}

// domain finds a domain by name; nil if no rule for the peer names it.
func (q *peer) domain(name string) *domain {
	i := slices.IndexFunc(q.domains, func(d *domain) bool { return d.name == name })
	if i < 0 {
		return nil
	}
	return q.domains[i]
}

// disagree records what the files of the two sites disagree about.
func (q *peer) disagree(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.conflict != text {
		q.log.Warn("the two sites disagree", "what", text)
	}
	q.conflict, q.conflicts = text, time.Now()
}

// welcome implements greeter.
func (q *peer) welcome(h hello) (*domain, error) {
	d := q.domain(h.Domain)
	switch {
	case d != nil:
		return d, nil
	case h.Domain == "":
		return nil, fmt.Errorf("%w: %s has streams without a domain, and no rule for it without one at %s", errTerms, q.link.Peer, q.p.cfg.Site)
	}
	return nil, fmt.Errorf("%w: no [[stream]] or [[dial]] rule for %s at %s names domain %q", errTerms, q.link.Peer, q.p.cfg.Site, h.Domain)
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

var errNoPeer = errors.New("stream: the peer's agent was not reached yet")

// close ends the histories; nothing may use them any more.
func (q *peer) close() error {
	var errs []error
	for _, d := range q.domains {
		errs = append(errs, d.history.Close())
	}
	return errors.Join(errs...)
}

// stop resets everything.
func (q *peer) stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stopping = true
	for _, d := range q.domains {
		d.dropConns()
	}
}
