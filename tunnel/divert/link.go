package divert

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/netdev"
	"stitch/tunnel/netdev/super"
)

// Socket is the name of the socket in the run directory.
const Socket = "segments.sock"

// Link is the link process' side. Its methods are safe for concurrent use.
type Link struct {
	path  string
	log   *slog.Logger
	adopt func(name string, fd int) (netdev.Device, error)
	tasks sync.WaitGroup
	done  chan struct{} // closed when Run ends
	count counts

	segments map[uint16]*Segment // of Add; not changed once Run has begun

	mu    sync.Mutex
	conn  *net.UnixConn // to the stream process; nil: none
	moves moves
}

type counts struct{ asked, crowded, diverted, stray, lost atomic.Uint64 }

// Stats are counters since the start.
type Stats struct {
	// Asked SYNs were given to the stream process, Crowded ones passed as frames
	// because it had no room for them.
	Asked   uint64 `json:"asked"`
	Crowded uint64 `json:"crowded"`
	// Frames of split connections were taken from the LAN, Stray ones came from
	// peers and were answered by a reset, Lost ones the kernel sent for no connection.
	Frames uint64 `json:"frames"`
	Stray  uint64 `json:"stray"`
	Lost   uint64 `json:"lost"`
	// Flows are the connections split now; Connected: the stream process is there.
	Flows     int  `json:"flows"`
	Connected bool `json:"connected"`
	// Moved connections were reset since one of their hosts moved. LastMoved is the
	// latest within the last ten minutes; nil: none.
	Moved     uint64 `json:"moved"`
	LastMoved *Flow  `json:"last_moved,omitempty"`
}

// Alarms are sentences about what needs a person; none when all is well.
func (s *Stats) Alarms() []string {
	if f := s.LastMoved; f != nil {
		return []string{fmt.Sprintf("segment %d: a host of the connection from %v to %v has moved, so it was reset at both ends (%d so far): make a host that may move a [[workload]] at every site", f.Segment, f.Local, f.Remote, s.Moved)}
	}
	return nil
}

// movedLife is how long a connection that was reset because of a move is shown.
const movedLife = 10 * time.Minute

// moves remembers such connections.
type moves struct {
	n    uint64
	last Flow
	at   time.Time
}

// note takes one.
func (m *moves) note(f Flow, now time.Time) { m.n, m.last, m.at = m.n+1, f, now }

// show writes them into s.
func (m *moves) show(s *Stats, now time.Time) {
	s.Moved = m.n
	if m.n > 0 && now.Sub(m.at) < movedLife {
		f := m.last
		s.LastMoved = &f
	}
}

// NewLink returns a Link that will listen at path. Log may be nil.
func NewLink(path string, devices netdev.Linux, log *slog.Logger) *Link {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Link{path: path, log: log, adopt: devices.Adopt, done: make(chan struct{}), segments: map[uint16]*Segment{}}
}

// Add makes a segment whose connections to split are those that chosen approves
// of; mtu is that of its LAN. To be called before Run, and Use before that.
func (l *Link) Add(id uint16, mtu int, chosen Chooser) *Segment {
	s := &Segment{id: id, mtu: mtu, chosen: chosen, link: l, log: l.log.With("segment", id), flows: map[key]*entry{}}
	l.segments[id] = s
	return s
}

// Run serves the stream process, one at a time, until ctx is done.
func (l *Link) Run(ctx context.Context) error {
	if err := os.Remove(l.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("divert: %w", err)
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: l.path, Net: "unixpacket"})
	if err != nil {
		return fmt.Errorf("divert: %w", err)
	}
	if err := os.Chmod(l.path, 0o600); err != nil {
		return errors.Join(fmt.Errorf("divert: %w", err), ln.Close())
	}
	stop := context.AfterFunc(ctx, func() {
		ln.Close()
		l.replace(nil)
	})
	defer stop()
	for {
		c, err := ln.AcceptUnix()
		if err != nil {
			ln.Close()
			l.replace(nil)
			close(l.done)
			l.close()
			l.tasks.Wait()
			return err
		}
		l.serve(c)
	}
}

