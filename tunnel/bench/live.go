package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/bench/far"
	"stitch/tunnel/control"
)

// PeerConfig says what RunPeer measures.
type PeerConfig struct {
	// Dir is the run directory of this host's agent, Peer the other site.
	Dir, Peer string
	// Length, File and VM are as in Config; of a file and of made data as much is
	// sent as the far end's history takes.
	Length time.Duration
	File   string
	VM     VM
	// Progress hears what is done now; never nil.
	Progress func(string)
}

// livePeerHistory is what is sent at most of data that is to be found again: a
// bench stream's history is of 128 MiB.
const livePeerHistory = 96 << 20

// linkUDP is what IPv4 and UDP put around the payload of a datagram.
const linkUDP = 28

// RunPeer measures the path to a peer whose agent runs, from the edge host of
// this one. When ctx ends nothing goes on at either side. A part that cannot be
// had is in Left of the report with the reason; without the link there is none.
func RunPeer(ctx context.Context, cfg PeerConfig) (*Report, error) {
	l := &live{
		peer: cfg.Peer, link: control.NewClient(filepath.Join(cfg.Dir, control.LinkSocket)),
		stream: control.NewClient(filepath.Join(cfg.Dir, control.StreamSocket)),
	}
	if _, err := l.wan(ctx); err != nil {
		return nil, err
	}
	r := &Report{Peer: cfg.Peer, VM: cfg.VM}
	if err := r.livePath(ctx, cfg, l); err != nil {
		return nil, err
	}
	s, err := newSources(Config{Rate: r.Rate, Length: cfg.Length, File: cfg.File})
	if err != nil {
		return nil, err
	}
	s.bound(livePeerHistory)
	if err := r.liveStreams(ctx, cfg, l, s); err != nil {
		return nil, err
	}
	r.forecast()
	return r, nil
}

// livePath measures what is of the link.
func (r *Report) livePath(ctx context.Context, cfg PeerConfig, l *live) error {
	cfg.Progress("the path")
	before, err := l.wan(ctx)
	if err != nil {
		return err
	}
	t := trains{l.link, cfg.Peer}
	if r.Path, err = t.path(ctx, cfg.Length/3); err != nil {
		return err
	}
	after, err := l.wan(ctx)
	if err != nil {
		return err
	}
	r.Path.WAN = after - before
	if r.Path.Rate == 0 {
		return fmt.Errorf("nothing of what was sent arrived at %s", cfg.Peer)
	}
	r.Rate, r.RTT, r.Loss = int64(r.Path.Rate), r.Path.Idle.Min, r.Path.Loss()
	cfg.Progress("packets of layer 2")
	p, err := t.frames(ctx, Stitch)
	if err != nil {
		return err
	}
	r.Packets = append(r.Packets, p)
	return nil
}

// liveStreams measures what is of the streams. That a site has none is no error.
func (r *Report) liveStreams(ctx context.Context, cfg PeerConfig, l *live, s *sources) error {
	cfg.Progress("packets of layer 3")
	p, err := packets(ctx, Stitch, 3, l.counted())
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, control.ErrBenchRefused), errors.Is(err, control.ErrNotRunning):
		r.leave("streams", err.Error())
		return nil
	case err != nil:
		r.leave("packets of layer 3", err.Error())
	default:
		r.Packets = append(r.Packets, p)
	}
	return r.measure(ctx, Stitch, cfg.Length, l, s, []string{Random, Typical, Repeated}, cfg.Progress)
}

// live is the way to a peer whose agent runs.
type live struct {
	peer         string
	link, stream *control.Client
}

// open implements ends.
func (l *live) open(ctx context.Context, s far.Service) (conn, error) {
	c, _, err := l.stream.Bench(ctx, l.peer, s.String())
	if err != nil {
		return nil, err
	}
	return c, nil
}

// once implements ends.
func (*live) once() bool { return true }

// packets implements ends: the agents have no such connection of their own.
func (*live) packets() ends { return nil }

// wan implements ends by the link's counters.
func (l *live) wan(ctx context.Context) (uint64, error) {
	st, err := l.link.Status(ctx)
	if err != nil {
		return 0, err
	}
	for _, k := range st.Links {
		if k.Peer != l.peer {
			continue
		}
		type traffic struct {
			Datagrams uint64 `json:"datagrams"`
			WireBytes uint64 `json:"wire_bytes"`
		}
		var d struct{ Rx, Tx traffic }
		if err := json.Unmarshal(k.Detail, &d); err != nil {
			return 0, fmt.Errorf("the status of the link to %s: %w", l.peer, err)
		}
		return d.Rx.WireBytes + d.Tx.WireBytes + linkUDP*(d.Rx.Datagrams+d.Tx.Datagrams), nil
	}
	return 0, fmt.Errorf("%w: no peer %q", ErrNoPeer, l.peer)
}

// ErrNoPeer is returned by RunPeer for a peer that the agent does not have.
var ErrNoPeer = errors.New("bench")

// counted counts packets between the two agents' link addresses.
func (l *live) counted() counted {
	var link control.BenchLink
	return counted{
		service: func(ctx context.Context) (conn, error) {
			c, k, err := l.stream.Bench(ctx, l.peer, far.Packets.String())
			if err != nil {
				return nil, err
			}
			link = k
			return c, nil
		},
		dial: func(ctx context.Context, port uint16) (net.Conn, error) {
			local, err := netip.ParseAddr(link.Local)
			if err != nil {
				return nil, err
			}
			d := net.Dialer{
				LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)),
				Control: func(_, _ string, rc syscall.RawConn) (err error) {
					if e := rc.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), link.Device) }); e != nil {
						return e
					}
					return err
				},
			}
			return d.DialContext(ctx, "udp4", net.JoinHostPort(link.Remote, strconv.Itoa(int(port))))
		},
	}
}
