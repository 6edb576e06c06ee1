package stream

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"stitch/dedupe"
	"stitch/tunnel/stream/block"
)

var errDesync = errors.New("stream: the histories of the two sites differ")

var errClosed = fmt.Errorf("stream: %w", net.ErrClosed)

const (
	// resetGrace is how long a host may take to read what came before the
	// reset of the other host; then the reset overtakes it.
	resetGrace = time.Second
	// closeGrace is how long an inter-agent connection may take to end.
	closeGrace = 5 * time.Second
	// pollMin and pollMax bound the pause between two looks at what a host
	// has acknowledged; it doubles while nothing changes.
	pollMin = time.Millisecond
	pollMax = 50 * time.Millisecond
	// stallCheck is how often a host we cannot read from (no credit) is
	// checked for a reset.
	stallCheck = time.Second
	// ackEvery is the most blocks per acknowledgement.
	ackEvery = 16
	// maxMisses in a row without a good block between them, though the peer's
	// encoder trusts its history less with each (package block): something else is
	// wrong, and both sides start again.
	maxMisses = 16
	// maxMarks bounds the urgent bytes that wait to be written to a host.
	maxMarks = 16
	// wholeChunk is the size from which a decoded block is queued as it is;
	// smaller ones are copied together.
	wholeChunk = 64 << 10
)

// relay joins one local connection to one inter-agent connection. Three
// goroutines at most work for it: pump (host to peer), intake (peer to queue)
// and, only while there is something to write or to be acknowledged, drain
// (queue to host). intake never blocks on the host nor on the path back, so
// neither direction can hold up the other's credit.
type relay struct {
	tuple
	near  bool
	mode  mode
	began time.Time
	local Conn
	pc    *peerConn
	enc   *block.Encoder
	dec   *block.Decoder
	bufs  *buffers
	spawn func(func())
	// desync is called when the histories do not agree any more, broken with
	// what the peer did that ended the stream.
	desync func()
	broken func(error)
	owed   int // of intake: blocks not acknowledged

	// of pump
	sniff   sniffer
	opaque  atomic.Bool // for others: sniff has seen it
	beside  bool        // a block is being sent beside
	outcome chan error  // its outcome
	link    linkRate    // of transmit

	sent, received atomic.Uint64 // original bytes from, for the local host
	closed         chan struct{} // reset or finished
	wake           chan struct{} // pump: more credit
	more           chan struct{} // drain: more to do
	tasks          sync.WaitGroup
	pause          pause

	mu sync.Mutex
	progress
	queue    [][]byte
	queued   int
	draining bool
	over     bool // reset or finished
	clean    bool // finished
}

// progress is how far a stream has come, beside what its codec knows.
type progress struct {
	sendMax  uint64   // what the peer has granted
	grant    credit   // what we grant
	marks    []uint64 // positions of urgent bytes that drain has not reached
	written  uint64
	acked    uint64
	finSent  bool   // our host ended its direction
	peerDone bool   // the peer's host has acknowledged all its bytes
	finSeen  bool   // the peer's host ended its direction
	finTotal uint64 // after so many bytes
	fin      bool   // which are all here
	missing  bool   // a block is being sent again
	misses   int    // of intake: in a row
	done     bool   // all is acknowledged by our host
	shut     bool   // our host was told the end
	shutDone bool   // and has acknowledged it
	rst      bool   // the peer's host reset
}

func newRelay(t tuple, near bool, local Conn, pc *peerConn, m mode, sendMax uint64, bufs *buffers, spawn func(func())) *relay {
	r := newIdleRelay(t, near, local, pc, m, bufs, spawn)
	r.sendMax, r.grant = sendMax, *newCredit(time.Now())
	r.enc, r.dec = pc.codec(m, bufs.shop)
	return r
}

// newIdleRelay returns a relay that knows nothing of its stream yet.
func newIdleRelay(t tuple, near bool, local Conn, pc *peerConn, m mode, bufs *buffers, spawn func(func())) *relay {
	return &relay{
		tuple: t, near: near, mode: m, began: time.Now(), local: local, pc: pc, bufs: bufs, spawn: spawn, pause: newPause(),
		closed: make(chan struct{}), wake: make(chan struct{}, 1), more: make(chan struct{}, 1), outcome: make(chan error, 1),
	}
}

