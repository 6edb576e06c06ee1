package wg

import (
	"errors"
	"net"
	"os"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev"
	"stitch/tunnel/netdev/super"
	"stitch/tunnel/wg/carrier"
)

// receiver gets what arrives besides plain packets. It is called from the
// receive goroutine and borrows the bytes.
type receiver interface {
	onFrames(segment uint16, frames [][]byte)
	onControl(msg []byte)
	onProbe(msg []byte, now time.Time)
	onBench(msg []byte, now time.Time)
}

// inbox is the state of Write.
type inbox struct {
	reassembler carrier.Reassembler
	out         [][]byte // plain packets for the TUN device
	whole       [][]byte // joined frames, in use until the batch is over
	frames      [][]byte // not delivered yet, of one segment
	segment     uint16
	counter     uint64 // nonce of the packet that is being looked at
	plain       []byte // the super-packet of a unit
	cut         []byte // its packets
}

// Write takes decrypted packets from wireguard-go: plain ones go to the TUN
// device in one batch, carrier packets to whom they concern. It returns no
// error but os.ErrClosed.
func (m *mux) Write(bufs [][]byte, offset int) (int, error) {
	if m.isClosed() {
		return 0, os.ErrClosed
	}
	in := &m.inbox
	var now time.Time // read when the first carrier packet asks for it
	for _, b := range bufs {
		if offset >= device.MessageTransportHeaderSize { // what it was encrypted with is still there
			in.counter = counterOf(b)
			m.arrived(in.counter)
		}
		if p := b[offset:]; !m.path.Touches(p) {
			super.ClampMSS(p, super.IP, int(m.inner.Load()), false)
			m.past.saw(p, super.IP, 0)
			in.out = append(in.out, b)
			m.count.rxPackets.Add(1)
			m.count.rxBytes.Add(uint64(len(p)))
			continue
		}
		if now.IsZero() {
			now = time.Now()
		}
		m.carrierPacket(b, offset, now)
	}
	m.count.rxOpened.Add(uint64(len(bufs)))
	m.flush(offset)
	m.endBatch()
	if !now.IsZero() {
		m.publishDrops(now)
		m.report(now)
	}
	return len(bufs), nil
}

// deliver hands over the frames that came together.
func (m *mux) deliver() {
	in := &m.inbox
	if len(in.frames) == 0 {
		return
	}
	m.count.rxFrames.Add(uint64(len(in.frames)))
	m.recv.onFrames(in.segment, in.frames)
	clear(in.frames)
	in.frames = in.frames[:0]
}

// endBatch hands over the last frames of the batch, and takes back those that
// were joined.
func (m *mux) endBatch() {
	m.deliver()
	in := &m.inbox
	for _, w := range in.whole {
		in.reassembler.Release(w)
	}
	in.whole = in.whole[:0]
}

// flush writes the plain packets to the TUN device.
func (m *mux) flush(offset int) {
	in := &m.inbox
	if len(in.out) == 0 {
		return
	}
	switch _, err := m.dev.Write(in.out, offset); {
	case err == nil || errors.Is(err, net.ErrClosed):
	case errors.Is(err, netdev.ErrNoJoin):
		m.log.Warn("offload", "err", err)
	default:
		m.count.tunWriteErrors.Add(1)
	}
	clear(in.out)
	in.out = in.out[:0]
}

// carrierPacket handles a packet between link addresses, b[offset:].
func (m *mux) carrierPacket(b []byte, offset int, now time.Time) {
	h, payload, err := m.path.Parse(b[offset:])
	switch {
	case m.stock:
		m.count.dropForeign.Add(1)
		return
	case errors.Is(err, carrier.ErrVersion):
		m.count.dropVersion.Add(1)
		return
	case err != nil:
		m.count.dropForeign.Add(1)
		return
	}
	if h.Last == 0 {
		if h.Kind == carrier.Unit {
			m.unit(payload, offset)
		} else {
			m.sawFrame(h, payload)
			m.message(h, payload, now)
		}
		return
	}
	m.count.rxParts.Add(1)
	whole := m.inbox.reassembler.Add(h, payload, now)
	if whole == nil {
		return
	}
	if h.Kind == carrier.IP {
		m.joinedPacket(b[:offset], whole)
		m.inbox.reassembler.Release(whole)
		return
	}
	if h.Kind == carrier.Unit {
		m.unit(whole, offset)
		m.inbox.reassembler.Release(whole)
		return
	}
	m.sawFrame(h, whole)
	m.message(h, whole, now)
	m.inbox.whole = append(m.inbox.whole, whole)
}

// joinedPacket queues an IP packet that came in parts for the TUN device. It
// goes into the buffer its last part came in, behind the offset: wireguard-go's
// buffers have room for 64 KiB.
func (m *mux) joinedPacket(b, p []byte) {
	if !m.plainInside(p) {
		return
	}
	m.past.saw(p, super.IP, 0)
	m.inbox.out = append(m.inbox.out, append(b, p...))
	m.count.rxPackets.Add(1)
	m.count.rxBytes.Add(uint64(len(p)))
}

// sawFrame shows the history a frame that crossed as it is.
func (m *mux) sawFrame(h carrier.Header, msg []byte) {
	if h.Kind == carrier.Frame {
		m.past.saw(msg, super.Ethernet, h.Segment)
	}
}

// plainInside reports whether p, which was carried as a message, may reach the
// TUN device: an IP packet whose header agrees with its length, and not
// itself one of the link's.
func (m *mux) plainInside(p []byte) bool {
	ok := false
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		ok = int(p[2])<<8|int(p[3]) == len(p)
	case len(p) >= 40 && p[0]>>4 == 6:
		ok = 40+(int(p[4])<<8|int(p[5])) == len(p)
	}
	if !ok || m.path.Touches(p) {
		m.count.dropForeign.Add(1)
		return false
	}
	return true
}

// message delivers a complete message.
func (m *mux) message(h carrier.Header, msg []byte, now time.Time) {
	switch h.Kind {
	case carrier.Frame:
		super.ClampMSS(msg, super.Ethernet, config.MaxFrame(int(m.inner.Load())), false)
		if h.Segment != m.inbox.segment {
			m.deliver()
			m.inbox.segment = h.Segment
		}
		m.inbox.frames = append(m.inbox.frames, msg)
	case carrier.Control:
		m.recv.onControl(msg)
	case carrier.Probe:
		m.recv.onProbe(msg, now)
	case carrier.Bench:
		m.recv.onBench(msg, now)
	}
}

// publishDrops makes the reassembler's counters visible to Stats.
func (m *mux) publishDrops(now time.Time) {
	m.dropsMu.Lock()
	m.drops = m.inbox.reassembler.Drops(now)
	m.dropsMu.Unlock()
}

// reassembly returns the reassembler's counters as of the last carrier packet.
func (m *mux) reassembly() carrier.Drops {
	m.dropsMu.Lock()
	defer m.dropsMu.Unlock()
	return m.drops
}
