package wg

import (
	"errors"
	"math"
	"sync/atomic"
	"time"

	"stitch/compress"
	"stitch/tunnel/netdev"
	"stitch/tunnel/netdev/super"
	"stitch/tunnel/wg/carrier"
	"stitch/tunnel/wg/pack"
)

// packing is what a mux needs to send super-packets as units (package pack).
// Read's goroutine owns it but for the atomics.
type packing struct {
	// taken says that the peer takes units and we may send them; loss is the
	// loss on the way there, as bits of a float64.
	taken  atomic.Bool
	loss   atomic.Uint64
	packer *pack.Packer // nil until the first is to be made
	pool   *compress.Pool
	// open says that packets may leave now.
	open bool
	// sent are the flows of the latest units of a link with a rate, by id.
	sent [sentUnits]sentUnit
	// What waits to be sent of a unit of the TUN device, and of frames.
	tun, frames unitParts
}

// sentUnits is how many of the latest units are remembered: more messages than
// have an id in two batches.
const sentUnits = 512

// sentUnit is a unit and its flow.
type sentUnit struct {
	id   uint32
	flow shapedFlow
}

// flow returns the flow of a unit that leaves, by its id.
func (p *packing) flow(id uint32) shapedFlow {
	if s := &p.sent[id%sentUnits]; s.id == id {
		return s.flow
	}
	return shapedFlow{weight: 1}
}

// start makes p ready to be used by m.
func (p *packing) start(m *mux) {
	p.pool = compress.NewPool(1, 0)
	p.setLoss(-1)
	m.past.unpack = pack.NewUnpacker(p.pool, m.past.received)
	p.tun.m, p.frames.m = m, m
	if c, ok := m.dev.(netdev.Cutter); ok {
		c.Offer(&p.tun)
	}
}

func (p *packing) setLoss(loss float64) { p.loss.Store(math.Float64bits(loss)) }

// unitParts are the parts of a unit that are still to be sent. For a TUN device
// it is the netdev.Packer.
type unitParts struct {
	m    *mux
	buf  []byte // the unit; kept for the next
	rest []byte
	size int // of every part but the final one
	h    carrier.Header
	// made are the packets that Next has written and own has not seen yet.
	made []*byte
}

var _ netdev.Packer = (*unitParts)(nil)

// Take implements netdev.Packer.
func (u *unitParts) Take(packet []byte, h super.Header, cut *super.Splitter) bool {
	n := cut.Count()
	// The agents' own connections carry what rules say how to.
	if u.m.path.Between(packet) || !u.take(packet, 0, cut) {
		return false
	}
	_, _, body := cut.Offsets()
	u.m.count.txPackets.Add(uint64(n))
	u.m.count.txBytes.Add(uint64(len(packet) + (n-1)*body))
	return true
}

// Pass implements netdev.Packer.
func (u *unitParts) Pass(packet []byte) { u.m.past.pass(u.m, packet, 0) }

// take makes a unit of a super-packet, if that pays. If not, there may be
// something to send ahead of its packets.
func (u *unitParts) take(packet []byte, segment uint16, cut *super.Splitter) bool {
	m := u.m
	p := &m.packing
	if !p.open || !p.taken.Load() {
		return false
	}
	if p.packer == nil {
		start := time.Now()
		p.packer = pack.NewPacker(p.pool, func() time.Duration { return time.Since(start) })
	}
	mtu := int(m.inner.Load())
	o := pack.Offer{
		Packet: packet, Segment: segment, Size: cut.Size(), Count: cut.Count(),
		Room: mtu - carrier.HeaderLen, Loss: math.Float64frombits(p.loss.Load()),
	}
	o.IP, o.Transport, o.Body = cut.Offsets()
	m.past.offer(&o)
	unit, verdict := p.packer.Pack(u.buf[:0], &o)
	m.count.pack[verdict].Add(1)
	if len(unit) == 0 {
		return false
	}
	parts, size := carrier.Unit.Split(len(unit), mtu)
	u.buf, u.rest, u.size = unit, unit, size
	u.h = carrier.Header{Kind: carrier.Unit, Last: uint8(parts - 1), ID: m.id.Add(1)}
	if parts > 1 {
		m.count.txParts.Add(uint64(parts))
	}
	if m.shaped != nil {
		p.sent[u.h.ID%sentUnits] = sentUnit{u.h.ID, m.shaped.flow(segment, packet)}
	}
	if verdict != pack.Packed {
		return false
	}
	m.count.repeats.Add(uint64(p.packer.Repeats()))
	m.count.packBytes.Add(uint64(len(packet)))
	m.count.unitBytes.Add(uint64(len(unit)))
	m.count.packSaved.Add(uint64(o.Count - parts))
	return true
}

