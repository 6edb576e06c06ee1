package stream

import (
	"errors"
	"io"
	"sync"
	"syscall"
	"time"
)

const (
	// warnEvery is how often, at most, the log says that the gate closed, or that
	// something has run out.
	warnEvery = time.Minute
	// lackPause is for how long no stream is begun after the kernel had no more of
	// what each of them needs, lackLife how long that is shown.
	lackPause = time.Second
	lackLife  = time.Minute
)

// errNoPorts is wrapped by the error about a connection to a peer for which there
// was no port left.
var errNoPorts = errors.New("no port left")

// lackOf says what the kernel had no more of when it gave err, and what to do;
// empty if that was not the reason.
func lackOf(err error) string {
	switch {
	case errors.Is(err, syscall.EMFILE):
		return "descriptors of the stream process have run out: raise its limit (systemd: LimitNOFILE=)"
	case errors.Is(err, syscall.ENFILE):
		return "descriptors of this host have run out: raise fs.file-max"
	case errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.ENOBUFS):
		return "the kernel has no memory for more connections: see net.ipv4.tcp_mem and the memory of this host"
	case errors.Is(err, errNoPorts):
		return "ports for connections to the peer's agent have run out: widen net.ipv4.ip_local_port_range"
	}
	return ""
}

// lacks takes note of an error of the kernel. Where it means that something has run
// out that every stream needs, none is begun for a moment, and warm connections give
// way to what has begun; ports do not end here what comes from peers.
func (p *Proxy) lacks(err error) {
	what, all := lackOf(err), !errors.Is(err, errNoPorts)
	tell := p.gate.lacks(what, all, time.Now())
	switch {
	case what == "":
		p.log.Debug("connection", "err", err)
		return
	case tell:
		p.log.Warn(what, "err", err)
	}
	if all {
		for _, q := range p.peers {
			q.cool()
		}
	}
}

// cool closes the warm connections.
func (q *peer) cool() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, d := range q.domains {
		for _, pc := range d.ready {
			pc.conn.Close()
		}
		signal(d.wake)
	}
}

// enter asks the gate for one more stream, and says so when it is closed; 0: it is
// not.
func (p *Proxy) enter() Reason {
	why, tell := p.gate.enter(time.Now())
	if tell {
		p.log.Warn("new connections pass without optimisation: "+why.text(), "streams", p.cfg.MaxStreams)
	}
	return why
}

// enterNear is enter for a stream that a client here begins: once its handshake is
// complete the connection must be accepted, so what that takes is set aside before.
func (p *Proxy) enterNear(o *opened) Reason {
	if why := p.enter(); why != 0 {
		return why
	}
	if err := p.spares.take(o, p.cfg.Net); err != nil {
		p.gate.leave()
		p.lacks(err)
		return OutOfResources
	}
	return 0
}

// acceptFailed takes note of the error of a transparent listener, and reports whether
// it has made room for the connection.
func (p *Proxy) acceptFailed(err error) (room bool) {
	p.lacks(err)
	return (errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)) && p.spares.lend()
}

// spares are descriptors set aside for connections that are to be accepted. Which is
// whose does not matter. Safe for concurrent use.
type spares struct {
	mu   sync.Mutex
	open []io.Closer
	lent int // closed before the connection they are for was accepted
}

// take sets one aside for o.
func (s *spares) take(o *opened, n Net) error {
	c, err := n.Spare()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open, o.spare = append(s.open, c), true
	return nil
}

// give returns that of o, if it has one.
func (s *spares) give(o *opened) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !o.spare:
	case s.lent > 0:
		s.lent--
	default:
		s.drop()
	}
	o.spare = false
}

// lend closes one for a connection that waits; false: there is none.
func (s *spares) lend() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open) == 0 {
		return false
	}
	s.lent++
	s.drop()
	return true
}

// drop closes one; mu is held.
func (s *spares) drop() {
	last := len(s.open) - 1
	s.open[last].Close()
	s.open = s.open[:last]
}

// text is the reason in words.
func (r Reason) text() string { return Reasons()[r-1].Why }

// gate admits up to max streams, and when it was full only when a 32nd of them
// has left; none while memory is short or something has just run out. Safe for
// concurrent use.
type gate struct {
	max int

	mu       sync.Mutex
	n        int
	full     bool
	memory   MemoryStats
	fresh    int       // have lately begun, and may not have taken their memory yet
	noRoom   uint64    // how many were not admitted because of memory,
	noRoomAt time.Time // the last one
	turned   uint64    // how many were not admitted
	told     time.Time // when enter's tell was last true

	lack   string // what ran out last,
	lackAt time.Time
	pause  time.Time // until then nobody enters
	lacked uint64
	warned time.Time // when lacks' tell was last true
}

// enter admits one more, or says why not; tell: someone should know, but not more
// often than every warnEvery.
func (g *gate) enter(now time.Time) (why Reason, tell bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.full = g.n >= g.max || g.full && g.n >= g.max-g.max/32
	switch {
	case g.full:
		why = TooManyStreams
	case g.memory.Short, g.memory.Total > 0 && g.fresh >= g.memory.room:
		why = MemoryShort
		g.noRoom, g.noRoomAt = g.noRoom+1, now
	case now.Before(g.pause):
		why = OutOfResources
	default:
		g.n++
		g.fresh++
		return 0, false
	}
	g.turned++
	return why, due(&g.told, now)
}

// due reports whether warnEvery has passed since last, and sets it if so.
func due(last *time.Time, now time.Time) bool {
	if !last.IsZero() && now.Sub(*last) < warnEvery {
		return false
	}
	*last = now
	return true
}

// regain admits a stream that began before this process: what has begun is not ended.
func (g *gate) regain() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n++
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n--
}

// lacks notes what has run out, empty: nothing; everyone: nobody is to enter for a
// moment. tell is as in enter.
func (g *gate) lacks(what string, everyone bool, now time.Time) (tell bool) {
	if what == "" {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if everyone {
		g.pause = now.Add(lackPause)
	}
	g.lack, g.lackAt = what, now
	g.lacked++
	return due(&g.warned, now)
}

// paused is for how long nobody enters because something has run out.
func (g *gate) paused(now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.pause.Sub(now)
}

// remember takes what is known about memory now, and reports whether Short has
// changed.
func (g *gate) remember(m MemoryStats) (changed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	changed = g.memory.Short != m.Short
	g.memory = m
	g.fresh /= 2
	return changed
}

// stats writes what is in, and what was turned away.
func (g *gate) stats(s *Stats, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s.Admitted, s.Full, s.Memory, s.Lacked = g.n, g.turned, g.memory, g.lacked
	s.Memory.Turned, s.Memory.Lately = g.noRoom, g.noRoom > 0 && now.Sub(g.noRoomAt) < lackLife
	if g.lack != "" && now.Sub(g.lackAt) < lackLife {
		s.Lack = g.lack
	}
}
