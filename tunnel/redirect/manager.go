package redirect

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"stitch/tunnel/config"
)

// Config is what a Manager needs. Cfg, Links, Kernel and Send must be set.
type Config struct {
	Cfg    *config.Config
	Links  Links
	Kernel Kernel
	// Streams says that interception rules are wanted.
	Streams bool
	// Send gives one control datagram (at most MaxMessage bytes) to a peer;
	// false means dropped, and then it is repeated. It borrows msg and must not
	// block.
	Send func(peer string, msg []byte) bool
	// OnMove hears of each change of owner, from the run loop, after the kernel
	// was programmed; it must not block. Nil is nobody.
	OnMove func(Owner)
	// Rand is where the gossip epoch comes from; nil means crypto/rand.
	Rand io.Reader
	// Log is where moves and alarms go; nil is silent.
	Log *slog.Logger
}

const (
	// assertEvery is how often the kernel is compared with the plan: another
	// tool's "nft flush ruleset" is repaired within that time.
	assertEvery = 2 * time.Second
	// queueLen bounds the events that wait for the run loop. When it is full
	// the newest is dropped and counted: announcements and gossip repeat.
	queueLen = 256
)

// Manager is the shell: one run loop that feeds announcements and gossip into
// the Table and the resulting plan into the Kernel.
type Manager struct {
	cfg    Config
	table  *Table
	gossip *Gossip
	events chan event

	// Of the run loop.
	desired   Desired
	viewEnds  time.Time // when the view changes by time alone
	lastError string
	frozen    []string
	warnings  []string

	// Shared with readers.
	view     atomic.Pointer[[]Owner]
	status   atomic.Pointer[Stats]
	dropped  atomic.Uint64
	unsent   atomic.Uint64
	programs atomic.Uint64
}

// event is one thing that happened outside: an announcement, or (with a peer)
// a datagram.
type event struct {
	mac  config.MAC
	ip   netip.Addr
	peer string
	msg  []byte
}

// Stats are a Manager's counters and state.
type Stats struct {
	Owners []Owner     `json:"owners"`
	Table  TableCounts `json:"table"`
	// Frozen are workloads that moved too often: two machines may have one
	// address.
	Frozen []string `json:"frozen,omitempty"`
	// Programmed counts successful changes of the kernel state.
	Programmed uint64 `json:"programmed"`
	// Dropped counts events lost because the run loop was behind, Unsent
	// datagrams that Send refused, Malformed datagrams that were not gossip.
	Dropped   uint64 `json:"dropped"`
	Unsent    uint64 `json:"unsent"`
	Malformed uint64 `json:"malformed"`
	// Error is what the kernel refused last, "" when all is in place.
	Error string `json:"error,omitempty"`
	// Warnings name settings of this host that get in the way.
	Warnings []string `json:"warnings,omitempty"`
}

// New returns a Manager; Run starts it. It refuses names that would not survive
// in the nftables text and more than MaxWorkloads workloads.
func New(cfg Config) (*Manager, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.OnMove == nil {
		cfg.OnMove = func(Owner) {}
	}
	if err := checkNames(cfg.Cfg, cfg.Links); err != nil {
		return nil, err
	}
	if n := len(cfg.Cfg.Workloads); n > MaxWorkloads {
		return nil, fmt.Errorf("redirect: %d workloads are more than the %d that can be announced: split the site", n, MaxWorkloads)
	}
	var epoch [4]byte
	if _, err := io.ReadFull(cfg.Rand, epoch[:]); err != nil {
		return nil, fmt.Errorf("redirect: draw an epoch: %w", err)
	}
	m := &Manager{cfg: cfg, table: NewTable(cfg.Cfg.Site, cfg.Cfg.Workloads, cfg.Cfg.Segments), events: make(chan event, queueLen)}
	m.gossip = NewGossip(m.table, binary.BigEndian.Uint32(epoch[:]), gossipPeers(cfg))
	owners := m.table.Owners()
	m.view.Store(&owners)
	m.status.Store(&Stats{Owners: owners})
	return m, nil
}

// gossipPeers are the peers with an agent, in file order.
func gossipPeers(cfg Config) (names []string) {
	for _, p := range cfg.Cfg.Peers {
		if l, ok := cfg.Links[p.Name]; ok && !l.Stock {
			names = append(names, p.Name)
		}
	}
	return names
}

// Run programs the kernel and serves until ctx ends, then returns ctx's error.
// The kernel state stays: the caller decides about Kernel.Clear.
func (m *Manager) Run(ctx context.Context) error {
	m.replan(time.Now())
	m.program()
	m.warn()
	assert := time.NewTicker(assertEvery)
	defer assert.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		m.publish(time.Now())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-m.events:
			m.handle(e, time.Now())
		case <-assert.C:
			if m.lastError != "" || !m.cfg.Kernel.Intact(m.desired) {
				m.program()
			}
		case <-timer.C:
		}
		now := time.Now()
		if !m.viewEnds.IsZero() && !now.Before(m.viewEnds) {
			m.replan(now)
			m.program()
		}
		timer.Reset(m.send(now).Sub(now))
	}
}