// run relays until both directions have ended, one end was reset, or the stream was
// suspended. It reports whether the end was clean.
func (r *relay) run() bool {
	defer close(r.pause.ended)
	if !r.finSent {
		r.start(r.pump)
	}
	if !r.rst {
		r.intake()
	}
	r.intakeEnded()
	r.tasks.Wait()
	r.pc.out.wait()
	if r.suspended() {
		return false
	}
	if r.clean {
		r.pc.conn.Finish()
	} else {
		r.pc.conn.Close()
	}
	r.enc.Close()
	r.dec.Close()
	return r.clean
}

func (r *relay) start(f func()) {
	r.tasks.Add(1)
	r.spawn(func() {
		defer r.tasks.Done()
		f()
	})
}

// abort resets the local connection. With tell the peer is told; without, the
// inter-agent connection is the one that failed. Only the first call counts.
func (r *relay) abort(tell bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return
	}
	r.over = true
	close(r.closed)
	r.local.Close()
	if !tell || r.rst {
		r.pc.conn.Close()
		return
	}
	now := time.Now()
	r.pc.conn.SetWriteDeadline(now.Add(resetGrace))
	r.pc.conn.SetReadDeadline(now.Add(2 * resetGrace))
	r.pc.out.finish(appendFrame(nil, frameReset, nil))
}

// settleEnd ends the stream cleanly when both hosts have acknowledged
// everything, ours also its end; mu is held. The inter-agent connection is ended
// by the far side first: the kernel keeps that end for a minute (TIME-WAIT), and
// there it takes none of the ports that the near side dials from.
func (r *relay) settleEnd() {
	if r.over || !r.done || !r.peerDone || !r.shutDone {
		return
	}
	r.over, r.clean = true, true
	close(r.closed)
	r.local.Finish()
	r.pc.conn.SetDeadline(time.Now().Add(closeGrace))
	if !r.near { // else run does, after the far side
		r.pc.out.finish(nil)
	}
}

func (r *relay) isOver() bool {
	select {
	case <-r.closed:
		return true
	default:
		return false
	}
}

func (r *relay) sendFin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finSent = true
	r.pc.out.control(appendCount(nil, frameFin, r.sent.Load()))
}

// peerLost is called when the inter-agent connection ends: the local host gets
// a reset, unless the peer's reset is on its way to it in order, or both hosts
// have acknowledged everything and the connection is not needed any more.
func (r *relay) peerLost() {
	r.mu.Lock()
	fine := r.rst || r.done && r.peerDone
	r.mu.Unlock()
	if !fine {
		r.abort(false)
	}
}

// intake reads the peer's frames. It has a buffer only while there is one.
func (r *relay) intake() {
	for !r.mayPause() {
		err := r.pc.await()
		if r.nudged(err) {
			continue
		}
		if err != nil {
			r.peerLost()
			return
		}
		buf := r.bufs.get()
		more := r.take(buf)
		r.bufs.put(buf)
		if !more {
			return
		}
	}
}

// take reads one frame, with buf for its body, and acts on it.
func (r *relay) take(buf []byte) (more bool) {
	t, body, err := r.pc.frame(buf)
	if r.nudged(err) {
		return true
	}
	if err != nil {
		r.frameFailed(err)
		return false
	}
	if r.isOver() {
		return true // let the connection end; nothing counts any more
	}
	if t == frameReset {
		r.peerReset()
		return false
	}
	if err := r.handle(t, body); err != nil {
		r.broken(err)
		r.abort(true)
		return false
	}
	if r.owed > 0 && (r.pc.r.Buffered() == 0 || r.owed >= ackEvery) && r.pc.out.ack(r.ackFrame()) {
		r.owed = 0
	}
	return true
}

// ackFrame acknowledges the blocks there are.
func (r *relay) ackFrame() []byte {
	return endFrame(r.dec.AppendAck(beginFrame(nil, frameAck)), 0)
}

// frameFailed tells bytes that are no frame from a lost connection.
func (r *relay) frameFailed(err error) {
	if errors.Is(err, errFrame) {
		r.broken(err)
		r.abort(true)
		return
	}
	r.peerLost()
}

// handle acts on one frame; an error resets the stream.
func (r *relay) handle(t frameType, body []byte) error {
	switch t {
	case frameData, frameResent:
		r.owed++
		return r.decode(body)
	case frameAck:
		return r.enc.Ack(body)
	case frameNack:
		return r.resend(body)
	case frameCredit, frameFin, frameDone, frameUrgent:
		return r.count(t, body)
	case frameContext:
		if body[0] > contextAllowed {
			break
		}
		if r.enc.Bar(body[0] == contextBarred); r.enc.Barred() { // pump may wait with one
			signal(r.wake)
			r.local.SetReadDeadline(time.Unix(1, 0))
		}
		return nil
	}
	return fmt.Errorf("%w: type %d in a stream", errFrame, t)
}

