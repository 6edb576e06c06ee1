package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Exported is a stream that a Proxy has stopped, to be resumed by another one: its
// state and its connections, to the host here and to the peer's agent.
type Exported struct {
	State       *State
	Local, Peer Conn
}

// Export stops the streams that there are and returns them; their connections are the
// caller's, and closing one resets it unless it was handed to another process. It takes
// a round trip to each peer whose compressor is in the middle of something, and as long
// as that asks of a stream that has just sent; a stream that is not stopped when ctx is
// done goes on here, as those do that begin meanwhile. left is how many are not among
// those returned and had not ended. Those of Bench are never exported.
func (p *Proxy) Export(ctx context.Context) (out []Exported, left int) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var stopped []*relay // of out
	for _, r := range p.relays() {
		wg.Go(func() {
			s, err := r.suspend(ctx)
			if s != nil {
				s.SrcMAC, s.DstMAC = p.split.macs(r.tuple, r.near)
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case s != nil:
				out, stopped = append(out, Exported{State: s, Local: r.local, Peer: r.pc.conn}), append(stopped, r)
			case !errors.Is(err, errClosed):
				p.log.Debug("export", "src", r.src, "dst", r.dst, "err", err)
				left++
			}
		})
	}
	wg.Wait()
	for i, r := range stopped { // others went on: the peer may know of what they sent
		s := out[i].State
		s.heads[0], s.heads[1] = r.pc.history.Heads()
	}
	return out, left
}

// relays are those of all streams.
func (p *Proxy) relays() (out []*relay) {
	for _, q := range p.peers {
		q.mu.Lock()
		for _, d := range q.domains {
			for r := range d.relays {
				out = append(out, r)
			}
		}
		q.mu.Unlock()
	}
	return out
}

// Resume goes on with a stream that another Proxy has exported. The site, and the
// history of the domain, are the same: reopened from its store, shared, or, if it is
// lost, empty; what the peer refers to and is not there is repaired. Until the first
// connection with the peer the domain's epochs are those of the state; it can be called
// before Run. On an error, which wraps ErrState if the stream cannot go on here, the
// connections are still the caller's. s must not be used again.
func (p *Proxy) Resume(ctx context.Context, s *State, local, peer Conn) error {
	q := p.byName[s.Peer]
	if q == nil {
		return fmt.Errorf("%w: no link to %q", ErrState, s.Peer)
	}
	d := q.domain(s.Domain)
	if d == nil {
		return fmt.Errorf("%w: no rule for %s names domain %q", ErrState, s.Peer, s.Domain)
	}
	pc := newPeerConn(peer, p.spawn)
	pc.read.Store(s.wireIn)
	pc.out.written.Store(s.wireOut)
	if err := d.regain(pc, s); err != nil {
		return err
	}
	r, err := resumeRelay(s, local, pc, &q.bufs, p.spawn)
	if err != nil {
		d.forget(pc)
		return err
	}
	flow, err := p.divert(ctx, s.Peer, r.tuple, hostMACs{s.SrcMAC, s.DstMAC}, s.Near)
	if err != nil {
		r.enc.Close()
		r.dec.Close()
		d.forget(pc)
		return err
	}
	p.gate.regain()
	d.begin(r)
	r.wakeUp(s)
	p.spawn(func() {
		defer p.gate.leave()
		defer func() { p.split.end(flow, time.Now()) }()
		defer d.forget(pc)
		d.carry(r)
	})
	return nil
}

// regain puts the connection of a resumed stream on the account.
func (d *domain) regain(pc *peerConn, s *State) error {
	q := d.q
	q.mu.Lock()
	defer q.mu.Unlock()
	if d.epochs.peer == 0 && len(d.conns)+len(d.relays) == 0 {
		d.setEpochs(s.epochs)
	}
	if q.stopping || d.epochs != s.epochs {
		return fmt.Errorf("%w: the histories of domain %q have been brought in step anew", ErrState, d.name)
	}
	if err := d.history.Continue(s.heads[0], s.heads[1]); err != nil {
		return fmt.Errorf("%w: domain %q: %w", ErrState, d.name, err)
	}
	pc.id, pc.domain, pc.gen, pc.epochs, pc.history, pc.terms = s.connID, d, d.gen, d.epochs, d.history, s.terms
	if s.connID&1 == q.odd {
		q.lastID = max(q.lastID, s.connID>>1)
	}
	d.conns[pc] = struct{}{}
	return nil
}

// FileConn returns the connection of a descriptor that another process has handed over;
// f stays the caller's to close.
func FileConn(f *os.File) (Conn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("%w: a descriptor that is no TCP connection", ErrState)
	}
	conn, err := newTCP(t)
	if err != nil {
		return nil, err
	}
	if err := conn.Gather(1); err != nil {
		conn.Close()
		return nil, err
	}
	conn.raw.Control(func(fd uintptr) { // Pace begins anew, and does not know of a limit
		_ = unix.SetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, unpaced)
	})
	return conn, nil
}
