package stream

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"stitch/dedupe"
)

const (
	// helloTimeout bounds a handshake between two agents.
	helloTimeout = 5 * time.Second
	// resyncTimeout bounds the bringing in step of two histories.
	resyncTimeout = 30 * time.Second
	// seedTimeout is how long the other side of a seed may take for one step:
	// reading and planting a window of pieces from a slow disk.
	seedTimeout = time.Minute
	// openTimeout is how long the far agent may take to say that it dials.
	openTimeout = 3 * time.Second
	// gatherLeast is from how many missing bytes of a frame on the kernel is told
	// how many are waited for: that takes a system call or two, and saves a wakeup for
	// every few packets.
	gatherLeast = 32 << 10
	// dialTimeout is how long the far agent tries to reach a server; the
	// client's next SYN makes it try again.
	dialTimeout = 20 * time.Second
)

// errRestarted is returned by a handshake made under epochs that are past.
var errRestarted = errors.New("stream: the peer has restarted: the histories are brought in step again")

// readSize is what is read ahead from a peer, at most.
const readSize = 4096

// peerConn is an inter-agent connection whose handshake is done. It carries
// one stream.
type peerConn struct {
	conn    Conn
	r       *bufio.Reader
	whole   whole         // reads r
	front   *bytes.Reader // of r, in front of what comes from conn
	out     *frameWriter
	read    atomic.Int64
	id      uint64
	domain  *domain
	gen     int // of the domain's epochs, that it was made under
	epochs  epochs
	history *dedupe.History
	terms   terms
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

// whole reads for a reader that has no use for less than it asks for, as
// io.ReadFull: when much is missing nobody is woken before it is there.
type whole struct {
	r     *bufio.Reader
	c     Conn
	asked bool // Gather was
}

// Read implements io.Reader.
func (w *whole) Read(b []byte) (int, error) {
	if w.r.Buffered() == 0 && (len(b) >= gatherLeast || w.asked) {
		w.asked = true
		if err := w.c.Gather(len(b)); err != nil {
			return 0, err
		}
	}
	n, err := w.r.Read(b)
	if err == nil && w.asked && n == len(b) {
		w.asked = false
		err = w.c.Gather(1)
	}
	return n, err
}

func newPeerConn(c Conn, spawn func(func())) *peerConn {
	pc := &peerConn{conn: c, out: newFrameWriter(c, spawn), front: bytes.NewReader(nil)}
	pc.r = bufio.NewReaderSize(countReader{c, &pc.read}, readSize)
	pc.whole = whole{r: pc.r, c: c}
	return pc
}

// await blocks until there is something to read; it holds no buffer.
func (pc *peerConn) await() error {
	_, err := pc.r.Peek(1)
	return err
}

// frame is readFrame of what the peer sends. An error of a deadline leaves what there
// is of the frame to be read again.
func (pc *peerConn) frame(buf []byte) (frameType, []byte, error) {
	head, err := pc.r.Peek(frameHeader)
	if err != nil {
		return 0, nil, err
	}
	header := [frameHeader]byte(head)
	t, n, err := parseHeader(header)
	if err != nil {
		return 0, nil, err
	}
	pc.r.Discard(frameHeader)
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	body := buf[:n]
	done, err := io.ReadFull(&pc.whole, body)
	if err != nil {
		if pc.whole.asked {
			_ = pc.conn.Gather(1) // a connection that has ended says so when it is read
		}
		pc.unread(slices.Concat(header[:], body[:done]))
		return 0, nil, err
	}
	if pc.front.Size() > 0 && pc.front.Len() == 0 {
		pc.front.Reset(nil) // a quiet stream keeps no memory for it
	}
	return t, body, nil
}

// unread puts bytes in front of those that the peer sends.
func (pc *peerConn) unread(b []byte) {
	pc.front = bytes.NewReader(slices.Concat(b, pc.buffered()))
	pc.r = bufio.NewReaderSize(io.MultiReader(pc.front, countReader{pc.conn, &pc.read}), readSize)
	pc.whole = whole{r: pc.r, c: pc.conn}
}

// buffered takes what has been read from the peer and not used.
func (pc *peerConn) buffered() []byte {
	b := make([]byte, pc.r.Buffered()+pc.front.Len())
	n, _ := io.ReadFull(pc.r, b) // there is so much
	return b[:n]
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

// expect reads one frame of one of the wanted types within d. Nothing is read
// of another one.
func (pc *peerConn) expect(d time.Duration, want ...frameType) (frameType, []byte, error) {
	pc.conn.SetReadDeadline(time.Now().Add(d))
	t, n, err := readHeader(pc.r)
	if err != nil {
		return 0, nil, err
	}
	if !slices.Contains(want, t) {
		return 0, nil, fmt.Errorf("%w: type %d, expected %v", errFrame, t, want)
	}
	body, err := readBody(pc.r, n, nil)
	if err != nil {
		return 0, nil, err
	}
	pc.conn.SetReadDeadline(time.Time{})
	return t, body, nil
}

// send writes one frame.
func (pc *peerConn) send(t frameType, body []byte) error {
	return pc.out.data(appendFrame(nil, t, body))
}

// dialHello is the handshake of the side that connected.
func dialHello(ctx context.Context, pc *peerConn, d *domain, id uint64) error {
	own, err := d.hello(id)
	if err != nil {
		return err
	}
	pc.id = id
	mine, token := own.append(nil), &d.q.link.Token
	if err := pc.send(frameHello, mine); err != nil {
		return err
	}
	t, body, err := pc.expect(helloTimeout, frameWelcome, frameReject)
	if err != nil {
		return err
	}
	if t == frameReject {
		return parseReject(body, token, mine)
	}
	theirs, mac := body[:len(body)-macLen], body[len(body)-macLen:]
	if !validMAC(token, listenerLabel, mine, theirs, mac) {
		return errAuth
	}
	peer, err := parseHello(theirs)
	if err != nil {
		return err
	}
	terms, err := negotiate(own, peer)
	if err != nil {
		return err
	}
	if d.behind(own, peer) {
		return errRestarted
	}
	auth := helloMAC(token, diallerLabel, mine, theirs)
	if err := pc.send(frameAuth, auth[:]); err != nil {
		return err
	}
	if d.leads() && own.Tied != peer.Epoch {
		if err := d.resync(ctx, own, peer, pc.askResync); err != nil {
			return err
		}
	}
	if _, _, err := pc.expect(helloTimeout+resyncTimeout, frameReady); err != nil {
		return err
	}
	if !d.adopt(pc, own, peer, terms) {
		return errRestarted
	}
	return nil
}

// askResync sends our summary and returns the peer's.
func (pc *peerConn) askResync(summary []byte) ([]byte, error) {
	if err := pc.send(frameResync, summary); err != nil {
		return nil, err
	}
	_, theirs, err := pc.expect(resyncTimeout, frameResync)
	return theirs, err
}

// greeter finds the domain a hello is for.
type greeter interface {
	// welcome returns the domain, or an error that wraps errTerms.
	welcome(hello) (*domain, error)
}

// acceptHello is the handshake of the side that listens. Nothing changes here
// before the peer has shown that it knows the token.
func acceptHello(ctx context.Context, pc *peerConn, g greeter, token *[32]byte) error {
	_, theirs, err := pc.expect(helloTimeout, frameHello)
	if err != nil {
		return err
	}
	peer, err := parseHello(theirs)
	if err != nil {
		return err
	}
	pc.id = peer.ConnID
	d, err := g.welcome(peer)
	if err != nil {
		return pc.reject(err, token, theirs)
	}
	own, err := d.hello(peer.ConnID)
	if err != nil {
		return err
	}
	terms, err := negotiate(own, peer)
	if err != nil {
		return pc.reject(err, token, theirs)
	}
	mine := own.append(nil)
	mac := helloMAC(token, listenerLabel, theirs, mine)
	if err := pc.send(frameWelcome, append(mine[:len(mine):len(mine)], mac[:]...)); err != nil {
		return err
	}
	_, auth, err := pc.expect(helloTimeout, frameAuth)
	if err != nil {
		return err
	}
	if !validMAC(token, diallerLabel, theirs, mine, auth) {
		return errAuth
	}
	if d.behind(own, peer) {
		return errRestarted
	}
	if err := pc.keepStep(ctx, d, own, peer); err != nil {
		return err
	}
	if !d.adopt(pc, own, peer, terms) {
		return errRestarted
	}
	return pc.send(frameReady, nil)
}

// reject tells the peer why it has no terms with us, and returns that.
func (pc *peerConn) reject(why error, token *[32]byte, dialler []byte) error {
	pc.out.finish(appendFrame(nil, frameReject, appendReject(nil, token, dialler, why)))
	pc.conn.SetDeadline(time.Now().Add(closeGrace))
	_ = pc.await() // the peer closes once it has read it
	pc.out.wait()
	pc.conn.Finish()
	return why
}

// keepStep makes sure, on the listening side, that the histories are in step.
func (pc *peerConn) keepStep(ctx context.Context, d *domain, own, peer hello) error {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout+resyncTimeout)
	defer cancel()
	switch {
	case d.leads():
		return d.awaitTie(ctx, own, peer)
	case peer.Tied == own.Epoch:
		return nil
	}
	_, theirs, err := pc.expect(resyncTimeout, frameResync)
	if err != nil {
		return err
	}
	answer := func(summary []byte) ([]byte, error) { return theirs, pc.send(frameResync, summary) }
	return d.resync(ctx, own, peer, answer)
}

// requestOpen asks the far agent to connect and waits for its answer. An error
// before the far agent has said that it dials means that another connection
// may be tried. macs are those of the two hosts if they are of a segment.
func requestOpen(pc *peerConn, t tuple, macs hostMACs, m mode) (window uint32, kind Refusal, dialling bool, err error) {
	if t.segment != 0 && pc.terms.Features&featureSegment == 0 {
		return 0, Unable, false, nil
	}
	o := openRequest{Window: startWindow, Mode: m, Src: t.src, Dst: t.dst, Segment: t.segment, SrcMAC: macs.src, DstMAC: macs.dst}
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
