package wg

import (
	"errors"
	"net"
	"os"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev/super"
	"stitch/tunnel/wg/carrier"
)

// sink is what one Read of wireguard-go fills.
type sink struct {
	bufs   [][]byte
	sizes  []int
	offset int
	n      int
	limit  int // how far to fill
	live   int // packets that are to be encrypted: all but the empty ones
}

func (s *sink) room() int { return s.limit - s.n }

// next returns the place of a packet of n bytes; there must be room.
func (s *sink) next(n int) []byte {
	b := s.bufs[s.n][s.offset : s.offset+n]
	s.sizes[s.n] = n
	s.n++
	s.live++
	return b
}

// leftover are packets of the TUN device for which there was no room, since
// one before them had to be cut in parts.
type leftover struct {
	bufs [][]byte
	own  []bool // which are parts of a unit
	pos  int
	n    int
}

// add keeps a copy of p.
func (l *leftover) add(p []byte, own bool) {
	if l.n == len(l.bufs) {
		l.bufs, l.own = append(l.bufs, nil), append(l.own, false)
	}
	l.bufs[l.n], l.own[l.n] = append(l.bufs[l.n][:0], p...), own
	l.n++
}

// Read fills bufs with what is to be encrypted: control and probes first, then
// what was held, then frames, then packets of the TUN device. It blocks until
// there is something and returns no error but os.ErrClosed, after Close.
func (m *mux) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for !m.isClosed() {
		n := min(len(bufs), conn.IdealBatchSize)
		out := sink{bufs: bufs[:n], sizes: sizes, offset: offset, limit: n}
		if m.shaping() {
			m.fillShaped(&out)
		} else {
			m.out = out
			m.fill(&m.out)
			out = m.out
		}
		if out.live > 0 {
			m.mu.Lock()
			m.credit.enter(out.live, time.Now())
			m.mu.Unlock()
		}
		if out.n > 0 {
			return out.n, nil
		}
	}
	return 0, os.ErrClosed
}

// fill puts as much into out as there is, fits and may be on its way. If there
// is nothing it waits for something.
func (m *mux) fill(out *sink) {
	now := time.Now()
	m.mtu = int(m.inner.Load())
	up, room := m.takeControl(out, now)
	if up {
		out.limit = min(out.limit, out.n+room)
		m.fillBacklog(out)
		m.fillFrames(out)
		m.fillLeft(out)
	} else {
		m.holdLeft()
	}
	m.packing.open = up
	full := up && (out.room() == 0 || m.left.n > 0 || m.cut.Len() > 0 || m.packing.frames.Len() > 0 || len(m.backlog) > 0)
	m.setBlocked(full && out.n == 0)
	switch {
	case out.n == 0 && (full || m.tunGone):
		m.wait()
	case out.room() > 0 && m.left.n == 0 && !m.tunGone:
		m.fillDevice(out, up)
	}
}

func (m *mux) setBlocked(blocked bool) {
	m.mu.Lock()
	m.blocked = blocked
	m.mu.Unlock()
}

// wait returns when fill may have something to do that the TUN device does
// not tell.
func (m *mux) wait() {
	var retry <-chan time.Time
	if m.blocked { // only Read's goroutine writes it
		t := time.NewTimer(creditTimeout)
		defer t.Stop()
		retry = t.C
	}
	select {
	case <-m.closed:
	case <-m.wake:
	case <-retry:
	}
}

// takeControl moves control datagrams to out. It returns whether packets may
// leave and how many more.
func (m *mux) takeControl(out *sink, now time.Time) (up bool, room int) {
	m.mu.Lock()
	n := m.popLocked(m.control, 0, out.room())
	m.controls = n
	room = max(m.credit.room(now)-n, 0)
	if m.up && len(m.hold.flows) > 0 {
		m.backlog = append(m.backlog, m.hold.take()...)
	}
	up = m.up
	m.mu.Unlock()
	for _, p := range m.scratch[:n] {
		copy(out.next(len(p)), p)
	}
	return up, room
}

// popLocked moves packets of q to the scratch list from n up to limit.
func (m *mux) popLocked(q *queue, n, limit int) int {
	for n < limit && q.n > 0 {
		m.scratch[n] = q.pop(m.scratch[n])
		n++
	}
	return n
}

