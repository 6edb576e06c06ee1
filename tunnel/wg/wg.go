// Package wg is a link: one wireguard-go device towards one peer, and what
// shares it with the plain IP packets of the peer's TUN device. It hides
// wireguard-go from everyone else.
//
//	TUN device ──► hold ──┐
//	frames ──► 128 ───────┼─► mux ─► wireguard-go ─► binder ─► UDP
//	control, probes ► 64 ─┘
//
// The mux is the tun.Device that wireguard-go has. On the way out control
// datagrams and probes go first, then frames, then packets; packets keep half
// of each batch when both wait. The TUN device is read straight into the
// buffers of wireguard-go, and super-frames are cut straight into them, or leave
// as parts of a compressed unit (package pack; units.go), unless the link has a
// rate, configured or learned from gauges (gauge.go): then all of these wait in a
// queue that is fair to classes and flows (package shape), so that bulk never makes others wait. At
// most 1024 packets are inside wireguard-go at once. What is not a plain packet that
// fits is carried in the format of package carrier; a stock peer gets plain
// packets only.
//
// The binder decorates the UDP side: it settles who initiates when both ends
// do, repeats handshake messages that are not answered (handshake.go), and
// retries where wireguard-go would go deaf.
//
// Probes (probe.go) every 200 ms say whether packets cross both ways; larger
// ones how large a packet may be (pathmtu.go), trains of them whether
// several datagrams may leave in one call (train.go), and what the path takes is
// measured by trains when somebody asks (measure.go). While
// they do not, the newest packet of each flow is held, and leaves first when
// they do again. Nothing is ever sent around the link. Package quality makes of
// the same probes how good the link is, each direction apart.
//
// # Packets that are too big
//
// It is the kernel that fragments them, or answers ICMP "fragmentation needed"
// and ICMPv6 "packet too big": it routes what enters the TUN device, and the
// link keeps the MTU of that at what it carries (config.TUNMTU, fitTUN).
//
//	                     cross as they are   cross in parts    MTU of the TUN
//	to an agent          up to inner         up to the MTU     1500, or inner if that is more
//	to a stock peer      up to inner         never             inner
//
// Inner is what the configuration says, less while the path carries less; of a
// stock peer's path nobody finds out. TCP, whose super-packets are cut and whose
// MSS is clamped to inner, fits without being told. A packet that is too big all
// the same (Drops.TooBig) came in because somebody raised the MTU: it is dropped
// and the MTU set back within a second, so the next one is answered.
//
// # What limits a link
//
// The processors. With two that both agents, the sender and the receiver of one
// TCP connection share (make packets; perf over all of them, Linux 6.18, random
// data), the agents had 80 % of the time on layer 3: 24 of these are
// encryption (ChaCha20-Poly1305, sealed and opened once), the copies between
// kernel and agent and within it are 7, checksums of TCP where packets are cut
// and joined 5, all the rest of the kernel (UDP, the devices, forwarding,
// filters, wakeups) 27, and the rest wireguard-go's and ours. So a link costs 2.5
// times its encryption and copies. Layer 2 costs the kernel less, a bridge being
// less than a router with its filter, but each datagram carries 3 % less of a
// connection (1346 bytes for 1388: carrier and Ethernet header), and the switch
// has to look at frames.
//
// The kernel hands over 44 KB at a time on both layers, and gets 31 KB: a batch
// of wireguard-go's ends where the kernel's of UDP does.
package wg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev"
	"stitch/tunnel/netdev/super"
	"stitch/tunnel/wg/carrier"
	"stitch/tunnel/wg/govern"
	"stitch/tunnel/wg/quality"
)

// MaxControl is the most bytes of one control datagram.
const MaxControl = config.MaxControl

const (
	// A control datagram must fit into one packet, and a datagram of the link
	// into 64 KiB.
	minInnerMTU = config.MinInnerMTU
	maxInnerMTU = 65000
)

