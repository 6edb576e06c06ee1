package redirect

import (
	"context"
	"log/slog"
	"net/netip"

	"stitch/tunnel/config"
)

// Config is what a Manager needs.
type Config struct {
	Cfg    *config.Config
	Links  Links
	Kernel Kernel
	// Streams says that interception rules are wanted.
	Streams bool
	// Send gives one control datagram (at most 1200 bytes) to a peer; false
	// means dropped. It borrows msg and must not block.
	Send func(peer string, msg []byte) bool
	// OnMove hears of each change of owner, from the run loop, after the kernel
	// was programmed; it must not block.
	OnMove func(Owner)
	// Log is where moves and alarms go; nil is silent.
	Log *slog.Logger
}

// Manager is the shell: it feeds announcements and gossip into the Table and
// the resulting plan into the Kernel.
type Manager struct{ cfg Config }

// New returns a Manager; Run starts it.
func New(cfg Config) (*Manager, error) { return &Manager{cfg: cfg}, nil }

// Run programs the kernel and serves until ctx ends. The kernel state stays:
// the caller decides about Kernel.Clear.
func (m *Manager) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Announce says that a station was seen on our LAN side. Safe for concurrent
// use; never blocks.
func (m *Manager) Announce(mac config.MAC, ip netip.Addr) {}

// FromPeer takes a control datagram of a peer. It copies msg. Safe for
// concurrent use; never blocks.
func (m *Manager) FromPeer(peer string, msg []byte) {}

// Where returns the virtual address of a service at the site that owns its
// workload. Safe for concurrent use.
func (m *Manager) Where(service string) (netip.Addr, bool) { return netip.Addr{}, false }

// Owners returns the present owners, sorted by workload. Safe for concurrent use.
func (m *Manager) Owners() []Owner { return nil }

// Stats returns counters. Safe for concurrent use.
func (m *Manager) Stats() Stats { return Stats{} }

// Stats are a Manager's counters and state.
type Stats struct {
	Owners []Owner `json:"owners"`
}