// handle takes one event. After a move the packets are steered first, then the
// peers hear of it, and the rest of the kernel state follows.
func (m *Manager) handle(e event, now time.Time) {
	var changed []Owner
	if e.peer == "" {
		if changed = m.table.Announce(e.mac, e.ip, now); len(changed) > 0 {
			m.gossip.Changed()
		}
	} else {
		var err error
		if changed, err = m.gossip.Receive(e.peer, e.msg, now); err != nil {
			return
		}
	}
	if len(changed) == 0 {
		return
	}
	m.replan(now)
	m.cfg.Kernel.Steer(m.desired) // what fails here, program says
	m.send(now)
	m.program()
	for _, o := range changed {
		m.cfg.Log.Info("workload moved", "workload", o.Workload, "site", o.Site, "from", o.Previous, "seq", o.Seq)
		m.cfg.OnMove(o)
	}
}

// replan computes the kernel state of now.
func (m *Manager) replan(now time.Time) {
	owners, next := m.table.View(now)
	m.viewEnds = next
	m.desired = Plan(m.cfg.Cfg, m.cfg.Links, owners, m.cfg.Streams)
	m.view.Store(&owners)
}

// program applies the plan and says once what is in the way.
func (m *Manager) program() {
	err := m.cfg.Kernel.Apply(m.desired)
	if err == nil {
		m.programs.Add(1)
		if m.lastError != "" {
			m.cfg.Log.Info("kernel state is in place")
		}
		m.lastError = ""
		return
	}
	if text := err.Error(); text != m.lastError {
		m.cfg.Log.Warn("kernel state is incomplete, trying again", "err", err)
		m.lastError = text
	}
}

// warn looks once for settings of the host that get in the way.
func (m *Manager) warn() {
	m.warnings = m.cfg.Kernel.Warnings(m.desired)
	for _, w := range m.warnings {
		m.cfg.Log.Warn(w)
	}
}

// send sends what gossip has due and returns when to ask again.
func (m *Manager) send(now time.Time) time.Time {
	out, next := m.gossip.Poll(now)
	for _, o := range out {
		if !m.cfg.Send(o.Peer, o.Data) {
			m.unsent.Add(1)
		}
	}
	if next.IsZero() || (!m.viewEnds.IsZero() && m.viewEnds.Before(next)) {
		next = m.viewEnds
	}
	if next.IsZero() {
		next = now.Add(time.Hour)
	}
	return next
}

// publish renews what readers see and raises alarms.
func (m *Manager) publish(now time.Time) {
	frozen := m.table.Frozen(now)
	for _, w := range frozen {
		if !slices.Contains(m.frozen, w) {
			m.cfg.Log.Error("workload frozen: it moved too often or two sites claimed it; two machines may have one address", "workload", w)
		}
	}
	m.frozen = frozen
	m.status.Store(&Stats{Table: m.table.Counts(), Frozen: frozen, Malformed: m.gossip.Malformed, Error: m.lastError, Warnings: m.warnings})
}

// Announce says that a station was seen on our LAN side; ip may be invalid.
// Safe for concurrent use; never blocks: a full queue drops it.
func (m *Manager) Announce(mac config.MAC, ip netip.Addr) { m.enqueue(event{mac: mac, ip: ip}) }

// FromPeer takes a control datagram of a peer. It copies msg. Safe for
// concurrent use; never blocks: a full queue drops it.
func (m *Manager) FromPeer(peer string, msg []byte) {
	if len(msg) > maxReceived || peer == "" {
		m.dropped.Add(1)
		return
	}
	m.enqueue(event{peer: peer, msg: slices.Clone(msg)})
}

func (m *Manager) enqueue(e event) {
	select {
	case m.events <- e:
	default:
		m.dropped.Add(1)
	}
}

// Where returns the virtual address of a service at the site that owns its
// workload, or when there is none at that site, the one at this site. Safe for
// concurrent use.
func (m *Manager) Where(service string) (netip.Addr, bool) {
	services := m.cfg.Cfg.Services
	i := slices.IndexFunc(services, func(s config.Service) bool { return s.Name == service })
	if i < 0 {
		return netip.Addr{}, false
	}
	for _, o := range *m.view.Load() {
		if at, ok := services[i].At[o.Site]; ok && o.Workload == services[i].Workload {
			return at.Addr(), true
		}
	}
	at, ok := services[i].At[m.cfg.Cfg.Site]
	return at.Addr(), ok
}

// Owners returns the present owners, sorted by workload. Safe for concurrent
// use; the caller owns the result.
func (m *Manager) Owners() []Owner { return slices.Clone(*m.view.Load()) }

// Stats returns counters. Safe for concurrent use.
func (m *Manager) Stats() Stats {
	s := *m.status.Load()
	s.Owners = m.Owners()
	s.Programmed, s.Dropped, s.Unsent = m.programs.Load(), m.dropped.Load(), m.unsent.Load()
	return s
}
