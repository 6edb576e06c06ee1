package wg

import (
	"hash/maphash"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev"
	"stitch/tunnel/wg/carrier"
	"stitch/tunnel/wg/shape"
)

// minNudge is the shortest time between two looks at a queue of which nothing
// may leave.
const minNudge = 100 * time.Microsecond

// stageSize holds whatever the TUN device may deliver.
const stageSize = 64 << 10

// shaped is the queue of a link with a rate: between what is to be sent and
// wireguard-go. Owned by Read.
type shaped struct {
	queue         *shape.Shaper
	rate          int64 // of queue
	began         time.Time
	seed          maphash.Seed
	local, remote netip.Addr
	back          carrier.Path // the peer's view, to read what we send
	classes       *classifier
	marks         []config.Mark
	most          int // the last class
	stage         sink
	timer         *time.Timer
	packet        []byte // being sent
}

// shaping reports whether what leaves goes through the queue, and makes the queue
// keep the rate of now. A link that has lost its rate first empties it; with classes
// it goes on, for their limits.
func (m *mux) shaping() bool {
	rate := m.cfg.Rate
	if rate == 0 {
		rate = m.learned.Load()
	}
	s := m.shaped
	if rate == 0 && len(m.cfg.Classes) == 0 && (s == nil || s.queue.Bytes() == 0) {
		return false
	}
	if rate == 0 {
		rate = boundless
	}
	if s == nil {
		s = newShaped(m, m.cfg)
		m.shaped = s
	}
	if rate != s.rate {
		s.queue.SetRate(rate)
		s.rate = rate
	}
	return true
}

// boundless is a rate as good as none.
const boundless = 1e12

func newShaped(m *mux, cfg *Config) *shaped {
	back, _ := carrier.NewPath(cfg.Remote, cfg.Local) // Open made it the other way round
	s := &shaped{
		back:  back,
		queue: shape.New(boundless, cfg.Overhead, shapeClasses(cfg.Classes)...), classes: newClassifier(cfg),
		marks: cfg.Marks, most: max(len(cfg.Classes)-1, 0),
		began: time.Now(), seed: maphash.MakeSeed(),
		local: cfg.Local, remote: cfg.Remote,
	}
	s.stage.bufs, s.stage.sizes = make([][]byte, conn.IdealBatchSize), make([]int, conn.IdealBatchSize)
	for i := range s.stage.bufs {
		s.stage.bufs[i] = make([]byte, netdev.MinOffset+stageSize)
	}
	s.timer = time.AfterFunc(time.Hour, m.nudge)
	s.timer.Stop()
	return s
}

// nudge makes Read look at the queue.
func (m *mux) nudge() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nudged = true
	m.notifyLocked()
}

// fillShaped is fill for a link with a rate: what there is goes into the queue,
// and what may leave now into out. Control and probes never wait.
func (m *mux) fillShaped(out *sink) {
	s := m.shaped
	m.mu.Lock()
	m.nudged = false
	stuck := m.credit.room(time.Now()) == 0
	m.mu.Unlock()
	switch wait, some := s.queue.Wait(time.Since(s.began)); {
	case some && wait == 0 && !stuck:
		m.nudge()
	case some:
		s.timer.Reset(max(wait, minNudge))
	}
	m.out = sink{bufs: s.stage.bufs, sizes: s.stage.sizes, offset: netdev.MinOffset, limit: len(s.stage.bufs)}
	if s.rate == boundless && len(m.cfg.Classes) == 0 { // it is being emptied, and nothing more goes in
		m.takeControl(&m.out, time.Now())
		m.setBlocked(stuck && m.out.n == 0)
		if m.blocked {
			m.wait()
		}
	} else {
		m.fill(&m.out)
	}
	s.timer.Stop()
	m.mu.Lock()
	up, room := m.up, m.credit.room(time.Now())
	m.mu.Unlock()
	m.enqueue(out)
	if !up {
		s.queue.Clear()
	}
	out.limit = min(out.limit, out.n+room)
	m.dequeue(out)
	m.count.dropRate.Store(s.queue.Dropped())
	for i := range m.classes {
		m.classes[i].set(s.queue.Count(i))
	}
}

// enqueue queues what was staged; control and probes go straight to out.
func (m *mux) enqueue(out *sink) {
	s := m.shaped
	var f shapedFlow
	for i := range m.out.n {
		p := m.out.bufs[i][m.out.offset:][:m.out.sizes[i]]
		switch {
		case len(p) == 0:
		case i < m.controls && out.room() > 0:
			copy(out.next(len(p)), p)
			s.queue.Spend(len(p))
		default:
			if next, again := m.flowOf(p); !again {
				f = next
			}
			s.queue.Push(f.hash, f.class, f.weight, p)
		}
	}
}

// dequeue fills out with what may leave now.
func (m *mux) dequeue(out *sink) {
	s := m.shaped
	now := time.Since(s.began)
	for out.room() > 0 {
		p, ok := s.queue.Pop(now, s.packet[:0])
		if s.packet = p; !ok {
			return
		}
		copy(out.next(len(p)), p)
	}
}

// shapedFlow is what the queue is told of a packet.
type shapedFlow struct {
	hash          uint64
	class, weight int
}

// flow returns the flow of a frame, or for segment 0 of an IP packet.
func (s *shaped) flow(segment uint16, data []byte) shapedFlow {
	k := keyOf(segment, data)
	hash := maphash.Comparable(s.seed, k)
	return shapedFlow{hash, s.classes.class(hash, k, segment, data), 1}
}

// flowOf returns the flow of a packet that is ready to be sent; of the agents' own
// connections the DSCP says the class and the weight. again: it is a later part of
// the message before it.
func (m *mux) flowOf(p []byte) (f shapedFlow, again bool) {
	s := m.shaped
	h, body, err := s.back.Parse(p)
	switch {
	case err == nil && h.Kind == carrier.Unit:
		return m.packing.flow(h.ID), false
	case err == nil && h.Index > 0:
		return f, true
	case err == nil: // the segment of an IP packet is 0
		return s.flow(h.Segment, body), false
	case len(p) >= 20 && p[0]>>4 == 4 && netip.AddrFrom4([4]byte(p[12:16])) == s.local && netip.AddrFrom4([4]byte(p[16:20])) == s.remote:
		return s.marked(p), false
	}
	return s.flow(0, p), false
}

// marked returns the flow of a packet between the agents.
func (s *shaped) marked(p []byte) shapedFlow {
	f := shapedFlow{hash: maphash.Comparable(s.seed, keyOf(0, p)), weight: 1}
	if i := int(p[1] >> 2); i < len(s.marks) {
		f.class, f.weight = min(s.marks[i].Class, s.most), s.marks[i].Share
	}
	return f
}
