// Package wg is a link: one wireguard-go device towards one peer, and what
// shares it with the plain IP packets of the peer's TUN device.
package wg

import (
	"log/slog"
	"net"
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev"
)

// MaxControl is the most bytes of one control datagram.
const MaxControl = 1200

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
	// it, after Link.Close.
	TUN netdev.Device
	// InnerMTU is the largest IP packet that fits into one datagram of the
	// link, in bytes; see config.InnerMTU.
	InnerMTU int
	// Local and Remote are the IPv4 link addresses; see LinkAddrs.
	Local, Remote netip.Addr
	// Stock says that the peer is a WireGuard implementation without stitch:
	// plain IP packets only, no probes.
	Stock bool
	// Bind is the UDP side; nil means conn.NewDefaultBind().
	Bind conn.Bind
	// OnFrame gets every Ethernet frame from the peer. It borrows frame, is
	// called from the receive goroutine and must not block. Nil: dropped.
	OnFrame func(segment uint16, frame []byte)
	// OnControl gets every control datagram; same rules as OnFrame.
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

// Link is one link. It is safe for concurrent use.
type Link struct{}

// Open starts a link. It returns as soon as the UDP socket is open; the peer
// need not be there.
func Open(cfg Config) (*Link, error) { return nil, net.ErrClosed }

// Close ends the link and waits for its goroutines. It does not close
// Config.TUN. A second Close returns net.ErrClosed.
func (l *Link) Close() error { return net.ErrClosed }

// SendFrame sends an Ethernet frame of a segment; it copies frame. False means
// that it was dropped and counted: the queue is full, the frame too long or
// the link closed. While the link is down, the newest frame of each flow is
// kept instead and sent when it is up again.
func (l *Link) SendFrame(segment uint16, frame []byte) bool { return false }

// SendControl sends a datagram of at most MaxControl bytes ahead of frames and
// packets, without any promise that it arrives; it copies msg. False means
// that it was dropped and counted: link not up, queue full, too long, closed.
func (l *Link) SendControl(msg []byte) bool { return false }

// Stats are the counters of a link since Open.
type Stats struct {
	State State `json:"state"`
}

// Stats returns a snapshot.
func (l *Link) Stats() Stats { return Stats{} }
