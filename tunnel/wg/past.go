package wg

import (
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"stitch/tunnel/netdev/super"
	"stitch/tunnel/wg/carrier"
	"stitch/tunnel/wg/pack"
	"stitch/tunnel/wg/pack/history"
)

const (
	// reportQueue is the most reports of the peer that wait for Read; it drops the
	// newest, and the next one says the same and more.
	reportQueue = 16
	// reportEvery is the least time between two reports that nobody waits for;
	// reportAgain how often the latest is repeated at repeatEvery, for it may have
	// been lost.
	reportEvery, repeatEvery = 20 * time.Millisecond, 150 * time.Millisecond
	reportAgain              = 2
)

// past is the history of units (package pack/history) of a link, both ways.
type past struct {
	size int            // of each; 0: none
	from []netip.Prefix // whose bytes become a part of it
	// taken says that the peer keeps one too.
	taken   atomic.Bool
	reports chan history.Report

	// Owned by Read.
	sent *history.Sender // nil until there is something to keep
	seed maphash.Seed

	// Owned by Write.
	unpack   *pack.Unpacker
	received *history.Receiver // nil: none
	reported time.Time
	again    int
}

// start makes p ready to be used.
func (p *past) start(cfg *Config) {
	p.size, p.from = cfg.History, cfg.HistoryFrom
	p.seed, p.reports = maphash.MakeSeed(), make(chan history.Report, reportQueue)
	if p.size > 0 {
		p.received = history.NewReceiver(p.size, rand.Uint32())
	}
}

// offer lets a super-packet become a part of the history, if its sender is one
// of those that may. Those with another address, or in another segment or VLAN,
// are others.
func (p *past) offer(o *pack.Offer) {
	if !p.taken.Load() || len(p.from) == 0 {
		return
	}
	ip := o.Packet[o.IP:]
	src := ip[12:16]
	if ip[0]>>4 == 6 {
		src = ip[8:24]
	}
	addr, _ := netip.AddrFromSlice(src)
	for _, n := range p.from {
		if !n.Contains(addr) {
			continue
		}
		if p.sent == nil {
			p.sent = history.NewSender(p.size, rand.Uint32())
		}
		p.takeReports()
		var h maphash.Hash
		h.SetSeed(p.seed)
		_, _ = h.Write([]byte{byte(o.Segment >> 8), byte(o.Segment)})
		if o.IP > 12 {
			_, _ = h.Write(o.Packet[12:o.IP])
		}
		_, _ = h.Write(src)
		o.Past, o.Group = p.sent, h.Sum64()
		return
	}
}

// pass shows the history a packet or frame that is no super-packet.
func (p *past) pass(m *mux, packet []byte, segment uint16) {
	if p.sent == nil {
		return
	}
	link := super.IP
	if segment != 0 {
		link = super.Ethernet
	}
	ip, tcp, body, end, ok := super.TCP(packet, link)
	if !ok || body == end {
		return
	}
	o := pack.Offer{Packet: packet[:end], Segment: segment, IP: ip, Transport: tcp, Body: body}
	if p.offer(&o); o.Past != nil {
		m.packing.packer.Pass(&o)
	}
}

func (p *past) takeReports() {
	for {
		select {
		case r := <-p.reports:
			p.sent.Reported(r)
		default:
			return
		}
	}
}

// onReport takes in what the peer says it holds.
func (p *past) onReport(r history.Report) {
	select {
	case p.reports <- r:
	default:
	}
}

// saw shows the history a packet or frame that crossed as it is.
func (p *past) saw(packet []byte, link super.Link, segment uint16) {
	if p.unpack.Watching() {
		p.unpack.Saw(packet, link, segment)
	}
}

// report tells the peer what is held, if there is anything new to tell.
func (m *mux) report(now time.Time) {
	p := &m.past
	r := p.received
	if r == nil {
		return
	}
	since := now.Sub(p.reported)
	switch {
	case r.Due() || r.Fresh() && since >= reportEvery:
		p.again = reportAgain
	case p.again > 0 && since >= repeatEvery:
		p.again--
	default:
		return
	}
	p.reported = now
	msg := r.Report()
	m.sendControl(carrier.Probe, msg.Append(nil))
}
