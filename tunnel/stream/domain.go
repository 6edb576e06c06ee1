package stream

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"stitch/dedupe"
	"stitch/tunnel/config"
)

const (
	// warm is how many connections are kept ready per domain that streams from
	// here use.
	warm = 4
	// maxPrivate bounds the memory, per direction, of the history of streams
	// that match only themselves.
	maxPrivate = 64 << 20
)

// domain is what this site and one peer share under one name: a history, and
// the connections that are tied to it. The one without a name is for streams
// that match only themselves. Fields below mu are guarded by the peer's mu.
type domain struct {
	q       *peer
	name    string
	tenants bool // are many, says our configuration
	keep    int  // connections to keep ready
	log     *slog.Logger
	wake    chan struct{} // maintain: look
	turn    chan struct{} // holds a token while histories are brought in step
	pieces  pieces        // of files named for seeding
	sealed  bool          // their file is not ours to write
	seeding chan struct{} // holds a token while this side seeds
	serving chan struct{} // and while the peer does

	// guarded by q.mu
	epochs  epochs
	gen     int           // of the epochs: how often they changed
	changed chan struct{} // closed and renewed when they do
	history *dedupe.History
	ready   []*peerConn
	conns   map[*peerConn]struct{}
	relays  map[*relay]struct{}
	seeds   int // that use the history
	alive   bool
	lastErr error
	stats   Traffic // of what has ended
	resyncs uint64
	alarm   string // of the last resync
}

// newDomain returns a domain that keeps so many connections ready. Its history
// is open.
func newDomain(q *peer, name string, tenants bool, keep int) (*domain, error) {
	history, err := dedupe.Open(historyConfig(q.p.cfg.Cfg.History, q.link.Peer, name))
	if err != nil {
		return nil, fmt.Errorf("history of domain %q with %s: %w", name, q.link.Peer, err)
	}
	d := &domain{
		q: q, name: name, tenants: tenants, keep: keep, log: q.log.With("domain", name),
		wake: make(chan struct{}, 1), turn: make(chan struct{}, 1), changed: make(chan struct{}),
		seeding: make(chan struct{}, 1), serving: make(chan struct{}, 1),
		history: history,
		conns:   make(map[*peerConn]struct{}), relays: make(map[*relay]struct{}),
	}
	if d.epochs.own, err = q.p.epoch(); err != nil {
		return nil, errors.Join(err, history.Close())
	}
	d.loadSeeds()
	return d, nil
}

// historyConfig says how the history of a domain with a peer is kept. That of
// streams which match only themselves is small and not kept: what they leave is
// of no use to others.
func historyConfig(c config.History, peer, domain string) dedupe.Config {
	if domain == "" {
		return dedupe.Config{Size: min(c.Memory, maxPrivate)}
	}
	out := dedupe.Config{Size: c.Size, Memory: c.Memory}
	if c.Dir == "" {
		return out
	}
	out.Dir = filepath.Join(c.Dir, peer, domain)
	if !c.Key.IsZero() { // one key for each store, so that none sees another's nonces
		m := hmac.New(sha256.New, c.Key[:])
		fmt.Fprintf(m, "stitch history 1 %s %s", peer, domain)
		out.Key = m.Sum(nil)
	}
	return out
}

// tellLoading logs how the history that an earlier process left is loaded. Streams
// are carried meanwhile.
func (d *domain) tellLoading(ctx context.Context) {
	s := d.history.Stats().Store
	if s.Loading == 0 {
		return
	}
	d.log.Info("history is being loaded", "bytes", s.Loading)
	select {
	case <-d.history.Loaded():
	case <-ctx.Done():
		return
	}
	s = d.history.Stats().Store
	d.log.Info("history is loaded", "bytes", s.Loaded, "damaged", s.Damaged, "seconds", s.LoadSeconds)
}