// fillBacklog sends what was held.
func (m *mux) fillBacklog(out *sink) {
	for len(m.backlog) > 0 {
		h := m.backlog[0]
		if h.segment == 0 {
			if !m.putPacket(out, h.data) {
				return
			}
		} else {
			if parts, _ := carrier.Split(len(h.data), m.mtu); parts > out.room() {
				return
			}
			m.split(carrier.Frame, h.segment, h.data, m.mtu, m.place)
			m.count.txFrames.Add(1)
		}
		m.count.released.Add(1)
		m.backlog[0] = nil
		m.backlog = m.backlog[1:]
	}
	m.backlog = nil
}

// plainRoom is the room in a batch that frames leave to packets of the TUN
// device, of which nobody knows yet whether any wait.
const plainRoom = 8

// fillFrames sends frames, as many as there are and fit. Where packets of the
// TUN device wait too, those get half of the room.
func (m *mux) fillFrames(out *sink) {
	last := max(out.limit-plainRoom, out.n+(out.room()+1)/2)
	if m.plain {
		last = out.n + (out.room()+1)/2
	}
	parts := &m.packing.frames
	for out.n < last && m.nextFrame() {
		if n := parts.Len(); n > 0 {
			parts.put(out.next(n))
			continue
		}
		if n := m.cut.Len(); n <= m.maxFrame() {
			b := out.next(carrier.HeaderLen + n)
			m.path.Put(b, m.sending.head(), n)
			m.cut.Next(b[carrier.HeaderLen:])
			m.sending.clamp(b[carrier.HeaderLen:], m.maxFrame())
		} else if !m.putParts(out, n) {
			return
		}
		m.count.txFrames.Add(1)
	}
}

// maxFrame is the longest frame that crosses in one part.
func (m *mux) maxFrame() int { return config.MaxFrame(m.mtu) }

// putParts sends the next frame, of n bytes, in parts. False means that out
// has no room for them.
func (m *mux) putParts(out *sink, n int) bool {
	if parts, _ := carrier.Split(n, m.mtu); parts > out.room() {
		return false
	}
	m.whole = slices.Grow(m.whole[:0], n)[:n]
	m.cut.Next(m.whole)
	m.sending.clamp(m.whole, m.maxFrame())
	h := m.sending.head()
	m.split(h.Kind, h.Segment, m.whole, m.mtu, m.place)
	return true
}

// nextFrame makes sure that there is a frame to cut, if one waits.
func (m *mux) nextFrame() bool {
	for m.cut.Len() == 0 && m.packing.frames.Len() == 0 {
		m.mu.Lock()
		ok := m.frames.pop(&m.sending)
		m.stuck = false
		if ok && m.frames.room() {
			m.space.Signal()
		}
		m.mu.Unlock()
		if !ok {
			return false
		}
		if m.cut.Start(m.sending.data, m.sending.header, super.Ethernet, m.maxFrame()) != nil {
			m.count.dropFrameInvalid.Add(1)
		}
		if n := m.cut.Count(); n > 1 && m.sending.header.Kind != super.UDP {
			if m.packing.frames.take(m.sending.data, m.sending.segment, &m.cut) {
				m.count.txFrames.Add(uint64(n))
				m.cut = super.Splitter{}
			}
		} else {
			m.past.pass(m, m.sending.data, m.sending.segment)
		}
	}
	return true
}

// fillLeft sends what is left of the TUN device's last batch.
func (m *mux) fillLeft(out *sink) {
	for l := &m.left; l.pos < l.n; l.pos++ {
		if p := l.bufs[l.pos]; !l.own[l.pos] {
			if !m.putPacket(out, p) {
				return
			}
		} else if out.room() > 0 {
			copy(out.next(len(p)), p)
		} else {
			return
		}
	}
	m.left.pos, m.left.n = 0, 0
}

// holdLeft keeps what is left until the link is up.
func (m *mux) holdLeft() {
	for l := &m.left; l.pos < l.n; l.pos++ {
		if l.own[l.pos] {
			m.count.dropPart.Add(1)
		} else {
			m.holdPacket(l.bufs[l.pos])
		}
	}
	m.left.pos, m.left.n = 0, 0
}

