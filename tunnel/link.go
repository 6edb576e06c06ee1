package tunnel

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"stitch/tunnel/config"
	"stitch/tunnel/control"
	"stitch/tunnel/divert"
	"stitch/tunnel/dns"
	"stitch/tunnel/ether"
	"stitch/tunnel/netdev"
	"stitch/tunnel/netdev/super"
	"stitch/tunnel/redirect"
	"stitch/tunnel/stream"
	"stitch/tunnel/wg"
)

// linkPlane is the link plane of one agent while it runs.
type linkPlane struct {
	*Agent
	info     redirect.Links
	tuns     map[string]netdev.Device
	links    map[string]*sender
	segments []*segment
	ports    map[uint16]*ether.Port // of segments, by id
	divert   *divert.Link           // nil: no segment's connections are split
	manager  *redirect.Manager
	parts    []Runner
	closers  []func() error // in the order of opening
}

// segment is a stretched network while the plane runs.
type segment struct {
	cfg  config.Segment
	port *ether.Port
}

// sender is a link that segments may send to before it is open.
type sender struct {
	peer config.Peer
	link atomic.Pointer[wg.Link]
	// unknown counts frames that came for no segment of ours.
	unknown atomic.Uint64
}

// SendFrame implements ether.Sender.
func (s *sender) SendFrame(segment uint16, frame []byte, h super.Header) bool {
	l := s.link.Load()
	return l != nil && l.SendFrame(segment, frame, h)
}

// SendBuffer implements ether.Sender.
func (s *sender) SendBuffer(segment uint16, buf *[]byte, frame []byte, h super.Header) bool {
	l := s.link.Load()
	return l != nil && l.SendBuffer(segment, buf, frame, h)
}

// RunLink runs the link plane until ctx ends. Devices, rules and routes then
// stay for the next start to adopt, with nothing behind them: see Clean.
func (a *Agent) RunLink(ctx context.Context) (err error) {
	p := &linkPlane{Agent: a, tuns: map[string]netdev.Device{}, links: map[string]*sender{}, ports: map[uint16]*ether.Port{}}
	if p.info, err = Links(a.cfg); err != nil {
		return err
	}
	// 1. From here on nothing for a peer leaves in clear.
	if err := a.seams.Kernel.Guard(redirect.Plan(a.cfg, p.info, nil, false)); err != nil {
		return fmt.Errorf("guard routes: %w", err)
	}
	defer func() { err = errors.Join(err, p.close()) }()
	// 2. Devices, then what moves packets between them.
	if err := p.open(); err != nil {
		return err
	}
	// 3. The links last: packets flow as soon as the first one is open.
	if err := p.connect(); err != nil {
		return err
	}
	return a.serve(ctx, control.Config{Path: control.LinkSocket, Status: p.status, Train: p.train}, p.prove, p.parts...)
}

// open opens everything but the links.
func (p *linkPlane) open() error {
	for _, peer := range p.cfg.Peers {
		if err := p.openTUN(peer); err != nil {
			return err
		}
	}
	if p.seams.Divert != nil && len(p.cfg.SplitSegments()) > 0 {
		p.divert = p.seams.Divert()
		p.parts = append(p.parts, p.divert)
	}
	for _, seg := range p.cfg.Segments {
		if err := p.openSegment(seg); err != nil {
			return err
		}
	}
	return p.openRedirect()
}

// openTUN opens the device of a link.
func (p *linkPlane) openTUN(peer config.Peer) error {
	info := p.info[peer.Name]
	d, err := p.seams.Devices.OpenTUN(info.Device, config.TUNMTU(info.InnerMTU, peer.Stock))
	if err != nil {
		return fmt.Errorf("link to %s: %w", peer.Name, err)
	}
	p.closers = append(p.closers, d.Close)
	p.tuns[peer.Name] = d
	p.links[peer.Name] = &sender{peer: peer}
	return nil
}

