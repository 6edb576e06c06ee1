// Package ether is a segment: one layer-2 network stretched over several
// sites. A TAP in the bridge of the local LAN is joined to the peers, and a
// Switch decides for every frame where it goes and whether it may go at all.
//
// # What crosses
//
// Frames cross host to host only. Everything that belongs to one site stays
// there, and every frame that stays is counted under a named [Reason]:
//
//   - the default gateway exists at every site with the same MAC and address,
//     so no frame from or to its MAC and no ARP or neighbour discovery about
//     its addresses crosses;
//   - link protocols (spanning tree, LLDP, CDP, 802.1X, LACP, pause, all of
//     01:80:c2:00:00:00 to 2f), IPv6 router advertisements and redirects, and
//     DHCP for both IP versions stay local;
//   - unknown unicast is not flooded;
//   - IP packets, ARP and neighbour discovery that give the gateway's or a
//     workload's address to another MAC are dropped, from either side;
//   - broadcast and multicast (from a peer also unicast that the bridge would
//     flood) are limited per second in both directions, with
//     buckets of their own for announcements of workloads, for ARP, RARP and
//     neighbour discovery, and for the rest;
//   - a frame from a peer goes to the LAN only, never to another peer (split
//     horizon).
//
// Encapsulation is parsed or refused, never guessed, since filters that look
// at the outermost type can be walked around (VU#855201): at most two VLAN
// tags, LLC/SNAP with a right length only, no tag inside SNAP. A segment
// carries the untagged network (priority tags, VLAN 0, are part of it) and the
// VLANs that its configuration lists, with all that is inside their outer tag.
// Each outer VLAN is a network of its own for everything below; behind a second
// tag no IP addresses are learnt. Workloads and the gateway are of the untagged
// network. The configuration may also
// name the only protocols besides IP that cross, and let DHCP, router
// advertisements or spanning tree pass.
//
// # Who has an address
//
// The MAC of an address is learnt from ARP and from neighbour advertisements
// (not solicitations, RFC 9161). A broadcast request for an address at a peer
// that gave a sign of life within 30 s is answered here; one for an address on
// this LAN does not cross. All other requests do: those of unknown or silent
// addresses, unicast ones (they test the host), duplicate address detection, a
// second one of the same host within 2 s (what we know may be wrong), and those
// for an address that MACs have claimed by turns five times within 180 s, for as
// long. At most 8 addresses are kept of a MAC, and of a place as many as MACs.
//
// # Where a MAC is
//
// The forwarding table learns from source addresses. When a MAC shows up at
// another place than the table says, it depends on the evidence:
//
//   - an announcement (RARP request, gratuitous ARP, unsolicited neighbour
//     advertisement) moves it at once, also when it comes from a peer and also
//     when the MAC is a workload's: a peer may claim a workload over the
//     control channel just as well, and waiting would only lose frames;
//   - a data frame moves it when it has been at its place for half a second
//     (until then such frames are late ones from before a move, and are
//     dropped), one from a peer only when the LAN has not heard it for as long:
//     neither a loop nor a peer takes a talking host away. A data frame from a
//     peer never moves a workload;
//   - five moves within 180 s (or as many as the configuration says) freeze a
//     MAC where it is for 180 s, with a warning: frames from elsewhere are dropped, announcements ignored;
//   - [Port.Claim] is authoritative for workloads: it is always obeyed, also
//     when frozen, but counts as a move.
//
// An announcement or a first data frame of a MAC that was elsewhere, seen on
// the LAN, is reported to Config.OnAnnounce before the frame goes on.
//
// # A host nobody has heard of
//
// Unicast to a MAC that is not in the table is dropped, but it is looked for, 20
// hosts a second and each once a second; and so is a host of this LAN that has
// been silent for a second when the bridge floods a frame for it, as when it
// went to a peer without a word. It is looked for by the ARP request or neighbour
// solicitation that the sender would make for the packet's destination (the
// host's answer teaches every edge on its way), or, when the packet's
// destination says nothing about the host, by a question to the other agents.
// Besides, an agent asks each peer's for all its hosts when it starts, until it
// is answered, and once a minute. So a restart of one agent or of all costs
// hosts that keep each other's MAC for ever a packet or two. Only a protocol
// other than IP, after a restart of both agents, waits until its host speaks.
// What a peer lists is learnt if it was unknown, and moves nothing.
//
// # Loops
//
// A second way between the LANs of a segment, or within one, is found by probes
// that agents put into their LANs every 300 ms, also in each VLAN that is
// carried (64 at a time). One of the two edges that see it blocks the segment:
// the one with the greater random number, or within 0.8 s the other one. Nothing
// but probes is looked at then; what was learnt is forgotten, since it may be
// wrong; routed traffic and streams go on. 5 s after the last probe the segment
// carries again. The edge of another segment on the same LAN
// is taken for one too: a LAN is stretched by one segment, to as many sites as
// wanted.
//
// Anybody on a LAN can send probes back or make them up, and so have his own
// site's edge block. Probes are not authenticated, for it would not keep him from
// it: all hosts of a LAN hear them, whoever sends back what he hears cannot be
// told from a loop, and a key against forgery stops none of that. What he can do
// is bounded: probes never cross, so it is his own LAN that is cut off; the other
// sites go on among themselves, as do routed traffic and streams; the alarm says
// that it is a loop or somebody who makes it look so; and it is over 5 s after he
// stops. He could as well lay a second cable.
//
// # More than two sites
//
// A segment is a full mesh: each edge sends a copy of a broadcast to every other
// one (ingress replication), none passes on what it got from a link (split
// horizon), so everything arrives once. Each peer has its own share of the
// tables and its own limits: one that misbehaves takes nothing from the others.
//
// # Messages between agents
//
// Frames of EtherType 0x88b7 (IEEE 802, OUI extended) from a unicast address
// that is f2 and the low five bytes of the sender's id, to the group
// 03:53:54:00:00:01. In numbers of big-endian order:
//
//	 0  02 53 54 00 01   our code
//	 5  version 1
//	 6  type u8: 1 probe, 2 ask, 3 have
//	 7  flags u8: probe: 1 the sender has blocked its segment;
//	    have: 1 the last part of an answer to "all", 2 the hosts have just
//	    announced themselves
//	 8  segment u16
//	10  id u64, random for each start of a port
//	18  probe: nothing. ask: one host, zero: all.
//	    have: number u8 of hosts, and that many hosts
//
// A host is VLAN u16 (0: untagged) and MAC. Probes are for the LAN only, the
// others for links only. Other types, versions and bytes at the end are ignored;
// whatever has our code never crosses from a LAN.
package ether

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev"
	"stitch/tunnel/netdev/super"
)

