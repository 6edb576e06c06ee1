package stream

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

const (
	// spareInbound is how many incoming connections a peer may have besides
	// Config.MaxStreams, for those that carry no stream yet. More are closed at
	// once.
	spareInbound = 64 + maxHandshakes
	// addressTries and addressPause are for a client's port that is still
	// taken here by the connection it had before.
	addressTries = 4
	addressPause = 25 * time.Millisecond
)

// listen accepts the peer's connections until ctx is done.
func (q *peer) listen(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		l, err := q.p.cfg.Net.ListenPeer(q.link, streamPort)
		if err != nil { // the link process makes the device, a moment later
			if err.Error() != said {
				said = err.Error()
				q.log.Warn("listen on the link", "err", err)
			}
			sleep(ctx, backoffMin)
			continue
		}
		stop := context.AfterFunc(ctx, func() { l.Close() })
		acceptLoop(ctx, l, func(err error) bool { q.p.lacks(err); return false }, q.admit)
		stop()
		l.Close()
	}
}

// acceptLoop hands on what l accepts until it is closed; other errors (no
// descriptors left) only make it pause, unless failed has made room.
func acceptLoop(ctx context.Context, l Listener, failed func(error) (room bool), take func(context.Context, Conn)) {
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			take(ctx, c)
		case errors.Is(err, net.ErrClosed) || ctx.Err() != nil:
			return
		default:
			if !failed(err) {
				sleep(ctx, backoffMin)
			}
		}
	}
}

// admit starts the service of a connection from the link.
func (q *peer) admit(ctx context.Context, c Conn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if addrPort(c.RemoteAddr()).Addr() != q.link.Remote || q.inbound >= q.p.cfg.MaxStreams+spareInbound || q.stopping {
		c.Close()
		return
	}
	select {
	case q.sem <- struct{}{}:
	default:
		c.Close()
		return
	}
	q.inbound++
	q.p.spawn(func() {
		q.serve(ctx, c)
		q.mu.Lock()
		defer q.mu.Unlock()
		q.inbound--
	})
}

// serve is the far side of one inter-agent connection.
func (q *peer) serve(ctx context.Context, c Conn) {
	pc := newPeerConn(c, q.p.spawn)
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	err := acceptHello(ctx, pc, q, &q.link.Token)
	<-q.sem
	if err == nil {
		defer pc.domain.forget(pc)
		err = q.serveOpen(ctx, pc)
	}
	if err == nil {
		return
	}
	c.Close()
	switch {
	case errors.Is(err, errAuth):
		q.log.Warn("connection refused", "err", err)
	case errors.Is(err, errTerms):
		q.disagree("%v", err)
	}
}

// serveOpen waits for OPEN, connects and relays; or serves a seed or a benchmark.
func (q *peer) serveOpen(ctx context.Context, pc *peerConn) error {
	if err := pc.await(); err != nil {
		return err
	}
	typ, body, err := pc.expect(openTimeout, frameOpen, frameOffer, frameBench)
	if err != nil {
		return err
	}
	switch typ {
	case frameOffer:
		return q.serveSeed(pc, body)
	case frameBench:
		return q.serveBench(ctx, pc, body)
	}
	o, err := parseOpen(body)
	if err != nil {
		return err
	}
	t := tuple{src: o.Src, dst: o.Dst, segment: o.Segment}
	if kind := q.mayDial(pc.domain, t); kind != 0 {
		return q.refuse(pc, kind)
	}
	if q.p.enter() != 0 {
		return q.refuse(pc, Unable)
	}
	defer q.p.gate.leave()
	if err := pc.send(frameDialing, nil); err != nil {
		return err
	}
	flow, err := q.p.divert(ctx, q.link.Peer, t, hostMACs{o.SrcMAC, o.DstMAC}, false)
	if err != nil {
		return q.refuse(pc, Unable)
	}
	defer func() { q.p.split.end(flow, time.Now()) }()
	local, err := pc.dialWatched(ctx, q.p.spawn, func(ctx context.Context) (Conn, error) { return q.connect(ctx, t) })
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if err != nil {
		q.p.lacks(err)
		return q.refuse(pc, refusalOf(err))
	}
	if err := pc.out.data(appendOpened(nil, startWindow)); err != nil {
		local.Close()
		return err
	}
	pc.domain.relay(t, false, local, pc, o.Mode, o.Window)
	return nil
}

// mayDial is the policy's answer, and never an address of this host.
func (q *peer) mayDial(d *domain, t tuple) Refusal {
	kind := q.p.policy.mayDial(q.link.Peer, d.name, t)
	switch {
	case kind == 0 && (q.p.cfg.Net.Own(t.dst.Addr()) || q.p.cfg.Net.Own(t.src.Addr())):
		return Denied
	case kind == Mismatch:
		q.disagree("a [[stream]] rule of %s for %v names domain %q, and no [[dial]] rule here does: write the same in both files", q.link.Peer, t.dst, d.name)
	}
	return kind
}

// connect dials a server, waiting a little for a client's port that is still
// taken by its last connection.
func (q *peer) connect(ctx context.Context, t tuple) (Conn, error) {
	for try := 1; ; try++ {
		c, err := q.dialHost(ctx, t)
		taken := errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL)
		if !taken || try == addressTries {
			return c, err
		}
		sleep(ctx, addressPause)
	}
}

// dialHost dials a server.
func (q *peer) dialHost(ctx context.Context, t tuple) (Conn, error) {
	if t.segment != 0 {
		return q.p.cfg.Segments.Dial(ctx, t.segment, t.src, t.dst)
	}
	return q.p.cfg.Net.Dial(ctx, t.src, t.dst)
}

// refuse answers OPEN and waits for the near agent to close.
func (q *peer) refuse(pc *peerConn, kind Refusal) error {
	pc.domain.count(func(s *Traffic) { s.Refused++ })
	pc.out.finish(appendFrame(nil, frameRefused, []byte{byte(kind)}))
	pc.conn.SetDeadline(time.Now().Add(closeGrace))
	if err := pc.await(); err == nil {
		return errFrame
	}
	pc.out.wait()
	return pc.conn.Finish()
}

// refusalOf says by the error of a dial what the client is told.
func refusalOf(err error) Refusal {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return RefusedByServer
	case errors.Is(err, syscall.EHOSTUNREACH):
		return HostUnreachable
	case errors.Is(err, syscall.ENETUNREACH):
		return NetUnreachable
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return Prohibited
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return TimedOut
	}
	return Unable
}
