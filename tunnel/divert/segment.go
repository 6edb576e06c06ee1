package divert

import (
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev"
	"stitch/tunnel/netdev/super"
)

const (
	// maxFlows bounds the connections split in one segment; more are refused.
	maxFlows = 1 << 16
	// readBatch is the most super-frames read from a TAP at once.
	readBatch = 8
	// retireAfter is how long a dead stream process' TAP is served.
	retireAfter = time.Minute
)

// DeviceMAC is the address of the TAP in its namespace.
var DeviceMAC = config.MAC{0x02, 0x53, 0x54, 0x00, 0x00, 0x02}

// Port is the segment's way to its LAN and to the peers, an ether.Port.
type Port interface {
	// Deliver takes a frame as if peer had sent it. It borrows frame.
	Deliver(peer string, frame []byte, h super.Header)
	// Carry sends a frame to peer. It borrows frame.
	Carry(peer string, frame []byte) bool
}

// Chooser says of a new connection that a host of the LAN begins towards one at peer
// whether a rule is about it, and whether it is to be split.
type Chooser func(peer string, src, dst netip.AddrPort) (covered, split bool)

// Segment is one segment in the link process. Its methods are safe for concurrent
// use, FromLAN from one goroutine at a time.
type Segment struct {
	id     uint16
	mtu    int
	port   Port
	chosen Chooser
	link   *Link
	log    *slog.Logger
	split  super.Splitter
	whole  [maxFrame]byte // a SYN with its checksum

	live atomic.Pointer[tap] // of the stream process there is; nil: none

	mu    sync.RWMutex
	flows map[key]*entry
}

// entry is a split connection.
type entry struct {
	Flow
	tap   *tap
	moved atomic.Bool // said already
}

// tap is the device of one stream process.
type tap struct {
	netdev.Device
	super netdev.SuperWriter
}

// Use gives the segment its port.
func (s *Segment) Use(p Port) { s.port = p }

// FromLAN is offered a frame that is about to be sent to peer, and reports
// whether it was taken. It borrows frame and may change its MACs if it takes it.
func (s *Segment) FromLAN(peer string, frame []byte, h super.Header) bool {
	if s.live.Load() == nil && s.empty() {
		return false
	}
	p, ok := parseTCP(frame)
	if !ok {
		return s.fromLANOther(peer, frame, h)
	}
	k := key{p.src, p.dst}
	e := s.find(k)
	if !p.bareSYN() {
		return s.take(e, peer, frame, h)
	}
	covered, split := s.chosen(peer, p.src, p.dst)
	switch {
	case !split && covered:
		s.passed(PassedByRule, peer, p, frame)
		return s.take(e, peer, frame, h)
	case !split:
		return s.take(e, peer, frame, h)
	case s.live.Load() != nil && s.ask(peer, frame, h):
		return true
	}
	s.passed(PassedCrowded, peer, p, frame)
	if e != nil { // what there was is past, and the new one passes
		s.forget(k, e)
	}
	return false
}

// passed says that a SYN passes, if there is somebody to hear it.
func (s *Segment) passed(why byte, peer string, p packet, frame []byte) {
	s.link.send(appendPassed(nil, why, &Flow{
		Segment: s.id, Peer: peer, Local: p.src, Remote: p.dst, LocalMAC: srcMAC(frame), RemoteMAC: dstMAC(frame),
	}))
}

// fromLANOther takes an ICMP error about what the kernel sent for the far host.
// The SYN of a VLAN passes.
func (s *Segment) fromLANOther(peer string, frame []byte, h super.Header) bool {
	if plain := untag(frame); h.Kind == super.None && plain != nil {
		p, ok := parseTCP(plain)
		if ok && p.bareSYN() {
			if covered, _ := s.chosen(peer, p.src, p.dst); covered {
				s.passed(PassedTagged, peer, p, frame)
			}
		}
		return false
	}
	src, dst, ok := parseError(frame)
	return ok && s.take(s.find(key{dst, src}), peer, frame, h)
}

// take gives a frame of a split connection to the kernel.
func (s *Segment) take(e *entry, peer string, frame []byte, h super.Header) bool {
	switch {
	case e == nil:
		return false
	case e.Peer != peer:
		s.hasMoved(e)
		return true
	}
	setMACs(frame, DeviceMAC, e.LocalMAC)
	_ = e.tap.super.WriteSuper(frame, h) // a closed one's connection is being reset
	s.link.count.diverted.Add(1)
	return true
}