// MaxFrame is the longest Ethernet frame carried, without FCS: 9216 bytes of
// payload behind a header with two VLAN tags. Longer ones are dropped.
const MaxFrame = 9216 + 14 + 8

// Sender is the way to one peer, a wg.Link.
type Sender interface {
	// SendFrame sends one Ethernet frame of a segment, or a super-frame (h is
	// the TAP's word about it). It borrows frame, may wait a moment for room,
	// and reports whether the frame was taken.
	SendFrame(segment uint16, frame []byte, h super.Header) bool
	// SendBuffer is SendFrame for a frame that is a part of *buf. It may keep
	// *buf, and then puts another buffer of that length in its place.
	SendBuffer(segment uint16, buf *[]byte, frame []byte, h super.Header) bool
}

// Diverter takes frames of single connections out of a segment. Its methods are
// called from the goroutines that move frames and must not block.
type Diverter interface {
	// FromLAN is offered each frame that is about to be sent to one peer, and
	// reports whether it was taken. It borrows frame and may change it if it
	// takes it; h is the TAP's word about it.
	FromLAN(peer string, frame []byte, h super.Header) bool
	// FromPeer is offered each frame that is about to be written to the LAN, and
	// reports whether it must not get there. It borrows frame.
	FromPeer(frame []byte) bool
}

// StaticMAC says where a workload is.
type StaticMAC struct {
	MAC config.MAC
	// IP is the workload's address; ARP that gives it to another MAC does not
	// cross. Invalid: not checked.
	IP netip.Addr
	// Peer is the name of the site it is at; empty: this one.
	Peer string
}

// Kinds of announcement.
const (
	// KindRARP is a reverse ARP request, as hypervisors send after a move.
	KindRARP = "rarp"
	// KindGARP is a gratuitous ARP, request or reply.
	KindGARP = "garp"
	// KindNA is an unsolicited IPv6 neighbour advertisement.
	KindNA = "na"
	// KindData is the first other frame of a MAC that was at a peer.
	KindData = "data"
)

// Announcement says that a MAC was seen on the LAN of this site: a machine
// that announces itself, or one that was thought to be elsewhere.
type Announcement struct {
	Segment uint16
	MAC     config.MAC
	// IP is the announced address; invalid when the frame named none (RARP,
	// most data frames).
	IP netip.Addr
	// Kind is one of the Kind constants.
	Kind string
}

