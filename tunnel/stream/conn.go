package stream

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"stitch/dedupe"
)

const (
	// helloTimeout bounds a handshake between two agents.
	helloTimeout = 5 * time.Second
	// openTimeout is how long the far agent may take to say that it dials.
	openTimeout = 3 * time.Second
	// dialTimeout is how long the far agent tries to reach a server; the
	// client's next SYN makes it try again.
	dialTimeout = 20 * time.Second
)

// errRestarted is returned by a handshake that found the peer's history gone.
var errRestarted = errors.New("stream: the peer has restarted: the history starts again")

// peerConn is an inter-agent connection whose handshake is done. It carries
// one stream.
type peerConn struct {
	conn    Conn
	r       *bufio.Reader
	out     *frameWriter
	read    atomic.Int64
	id      uint64
	epoch   uint64 // ours, that it was made under
	history *dedupe.History
	watched chan error // the result of watch
}

// countReader counts what comes from the peer.
type countReader struct {
	c Conn
	n *atomic.Int64
}

func (c countReader) Read(b []byte) (int, error) {
	n, err := c.c.Read(b)
	c.n.Add(int64(n))
	return n, err
}

func newPeerConn(c Conn, spawn func(func())) *peerConn {
	pc := &peerConn{conn: c, out: newFrameWriter(c, spawn)}
	pc.r = bufio.NewReaderSize(countReader{c, &pc.read}, 4096)
	return pc
}

// await blocks until there is something to read; it holds no buffer.
func (pc *peerConn) await() error {
	_, err := pc.r.Peek(1)
	return err
}

// watch reads ahead while the connection is idle, to see it end. wake is
// called when it does, or when something arrives that should not.
func (pc *peerConn) watch(spawn func(func()), wake func()) {
	pc.watched = make(chan error, 1)
	spawn(func() {
		err := pc.await()
		pc.watched <- err
		wake()
	})
}

// unwatch ends watch and reports whether the connection is still good.
func (pc *peerConn) unwatch() bool {
	pc.conn.SetReadDeadline(time.Unix(1, 0))
	err := <-pc.watched
	pc.conn.SetReadDeadline(time.Time{})
	timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && timeout.Timeout()
}

// expect reads one frame of one of the wanted types within d.
func (pc *peerConn) expect(d time.Duration, want ...frameType) (frameType, []byte, error) {
	pc.conn.SetReadDeadline(time.Now().Add(d))
	t, body, err := readFrame(pc.r, nil)
	if err != nil {
		return 0, nil, err
	}
	pc.conn.SetReadDeadline(time.Time{})
	for _, w := range want {
		if t == w {
			return t, body, nil
		}
	}
	return 0, nil, fmt.Errorf("%w: type %d, expected %v", errFrame, t, want)
}

// session is the state a handshake needs of its peer.
type session interface {
	// hello draws the hello for a new connection.
	hello(id uint64) (hello, error)
	// judge reports whether a connection on which the peer has shown h can
	// become ready; if not, our history has just been started again.
	judge(h hello) bool
	// adopt makes the connection ready under our epoch, or reports false.
	adopt(pc *peerConn, own, peer hello) bool
}

// dialHello is the handshake of the side that connected.
func dialHello(pc *peerConn, s session, token *[32]byte, id uint64) error {
	own, err := s.hello(id)
	if err != nil {
		return err
	}
	mine := own.append(nil)
	if err := pc.out.data(appendFrame(nil, frameHello, mine)); err != nil {
		return err
	}
	_, body, err := pc.expect(helloTimeout, frameWelcome)
	if err != nil {
		return err
	}
	theirs, mac := body[:helloLen], body[helloLen:]
	if !validMAC(token, listenerLabel, mine, theirs, mac) {
		return errAuth
	}
	peer, err := parseHello(theirs)
	if err != nil {
		return err
	}
	if !s.judge(peer) {
		return errRestarted
	}
	auth := helloMAC(token, diallerLabel, mine, theirs)
	if err := pc.out.data(appendFrame(nil, frameAuth, auth[:])); err != nil {
		return err
	}
	if _, _, err := pc.expect(helloTimeout, frameReady); err != nil {
		return err
	}
	pc.id = id
	if !s.adopt(pc, own, peer) {
		return errRestarted
	}
	return nil
}

// acceptHello is the handshake of the side that listens. Nothing changes here
// before the peer has shown that it knows the token.
func acceptHello(pc *peerConn, s session, token *[32]byte) error {
	_, theirs, err := pc.expect(helloTimeout, frameHello)
	if err != nil {
		return err
	}
	peer, err := parseHello(theirs)
	if err != nil {
		return err
	}
	own, err := s.hello(peer.ConnID)
	if err != nil {
		return err
	}
	mine := own.append(nil)
	mac := helloMAC(token, listenerLabel, theirs, mine)
	if err := pc.out.data(appendFrame(nil, frameWelcome, append(mine, mac[:]...))); err != nil {
		return err
	}
	_, auth, err := pc.expect(helloTimeout, frameAuth)
	if err != nil {
		return err
	}
	if !validMAC(token, diallerLabel, theirs, mine[:helloLen], auth) {
		return errAuth
	}
	pc.id = peer.ConnID
	if !s.judge(peer) || !s.adopt(pc, own, peer) {
		return errRestarted
	}
	return pc.out.data(appendFrame(nil, frameReady, nil))
}

// requestOpen asks the far agent to connect and waits for its answer. An error
// before the far agent has said that it dials means that another connection
// may be tried.
func requestOpen(pc *peerConn, t tuple) (window uint32, kind Refusal, dialling bool, err error) {
	o := openRequest{Window: minWindow, Src: t.src, Dst: t.dst}
	if err := pc.out.data(appendFrame(nil, frameOpen, o.append(nil))); err != nil {
		return 0, 0, false, err
	}
	typ, body, err := pc.expect(openTimeout, frameDialing, frameRefused)
	if err != nil {
		return 0, 0, false, err
	}
	if typ == frameRefused {
		return 0, parseRefusal(body), true, nil
	}
	typ, body, err = pc.expect(dialTimeout+openTimeout, frameOpened, frameRefused)
	if err != nil {
		return 0, 0, true, err
	}
	if typ == frameRefused {
		return 0, parseRefusal(body), true, nil
	}
	return binary.BigEndian.Uint32(body), 0, true, nil
}

// dialWatched runs dial, and cancels it when the near agent goes away.
func (pc *peerConn) dialWatched(ctx context.Context, spawn func(func()), dial func(context.Context) (Conn, error)) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	pc.watch(spawn, cancel)
	c, err := dial(ctx)
	if pc.unwatch() {
		return c, err
	}
	if err == nil {
		c.Close()
	}
	return nil, io.ErrUnexpectedEOF
}
