package wan

import (
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// A busy lane works in rounds at least a tick apart, because sleeping and
	// waking costs more than forwarding ten packets: a tenth of the shortest
	// delay within these bounds. An idle lane wakes at once.
	minTick = 100 * time.Microsecond
	maxTick = time.Millisecond
	// maxFrames bounds the frames under way from one port (256 MiB). When it
	// is reached the newest is dropped and counted in HostDrops.
	maxFrames = 1 << 17
	// maxRounds bounds the reads of one round, so that releasing never waits
	// for a sender that is faster than the lane.
	maxRounds = 8
)

// lane carries everything that enters by one port. One goroutine on a thread
// of its own runs it and owns all of it but what mu guards.
type lane struct {
	in    int
	r     router
	sock  *socket
	clock func() time.Duration
	pool  pool
	due   schedule
	rx    [batchSize]uint32
	bufs  [batchSize][]byte
	lens  [batchSize]int
	boxes []outbox // by port

	mu    sync.Mutex
	paths []*Model // by out port; nil: no way from here to there
	sends []sends  // by out port
	port  PortCounters
}

// sends counts what became of accepted packets.
type sends struct{ sent, waiting, host uint64 }

// newLane reserves the first receive buffers; fds are the sockets of all ports.
func newLane(in int, r router, sock *socket, clock func() time.Duration, fds []int) *lane {
	l := &lane{in: in, r: r, sock: sock, clock: clock, pool: pool{limit: maxFrames},
		boxes: make([]outbox, len(fds)), paths: make([]*Model, len(fds)), sends: make([]sends, len(fds))}
	for i, fd := range fds {
		l.boxes[i].fd = fd
	}
	for i := range l.rx {
		l.rx[i], _ = l.pool.get()
		l.bufs[i] = l.pool.room(l.rx[i])
	}
	return l
}

// run works until stop (an event descriptor) is readable.
func (l *lane) run(stop int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // only precision
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -5)     // may be refused
	defer unix.Setpriority(unix.PRIO_PROCESS, 0, 0)    //nolint: the thread goes back
	fds := []unix.PollFd{{Fd: int32(l.sock.fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
	last := l.clock()
	for {
		l.wait(fds)
		if fds[1].Revents != 0 {
			return
		}
		now, tick, ahead := l.clock(), l.tick(), time.Duration(0)
		if early := last + tick - now; early > 0 {
			ts := unix.NsecToTimespec(int64(early))
			_ = unix.Nanosleep(&ts, nil)
			now, ahead = l.clock(), tick
		}
		last = now
		l.round(now, ahead)
	}
}

// tick is the time between rounds of a busy lane.
func (l *lane) tick() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	shortest := 10 * maxTick
	for _, m := range l.paths {
		if m != nil {
			shortest = min(shortest, m.p.Delay)
		}
	}
	return max(shortest/10, minTick)
}

// wait sleeps until a frame is there, one is due, or it is time to stop.
func (l *lane) wait(fds []unix.PollFd) {
	var timeout *unix.Timespec
	if at, ok := l.due.next(); ok {
		ts := unix.NsecToTimespec(max(0, int64(at-l.clock())))
		timeout = &ts
	}
	_, _ = unix.Ppoll(fds, timeout, nil)
}

// round reads what is there and sends what is due until ahead of now. In a
// busy lane packets are read up to a tick late; sending those of the next tick
// early makes the mean delay right.
func (l *lane) round(now, ahead time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for range maxRounds {
		n, _ := l.sock.recv(l.bufs[:], l.lens[:]) // an error is an interface that is down
		for i := range n {
			l.receive(i, now)
		}
		if n < batchSize {
			break
		}
	}
	for at, ok := l.due.next(); ok && at <= now+ahead; at, ok = l.due.next() {
		l.release(l.due.pop())
	}
	for i := range l.boxes {
		l.boxes[i].flush(l.sent)
	}
}

// receive decides about the i-th frame just read.
func (l *lane) receive(i int, now time.Duration) {
	if l.lens[i] < 0 {
		l.port.Oversize++
		return
	}
	act, out, frame, size := l.r.route(l.in, l.bufs[i][:l.lens[i]])
	if act == forward && l.paths[out] == nil {
		act = stray
	}
	switch act {
	case stray:
		l.port.Strays++
	case answer:
		l.hold(i, now, out, frame)
	case forward:
		v := l.paths[out].Enqueue(now, size)
		if v.Copies == 2 {
			l.duplicate(v.At, out, frame)
		}
		if v.Copies > 0 {
			l.hold(i, v.At, out, frame)
		}
	}
}

// hold schedules the i-th frame just read and puts a fresh buffer in its place.
func (l *lane) hold(i int, at time.Duration, out int, frame []byte) {
	fresh, ok := l.pool.get()
	if !ok {
		l.sends[out].host++
		return
	}
	slot := l.rx[i]
	l.pool.lens[slot] = uint16(len(frame))
	l.due.push(at, slot, uint32(out))
	l.sends[out].waiting++
	l.rx[i], l.bufs[i] = fresh, l.pool.room(fresh)
}

// duplicate schedules a copy of frame.
func (l *lane) duplicate(at time.Duration, out int, frame []byte) {
	slot, ok := l.pool.get()
	if !ok {
		l.sends[out].host++
		return
	}
	l.pool.lens[slot] = uint16(copy(l.pool.room(slot), frame))
	l.due.push(at, slot, uint32(out))
	l.sends[out].waiting++
}

// release puts one due frame into its port's outbox.
func (l *lane) release(it item) {
	box := &l.boxes[it.path]
	if box.n == batchSize {
		box.flush(l.sent)
	}
	box.add(l.pool.frame(it.slot), it.slot, it.path)
}

// sent takes the buffer of a frame back.
func (l *lane) sent(slot, path uint32, ok bool) {
	l.pool.put(slot)
	l.sends[path].waiting--
	if ok {
		l.sends[path].sent++
	} else {
		l.sends[path].host++
	}
}

// chunkFrames is how many frame buffers the pool allocates at a time.
const chunkFrames = 1024

// pool hands out numbered frame buffers. It grows by chunks and never
// shrinks, so a running emulator makes no garbage. Not safe for concurrent use.
type pool struct {
	chunks [][]byte
	lens   []uint16
	free   []uint32
	limit  int // most buffers
}

// get returns a free buffer, or false when limit buffers are in use.
func (p *pool) get() (uint32, bool) {
	if len(p.free) == 0 && !p.grow() {
		return 0, false
	}
	slot := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	return slot, true
}

func (p *pool) grow() bool {
	base := len(p.lens)
	if base+chunkFrames > p.limit {
		return false
	}
	p.chunks = append(p.chunks, make([]byte, chunkFrames*frameSize))
	p.lens = append(p.lens, make([]uint16, chunkFrames)...)
	for i := range chunkFrames {
		p.free = append(p.free, uint32(base+chunkFrames-1-i))
	}
	return true
}

func (p *pool) put(slot uint32) { p.free = append(p.free, slot) }

// room is the whole buffer of slot, frame the part in use.
func (p *pool) room(slot uint32) []byte {
	at := int(slot%chunkFrames) * frameSize
	return p.chunks[slot/chunkFrames][at : at+frameSize : at+frameSize]
}

func (p *pool) frame(slot uint32) []byte { return p.room(slot)[:p.lens[slot]] }