// Config describes one link. TUN, PrivateKey, PublicKey, InnerMTU, Local and
// Remote are required.
type Config struct {
	// Name is the peer's name, for the log.
	Name string
	// PrivateKey is ours, PublicKey the peer's; PresharedKey is optional.
	PrivateKey, PublicKey, PresharedKey config.Key
	// ListenPort is the local UDP port; 0 means any.
	ListenPort uint16
	// Endpoint is the peer's "host:port", or "" if the peer calls us. A host
	// name is resolved in the background until it succeeds, and again while
	// the link is down. The peer may roam.
	Endpoint string
	// TUN is the device of the plain IP packets. The caller owns and closes
	// it, after Link.Close. It was opened with config.TUNMTU of InnerMTU; from
	// then on the link sets its MTU, if it is a netdev.Sizer.
	TUN netdev.Device
	// InnerMTU is the largest IP packet that may fit into one datagram of the
	// link, in bytes; see config.InnerMTU. The link finds out by itself when
	// the path carries less, and when it carries all again.
	InnerMTU int
	// Local and Remote are the IPv4 link addresses; see LinkAddrs.
	Local, Remote netip.Addr
	// Stock says that the peer is a WireGuard implementation without stitch:
	// plain IP packets only, no probes.
	Stock bool
	// Rate is the most bits of IP packets a second that leave on the WAN, Overhead
	// what is counted with each packet for that: the WAN's headers. Rate 0: no
	// bound.
	Rate     int64
	Overhead int
	// Learn says that a link without a Rate finds one by itself when the path queues
	// (package govern).
	Learn bool
	// Classes divide the Rate; a packet that is in no other is in the first. Their
	// Limits hold also while no Rate is learned yet. Empty: none.
	Classes []config.Class
	// Marks are what the DSCP of packets from Local to Remote stands for, by its
	// value; any other stands for the first class and a Share of 1.
	Marks []config.Mark
	// ClassOf returns the class of all other packets, and of frames by the IP packet
	// inside (segment 0: none): without ports these are 0, without IP the ends are
	// invalid. It is called from one goroutine, and its answer is kept for the flow.
	// Nil: they are all in the first class.
	ClassOf func(segment uint16, src, dst netip.AddrPort) int
	// Apart sends and receives datagrams one at a time, never several in one
	// call: the way out where UDP segmentation or receive offload harms. A link
	// that finds out that one does, does so by itself.
	Apart bool
	// NoPack neither compresses super-packets nor takes compressed ones; see
	// package pack.
	NoPack bool
	// History is how many bytes of units are kept each way, to be referred to by
	// later ones; 0: none; see package pack/history. Only what hosts in
	// HistoryFrom send is kept here.
	History     int
	HistoryFrom []netip.Prefix
	// Resolver looks up the host of Endpoint; nil means net.DefaultResolver.
	Resolver Resolver
	// Bind is the UDP side; nil means conn.NewDefaultBind().
	Bind conn.Bind
	// OnFrames gets the Ethernet frames from the peer, of one segment those that
	// came together and in their order. It borrows them, is called from the
	// receive goroutine and must not block. Nil: dropped.
	OnFrames func(segment uint16, frames [][]byte)
	// OnControl gets every control datagram, which it borrows; same rules.
	OnControl func(msg []byte)
	// OnState gets the edges between Up and Down, in order, from a goroutine
	// of the link. It must not call Close.
	OnState func(State)
	// Log gets the events of the link; nil means none.
	Log *slog.Logger
}

// State says whether a link carries packets.
type State string

const (
	// Connecting: no proof yet since Open that packets cross both ways.
	Connecting State = "connecting"
	// Up: packets cross both ways.
	Up State = "up"
	// Down: they did, and no longer do.
	Down State = "down"
)

