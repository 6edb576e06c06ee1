// Package tunnel wires the stages into an agent. It decides nothing itself:
// every decision is in the package that owns it, and data flows one way,
// LAN devices, segment or link, wireguard-go, UDP.
//
// An agent has two planes. The link plane holds the WireGuard links, the
// segments, the redirection and the name server. The stream plane intercepts,
// optimises and relays TCP. They meet in the kernel only, so each runs in a
// process of its own and the memory-hungry one can never take the other down;
// tests run both in one process.
package tunnel

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/conn"

	"stitch/tunnel/bench/far"
	"stitch/tunnel/config"
	"stitch/tunnel/control"
	"stitch/tunnel/divert"
	"stitch/tunnel/dns"
	"stitch/tunnel/ether"
	"stitch/tunnel/netdev"
	"stitch/tunnel/redirect"
	"stitch/tunnel/stream"
	"stitch/tunnel/wg"
)

// Runner is something that serves until its context ends.
type Runner interface {
	Run(ctx context.Context) error
}

// Seams are an agent's only ways to the outside. Time is the time package
// alone, which testing/synctest replaces.
type Seams struct {
	// Devices opens TUN and TAP devices.
	Devices netdev.Opener
	// Bind returns the UDP side of the link to a peer; a nil Bind means
	// wireguard-go's own.
	Bind func(peer string) conn.Bind
	// Attach puts the TAP of a segment into its bridge.
	Attach func(seg config.Segment, tap string) (*ether.Attachment, error)
	// Kernel programs routes, rules and packet filter.
	Kernel redirect.Kernel
	// Net is the kernel's TCP, for the stream plane.
	Net stream.Net
	// Divert makes the link plane's side, and Segments the stream plane's, of
	// what takes connections out of segments; nil: none are taken.
	Divert   func() *divert.Link
	Segments stream.Segments
	// Control serves what a plane answers; Path is the name of the socket in
	// the run directory. Nil: it has none.
	Control func(control.Config) (Runner, error)
	// DNS binds the name server; nil: names are not served.
	DNS func(dns.Config) (Runner, error)
	// Beat is called about once a second by a plane that serves and has proved
	// that it does not hang. It may block for as long as it likes. Nil: nobody
	// wants to know.
	Beat func()
	// Rand gives nonces.
	Rand io.Reader
}

// Linux returns the seams of a real host.
func Linux(cfg *config.Config, log *slog.Logger) Seams {
	return Seams{
		Devices: netdev.Linux{NoCut: cfg.Offload.NoCut, NoJoin: cfg.Offload.NoJoin},
		Bind:    func(string) conn.Bind { return nil },
		Attach: func(seg config.Segment, tap string) (*ether.Attachment, error) {
			return ether.Attach(seg, tap, log)
		},
		Kernel: redirect.NewLinux(log),
		Net:    &stream.Linux{Opener: netdev.Linux{}, HoldRoute: redirect.HoldRoute, Raw: new(stream.RawSockets)},
		Control: func(c control.Config) (Runner, error) {
			c.Path, c.Log = filepath.Join(cfg.RunDir, c.Path), log
			return control.Listen(c)
		},
		Divert: func() *divert.Link {
			return divert.NewLink(filepath.Join(cfg.RunDir, divert.Socket), netdev.Linux{NoCut: cfg.Offload.NoCut, NoJoin: cfg.Offload.NoJoin}, log)
		},
		Segments: stream.NewLinuxSegments(filepath.Join(cfg.RunDir, divert.Socket), log),
		DNS:      func(c dns.Config) (Runner, error) { return dns.Listen(c) },
		Rand:     rand.Reader,
	}
}

// Agent is one site's agent. Its methods may be called once each.
type Agent struct {
	cfg   *config.Config
	seams Seams
	log   *slog.Logger
}

// New returns an agent; nothing is opened before one of its planes runs. A nil
// log is silent.
func New(cfg *config.Config, seams Seams, log *slog.Logger) *Agent {
	return &Agent{cfg: cfg, seams: seams, log: cmp.Or(log, slog.New(slog.DiscardHandler))}
}

// Run runs both planes until ctx ends or one of them fails.
func (a *Agent) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.RunLink(ctx) })
	g.Go(func() error { return a.RunStream(ctx) })
	return g.Wait()
}

