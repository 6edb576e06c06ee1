// Package config turns one TOML file into one validated Config.
//
// It is pure: the only thing it reads is what its caller hands it, so the same
// file gives the same answer on any machine. What the kernel has (bridges,
// devices, free ports) is checked by the packages that use it.
//
// The file is strict. An unknown key, a typing error or a contradiction is an
// error that names the file, the line and what to do; nothing is guessed.
package config

import (
	"net/netip"
	"slices"
	"time"
)

// Config is one validated configuration. It is immutable once Load returned it
// and may be shared between goroutines.
type Config struct {
	// Site is the name of this site, [a-z0-9-]{1,32}; peers call us by it.
	Site string
	// RunDir holds the control sockets; default /run/stitch/<site>.
	RunDir string
	// PrivateKey is the WireGuard private key read from private_key_file.
	PrivateKey Key
	// Subnets are the prefixes of this site that peers may reach.
	Subnets []netip.Prefix
	// Offload says which offloads are not used; see offload_off.
	Offload Offload
	// Peers are the other sites, in file order. A peer's index plus one is its
	// link number, used in marks and routing tables.
	Peers []Peer
	// Segments are the stretched layer-2 networks.
	Segments []Segment
	// Domains are the groups of streams that share a history, by the name that
	// rules use.
	Domains []Domain
	// Classes divide the rate of each link. The first one, without a name, is what no
	// rule gives another. Empty: nothing is divided.
	Classes []Class
	// Marks are what the DSCP of the agents' own connections stands for, by its
	// value. The first one is of those without a rule; at most MaxMarks.
	Marks []Mark
	// Streams are the rules that say which TCP connections from here are split
	// and optimised. The first rule that matches counts.
	Streams []StreamRule
	// Dials are the destinations at this site that a peer's streams may reach.
	// Empty means none: the far side dials only what is listed.
	Dials []DialRule
	// History bounds what the codec keeps.
	History History
	// Workloads are the machines that may move between sites.
	Workloads []Workload
	// Services are virtual addresses in front of workloads.
	Services []Service
	// DNS is the authoritative server for the services' names; nil means none.
	DNS *DNS
}

// Peer is another site and the link to it.
type Peer struct {
	Name      string
	PublicKey Key
	// PresharedKey is optional (zero: none), read from preshared_key_file.
	PresharedKey Key
	// Endpoint is "host:port" of the peer's UDP socket; empty: the peer calls us.
	Endpoint string
	// ListenPort is the local UDP port of this link; default 51820 plus the
	// peer's index.
	ListenPort uint16
	// Subnets are the peer's prefixes, routed into the link.
	Subnets []netip.Prefix
	// UnderlayMTU is the MTU of the path between the edges; default 1500. The
	// MTU inside the link is derived from it (see InnerMTU), and that of its TUN
	// (see TUNMTU).
	UnderlayMTU int
	// Rate is the most that leaves for the peer, in bits of IP packets a second;
	// 0: no bound, LearnRate, the default: what the link finds out.
	Rate int64
	// PacketHistory is how many bytes of what crosses as packets are kept each way,
	// to be referred to when they cross again; 0: none. Of what leaves here only
	// what hosts in PacketHistoryFrom send.
	PacketHistory     int
	PacketHistoryFrom []netip.Prefix
	// Stock says that the other end is a WireGuard peer without stitch: only
	// the layer-3 path exists, no probes, no segments, no streams.
	Stock bool
	// LinkAddresses overrides the pair derived from the keys: ours first.
	LinkAddresses [2]netip.Addr
}