// Len implements netdev.Packer.
func (u *unitParts) Len() int {
	if len(u.rest) == 0 {
		return 0
	}
	return carrier.HeaderLen + min(u.size, len(u.rest))
}

// put writes the next part to dst.
func (u *unitParts) put(dst []byte) {
	n := min(u.size, len(u.rest))
	u.m.path.Put(dst, u.h, n)
	copy(dst[carrier.HeaderLen:], u.rest[:n])
	u.rest = u.rest[n:]
	u.h.Index++
}

// Next implements netdev.Packer.
func (u *unitParts) Next(dst []byte) {
	u.put(dst)
	u.made = append(u.made, &dst[0])
}

// own reports whether the TUN device's next packet is one that Next wrote. It is
// to be asked for each packet, in order.
func (u *unitParts) own(p []byte) bool {
	if len(u.made) == 0 || len(p) == 0 || u.made[0] != &p[0] {
		return false
	}
	u.made = u.made[:copy(u.made, u.made[1:])]
	return true
}

// unit takes in a complete unit: what it is made of goes where the packets would
// have gone, in the order of arrival.
func (m *mux) unit(msg []byte, offset int) {
	in := &m.inbox
	if m.past.unpack.Note(msg) {
		return
	}
	if in.plain == nil {
		in.plain = make([]byte, 0, super.MaxPacket)
	}
	u, err := m.past.unpack.Unpack(in.plain[:0], msg)
	if errors.Is(err, pack.ErrMissing) {
		m.count.dropMissing.Add(1)
		return
	}
	var cut super.Splitter
	if err == nil {
		err = cut.Start(u.Packet, u.Header, u.Link, len(u.Packet))
	}
	if err != nil {
		m.count.dropUnit.Add(1)
		return
	}
	m.count.rxUnits.Add(1)
	if u.Segment == 0 {
		m.unitPackets(&cut, offset)
	} else {
		m.unitFrames(&cut, u.Segment)
	}
}

// unitPackets gives the packets of a unit to the TUN device.
func (m *mux) unitPackets(cut *super.Splitter, offset int) {
	m.flush(offset)
	in := &m.inbox
	in.cut = in.cut[:0]
	for k := cut.Len(); k > 0; k = cut.Len() {
		b := in.room(offset + k)
		cut.Next(b[offset:])
		super.ClampMSS(b[offset:], super.IP, int(m.inner.Load()), false)
		in.out = append(in.out, b)
		m.count.rxPackets.Add(1)
		m.count.rxBytes.Add(uint64(k))
	}
	m.flush(offset)
}

// unitFrames gives the frames of a unit to who gets frames.
func (m *mux) unitFrames(cut *super.Splitter, segment uint16) {
	m.endBatch()
	in := &m.inbox
	in.cut = in.cut[:0]
	for k := cut.Len(); k > 0; k = cut.Len() {
		b := in.room(k)
		cut.Next(b)
		m.message(carrier.Header{Kind: carrier.Frame, Segment: segment}, b, time.Time{})
	}
	m.endBatch()
}

// room returns the next n bytes of the buffer of what is cut.
func (in *inbox) room(n int) []byte {
	at := len(in.cut)
	if at+n > cap(in.cut) { // those handed out before keep the old one
		in.cut, at = make([]byte, 0, max(2*cap(in.cut), n, 128<<10)), 0
	}
	in.cut = in.cut[:at+n]
	return in.cut[at : at+n : at+n]
}