// RunStream runs the stream plane until ctx ends; then every stream is reset
// and the error is nil.
func (a *Agent) RunStream(ctx context.Context) (err error) {
	links, err := a.streamLinks()
	if err != nil {
		return err
	}
	cfg := stream.Config{Site: a.cfg.Site, Cfg: a.cfg, Links: links, Net: a.seams.Net, Rand: a.seams.Rand, Log: a.log}
	if len(a.cfg.SplitSegments()) > 0 {
		cfg.Segments = a.seams.Segments
	}
	p, err := stream.New(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	status := func(context.Context) control.Status { return streamStatus(p.Stats()) }
	flows := func() json.RawMessage { return control.Raw(p.Flows(maxFlows)) }
	return a.serve(ctx, control.Config{Path: control.StreamSocket, Status: status, Flows: flows, Seed: seeder(p), Bench: bencher(p)}, p.Prove, p)
}

// maxFlows bounds the answer to `stitch flows`: about 3 MB.
const maxFlows = 10_000

// seeder is what the control socket calls to seed.
func seeder(p *stream.Proxy) control.SeedFunc {
	return func(ctx context.Context, r control.SeedRequest, report func(control.SeedProgress)) error {
		return p.Seed(ctx, r.Peer, r.Domain, r.Files, func(s stream.SeedProgress) { report(control.SeedProgress(s)) })
	}
}

// bencher is what the control socket calls to open a stream to be measured.
func bencher(p *stream.Proxy) control.BenchFunc {
	return func(ctx context.Context, peer, service string, accept func(control.BenchLink) (*net.UnixConn, error)) error {
		s, err := far.Parse(service)
		if err != nil {
			return err
		}
		return p.Bench(ctx, peer, s, func(l stream.Link) (*net.UnixConn, error) {
			return accept(control.BenchLink{Device: l.Device, Local: l.Local.String(), Remote: l.Remote.String()})
		})
	}
}

// streamLinks are the links that carry streams, with the secret that opens an
// inter-agent connection.
func (a *Agent) streamLinks() ([]stream.Link, error) {
	links, err := Links(a.cfg)
	if err != nil {
		return nil, err
	}
	var out []stream.Link
	for _, p := range a.cfg.Peers {
		if p.Stock {
			continue
		}
		token, err := wg.SharedSecret(a.cfg.PrivateKey, p.PublicKey, "stitch stream v1")
		if err != nil {
			return nil, fmt.Errorf("peer %s: %w", p.Name, err)
		}
		l := links[p.Name]
		out = append(out, stream.Link{Peer: p.Name, Number: l.Number, Device: l.Device, Local: l.Local, Remote: l.Remote, Token: token})
	}
	return out, nil
}

// serve runs a plane's parts, its status socket and its heart until ctx ends or
// one of them fails. The end of ctx is no error.
func (a *Agent) serve(ctx context.Context, api control.Config, prove func(), parts ...Runner) error {
	if a.seams.Control != nil {
		s, err := a.seams.Control(api)
		if err != nil {
			return err
		}
		parts = append(parts, s)
	}
	if a.seams.Beat != nil {
		parts = append(parts, heart{prove, a.seams.Beat})
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, p := range parts {
		g.Go(func() error { return p.Run(gctx) })
	}
	if err := g.Wait(); err != nil && !(ctx.Err() != nil && errors.Is(err, ctx.Err())) {
		return err
	}
	return nil
}

// RunLink is what the link process runs: the link plane of a real host, whose
// offloads it tests first. Beat is Seams.Beat.
func RunLink(ctx context.Context, cfg *config.Config, log *slog.Logger, beat func()) error {
	seams := Linux(cfg, log)
	seams.Beat = beat
	tested, err := netdev.Linux{NoCut: cfg.Offload.NoCut, NoJoin: cfg.Offload.NoJoin}.SelfTest()
	if err != nil && log != nil {
		log.Warn("offloads", "err", err)
	}
	seams.Devices = tested
	return New(cfg, seams, log).RunLink(ctx)
}

// RunStream is what the stream process runs: the stream plane of a real host.
// Beat is Seams.Beat.
func RunStream(ctx context.Context, cfg *config.Config, log *slog.Logger, beat func()) error {
	seams := Linux(cfg, log)
	seams.Beat = beat
	return New(cfg, seams, log).RunStream(ctx)
}

// Clean removes from this host what a stopped agent left on purpose: its
// devices, rules and routes, and with keepGuards false also the guard routes
// that keep the peers' traffic from leaving in clear.
func Clean(cfg *config.Config, keepGuards bool) error {
	s := Linux(cfg, nil)
	errs := []error{s.Kernel.Clear(keepGuards)}
	for _, p := range cfg.Peers {
		errs = append(errs, s.Devices.Remove(TUNName(p.Name)))
	}
	for _, seg := range cfg.Segments {
		errs = append(errs, s.Devices.Remove(TAPName(seg.ID)))
	}
	return errors.Join(errs...)
}