// hello draws the hello of a new connection.
func (d *domain) hello(id uint64) (hello, error) {
	d.q.mu.Lock()
	h := hello{
		Min: minVersion, Max: maxVersion, Offered: ourFeatures, Tenants: d.tenants, Domain: d.name,
		ConnID: id, Epoch: d.epochs.own, Tied: d.epochs.peer,
	}
	_, h.Received = d.history.Heads()
	d.q.mu.Unlock()
	_, err := io.ReadFull(d.q.p.cfg.Rand, h.Nonce[:])
	return h, err
}

// adopt makes a connection ready under the epochs of its hellos, or reports
// that these are past.
func (d *domain) adopt(pc *peerConn, own, theirs hello, t terms) bool {
	q := d.q
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stopping || d.epochs.own != own.Epoch || !d.epochs.tied(theirs.Epoch) {
		return false
	}
	pc.domain, pc.gen, pc.epochs, pc.history, pc.terms = d, d.gen, d.epochs, d.history, t
	d.conns[pc] = struct{}{}
	q.lastCC = pc.conn.Congestion()
	for _, other := range q.domains {
		if !other.alive {
			signal(other.wake)
		}
	}
	return true
}

// dropConns resets every connection; those that nobody uses are forgotten. mu
// is held.
func (d *domain) dropConns() {
	for pc := range d.conns {
		pc.conn.Close()
	}
	for _, pc := range d.ready {
		d.account(pc)
	}
	d.ready = nil
	signal(d.wake)
}

// forget ends the account of a connection.
func (d *domain) forget(pc *peerConn) {
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	d.account(pc)
}

// account is forget; mu is held.
func (d *domain) account(pc *peerConn) {
	delete(d.conns, pc)
	d.stats.WireIn += pc.read.Load()
	d.stats.WireOut += pc.out.written.Load()
}

// dial makes one connection ready.
func (d *domain) dial(ctx context.Context) (*peerConn, error) {
	q := d.q
	ctx, cancel := context.WithTimeout(ctx, helloTimeout+resyncTimeout)
	defer cancel()
	select {
	case q.out <- struct{}{}:
		defer func() { <-q.out }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c, err := q.p.cfg.Net.DialPeer(ctx, q.link, streamPort)
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("%w: %w", errNoPorts, err)
	}
	if err != nil {
		q.p.lacks(err)
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	q.mu.Lock()
	q.lastID++
	id := q.lastID<<1 | q.odd
	q.mu.Unlock()
	pc := newPeerConn(c, q.p.spawn)
	if err := dialHello(ctx, pc, d, id); err != nil {
		c.Close()
		d.forget(pc)
		return nil, err
	}
	return pc, nil
}

// maintain keeps connections ready.
func (d *domain) maintain(ctx context.Context) {
	pause := backoffMin
	for ctx.Err() == nil {
		if d.prune() >= d.keep {
			select {
			case <-d.wake:
			case <-ctx.Done():
			}
			continue
		}
		if wait := d.q.p.gate.paused(time.Now()); wait > 0 { // others need it more
			sleep(ctx, wait)
			continue
		}
		pc, err := d.dial(ctx)
		if err == nil {
			pause = backoffMin
			d.park(pc)
			continue
		}
		if errors.Is(err, errRestarted) && pause == backoffMin {
			pause = 2 * backoffMin
			continue // the next one finds both sides in step
		}
		d.setState(err)
		d.rest(ctx, pause/2+rand.N(pause/2))
		pause = min(2*pause, backoffMax)
	}
}

// rest sleeps, but not when the peer is met meanwhile.
func (d *domain) rest(ctx context.Context, pause time.Duration) {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-d.wake:
	case <-ctx.Done():
	}
}

// setState records whether the peer could be reached.
func (d *domain) setState(err error) {
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	if (err == nil) != d.alive {
		d.log.Info("peer agent", "reachable", err == nil, "err", err)
	}
	d.alive, d.lastErr = err == nil, err
}

// park puts a connection among the ready ones.
func (d *domain) park(pc *peerConn) {
	pc.watch(d.q.p.spawn, func() { signal(d.wake) })
	d.setState(nil)
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	if pc.gen != d.gen || d.q.stopping {
		pc.conn.Close()
		d.account(pc)
		return
	}
	d.ready = append(d.ready, pc)
}