// Segment is a stretched layer-2 network.
type Segment struct {
	// ID names the segment on the wire, 1 to 65535; the same at every site.
	ID uint16
	// Bridge is the existing LAN bridge the segment's TAP joins.
	Bridge string
	// Subnet is the segment's IPv4 prefix.
	Subnet netip.Prefix
	// Gateway is the default gateway of the hosts, held by every edge.
	Gateway netip.Addr
	// GatewayMAC is the one MAC the gateway has at every site.
	GatewayMAC MAC
	// Home is the site the subnet is routed to when nothing more specific is
	// known: the site that had the network before it was stretched.
	Home string
	// Peers are the names of the peers the segment is stretched to.
	Peers []string
	// BroadcastLimit is the most broadcast, unknown-unicast and multicast
	// frames a second, counted once for each begun BroadcastUnit; default 500,
	// which is 1 Mbit/s. ARP, ND and RARP have a bucket of the same size of
	// their own, whatever their length.
	BroadcastLimit int
	// MoveLimit is how often a machine may move between sites within 180 s: then
	// it is frozen where it is for as long. Default DefaultMoveLimit.
	MoveLimit int
	// VLANs are the VLANs that cross with their tags, besides the untagged
	// network; sorted, each 1 to 4094. What is inside a listed outer tag
	// crosses whatever its own tag.
	VLANs []uint16
	// EtherTypes are the only protocols besides IP, ARP and RARP that cross,
	// sorted; LLC stands for 802.2 without an EtherType. Empty: any.
	EtherTypes []uint16
	// Pass lets cross what stays at its site by default.
	Pass Pass
}

// LearnRate is Peer.Rate where the link finds it out.
const LearnRate = -1

// DefaultMoveLimit is Segment.MoveLimit unless it is given (RFC 7432 section
// 15.1).
const DefaultMoveLimit = 5

// BroadcastUnit is the size in bytes up to which a frame counts once for
// Segment.BroadcastLimit.
const BroadcastUnit = 250

// LLC is what Segment.EtherTypes lists for 802.2 frames.
const LLC = 0

// Pass are the protocols of one site that a segment carries all the same.
type Pass struct {
	// DHCP is for a segment whose only DHCP server is at one site.
	DHCP bool
	// RouterAdverts are ICMPv6 router advertisements.
	RouterAdverts bool
	// SpanningTree are the BPDUs, which make the sites one tree.
	SpanningTree bool
}

// Handshake says when the client's TCP handshake is completed.
type Handshake string

const (
	// Faithful holds the client's SYN until the far server has answered.
	Faithful Handshake = "faithful"
	// Early answers at once; a refusal is then a reset after connect.
	Early Handshake = "early"
)

// Domain is a group of streams that may be matched against each other's bytes.
// Whoever can send through one of them and see sizes on the way can learn
// what the others carried: put into a domain only what one operator owns.
type Domain struct {
	// Name is [a-z0-9-]{1,32}, the same at both sites.
	Name string
	// ManyTenants says that streams of the domain carry data of tenants that
	// must not learn of each other's: what matches across streams then is
	// whole 64-byte lines, too many bytes at once to guess one by one.
	ManyTenants bool
}

// Class is a part of what leaves through each link that has a rate.
type Class struct {
	// Name is [a-z0-9-]{1,32}; empty: what is in no other class.
	Name string
	// Percent of the link's rate is what the class gets at least when it has so much
	// to send, 1 to 100; all together at most 100, but for the first class, which
	// has what the others leave and 1 in any case.
	Percent int
	// Limit is the most it sends through each link, in bits of IP packets a second;
	// 0: no bound.
	Limit int64
}

// Mark is how a connection between the agents shares the link's rate.
type Mark struct {
	// Class is one of Config.Classes, by its number.
	Class int
	// Share is what it gets in its class; see StreamRule.
	Share int
}

// MaxMarks is how many values a DSCP has.
const MaxMarks = 64

// Optimize says how much is done for the streams of a rule.
type Optimize string

const (
	// Full deduplicates, compresses and accelerates (split TCP).
	Full Optimize = "full"
	// Compress compresses and accelerates.
	Compress Optimize = "compress"
	// Accelerate only splits TCP.
	Accelerate Optimize = "accelerate"
	// Off carries the connection as packets, inside the link, untouched.
	Off Optimize = "off"
)

// StreamRule says which TCP connections are split and optimised.
type StreamRule struct {
	Peer string
	// Segment is that of both hosts, whose frames cross it; 0: the rule is for
	// routed connections.
	Segment   uint16
	To        []netip.Prefix
	Ports     []PortRange
	Handshake Handshake
	Optimize  Optimize
	// Domain names the Domain of the rule's streams; empty: each stream is
	// matched against its own bytes only.
	Domain string
	// Class is one of Config.Classes, by its number; it is that of all that the rule
	// covers, TCP or not and split or not.
	Class int
	// Share is what a stream gets of its class, or without one of the peer's Rate,
	// relative to others that send as much as they can, 1 to MaxShare; default 1.
	Share int
	// Mark is the one of Config.Marks with Class and Share.
	Mark int
}

