package stream

import (
	"context"
	"io"
	"net"
	"net/netip"
	"time"

	"stitch/tunnel/netdev"
)

// Link is where one peer's agent is reached.
type Link struct {
	// Peer is the peer's name, Number its link number (1 to 255).
	Peer   string
	Number int
	// Device is the link's TUN; Local and Remote are its addresses.
	Device        string
	Local, Remote netip.Addr
	// Token is the secret both ends derive from the link's keys under the
	// label "stitch stream v1".
	Token [32]byte
}

// Net is the seam towards the kernel's TCP. All methods may be called
// concurrently. Every Conn it returns resets on Close until Finish.
type Net interface {
	// Intercept returns the transparent listeners (IPv4, and IPv6 where there
	// is any) on port. LocalAddr of a connection they accept is where the
	// client wanted to go.
	Intercept(port uint16) ([]Listener, error)
	// Dial connects from a client's own address and port to a server. The
	// error wraps the errno the kernel gave.
	Dial(ctx context.Context, src, dst netip.AddrPort) (Conn, error)
	// ListenPeer listens for the peer's agent on the link; DialPeer connects
	// to it. Both are bound to the link's device.
	ListenPeer(l Link, port uint16) (Listener, error)
	DialPeer(ctx context.Context, l Link, port uint16) (Conn, error)
	// CountPeer opens a UDP socket on the link, port config.StreamPort, for
	// datagrams of the peer that are counted.
	CountPeer(l Link) (*net.UDPConn, error)
	// OpenHold opens the private TUN that held SYNs come through.
	OpenHold() (netdev.Device, error)
	// Pass sends an IP packet into the link as it is. It borrows packet.
	Pass(l Link, packet []byte) error
	// Own reports whether a is an address of this host.
	Own(a netip.Addr) bool
	// Tracked calls f for each connection that the kernel tracks (conntrack),
	// those that have ended left out, until it returns false.
	Tracked(f func(Tracked) bool) error
	// Via names the device by which this host reaches a; "" if none is known.
	Via(a netip.Addr) string
	// Descriptors makes room for n open descriptors in this process if it can,
	// and returns for how many there is room.
	Descriptors(n int) int
	// Spare opens a descriptor that only takes the place of one.
	Spare() (io.Closer, error)
	// Memory says how much memory there still is, in each place that bounds it.
	Memory() []Memory
	// Collect has this process collect its garbage as memory requires.
	Collect(m MemoryStats)
}

// Tracked is a connection the kernel tracks.
type Tracked struct {
	// Proto is the IP protocol, Src who began it. Ports are 0 where the protocol
	// has none.
	Proto    uint8
	Src, Dst netip.AddrPort
	// At is Dst, or what NAT made of it.
	At netip.AddrPort
	// Mark is its connection mark.
	Mark uint32
	// BytesOut went from Src to Dst, BytesIn back; 0 if the kernel does not
	// count (nf_conntrack_acct).
	BytesOut, BytesIn uint64
}

// Listener accepts connections. After Close, Accept returns net.ErrClosed.
type Listener interface {
	Accept() (Conn, error)
	Close() error
}

// Conn is a TCP connection as the relay needs it. Read and Write may be called
// concurrently, each from one goroutine at a time; the rest from any.
//
// Close resets the connection (RST, whatever is queued is dropped) unless
// Finish was called; so does the death of the process. A Read that returns
// io.EOF is the other end's FIN and never the trace of a reset.
type Conn interface {
	net.Conn
	// CloseWrite sends a FIN after what was written.
	CloseWrite() error
	// Finish closes the connection cleanly.
	Finish() error
	// Wait blocks until Read would not block. It does not consume anything
	// and needs no buffer, so an idle connection holds none.
	Wait() error
	// Gather says that a Read or Wait which finds nothing need not return before n
	// bytes are there (or the end, or as many as the kernel takes); 1 at first. Ask
	// for no more than what is sure to come.
	Gather(n int) error
	// AtMark reports whether the next byte is urgent (RFC 9293, section 3.8.5).
	// It is certain once Wait has returned and until Read. A Read ends before
	// an urgent byte unless it begins with it.
	AtMark() bool
	// WriteUrgent writes one byte as an urgent one.
	WriteUrgent(b byte) error
	// Unacked is the number of bytes written (a FIN counts as one) that the
	// other host has not acknowledged, and the window that it announces: as many bytes as it
	// would take besides; always 0 if that is not known. It fails once the
	// connection is reset.
	Unacked() (n, window int, err error)
	// RTT is the lowest round-trip time seen; 0 if not known.
	RTT() time.Duration
	// DeliveryRate is how many bytes a second the path took lately; 0 if not
	// known. limited: there was too little to send, the path may take more.
	DeliveryRate() (rate float64, limited bool)
	// SetMark marks what is sent with one of config.Config.Marks, below
	// config.MaxMarks: its DSCP, by which package wg divides the link's rate.
	SetMark(n int) error
	// Anew begins the congestion control anew, as after the handshake: what it
	// knew of the path may be old.
	Anew() error
	// Pace is called whenever much was written: it keeps the congestion control from
	// sending what the path has no room for.
	Pace()
	// Congestion names the congestion control in use; "" if not known.
	Congestion() string
}

// addrPort returns a's address with IPv4 in IPv6 unwrapped.
func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case interface{ AddrPort() netip.AddrPort }:
		ap = a.AddrPort()
	default:
		return ap
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