// prune forgets ready connections that have ended; it returns how many remain.
func (d *domain) prune() int {
	d.q.mu.Lock()
	var ended []*peerConn
	d.ready = slices.DeleteFunc(d.ready, func(pc *peerConn) bool {
		if len(pc.watched) == 0 {
			return false
		}
		ended = append(ended, pc)
		return true
	})
	n := len(d.ready)
	d.q.mu.Unlock()
	for _, pc := range ended {
		pc.conn.Close()
		d.forget(pc)
	}
	return n
}

// take returns a ready connection, or makes one if the peer was lately there.
func (d *domain) take(ctx context.Context) (*peerConn, error) {
	for {
		d.q.mu.Lock()
		n := len(d.ready)
		if n == 0 {
			alive, err := d.alive, d.lastErr
			d.q.mu.Unlock()
			if !alive {
				return nil, cmpErr(err, errNoPeer)
			}
			signal(d.wake) // maintain finds out whether the peer is still there
			return d.dial(ctx)
		}
		pc := d.ready[n-1]
		d.ready = d.ready[:n-1]
		d.q.mu.Unlock()
		signal(d.wake)
		if pc.unwatch() {
			return pc, nil
		}
		pc.conn.Close()
		d.forget(pc)
	}
}

// away says why a stream of the domain is not worth trying; 0: it is.
func (d *domain) away() Reason {
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	switch {
	case d.alive || len(d.ready) > 0:
		return 0
	case lackOf(d.lastErr) != "":
		return OutOfResources
	}
	return PeerUnreachable
}

// open has the peer connect. Kind 0 is success; the caller then owns pc.
func (d *domain) open(ctx context.Context, t tuple, macs hostMACs, m mode) (pc *peerConn, window uint32, kind Refusal) {
	for range warm + 1 {
		pc, err := d.take(ctx)
		if lackOf(err) != "" {
			return nil, 0, unequipped
		}
		if err != nil {
			return nil, 0, unreached
		}
		window, kind, dialling, err := requestOpen(pc, t, macs, m)
		if err == nil && kind == 0 {
			return pc, window, 0
		}
		pc.conn.Close()
		d.forget(pc)
		if err == nil {
			d.count(func(s *Traffic) { s.Refused++ })
			if kind == Mismatch {
				d.q.disagree("the [[dial]] rule of %s for %v names another domain than %q: write the same in both files", d.q.link.Peer, t.dst, d.name)
			}
			return nil, 0, kind
		}
		if dialling || ctx.Err() != nil {
			break
		}
	}
	return nil, 0, unreached
}

// relay carries a stream to its end and accounts for it.
func (d *domain) relay(t tuple, near bool, local Conn, pc *peerConn, m mode, window uint32) {
	_ = pc.conn.Anew() // fails only on a connection that has ended
	r := newRelay(t, near, local, pc, m, uint64(window), &d.q.bufs, d.q.p.spawn)
	d.begin(r)
	d.carry(r)
}

// begin puts a relay on the account; carry is to follow.
func (d *domain) begin(r *relay) {
	pc := r.pc
	if n := d.q.p.policy.mark(d.q.link.Peer, r.near, r.tuple); n > 0 {
		_ = pc.conn.SetMark(n) // as well
	}
	r.desync = func() { d.restart(pc.gen) }
	r.broken = func(err error) {
		if !r.isOver() { // else what comes is of no interest
			d.log.Warn("stream ended by reset", "src", r.src, "dst", r.dst, "err", err)
		}
	}
	d.q.mu.Lock()
	stopping := d.q.stopping || d.gen != pc.gen
	d.relays[r] = struct{}{}
	d.stats.Total++
	d.q.mu.Unlock()
	if stopping {
		r.abort(false)
	}
}

// carry runs a relay to its end, or until it is suspended.
func (d *domain) carry(r *relay) {
	clean := r.run()
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	delete(d.relays, r)
	d.stats.add(r)
	if !clean && r.pause.state == nil {
		d.stats.Reset++
	}
}

func (d *domain) count(f func(*Traffic)) {
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	f(&d.stats)
}