// Config describes one segment at this site.
type Config struct {
	// Segment is its configuration; Gateway, GatewayMAC, limits and policy are
	// used here (a limit of zero is the default).
	Segment config.Segment
	// Peers are the links it is stretched to, by site name; at most 254.
	Peers map[string]Sender
	// TAP is in the LAN's bridge (see Attach). Open takes it.
	TAP netdev.Device
	// Own are the MACs of this edge on the bridge besides the gateway's
	// (Attachment.Own): frames from and to them do not cross.
	Own []config.MAC
	// Static names the workloads of the segment and where they are now. It is
	// called once, by Open; later changes come by Claim. Nil: none.
	Static func() []StaticMAC
	// OnAnnounce is called from Run's goroutine for what is announced on the
	// LAN: at most once per 100 ms for a MAC that stays where it is, and for
	// MACs that are no workload's BroadcastLimit a second. It must not block
	// and may call Claim. Nil: nobody listens.
	OnAnnounce func(Announcement)
	// Divert may take connections out; see Port.Deliver. Nil: nobody does.
	Divert Diverter
	// ID is a random number that tells this port from every other one. With 0
	// it neither finds loops nor exchanges hosts with the peers' agents.
	ID uint64
	// Log may be nil.
	Log *slog.Logger
}

// Stats are a segment's counters since Open.
type Stats struct {
	Segment uint16 `json:"segment"`
	// LANFrames and LANBytes were read from the LAN, ToPeers is the number of
	// copies that links took.
	LANFrames uint64 `json:"lan_frames"`
	LANBytes  uint64 `json:"lan_bytes"`
	ToPeers   uint64 `json:"to_peers"`
	// Diverted were taken from the LAN for split connections, Returned came from
	// these for the LAN.
	Diverted uint64 `json:"diverted,omitempty"`
	Returned uint64 `json:"returned,omitempty"`
	// LinkFrames and LinkBytes came from peers, Made is the number of frames
	// made here for the LAN (answers to address requests, loop probes), ToLAN
	// were written to the LAN: ToLAN and FromLink add up to LinkFrames, Made and
	// Returned.
	LinkFrames uint64 `json:"link_frames"`
	LinkBytes  uint64 `json:"link_bytes"`
	Made       uint64 `json:"made"`
	ToLAN      uint64 `json:"to_lan"`
	// FromLAN and FromLink count the dropped frames by reason; reasons that
	// never happened are left out.
	FromLAN  map[string]uint64 `json:"dropped_from_lan"`
	FromLink map[string]uint64 `json:"dropped_from_link"`
	// MACs is the number of table entries per place; "" is this site.
	MACs map[string]int `json:"macs"`
	// LearnRefused counts addresses not learnt because their place had used
	// up its share of the table.
	LearnRefused uint64 `json:"learn_refused"`
	// Moves counts changes of place, Frozen the MACs frozen now, of which
	// FrozenMACs are the first eight.
	Moves      uint64   `json:"moves"`
	Frozen     int      `json:"frozen"`
	FrozenMACs []string `json:"frozen_macs,omitempty"`
	// Addresses are the IP addresses whose MAC is known. Disputes counts those
	// that MACs claimed by turns.
	Addresses int    `json:"addresses"`
	Disputes  uint64 `json:"disputes"`
	// Loop says why the segment is blocked now; absent: it is not. Loops
	// counts the blocks.
	Loop  *Loop  `json:"loop,omitempty"`
	Loops uint64 `json:"loops"`
	// Queries counts the searches for unknown destinations.
	Queries uint64 `json:"queries"`
	// Announcements were reported to OnAnnounce; Relearn counts the frames put
	// into the LAN so that its bridge follows a claimed workload.
	Announcements uint64 `json:"announcements"`
	Relearn       uint64 `json:"relearn"`
}

// Alarms are sentences about what needs a person; none when all is well.
func (s *Stats) Alarms() (list []string) {
	if s.Loop != nil {
		list = append(list, fmt.Sprintf("segment %d is blocked: %v; remove the second way between the LANs, or find the host that sends such frames", s.Segment, s.Loop))
	}
	if s.Frozen > 0 {
		list = append(list, fmt.Sprintf("segment %d: %d addresses move between sites too often and are frozen (%s): look for a loop or a duplicate", s.Segment, s.Frozen, strings.Join(s.FrozenMACs, ", ")))
	}
	return list
}