// close ends what a stream process left.
func (l *Link) close() {
	for _, s := range l.segments {
		s.disconnect()
	}
}

// replace makes c the connection; the one before ends.
func (l *Link) replace(c *net.UnixConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		l.conn.Close()
	}
	l.conn = c
}

// serve reads what a stream process says until it ends. The next one waits: it
// exists only when this one is gone.
func (l *Link) serve(c *net.UnixConn) {
	var offers []offer
	for id, s := range l.segments {
		offers = append(offers, offer{id, uint16(s.mtu)})
	}
	slices.SortFunc(offers, func(a, b offer) int { return int(a.segment) - int(b.segment) })
	l.replace(c)
	l.send(appendHello(nil, offers))
	err := l.read(c)
	l.replace(nil)
	l.close()
	l.log.Info("the stream process is gone: connections in segments pass as frames", "err", err)
}

func (l *Link) read(c *net.UnixConn) error {
	buf, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
		if err != nil {
			return err
		}
		if n == 0 {
			return net.ErrClosed
		}
		if err := l.handle(buf[:n], descriptor(oob[:oobn])); err != nil {
			return err
		}
	}
}

// descriptor is the one that came with a message; -1: none.
func descriptor(oob []byte) int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		return -1
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) == 0 {
		return -1
	}
	for _, fd := range fds[1:] {
		unix.Close(fd)
	}
	unix.CloseOnExec(fds[0])
	return fds[0]
}

// handle does what a message says. It takes fd.
func (l *Link) handle(msg []byte, fd int) error {
	k, body := kind(msg[0]), msg[1:]
	if fd >= 0 && k != msgDevice {
		unix.Close(fd)
	}
	switch k {
	case msgDevice:
		return l.device(body, fd)
	case msgAdd:
		number, f, err := parseAdd(body)
		if err != nil {
			return err
		}
		s := l.segments[f.Segment]
		l.send(appendAdded(nil, number, s != nil && s.add(f)))
	case msgRemove:
		f, err := parseFlow(body)
		if err != nil {
			return err
		}
		if s := l.segments[f.Segment]; s != nil {
			s.forget(f.key(), nil)
		}
	case msgLAN, msgPass:
		p, frame, err := parseFrame(body)
		if err != nil {
			return err
		}
		s := l.segments[p.segment]
		switch {
		case s == nil:
		case k == msgLAN:
			s.port.Deliver(p.peer, frame, super.Header{})
		default:
			s.port.Carry(p.peer, frame)
		}
	default:
		return errMessage
	}
	return nil
}

// device takes the TAP of a segment.
func (l *Link) device(body []byte, fd int) error {
	if fd < 0 {
		return errMessage
	}
	p, _, err := parsePlace(body)
	s := l.segments[p.segment]
	if err != nil || s == nil {
		unix.Close(fd)
		return errMessage
	}
	d, err := l.adopt("segment", fd)
	if err != nil {
		return err
	}
	s.connect(d)
	return nil
}

// send sends a message if there is room for it, and never waits.
func (l *Link) send(msg []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn != nil && sendNow(l.conn, msg)
}

// sendNow writes one packet, or does not if that would block.
func sendNow(c *net.UnixConn, msg []byte) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	sent := false
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Send(int(fd), msg, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) == nil
		return true
	})
	return err == nil && sent
}

// Stats returns the counters.
func (l *Link) Stats() Stats {
	st := Stats{
		Asked: l.count.asked.Load(), Crowded: l.count.crowded.Load(), Frames: l.count.diverted.Load(),
		Stray: l.count.stray.Load(), Lost: l.count.lost.Load(),
	}
	for _, s := range l.segments {
		s.mu.RLock()
		st.Flows += len(s.flows)
		s.mu.RUnlock()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	st.Connected = l.conn != nil
	l.moves.show(&st, time.Now())
	return st
}
