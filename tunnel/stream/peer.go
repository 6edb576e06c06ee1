package stream

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"stitch/dedupe"
	"stitch/tunnel/config"
)

const (
	// warm is how many connections are kept ready per peer.
	warm = 4
	// maxHandshakes bounds the incoming handshakes in progress per peer; more
	// connections are closed at once.
	maxHandshakes = 32
	// maxDials bounds the handshakes this side begins at a time; others wait.
	maxDials = maxHandshakes / 2
	// backoffMin and backoffMax bound the pause between two attempts to
	// reach a peer; it doubles.
	backoffMin = 100 * time.Millisecond
	backoffMax = 3 * time.Second
)

// peer is the stream plane towards one other site. Safe for concurrent use.
type peer struct {
	p    *Proxy
	link Link
	odd  uint64 // 1 on the side with the greater name: ids never meet
	log  *slog.Logger
	wake chan struct{} // maintain: look
	sem  chan struct{} // incoming handshakes
	out  chan struct{} // outgoing ones

	mu       sync.Mutex
	epochs   epochs
	history  *dedupe.History
	lastID   uint64
	ready    []*peerConn
	conns    map[*peerConn]struct{}
	relays   map[*relay]struct{}
	inbound  int
	alive    bool
	lastErr  error
	lastCC   string
	stats    PeerStats // counters of what has ended
	stopping bool
}

func newPeer(p *Proxy, l Link) *peer {
	q := &peer{
		p: p, link: l, log: p.log.With("peer", l.Peer),
		wake: make(chan struct{}, 1), sem: make(chan struct{}, maxHandshakes), out: make(chan struct{}, maxDials),
		history: dedupe.NewHistory(p.cfg.Cfg.History.Size),
		conns:   make(map[*peerConn]struct{}), relays: make(map[*relay]struct{}),
	}
	if p.cfg.Site > l.Peer {
		q.odd = 1
	}
	q.epochs.own = q.history.Epoch()
	return q
}

// hello implements session.
func (q *peer) hello(id uint64) (hello, error) {
	q.mu.Lock()
	q.sync()
	h := hello{ConnID: id, Epoch: q.epochs.own, History: uint64(q.history.Size())}
	q.mu.Unlock()
	_, err := io.ReadFull(q.p.cfg.Rand, h.Nonce[:])
	return h, err
}

// sync notices that the codec has restarted the history; mu is held.
func (q *peer) sync() {
	if own := q.history.Epoch(); own != q.epochs.own {
		q.epochs.restart(own)
		q.stats.Restarts++
		q.dropConns()
	}
}

// judge implements session.
func (q *peer) judge(h hello) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sync()
	if q.epochs.accept(h.Epoch) {
		return true
	}
	q.log.Info("peer restarted: history starts again")
	q.history.Restart()
	q.sync()
	return false
}

// restart starts the history again if it still has the given epoch.
func (q *peer) restart(epoch uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.epochs.own != epoch {
		return
	}
	q.log.Warn("histories differ: starting again")
	q.history.Restart()
	q.sync()
}

// adopt implements session.
func (q *peer) adopt(pc *peerConn, own, theirs hello) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sync()
	first := q.epochs.peer == 0
	if q.stopping || !q.epochs.tie(own.Epoch, theirs.Epoch) {
		return false
	}
	if first && q.history.Meet(theirs.Epoch, int64(theirs.History)) {
		q.sync()
		if q.epochs.own != own.Epoch {
			return false
		}
	}
	pc.epoch, pc.history = own.Epoch, q.history
	q.conns[pc] = struct{}{}
	q.lastCC = pc.conn.Congestion()
	return true
}

// dropConns resets every connection of a past epoch; mu is held.
func (q *peer) dropConns() {
	q.ready = nil
	for pc := range q.conns {
		pc.conn.Close()
	}
	signal(q.wake)
}

// forget ends the account of a connection.
func (q *peer) forget(pc *peerConn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.conns, pc)
	q.stats.WireIn += pc.read.Load()
	q.stats.WireOut += pc.out.written.Load()
}