// Resolver looks up host names; *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Link is one link. It is safe for concurrent use.
type Link struct {
	cfg   Config
	log   *slog.Logger
	count counters
	mux   *mux
	bind  *binder
	dev   *device.Device
	peer  *device.Peer

	cancel    context.CancelFunc
	tasks     sync.WaitGroup
	closed    atomic.Bool
	probing   atomic.Bool   // the peer can be reached, as far as we know
	edge      chan struct{} // the state changed
	measuring chan struct{} // holds a token while Measure runs
	opened    time.Time

	mu       sync.Mutex
	prober   *prober
	trainer  trainer
	meter    meter       // of the peer's trains that are measured
	measured *measureRun // our own; nil: none
	lastRun  uint64
	platform platform
	pathMTU  pathMTU
	governor govern.Governor
	starter  starter
	state    State
	since    time.Time
	quality  quality.Report
}

// Open starts a link. It returns as soon as the UDP socket is open; the peer
// need not be there.
func Open(cfg Config) (*Link, error) {
	host, port, err := cfg.validate()
	if err != nil {
		return nil, fmt.Errorf("open link %s: %w", cfg.Name, err)
	}
	path, err := carrier.NewPath(cfg.Local, cfg.Remote)
	if err != nil {
		return nil, fmt.Errorf("open link %s: %w", cfg.Name, err)
	}
	now := time.Now()
	l := &Link{
		cfg: cfg, log: cfg.Log.With("peer", cfg.Name), edge: make(chan struct{}, 1), measuring: make(chan struct{}, 1),
		prober: newProber(rand.Uint64(), now), state: Connecting, since: now,
		pathMTU: newPathMTU(cfg.InnerMTU), opened: now,
	}
	l.prober.offered = featureGauges
	if !cfg.NoPack {
		l.prober.offered |= featureUnits
		if cfg.History > 0 {
			l.prober.offered |= featureHistory
		}
	}
	l.mux = newMux(path, &cfg, &l.count, l, l.log)
	ours := PublicKey(cfg.PrivateKey)
	wins := cfg.Stock || bytes.Compare(ours[:], cfg.PublicKey[:]) < 0
	l.bind = newBinder(cfg.Bind, wins, &l.count, l.log, l.mux.departed)
	var cookies device.CookieChecker
	cookies.Init(device.NoisePublicKey(ours))
	l.bind.hs.signs.forUs = cookies.CheckMAC1
	l.bind.measured, l.bind.opened = !cfg.Stock, now
	l.bind.headers = max(cfg.Overhead-wireGuardLen, 0)
	l.bind.apart.Store(cfg.Apart)
	l.bind.unmerged.Store(cfg.Apart)
	l.mux.arrived = l.bind.backlog.left
	if err := l.start(host, port); err != nil {
		return nil, fmt.Errorf("open link %s: %w", cfg.Name, err)
	}
	return l, nil
}

