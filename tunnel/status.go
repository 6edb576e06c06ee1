package tunnel

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/control"
	"stitch/tunnel/redirect"
	"stitch/tunnel/stream"
	"stitch/tunnel/wg"
)

// status is the link plane's part of the agent's status.
func (p *linkPlane) status(context.Context) control.Status {
	s := control.Status{Site: p.cfg.Site}
	for _, peer := range p.cfg.Peers {
		l := p.linkStatus(peer)
		// A stock peer that is silent may have nothing to say.
		why := wg.Obstacle(l.Obstacle)
		if l.State != string(wg.Up) && (!peer.Stock || why != "" && why != wg.Silence) {
			s.Alarms = append(s.Alarms, fmt.Sprintf("link to %s is %s: %s", peer.Name, l.State, p.advice(peer, why)))
		}
		if l.Quality != "" {
			s.Alarms = append(s.Alarms, fmt.Sprintf("link to %s is %s", peer.Name, l.Quality))
		}
		if l.UnknownSegment > 0 {
			s.Alarms = append(s.Alarms, fmt.Sprintf("%s sends frames of a segment that is not configured here: do both sites list the same segment ids?", peer.Name))
		}
		s.Links = append(s.Links, l)
	}
	for _, seg := range p.segments {
		st := seg.port.Stats()
		s.Segments = append(s.Segments, control.Raw(st))
		s.Alarms = append(s.Alarms, st.Alarms()...)
	}
	if p.divert != nil {
		st := p.divert.Stats()
		s.Divert = control.Raw(st)
		s.Alarms = append(s.Alarms, st.Alarms()...)
	}
	m := p.manager.Stats()
	s.Redirect = control.Raw(m)
	if m.Error != "" {
		s.Alarms = append(s.Alarms, "kernel: "+m.Error)
	}
	s.Alarms = append(s.Alarms, m.Warnings...)
	if a := trackingAlarm(redirect.Tracked()); a != "" {
		s.Alarms = append(s.Alarms, a)
	}
	for _, o := range m.Owners {
		s.Workloads = append(s.Workloads, control.Workload{Name: o.Workload, Site: o.Site, Seq: o.Seq, Here: o.Site == p.cfg.Site})
	}
	for _, svc := range p.cfg.Services {
		s.Services = append(s.Services, p.serviceStatus(svc))
	}
	return s
}

// advice says what to do about a link that is not up.
func (p *linkPlane) advice(peer config.Peer, o wg.Obstacle) string {
	switch o {
	case wg.OurKey:
		return fmt.Sprintf("handshakes come in for another key than this site's: public_key of %s at %s must be %s", p.cfg.Site, peer.Name, wg.PublicKey(p.cfg.PrivateKey).Base64())
	case wg.PeerKey:
		return fmt.Sprintf("handshakes come in that are not from the owner of public_key %s: compare it with what `stitch keygen --public` prints at %s, and that site's clock", peer.PublicKey.Base64(), peer.Name)
	case wg.Secret:
		return "the keys fit, but the answers to handshakes do not, or get lost on the way to one side: is preshared_key the same at both?"
	case wg.Silence:
		return fmt.Sprintf("nothing comes back: is its agent running, is UDP to %s open, is its public_key %s?", cmp.Or(peer.Endpoint, "this host"), peer.PublicKey.Base64())
	}
	return fmt.Sprintf("is its agent running, is UDP to %s open, do the keys match?", cmp.Or(peer.Endpoint, "this host"))
}

// trackingAlarm says that the kernel's table of connections is nearly full, of most, or
// is nothing.
func trackingAlarm(n, most int) string {
	if most == 0 || n < most-most/10 {
		return ""
	}
	return fmt.Sprintf("the kernel tracks %d of at most %d connections: when the table is full it loses new ones of every kind: raise net.netfilter.nf_conntrack_max", n, most)
}

// streamStatus is the stream plane's part of the agent's status.
func streamStatus(st stream.Stats) control.Status {
	s := control.Status{Streams: control.Raw(st)}
	if st.Admitted >= st.Max {
		s.Alarms = append(s.Alarms, fmt.Sprintf("%d streams are open, as many as are allowed: new connections pass without optimisation (%d so far)", st.Admitted, st.Full))
	}
	if m := st.Memory; m.Short || m.Lately {
		s.Alarms = append(s.Alarms, fmt.Sprintf("memory is short (%s): %d of %d MiB are free, %d are kept for the streams that are open: new connections pass without optimisation (%d so far); give it more, or [history] less", m.Place, m.Free>>20, m.Total>>20, m.Mark>>20, m.Turned))
	}
	if st.Lack != "" {
		s.Alarms = append(s.Alarms, fmt.Sprintf("%s; new connections passed without optimisation (%d times so far)", st.Lack, st.Lacked))
	}
	for _, p := range st.Peers {
		if p.Conflict != "" {
			s.Alarms = append(s.Alarms, fmt.Sprintf("streams with %s: the two sites disagree: %s", p.Peer, p.Conflict))
		}
		for _, d := range p.Domains {
			for _, a := range append(d.History.Store.Alarms, d.Alarm) {
				if a != "" {
					s.Alarms = append(s.Alarms, fmt.Sprintf("history of domain %s with %s: %s", d.Domain, p.Peer, a))
				}
			}
		}
	}
	return s
}

// linkStatus is the status of the link to peer.
func (p *linkPlane) linkStatus(peer config.Peer) control.LinkStatus {
	out := control.LinkStatus{Peer: peer.Name, State: string(wg.Connecting), Device: p.info[peer.Name].Device, LastHandshake: -1}
	out.UnknownSegment = p.links[peer.Name].unknown.Load()
	l := p.links[peer.Name].link.Load()
	if l == nil {
		return out
	}
	st := l.Stats()
	out.State, out.Endpoint, out.Loss, out.Detail = string(st.State), st.Endpoint, st.Loss, control.Raw(st)
	out.Obstacle = string(st.Obstacle)
	if q := st.Quality; q.Reason != "" {
		out.Quality = fmt.Sprintf("%s: %s", q.Health, q.Reason)
	}
	out.RTTms = float64(st.RTT) / float64(time.Millisecond)
	if !st.LastHandshake.IsZero() {
		out.LastHandshake = time.Since(st.LastHandshake).Seconds()
	}
	return out
}

// serviceStatus says where a service's name points now.
func (p *linkPlane) serviceStatus(svc config.Service) control.Service {
	out := control.Service{Name: svc.Name, Workload: svc.Workload}
	for _, o := range p.manager.Owners() {
		if at, ok := svc.At[o.Site]; ok && o.Workload == svc.Workload {
			out.Address = at.String()
		}
	}
	return out
}