// dial makes one connection ready.
func (q *peer) dial(ctx context.Context) (*peerConn, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	select {
	case q.out <- struct{}{}:
		defer func() { <-q.out }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c, err := q.p.cfg.Net.DialPeer(ctx, q.link, config.StreamPort)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	q.mu.Lock()
	q.lastID++
	id := q.lastID<<1 | q.odd
	q.mu.Unlock()
	pc := newPeerConn(c, q.p.spawn)
	if err := dialHello(pc, q, &q.link.Token, id); err != nil {
		c.Close()
		q.forget(pc)
		return nil, err
	}
	return pc, nil
}

// maintain keeps warm connections ready.
func (q *peer) maintain(ctx context.Context) {
	pause := backoffMin
	for ctx.Err() == nil {
		if q.prune() >= warm {
			select {
			case <-q.wake:
			case <-ctx.Done():
			}
			continue
		}
		pc, err := q.dial(ctx)
		if err == nil {
			pause = backoffMin
			q.park(pc)
			continue
		}
		if errors.Is(err, errRestarted) && pause == backoffMin {
			pause = 2 * backoffMin
			continue // the next one finds both sides cold
		}
		q.setState(err)
		sleep(ctx, pause/2+rand.N(pause/2))
		pause = min(2*pause, backoffMax)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// setState records whether the peer could be reached.
func (q *peer) setState(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if (err == nil) != q.alive {
		q.log.Info("peer agent", "reachable", err == nil, "err", err)
	}
	q.alive, q.lastErr = err == nil, err
}

// park puts a connection among the ready ones.
func (q *peer) park(pc *peerConn) {
	pc.watch(q.p.spawn, func() { signal(q.wake) })
	q.setState(nil)
	q.mu.Lock()
	defer q.mu.Unlock()
	if pc.epoch != q.epochs.own || q.stopping {
		pc.conn.Close()
		return
	}
	q.ready = append(q.ready, pc)
}

// prune forgets ready connections that have ended; it returns how many remain.
func (q *peer) prune() int {
	q.mu.Lock()
	var ended []*peerConn
	q.ready = slices.DeleteFunc(q.ready, func(pc *peerConn) bool {
		if len(pc.watched) == 0 {
			return false
		}
		ended = append(ended, pc)
		return true
	})
	n := len(q.ready)
	q.mu.Unlock()
	for _, pc := range ended {
		pc.conn.Close()
		q.forget(pc)
	}
	return n
}

// take returns a ready connection, or makes one if the peer was lately there.
func (q *peer) take(ctx context.Context) (*peerConn, error) {
	for {
		q.mu.Lock()
		n := len(q.ready)
		if n == 0 {
			alive, err := q.alive, q.lastErr
			q.mu.Unlock()
			if !alive {
				return nil, cmpErr(err, errNoPeer)
			}
			signal(q.wake) // maintain finds out whether the peer is still there
			return q.dial(ctx)
		}
		pc := q.ready[n-1]
		q.ready = q.ready[:n-1]
		q.mu.Unlock()
		signal(q.wake)
		if pc.unwatch() {
			return pc, nil
		}
		pc.conn.Close()
		q.forget(pc)
	}
}

var errNoPeer = errors.New("stream: the peer's agent was not reached yet")

// reachable reports whether a stream to the peer is worth trying.
func (q *peer) reachable() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.alive || len(q.ready) > 0
}

// open has the peer connect. Kind 0 is success; the caller then owns pc.
func (q *peer) open(ctx context.Context, t tuple) (pc *peerConn, window uint32, kind Refusal) {
	for range warm + 1 {
		pc, err := q.take(ctx)
		if err != nil {
			return nil, 0, Unable
		}
		window, kind, dialling, err := requestOpen(pc, t)
		if err == nil && kind == 0 {
			return pc, window, 0
		}
		pc.conn.Close()
		q.forget(pc)
		if err == nil {
			q.count(func(s *PeerStats) { s.Refused++ })
			return nil, 0, kind
		}
		if dialling || ctx.Err() != nil {
			break
		}
	}
	return nil, 0, Unable
}

func (q *peer) count(f func(*PeerStats)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f(&q.stats)
}

// relay carries a stream to its end and accounts for it.
func (q *peer) relay(t tuple, near bool, local Conn, pc *peerConn, window uint32) {
	r := newRelay(t, near, local, pc, uint64(window), &q.p.bufs, q.p.spawn)
	r.desync = func() { q.restart(pc.epoch) }
	q.mu.Lock()
	stopping := q.stopping
	q.relays[r] = struct{}{}
	q.stats.Total++
	q.mu.Unlock()
	if stopping {
		r.abort(false)
	}
	clean := r.run()
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.relays, r)
	q.stats.add(r)
	if !clean {
		q.stats.Reset++
	}
}

// stop resets everything.
func (q *peer) stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stopping = true
	q.dropConns()
}
