package wg

import (
	"os"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"stitch/tunnel/netdev"
	"stitch/tunnel/wg/carrier"
)

// sink is what one Read of wireguard-go fills.
type sink struct {
	bufs   [][]byte
	sizes  []int
	offset int
	n      int
}

func (s *sink) room() int { return len(s.bufs) - s.n }

// next returns the place of a packet of n bytes; there must be room.
func (s *sink) next(n int) []byte {
	b := s.bufs[s.n][s.offset : s.offset+n]
	s.sizes[s.n] = n
	s.n++
	return b
}

// Read fills bufs with what is to be encrypted: control and probes first, then
// frames, then what was held, then packets of the TUN device. It blocks until
// there is something and returns no error but os.ErrClosed, after Close.
func (m *mux) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		if m.isClosed() {
			return 0, os.ErrClosed
		}
		out := sink{bufs: bufs[:min(len(bufs), conn.IdealBatchSize)], sizes: sizes, offset: offset}
		m.fill(&out)
		if out.n > 0 {
			return out.n, nil
		}
		m.wait()
	}
}

// wait returns when fill may have something to do.
func (m *mux) wait() {
	ready := m.ready
	if m.batch.n > 0 {
		ready = nil
	}
	var retry <-chan time.Time
	if m.blocked {
		t := time.NewTimer(creditTimeout)
		defer t.Stop()
		retry = t.C
	}
	select {
	case <-m.closed:
	case <-m.wake:
	case <-retry:
	case n := <-ready:
		m.batch.n = n
	}
}

// fill puts as much into out as there is, fits and may be on its way.
func (m *mux) fill(out *sink) {
	if m.batch.n == 0 {
		select {
		case n := <-m.ready:
			m.batch.n = n
		default:
		}
	}
	now := time.Now()
	up, room := m.takeQueued(out, now)
	if up {
		limit := min(out.room(), room)
		plain := sink{bufs: out.bufs[:out.n+limit], sizes: out.sizes, offset: out.offset, n: out.n}
		m.fillBacklog(&plain)
		m.fillBatch(&plain)
		out.n = plain.n
		m.blocked = m.blocked || limit == room && (m.batch.n > 0 || len(m.backlog) > 0)
	} else {
		m.holdBatch()
	}
	if out.n > 0 {
		m.mu.Lock()
		m.credit.enter(out.n, now)
		m.mu.Unlock()
	}
}

// takeQueued moves control datagrams and frames to out. It returns whether
// packets may leave and how many more.
func (m *mux) takeQueued(out *sink, now time.Time) (up bool, room int) {
	m.mu.Lock()
	n := m.popLocked(m.control, 0, out.room())
	room = m.credit.room(now) - n
	if m.up {
		if len(m.hold.flows) > 0 {
			m.backlog = append(m.backlog, m.hold.take()...)
		}
		limit := min(out.room(), n+max(room, 0))
		if m.batch.n > 0 { // plain packets get half of what is left
			limit = n + (limit-n+1)/2
		}
		before := n
		n = m.popLocked(m.frames, n, limit)
		room -= n - before
	}
	up = m.up
	blocked := up && m.frames.n > 0 && room <= 0
	m.mu.Unlock()
	for _, p := range m.scratch[:n] {
		copy(out.next(len(p)), p)
	}
	m.blocked = blocked
	return up, max(room, 0)
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
			m.split(carrier.Frame, h.segment, h.data, out.next)
			m.count.txFrames.Add(1)
		}
		m.count.released.Add(1)
		m.backlog[0] = nil
		m.backlog = m.backlog[1:]
	}
	m.backlog = nil
}

// fillBatch sends the batch of the TUN device, as far as there is room.
func (m *mux) fillBatch(out *sink) {
	for b := &m.batch; b.pos < b.n; b.pos++ {
		if !m.putPacket(out, b.bufs[b.pos][netdev.MinOffset:][:b.sizes[b.pos]]) {
			return
		}
	}
	m.batchDone()
}

// holdBatch keeps the batch's packets until the link is up.
func (m *mux) holdBatch() {
	m.mu.Lock()
	for b := &m.batch; b.pos < b.n; b.pos++ {
		if p := b.bufs[b.pos][netdev.MinOffset:][:b.sizes[b.pos]]; m.admit(p) {
			m.holdLocked(0, p)
		}
	}
	m.mu.Unlock()
	m.batchDone()
}

// batchDone gives a batch that is used up back to the TUN device's reader.
func (m *mux) batchDone() {
	if m.batch.n == 0 {
		return
	}
	m.batch.n, m.batch.pos = 0, 0
	select {
	case m.free <- struct{}{}:
	case <-m.closed:
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
		copy(out.next(len(p)), p)
	} else {
		if parts, _ := carrier.Split(len(p), m.mtu); parts > out.room() {
			return false
		}
		m.split(carrier.IP, 0, p, out.next)
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