// resend answers a NACK.
func (r *relay) resend(nack []byte) error {
	err := r.enc.ResendBehind(nack, func(body []byte) {
		r.pc.out.control(appendFrame(nil, frameResent, body))
	})
	if err != nil {
		return err
	}
	frame, err := r.enc.Resend(beginFrame(nil, frameResent), nack)
	if err != nil {
		return err
	}
	r.pc.out.control(endFrame(frame, 0))
	return nil
}

// decode takes a block and queues the bytes it yields for the host.
func (r *relay) decode(body []byte) error {
	buf := r.bufs.get()
	good := r.dec.Good()
	out, err := r.dec.Decode(buf[:0], body)
	if r.dec.Good() > good { // also when it waited behind one that was sent again
		r.misses = 0
	}
	switch {
	case errors.Is(err, block.ErrLate):
		r.again()
		err = nil
	case errors.Is(err, block.ErrMiss):
		err = r.missed()
	case errors.Is(err, dedupe.ErrAhead):
		r.desync()
	}
	if err == nil {
		err = r.deliver(out)
	}
	if err != nil || len(out) < wholeChunk || cap(out) != cap(buf) {
		r.bufs.put(buf)
	}
	return err
}

// missed asks for the block that could not be decoded.
func (r *relay) missed() error {
	if r.misses++; r.misses >= maxMisses {
		r.desync()
		return errDesync
	}
	r.again()
	return nil
}

// again sends the nack for the block that could not be decoded.
func (r *relay) again() {
	nack := r.dec.AppendNack(beginFrame(nil, frameNack))
	r.pc.out.control(endFrame(nack, 0))
}

// deliver queues decoded bytes. It keeps data if it is at least wholeChunk
// long and copies it if not.
func (r *relay) deliver(data []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.missing = r.dec.Missing()
	total := r.received.Add(uint64(len(data)))
	if total > r.grant.limit || r.finSeen && total > r.finTotal {
		return fmt.Errorf("%w: %d bytes, %d granted", errFrame, total, r.grant.limit)
	}
	r.enqueue(data)
	return r.checkFin()
}

// enqueue appends to the queue; mu is held.
func (r *relay) enqueue(data []byte) {
	if len(data) == 0 {
		return
	}
	r.queued += len(data)
	last := len(r.queue) - 1
	switch {
	case len(data) >= wholeChunk:
		r.queue = append(r.queue, data)
	case last >= 0 && cap(r.queue[last])-len(r.queue[last]) >= len(data):
		r.queue[last] = append(r.queue[last], data...)
	default:
		r.queue = append(r.queue, append(make([]byte, 0, max(len(data), 4096)), data...))
	}
	r.kick()
}

// checkFin notices that everything before the peer's FIN is here; mu is held.
func (r *relay) checkFin() error {
	have := r.received.Load()
	switch {
	case !r.finSeen || r.fin:
	case have == r.finTotal:
		r.fin = true
		r.kick()
	case !r.missing || have > r.finTotal:
		return fmt.Errorf("%w: direction ends after %d bytes, %d are here", errFrame, r.finTotal, have)
	}
	return nil
}

// count takes a CREDIT, FIN, DONE or URGENT frame.
func (r *relay) count(t frameType, body []byte) error {
	n, err := parseCount(body)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case t == frameCredit:
		r.sendMax = max(r.sendMax, n)
		signal(r.wake)
	case t == frameUrgent && !r.finSeen && n >= r.received.Load() && n <= r.grant.limit:
		if len(r.marks) == maxMarks { // as in TCP itself, the later one counts
			r.marks = r.marks[1:]
		}
		r.marks = append(r.marks, n)
	case t == frameFin && !r.finSeen:
		r.finSeen, r.finTotal = true, n
		return r.checkFin()
	case t == frameDone && r.finSent && n == r.sent.Load():
		r.peerDone = true
		r.settleEnd()
		r.kick() // our host's end may have waited for it
	default:
		return fmt.Errorf("%w: type %d with total %d", errFrame, t, n)
	}
	return nil
}

// peerReset lets what came before the reset reach the host, for a while.
func (r *relay) peerReset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return
	}
	r.rst = true
	r.local.SetWriteDeadline(time.Now().Add(resetGrace))
	r.kick()
}

// kick makes drain look; mu is held.
func (r *relay) kick() {
	if !r.draining {
		r.draining = true
		r.start(r.drain)
		return
	}
	signal(r.more)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