// ask gives a SYN to the stream process; false if that has no room.
func (s *Segment) ask(peer string, frame []byte, h super.Header) bool {
	if h.Kind != super.None || s.split.Start(frame, h, super.Ethernet, super.MaxPacket) != nil || s.split.Len() > len(s.whole) {
		return false
	}
	n := s.split.Len()
	s.split.Next(s.whole[:]) // whose checksum is complete
	ok := s.link.send(appendFrame(nil, msgSYN, s.id, peer, s.whole[:n]))
	if ok {
		s.link.count.asked.Add(1)
	} else {
		s.link.count.crowded.Add(1)
	}
	return ok
}

// FromPeer is offered a frame that peer sent for the LAN, and reports whether it
// must not get there. It borrows frame.
func (s *Segment) FromPeer(frame []byte) bool {
	if s.empty() {
		return false
	}
	p, ok := parseTCP(frame)
	if !ok {
		return false
	}
	k := key{p.dst, p.src}
	e := s.find(k)
	switch {
	case e == nil:
		return false
	case p.bareSYN(): // the peer's agent has passed it: what was split is past
		s.forget(k, e)
		return false
	}
	// The far host speaks, and not to an agent of its site: that one has died and knows
	// the connection no more.
	s.link.count.stray.Add(1)
	if reset := resetFor(frame); reset != nil {
		s.port.Carry(e.Peer, reset)
	}
	return true
}

// Seen says that a MAC thought to be at a peer was seen on the LAN.
func (s *Segment) Seen(mac config.MAC) {
	if s.empty() {
		return
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, e := range s.flows {
		if e.RemoteMAC == mac {
			s.hasMoved(e)
		}
	}
}

// hasMoved says once that a host of a connection is elsewhere.
func (s *Segment) hasMoved(e *entry) {
	if e.moved.CompareAndSwap(false, true) {
		s.log.Warn("a host of a split connection has moved: it is reset; make the host a [[workload]] if it may move", "local", e.Local, "remote", e.Remote)
		s.link.mu.Lock()
		s.link.moves.note(e.Flow, time.Now())
		s.link.mu.Unlock()
		s.link.send(e.append([]byte{byte(msgMoved)}))
	}
}

func (s *Segment) empty() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.flows) == 0
}

func (s *Segment) find(k key) *entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.flows[k]
}

// add takes a flow in; false: there is no device, or no room.
func (s *Segment) add(f Flow) bool {
	t := s.live.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	if t == nil || s.flows[f.key()] == nil && len(s.flows) >= maxFlows {
		return false
	}
	s.flows[f.key()] = &entry{Flow: f, tap: t}
	return true
}

// forget removes e, unless another has taken its place. A nil e is any.
func (s *Segment) forget(k key, e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e == nil || s.flows[k] == e {
		delete(s.flows, k)
	}
}

// connect takes the TAP of a new stream process.
func (s *Segment) connect(d netdev.Device) {
	w, ok := d.(netdev.SuperWriter)
	if !ok {
		panic("divert: a device that takes no super-packets")
	}
	t := &tap{d, w}
	s.retire(s.live.Swap(t))
	s.link.tasks.Go(func() { s.read(t) })
}

// disconnect is what the end of the stream process means.
func (s *Segment) disconnect() { s.retire(s.live.Swap(nil)) }

// retire serves a TAP for a while longer.
func (s *Segment) retire(t *tap) {
	if t == nil {
		return
	}
	s.link.tasks.Go(func() {
		select {
		case <-time.After(retireAfter):
		case <-s.link.done:
		}
		s.mu.Lock()
		for k, e := range s.flows {
			if e.tap == t {
				delete(s.flows, k)
			}
		}
		s.mu.Unlock()
		t.Close()
	})
}

// read gives what the kernel sends for far hosts to the LAN.
func (s *Segment) read(t *tap) {
	bufs := make([][]byte, min(readBatch, t.BatchSize()))
	for i := range bufs {
		bufs[i] = make([]byte, netdev.BufferLen)
	}
	sizes := make([]int, len(bufs))
	for {
		n, err := t.Read(bufs, sizes, netdev.MinOffset)
		for i, b := range bufs[:n] {
			h, bad := super.ParseHeader(b[netdev.MinOffset-super.HeaderLen:])
			if bad == nil {
				s.toLAN(b[netdev.MinOffset:][:sizes[i]], h)
			}
		}
		if err != nil {
			return
		}
	}
}

// toLAN puts a frame of the kernel into the MACs of the two hosts. What belongs
// to no connection is the kernel's own chatter.
func (s *Segment) toLAN(frame []byte, h super.Header) {
	p, ok := parseTCP(frame)
	if !ok {
		return
	}
	e := s.find(key{p.dst, p.src})
	if e == nil {
		s.link.count.lost.Add(1)
		return
	}
	from := e.RemoteMAC
	if e.moved.Load() { // the reset: it must not tell bridges that the host is back where it was
		from = DeviceMAC
	}
	setMACs(frame, e.LocalMAC, from)
	s.port.Deliver(e.Peer, frame, h)
}
