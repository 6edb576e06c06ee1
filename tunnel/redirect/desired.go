package redirect

import (
	"net/netip"

	"stitch/tunnel/config"
)

// Links are the links of this site by peer name.
type Links map[string]LinkInfo

// LinkInfo is what planning has to know of one link.
type LinkInfo struct {
	// Number is the link number, 1 to 255: the peer's index in the
	// configuration plus one.
	Number int
	// Device is the TUN of the link, "st-" and the peer's name.
	Device string
	// Local and Remote are the link addresses, ours and the peer's.
	Local, Remote netip.Addr
	// InnerMTU is the largest packet that fits into one datagram of the link.
	InnerMTU int
	// Stock says that the other end is WireGuard without stitch.
	Stock bool
}

// Desired is the whole kernel state the agent wants: what Plan returns and
// Kernel.Apply makes true. It is a value: compare and keep it freely.
type Desired struct {
	// Nft is the nftables text, one transaction for "nft -f -".
	Nft     string
	Routes  []Route
	Rules   []Rule
	Addrs   []Addr
	Neighs  []Neigh
	MACs    []DeviceMAC
	Sysctls []Sysctl
	// SourceIn are the prefixes in which the kernel shell looks for an address
	// of this host for routes with OwnSource; SourceNot are never used.
	SourceIn  []netip.Prefix
	SourceNot []netip.Addr
}

// RouteKind says what a route does.
type RouteKind uint8

const (
	// RouteDevice sends to a device.
	RouteDevice RouteKind = iota
	// RouteUnreachable refuses: the guard that keeps traffic of a lost link
	// from leaving in clear by the default route.
	RouteUnreachable
	// RouteLocal delivers to this host.
	RouteLocal
)

// Route is one route. A zero Table means the main table.
type Route struct {
	Table  int
	Dst    netip.Prefix
	Kind   RouteKind
	Device string // empty for RouteUnreachable
	Metric int
	// Src is the preferred source address; invalid: the kernel chooses.
	Src netip.Addr
	// OwnSource asks for an address of this host inside Desired.SourceIn as
	// source, so that this host's own packets carry an address that the peer's
	// filter knows. Without such an address it has no effect.
	OwnSource bool
	// MTU is a locked path MTU; zero: the device's.
	MTU int
	// Window is how many segments a new TCP connection sends before the first is
	// acknowledged; zero: as the kernel does, 10.
	Window int
	// Guard marks a route that must outlive the agent.
	Guard bool
}

// RuleKind says what an ip rule does.
type RuleKind uint8

const (
	// RuleTable looks up Rule.Table.
	RuleTable RuleKind = iota
	// RuleGoto skips to the rule with priority Rule.Goto.
	RuleGoto
	// RuleNop does nothing; it is a target for RuleGoto.
	RuleNop
)

// Rule is one ip rule.
type Rule struct {
	Kind     RuleKind
	Priority int
	// IPv6 says that the rule is for IPv6, otherwise it is for IPv4.
	IPv6 bool
	// Mark and Mask select by packet mark; a zero Mask selects all.
	Mark, Mask uint32
	// Iif selects by incoming device; "lo" also means packets of this host.
	Iif   string
	Table int
	Goto  int
}

// Addr is an address on a device.
type Addr struct {
	Device string
	Prefix netip.Prefix
}

// Neigh is a neighbour entry of a workload on a bridge. When Here is false the
// entry must not exist.
type Neigh struct {
	Device string
	IP     netip.Addr
	MAC    config.MAC
	Here   bool
}

// DeviceMAC is the Ethernet address a bridge must have. It stays when the
// agent leaves.
type DeviceMAC struct {
	Device string
	MAC    config.MAC
}

// Sysctl is a value below /proc/sys.
type Sysctl struct {
	// Path is relative to /proc/sys, with slashes.
	Path string
	// Value is what must be there.
	Value string
}

// Kernel is the seam towards the kernel's network configuration.
type Kernel interface {
	// Apply makes d true: it adds what is missing, replaces what differs and
	// removes what an earlier Apply (also of an earlier process) left and d
	// does not have. It is idempotent and goes on after an error: what could
	// not be done (a device that is not there yet) is in the joined error and
	// is tried again by the next Apply.
	Apply(d Desired) error
	// Steer does only the part of Apply that decides where workloads' packets go
	// (routes and neighbours), for the moment of a move: Apply must follow.
	Steer(d Desired) error
	// Guard installs only d's guard routes: the first thing to do, before any
	// link exists.
	Guard(d Desired) error
	// Clear removes everything of the agent's; guard routes only when
	// keepGuards is false.
	Clear(keepGuards bool) error
	// Intact reports whether d, applied before, still stands, as far as a cheap
	// look can tell.
	Intact(d Desired) bool
	// Warnings names settings of this host that get in the way, each with its
	// remedy.
	Warnings(d Desired) []string
}