// DialRule says where the streams of a peer may go at this site.
type DialRule struct {
	Peer string
	// Segment is as in StreamRule; both sites must say the same.
	Segment uint16
	To      []netip.Prefix
	Ports   []PortRange
	// Domain is that of the peer's streams; both sites must say the same.
	Domain string
	// Class, Share and Mark are as in StreamRule, for what is sent from here.
	Class, Share, Mark int
}

// SplitSegments are the ids of the segments that a stream or dial rule is about,
// sorted.
func (c *Config) SplitSegments() (ids []uint16) {
	for _, r := range c.Streams {
		ids = append(ids, r.Segment)
	}
	for _, r := range c.Dials {
		ids = append(ids, r.Segment)
	}
	ids = slices.DeleteFunc(ids, func(id uint16) bool { return id == 0 })
	slices.Sort(ids)
	return slices.Compact(ids)
}

// MaxShare is the greatest Share.
const MaxShare = 63

// PortRange is an inclusive range of TCP ports.
type PortRange struct{ First, Last uint16 }

// History says how much of what crossed the codec keeps, and where. There is
// one history per peer and domain, and each has two directions.
type History struct {
	// Size is the bytes kept per direction, at most 64 GiB; default 256 MiB.
	Size int64
	// Memory is how much of Size lies in memory: all of it without Dir, else
	// by default at most 1 GiB.
	Memory int64
	// Dir is where the histories are kept through restarts; empty: nowhere.
	Dir string
	// Key encrypts what lies in Dir; zero: it is not encrypted.
	Key Key
}

// Workload is a machine that may move.
type Workload struct {
	// Name is [a-z0-9-]{1,32}; the same at every site.
	Name string
	MAC  MAC
	IP   netip.Addr
	// Site is where it is when nobody has announced it elsewhere.
	Site string
	// Segment is the segment its address is on.
	Segment uint16
}

// Service is a virtual address at each site in front of one workload.
type Service struct {
	// Name is the DNS name answered by DNS, without trailing dot.
	Name string
	// Workload is the name of the workload behind it.
	Workload string
	// Port is the TCP port at the workload.
	Port uint16
	// At maps a site name to the virtual address and port there.
	At map[string]netip.AddrPort
}

// DNS is the authoritative server for the services' names.
type DNS struct {
	// Listen are the addresses served, UDP and TCP.
	Listen []netip.AddrPort
	// TTL of the answers; default 5 s.
	TTL time.Duration
}

// Marks used on packets (meta mark) and connections (ct mark). One 32-bit word
// holds independent fields, so a connection can be split and have a link.
const (
	// MarkLink shifts the link number (1 to 255): route by that link's table.
	MarkLink     = 8
	MarkLinkMask = 0x0000ff00
	// MarkLocal: hand the packet to a transparent socket of this host.
	MarkLocal = 0x00010000
	// MarkHold: a SYN that waits for the far server's answer.
	MarkHold = 0x00020000
	// MarkSplit: a connection that is (or was) terminated at both edges.
	MarkSplit = 0x00040000
	// MarkError: an ICMP error, of this host or of its LAN, about a connection
	// split here, to be given to its socket here.
	MarkError = 0x00080000
	// MarkAnchored, on a connection only: it was begun by the workload at another
	// site, so what it sends in original direction belongs to the link in the
	// mark. Without it the link is where the connection came from, and only
	// answers go there.
	MarkAnchored = 0x00080000
)

// Routing tables, rule priorities, ports and device names of the agent.
const (
	// TableLink plus the link number is the table of that link.
	TableLink = 53000
	// TableHold leads to HoldDevice, TableLocal to the local host.
	TableHold  = 53300
	TableLocal = 53301
	// RulePriority is the first of the agent's ip rules.
	RulePriority = 5300
	// InterceptPort is the transparent listener's TCP port.
	InterceptPort = 5301
	// StreamPort is the TCP port on the link address for inter-agent connections,
	// and the UDP port for packets that a benchmark counts.
	StreamPort = 5302
	// HoldDevice is the TUN of the stream process that held SYNs pass through.
	HoldDevice = "st-hold"
	// NftTable is the name of the agent's nftables table (family inet).
	NftTable = "stitch"
)