// openSegment opens the TAP of a segment and joins it to its bridge.
func (p *linkPlane) openSegment(seg config.Segment) error {
	tap, err := p.seams.Devices.OpenTAP(TAPName(seg.ID), config.LANMTU)
	if err != nil {
		return err
	}
	attached, err := p.seams.Attach(seg, tap.Name())
	if err != nil {
		return errors.Join(err, tap.Close())
	}
	peers := map[string]ether.Sender{}
	for _, name := range seg.Peers {
		peers[name] = p.links[name]
	}
	id, err := drawID(p.seams.Rand)
	if err != nil {
		return errors.Join(err, attached.Close(), tap.Close())
	}
	cfg := ether.Config{
		Segment: seg, Peers: peers, TAP: tap, Own: attached.Own, ID: id, Log: p.log,
		Static:     func() []ether.StaticMAC { return p.static(seg.ID) },
		OnAnnounce: func(a ether.Announcement) { p.manager.Announce(a.MAC, a.IP) },
	}
	port := p.openPort(cfg, attached.MTU)
	// The port closes its TAP; the TAP leaves the bridge with the attachment.
	p.closers = append(p.closers, attached.Close, port.Close)
	p.segments = append(p.segments, &segment{seg, port})
	p.ports[seg.ID] = port
	p.parts = append(p.parts, port)
	return nil
}

// openPort opens the port of a segment, with what takes connections out of it if
// any are to be split. Those begin only when a stream process runs, much later.
func (p *linkPlane) openPort(cfg ether.Config, mtu int) *ether.Port {
	id := cfg.Segment.ID
	if p.divert == nil || !slices.Contains(p.cfg.SplitSegments(), id) {
		return ether.Open(cfg)
	}
	selector := stream.NewSelector(p.cfg)
	s := p.divert.Add(id, mtu, func(peer string, src, dst netip.AddrPort) (covered, split bool) {
		return selector.Choose(id, peer, src, dst)
	})
	cfg.Divert = s
	cfg.OnAnnounce = func(a ether.Announcement) {
		s.Seen(a.MAC)
		p.manager.Announce(a.MAC, a.IP)
	}
	port := ether.Open(cfg)
	s.Use(port)
	return port
}

// drawID draws a number that is not 0.
func drawID(r io.Reader) (uint64, error) {
	if r == nil {
		r = rand.Reader
	}
	var b [8]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, fmt.Errorf("draw a number for a segment: %w", err)
	}
	return binary.BigEndian.Uint64(b[:]) | 1, nil
}

// static names the workloads of a segment where the configuration puts them.
func (p *linkPlane) static(id uint16) []ether.StaticMAC {
	var out []ether.StaticMAC
	for _, w := range p.cfg.Workloads {
		if w.Segment == id {
			out = append(out, ether.StaticMAC{MAC: w.MAC, IP: w.IP, Peer: p.peerAt(w.Site)})
		}
	}
	return out
}

// peerAt is the site's name, or empty for this site.
func (p *linkPlane) peerAt(site string) string {
	if site == p.cfg.Site {
		return ""
	}
	return site
}

// openRedirect makes the redirection and the name server.
func (p *linkPlane) openRedirect() error {
	m, err := redirect.New(redirect.Config{
		Cfg: p.cfg, Links: p.info, Kernel: p.seams.Kernel, Streams: len(p.cfg.Streams) > 0 || len(p.cfg.Dials) > 0,
		Send: p.sendControl, OnMove: p.moved, Log: p.log,
	})
	if err != nil {
		return err
	}
	p.manager = m
	p.parts = append(p.parts, m)
	if p.cfg.DNS == nil || p.seams.DNS == nil {
		return nil
	}
	names := make([]string, 0, len(p.cfg.Services))
	for _, s := range p.cfg.Services {
		if !slices.Contains(names, s.Name) {
			names = append(names, s.Name)
		}
	}
	s, err := p.seams.DNS(dns.Config{Listen: p.cfg.DNS.Listen, Names: names, TTL: p.cfg.DNS.TTL, Lookup: m.Where, Log: p.log})
	if err != nil {
		return err
	}
	p.parts = append(p.parts, s)
	return nil
}

