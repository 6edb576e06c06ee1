package ether

// Reason says why a frame did not cross. The zero value, Carried, means that
// it did.
type Reason uint8

// Reasons, in the order in which a frame is checked.
const (
	Carried Reason = iota
	// Runt is shorter than an Ethernet header, TooLong longer than MaxFrame.
	Runt
	TooLong
	// Malformed is a wrong 802.3 length, or a type field that is neither a
	// length nor an EtherType.
	Malformed
	// Encapsulation is a stack of headers that is not looked through: more
	// than two tags, a tag inside SNAP, odd LLC.
	Encapsulation
	// VLAN is a tag with a VLAN that the segment does not carry.
	VLAN
	// BadSource is a multicast or zero source address.
	BadSource
	// OwnMAC is a frame from or to an address of this edge.
	OwnMAC
	// GatewayMAC is a frame from or to the gateway's address.
	GatewayMAC
	// Reserved is a frame to an IEEE 802.1 link-local group address.
	Reserved
	// STP is a spanning tree BPDU, whatever address it is sent to.
	STP
	// Discovery is LLDP, CDP or another Cisco link protocol.
	Discovery
	// PortAuth is 802.1X.
	PortAuth
	// SlowProtocol is LACP, pause or another MAC control protocol.
	SlowProtocol
	// LLC is an unknown LLC protocol sent to a group.
	LLC
	// EtherType is a protocol that the segment does not carry.
	EtherType
	// BadARP is ARP or RARP that is not for Ethernet and IPv4, or cut short.
	BadARP
	// GatewayARP is ARP with the gateway's address or MAC in it.
	GatewayARP
	// SpoofedARP is ARP or neighbour discovery that gives a workload's address
	// to another MAC, SpoofedIP a packet with that address or the gateway's
	// from another MAC.
	SpoofedARP
	SpoofedIP
	// BadIP is IP whose header contradicts the frame, or whose chain of
	// extension headers is too long or cut off in the first fragment.
	BadIP
	// DHCP is DHCP for IPv4 or IPv6.
	DHCP
	// RouterAdvert and Redirect are the ICMPv6 messages of routers.
	RouterAdvert
	Redirect
	// FragmentedND is neighbour discovery in fragments (RFC 6980).
	FragmentedND
	// GatewayND is neighbour discovery about the gateway's address.
	GatewayND
	// AgentMessage is a message between agents, taken in here.
	AgentMessage
	// Looped is any frame while a loop blocks the segment.
	Looped
	// Frozen is a frame of a frozen MAC from another place.
	Frozen
	// Late is a data frame of a MAC that has just moved, from elsewhere.
	Late
	// Owned is a data frame from a peer with the MAC of a workload that is
	// somewhere else.
	Owned
	// LimitBroadcast and LimitARP are frames above the broadcast limit.
	LimitBroadcast
	LimitARP
	// Answered is a request for the address of a host at a peer, answered here.
	Answered
	// LocalNeighbour is a request for the address of a host on the LAN, which
	// answers for itself.
	LocalNeighbour
	// LocalDestination is a frame from the LAN to a host on the LAN.
	LocalDestination
	// UnknownUnicast is a frame from the LAN to a MAC not in the table.
	UnknownUnicast
	// UnknownPeer is a frame from a peer the segment is not stretched to.
	UnknownPeer
	// Split is a frame from a peer of a connection that is split here.
	Split
	// LinkRefused is a copy that the link did not take (it counts why).
	LinkRefused
	// WriteFailed is a frame that the TAP did not take.
	WriteFailed
	numReasons
)

var reasonNames = [numReasons]string{
	Carried: "carried", Runt: "runt", TooLong: "too-long", Malformed: "malformed",
	Encapsulation: "encapsulation", VLAN: "vlan", BadSource: "bad-source", OwnMAC: "own-mac",
	GatewayMAC: "gateway-mac", Reserved: "reserved", STP: "stp", Discovery: "discovery",
	PortAuth: "port-auth", SlowProtocol: "slow-protocol", LLC: "llc", EtherType: "ether-type", BadARP: "bad-arp",
	GatewayARP: "gateway-arp", SpoofedARP: "spoofed-arp", SpoofedIP: "spoofed-ip", BadIP: "bad-ip", DHCP: "dhcp",
	RouterAdvert: "router-advert", Redirect: "redirect", FragmentedND: "fragmented-nd",
	GatewayND: "gateway-nd", AgentMessage: "agent-message", Looped: "looped", Frozen: "frozen", Late: "late", Owned: "owned",
	LimitBroadcast: "limit-broadcast", LimitARP: "limit-arp",
	Answered: "answered", LocalNeighbour: "local-neighbour",
	LocalDestination: "local-destination", UnknownUnicast: "unknown-unicast",
	UnknownPeer: "unknown-peer", Split: "split", LinkRefused: "link-refused",
	WriteFailed: "write-failed",
}

// String returns the name used in statistics and logs.
func (r Reason) String() string {
	if r >= numReasons {
		return "invalid"
	}
	return reasonNames[r]
}