// holdPacket keeps a packet until the link is up.
func (m *mux) holdPacket(p []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.holdLocked(0, p)
}

// fillDevice reads the TUN device straight into out. It waits for it if out is
// still empty. An error that is not the end is counted, and never reaches
// wireguard-go, which would close itself.
func (m *mux) fillDevice(out *sink, up bool) {
	var n int
	var err error
	bufs, sizes := out.bufs[out.n:out.limit], out.sizes[out.n:]
	switch {
	case out.n > 0:
		n, err = m.dev.Poll(bufs, sizes, out.offset)
	case m.mayRead(up):
		n, err = m.dev.Read(bufs, sizes, out.offset)
		m.mu.Lock()
		m.reading = false
		m.mu.Unlock()
	default:
		return
	}
	m.plain = n > 0
	if up {
		m.takePackets(out, n)
	} else {
		for i := range n {
			if p := bufs[i][out.offset:][:sizes[i]]; m.packing.tun.own(p) {
				m.count.dropPart.Add(1)
			} else if m.admit(p) {
				m.holdPacket(p)
			}
		}
	}
	switch {
	case err == nil || m.isClosed():
	case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrClosed):
		m.tunGone = true
		m.log.Error("the TUN device is gone: plain packets stop until the agent is restarted", "device", m.dev.Name())
	default:
		m.count.tunReadErrors.Add(1)
		if n == 0 && out.n == 0 {
			m.pause(10 * time.Millisecond)
		}
	}
}

// mayRead reports whether Read may wait in the TUN device, and notes that it
// does: who has something to send from now on wakes it.
func (m *mux) mayRead(up bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reading = m.control.n == 0 && m.up == up && (!up || m.frames.n == 0) && !m.nudged
	return m.reading
}

// takePackets judges n packets of the TUN device that are in out already.
func (m *mux) takePackets(out *sink, n int) {
	at := out.n
	out.n += n
	for i := at; i < at+n; i++ {
		p := out.bufs[i][out.offset:][:out.sizes[i]]
		switch {
		case m.packing.tun.own(p):
			out.live++
		case !m.admit(p):
			out.sizes[i] = 0 // wireguard-go skips it
		case len(p) > m.mtu:
			m.left.add(p, false)
			for j := i + 1; j < at+n; j++ {
				p := out.bufs[j][out.offset:][:out.sizes[j]]
				m.left.add(p, m.packing.tun.own(p))
			}
			out.n = i
			m.fillLeft(out)
			return
		default:
			super.ClampMSS(p, super.IP, m.mtu, false)
			out.live++
			m.count.txPackets.Add(1)
			m.count.txBytes.Add(uint64(len(p)))
		}
	}
}

// putPacket sends an IP packet of the TUN device, in parts if it is too large.
// False means that out has no room for it.
func (m *mux) putPacket(out *sink, p []byte) bool {
	if !m.admit(p) {
		return true
	}
	if len(p) <= m.mtu {
		if out.room() == 0 {
			return false
		}
		b := out.next(len(p))
		copy(b, p)
		super.ClampMSS(b, super.IP, m.mtu, false)
	} else {
		if parts, _ := carrier.Split(len(p), m.mtu); parts > out.room() {
			return false
		}
		super.ClampMSS(p, super.IP, m.mtu, false)
		m.split(carrier.IP, 0, p, m.mtu, m.place)
	}
	m.count.txPackets.Add(1)
	m.count.txBytes.Add(uint64(len(p)))
	return true
}

// admit reports whether a packet of the TUN device may enter the link. It
// counts those that may not.
func (m *mux) admit(p []byte) bool {
	switch {
	case len(p) < 20 || p[0]>>4 != 4 && (p[0]>>4 != 6 || len(p) < 40):
		m.count.dropNotIP.Add(1)
	case m.path.Touches(p):
		m.count.dropForged.Add(1)
	case len(p) > m.mtu && !m.canSplit(len(p)):
		m.count.dropTooBig.Add(1)
	default:
		return true
	}
	return false
}

// canSplit reports whether a packet of n bytes can cross in parts.
func (m *mux) canSplit(n int) bool {
	parts, _ := carrier.Split(n, m.mtu)
	return parts > 0 && !m.stock
}