// validate fills in defaults and returns the parts of the endpoint.
func (c *Config) validate() (host string, port uint16, err error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Bind == nil {
		c.Bind = conn.NewDefaultBind()
	}
	if c.Resolver == nil {
		c.Resolver = net.DefaultResolver
	}
	switch {
	case c.TUN == nil:
		return "", 0, errors.New("no TUN device")
	case c.PrivateKey.IsZero() || c.PublicKey.IsZero():
		return "", 0, errors.New("both the private key and the peer's public key are needed")
	case PublicKey(c.PrivateKey) == c.PublicKey:
		return "", 0, errors.New("the peer's public key is our own: each site needs its own key pair")
	case c.InnerMTU < minInnerMTU || c.InnerMTU > maxInnerMTU:
		return "", 0, fmt.Errorf("inner MTU %d: must be %d to %d", c.InnerMTU, minInnerMTU, maxInnerMTU)
	}
	if c.Endpoint == "" {
		return "", 0, nil
	}
	host, text, err := net.SplitHostPort(c.Endpoint)
	if err != nil {
		return "", 0, fmt.Errorf("endpoint %q: write host:port", c.Endpoint)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || host == "" {
		return "", 0, fmt.Errorf("endpoint %q: write host:port with a port from 1 to 65535", c.Endpoint)
	}
	return host, uint16(n), nil
}

// start brings up wireguard-go and the link's goroutines.
func (l *Link) start(host string, port uint16) error {
	l.dev = device.NewDevice(l.mux, l.bind, deviceLogger(l.log))
	endpoint := ""
	if addr, err := netip.ParseAddr(host); err == nil {
		endpoint = netip.AddrPortFrom(addr.Unmap(), port).String()
		l.probing.Store(true)
	}
	err := l.dev.IpcSet(uapi(&l.cfg, endpoint))
	if err == nil {
		if err = l.dev.Up(); err != nil {
			err = fmt.Errorf("UDP port %d: %w", l.cfg.ListenPort, err)
		}
	}
	if err != nil {
		l.dev.Close()
		return err
	}
	l.peer = l.dev.LookupPeer(device.NoisePublicKey(l.cfg.PublicKey))
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	l.tasks.Go(func() { l.run(ctx) })
	if l.cfg.Learn && l.cfg.Rate == 0 && !l.cfg.Stock {
		l.tasks.Go(func() { l.govern(ctx) })
	}
	if host != "" {
		l.tasks.Go(func() { l.followEndpoint(ctx, host, port, endpoint != "") })
	}
	return nil
}

// Close ends the link and waits for its goroutines. It does not close
// Config.TUN. A second Close returns net.ErrClosed.
func (l *Link) Close() error {
	if l.closed.Swap(true) {
		return net.ErrClosed
	}
	l.cancel()
	l.tasks.Wait()
	l.dev.Close()
	return nil
}

// SendFrame sends an Ethernet frame of a segment, or a super-frame, which
// leaves as frames that fit into one datagram each where that can be; h is
// what the TAP said about it, the zero value a frame that is complete. It
// copies frame. When too much waits it blocks, for at most 0.1 s and only if
// the link moves on; so a fast sender is slowed down by the queue of its TAP.
// False means that the frame was dropped and counted: no room, too long, or
// the link closed. While the link is down, the newest frame of each flow is
// kept instead and sent when it is up again.
func (l *Link) SendFrame(segment uint16, frame []byte, h super.Header) bool {
	return l.mux.sendFrame(segment, frame, h, nil)
}

// SendBuffer is SendFrame for a frame that is a part of *buf, a buffer of
// netdev.BufferLen. It need not copy: the link may keep *buf, and then puts
// another buffer of that length in its place.
func (l *Link) SendBuffer(segment uint16, buf *[]byte, frame []byte, h super.Header) bool {
	return l.mux.sendFrame(segment, frame, h, buf)
}

// SendControl sends a datagram of at most MaxControl bytes ahead of frames and
// packets, without any promise that it arrives; it copies msg. False means
// that it was dropped and counted: link not up, queue full, too long, closed.
func (l *Link) SendControl(msg []byte) bool {
	if len(msg) == 0 || len(msg) > MaxControl || l.cfg.Stock {
		l.count.dropControlInvalid.Add(1)
		return false
	}
	if !l.mux.sendControl(carrier.Control, msg) {
		return false
	}
	l.count.txControl.Add(1)
	return true
}

// Stats returns a snapshot.
func (l *Link) Stats() Stats {
	var s Stats
	l.count.fill(&s)
	l.mu.Lock()
	s.State, s.Since, s.PeerDeaf = l.state, l.since, l.prober.deaf()
	s.RTT, s.RTTVar, s.Loss = l.prober.srtt, l.prober.rttvar, l.prober.loss()
	s.Quality = l.quality
	l.mu.Unlock()
	info := l.info()
	s.LastHandshake, s.Endpoint = info.handshake, info.endpoint
	if s.State != Up {
		s.Obstacle = l.bind.obstacle(info.handshake)
	}
	s.Reassembly = l.mux.reassembly()
	s.Held = l.mux.held()
	s.Apart, s.Unmerged = l.bind.apart.Load(), l.bind.unmerged.Load()
	s.Pack.History = l.mux.past.taken.Load()
	s.Pack.Peer = l.mux.packing.taken.Load()
	s.InnerMTU = int(l.mux.inner.Load())
	s.Classes = l.mux.classStats()
	s.Rate = max(l.cfg.Rate, l.mux.learned.Load())
	return s
}