// sendControl gives a control datagram to a peer.
func (p *linkPlane) sendControl(peer string, msg []byte) bool {
	s := p.links[peer]
	if s == nil {
		return false
	}
	l := s.link.Load()
	return l != nil && l.SendControl(msg)
}

// train measures a link.
func (p *linkPlane) train(ctx context.Context, t control.Train) (control.TrainResult, error) {
	s := p.links[t.Peer]
	if s == nil {
		return control.TrainResult{}, fmt.Errorf("no peer %q: there is %s", t.Peer, strings.Join(slices.Sorted(maps.Keys(p.links)), ", "))
	}
	l := s.link.Load()
	if l == nil {
		return control.TrainResult{}, fmt.Errorf("the link to %s is not open yet", t.Peer)
	}
	r, err := l.Measure(ctx, wg.Train{Size: t.Size, Rate: t.Rate, Length: t.Length})
	return control.TrainResult(r), err
}

// moved tells the segments where a workload is now.
func (p *linkPlane) moved(o redirect.Owner) {
	i := slices.IndexFunc(p.cfg.Workloads, func(w config.Workload) bool { return w.Name == o.Workload })
	if i < 0 {
		return
	}
	w := p.cfg.Workloads[i]
	for _, s := range p.segments {
		if s.cfg.ID == w.Segment {
			s.port.Claim(w.MAC, p.peerAt(o.Site))
		}
	}
}

// connect opens the links.
func (p *linkPlane) connect() error {
	selector := stream.NewSelector(p.cfg)
	for _, peer := range p.cfg.Peers {
		info := p.info[peer.Name]
		classes := p.cfg.Classes
		if peer.Rate == 0 {
			classes = nil // no rule for it names one
		}
		l, err := wg.Open(wg.Config{
			Name: peer.Name, PrivateKey: p.cfg.PrivateKey, PublicKey: peer.PublicKey, PresharedKey: peer.PresharedKey,
			ListenPort: peer.ListenPort, Endpoint: peer.Endpoint, TUN: p.tuns[peer.Name], InnerMTU: info.InnerMTU,
			Local: info.Local, Remote: info.Remote, Stock: peer.Stock, Bind: p.seams.Bind(peer.Name), Apart: p.cfg.Offload.NoTrain, NoPack: p.cfg.Offload.NoPack, Log: p.log,
			History: peer.PacketHistory, HistoryFrom: peer.PacketHistoryFrom,
			Rate: max(peer.Rate, 0), Learn: peer.Rate == config.LearnRate, Overhead: peer.UnderlayMTU - info.InnerMTU,
			Classes: classes, Marks: p.cfg.Marks,
			ClassOf: func(segment uint16, src, dst netip.AddrPort) int {
				return selector.Class(peer.Name, segment, src, dst)
			},
			OnFrames:  func(id uint16, frames [][]byte) { p.fromLink(peer.Name, id, frames) },
			OnControl: func(msg []byte) { p.manager.FromPeer(peer.Name, msg) },
			OnState:   func(s wg.State) { p.log.Info("link", "peer", peer.Name, "state", s) },
		})
		if err != nil {
			return fmt.Errorf("link to %s: %w", peer.Name, err)
		}
		p.closers = append(p.closers, l.Close)
		p.links[peer.Name].link.Store(l)
	}
	return nil
}

// fromLink hands frames to the segment they belong to; those of an unknown
// segment are counted. One that is not stretched to that peer drops them.
func (p *linkPlane) fromLink(peer string, id uint16, frames [][]byte) {
	if port := p.ports[id]; port != nil {
		port.FromLink(peer, frames)
	} else {
		p.links[peer].unknown.Add(uint64(len(frames)))
	}
}

// close closes in reverse order of opening.
func (p *linkPlane) close() error {
	var errs []error
	for _, c := range slices.Backward(p.closers) {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}
