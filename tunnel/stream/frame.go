package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"stitch/tunnel/config"
	"stitch/tunnel/stream/block"
)

// frameType is the first byte of a frame; see the package documentation.
type frameType uint8

const (
	frameHello   frameType = 1
	frameWelcome frameType = 2
	frameAuth    frameType = 3
	frameReady   frameType = 4
	frameReject  frameType = 5
	frameResync  frameType = 6
	frameOpen    frameType = 16
	frameDialing frameType = 17
	frameOpened  frameType = 18
	frameRefused frameType = 19
	frameData    frameType = 20
	frameAck     frameType = 21
	frameNack    frameType = 22
	frameResent  frameType = 23
	frameCredit  frameType = 24
	frameFin     frameType = 25
	frameDone    frameType = 26
	frameReset   frameType = 27
	frameUrgent  frameType = 28
	frameContext frameType = 29
	frameOffer   frameType = 32
	frameHave    frameType = 33
	framePlant   frameType = 34
	framePlanted frameType = 35
	frameBench   frameType = 36
)

const (
	frameHeader = 4
	// maxBody is the longest body of any frame.
	maxBody = block.MaxFrame
	// maxAckBody bounds ACK and NACK bodies: they are short lists.
	maxAckBody = 4 << 10
	// maxSummary bounds the summary of a history (50,000 bytes at most).
	maxSummary = 64 << 10
	// maxPlanting bounds a PLANT body: two heads, and two numbers a stretch.
	maxPlanting = 2 + (2+2*maxSpans)*binary.MaxVarintLen64
	openLen4    = 4 + 1 + 1 + 2*(4+2)
	openLen6    = 4 + 1 + 1 + 2*(16+2)
	// openSegment is what OPEN has besides for hosts of a segment.
	openSegment = 2 + 2*6
)

// Bodies of CONTEXT.
const (
	contextBarred  = 0
	contextAllowed = 1
)

// errFrame is wrapped by every error about bytes that are no valid frame.
var errFrame = errors.New("stream: bad frame")

// bodyBounds returns the shortest and longest body of a type; ok is false for
// a type that does not exist.
func bodyBounds(t frameType) (lo, hi int, ok bool) {
	switch t {
	case frameHello:
		return helloLen, maxHello, true
	case frameWelcome:
		return helloLen + macLen, maxHello + macLen, true
	case frameReject:
		return macLen, macLen + maxReason, true
	case frameResync:
		return 0, maxSummary, true
	case frameAuth:
		return macLen, macLen, true
	case frameReady, frameDialing, frameReset:
		return 0, 0, true
	case frameOpen:
		return openLen4, openLen6 + openSegment, true
	case frameOpened:
		return 4, 4, true
	case frameRefused:
		return 1, 1, true
	case frameData, frameResent:
		return 1, maxBody, true
	case frameAck, frameNack:
		return 1, maxAckBody, true
	case frameCredit, frameFin, frameDone, frameUrgent:
		return 8, 8, true
	case frameOffer:
		return len(digest{}), offerSize * len(digest{}), true
	case frameHave:
		return 1, offerSize, true
	case framePlant:
		return 2, maxPlanting, true
	case framePlanted, frameContext:
		return 1, 1, true
	case frameBench:
		return 5, 5, true
	}
	return 0, 0, false
}

// parseHeader reads a frame's header and checks the length against its type.
func parseHeader(h [frameHeader]byte) (frameType, int, error) {
	t := frameType(h[0])
	n := int(h[1])<<16 | int(h[2])<<8 | int(h[3])
	lo, hi, ok := bodyBounds(t)
	switch {
	case !ok:
		return 0, 0, fmt.Errorf("%w: type %d is unknown", errFrame, t)
	case n < lo || n > hi:
		return 0, 0, fmt.Errorf("%w: type %d with %d bytes", errFrame, t, n)
	}
	return t, n, nil
}

// readFrame reads one frame. The body is read into buf if it fits, else into
// a new slice; it is never longer than its type allows. The caller owns both.
func readFrame(r io.Reader, buf []byte) (frameType, []byte, error) {
	t, n, err := readHeader(r)
	if err != nil {
		return 0, nil, err
	}
	body, err := readBody(r, n, buf)
	return t, body, err
}

// readHeader reads a frame's type and the length of its body.
func readHeader(r io.Reader) (frameType, int, error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, 0, err
	}
	return parseHeader(h)
}

// readBody reads the n bytes of a body; see readFrame.
func readBody(r io.Reader, n int, buf []byte) ([]byte, error) {
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	body := buf[:n]
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, noEOF(err)
	}
	return body, nil
}

// noEOF turns the end of input inside a frame into an unexpected one.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// beginFrame appends a header whose length endFrame fills in.
func beginFrame(b []byte, t frameType) []byte { return append(b, byte(t), 0, 0, 0) }

// endFrame sets the length of the frame that begins at b[start].
func endFrame(b []byte, start int) []byte {
	n := len(b) - start - frameHeader
	b[start+1], b[start+2], b[start+3] = byte(n>>16), byte(n>>8), byte(n)
	return b
}

// appendFrame appends a whole frame with the given body.
func appendFrame(b []byte, t frameType, body []byte) []byte {
	start := len(b)
	return endFrame(append(beginFrame(b, t), body...), start)
}

// appendCount appends a CREDIT, FIN, DONE or URGENT frame.
func appendCount(b []byte, t frameType, n uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, byte(t), 0, 0, 8), n)
}

// appendOpened appends an OPENED frame.
func appendOpened(b []byte, window uint32) []byte {
	return binary.BigEndian.AppendUint32(append(b, byte(frameOpened), 0, 0, 4), window)
}

// parseCount reads the body of a CREDIT, FIN, DONE or URGENT frame.
func parseCount(body []byte) (uint64, error) {
	if len(body) != 8 {
		return 0, fmt.Errorf("%w: count of %d bytes", errFrame, len(body))
	}
	return binary.BigEndian.Uint64(body), nil
}

// mode says how the bytes of a stream are carried, both ways.
type mode uint8

const (
	modeFull       mode = iota // matched and compressed
	modeCompress               // compressed
	modeAccelerate             // as they are
)

func (m mode) String() string {
	return [...]string{modeFull: "full", modeCompress: "compress", modeAccelerate: "accelerate"}[m]
}

// openRequest is the body of OPEN: connect from Src to Dst; the sender takes
// Window original bytes before it has granted more.
type openRequest struct {
	Window   uint32
	Mode     mode
	Src, Dst netip.AddrPort
	// Segment is that of both, with their MACs; 0: the connection is routed.
	Segment        uint16
	SrcMAC, DstMAC config.MAC
}

// append appends the body.
func (o openRequest) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, o.Window)
	family := byte(6)
	if o.Dst.Addr().Is4() {
		family = 4
	}
	b = append(b, byte(o.Mode), family)
	for _, ap := range []netip.AddrPort{o.Src, o.Dst} {
		b = append(b, ap.Addr().AsSlice()...)
		b = binary.BigEndian.AppendUint16(b, ap.Port())
	}
	if o.Segment == 0 {
		return b
	}
	b = append(binary.BigEndian.AppendUint16(b, o.Segment), o.SrcMAC[:]...)
	return append(b, o.DstMAC[:]...)
}

// parseOpen reads the body of OPEN. IPv4 inside IPv6 is not accepted: one
// connection has one spelling.
func parseOpen(body []byte) (openRequest, error) {
	var o openRequest
	if len(body) < 6 {
		return o, fmt.Errorf("%w: open of %d bytes", errFrame, len(body))
	}
	size := map[byte]int{4: 4, 6: 16}[body[5]]
	if tail := len(body) - (6 + 2*(size+2)); size == 0 || tail != 0 && tail != openSegment {
		return o, fmt.Errorf("%w: open of %d bytes for family %d", errFrame, len(body), body[5])
	}
	o.Window, o.Mode = binary.BigEndian.Uint32(body), mode(body[4])
	if o.Mode > modeAccelerate {
		return o, fmt.Errorf("%w: open with mode %d", errFrame, o.Mode)
	}
	o.Src = parseAddrPort(body[6:], size)
	o.Dst = parseAddrPort(body[6+size+2:], size)
	if o.Src.Addr().Is4In6() || o.Dst.Addr().Is4In6() {
		return o, fmt.Errorf("%w: IPv4 inside an IPv6 address", errFrame)
	}
	if tail := body[6+2*(size+2):]; len(tail) > 0 {
		o.Segment, o.SrcMAC, o.DstMAC = binary.BigEndian.Uint16(tail), config.MAC(tail[2:8]), config.MAC(tail[8:14])
		if o.Segment == 0 {
			return o, fmt.Errorf("%w: open in segment 0", errFrame)
		}
	}
	return o, nil
}

func parseAddrPort(b []byte, size int) netip.AddrPort {
	a, _ := netip.AddrFromSlice(b[:size])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[size:]))
}

// Refusal says why a far agent did not open a connection.
type Refusal uint8

const (
	// RefusedByServer: the server answered with RST.
	RefusedByServer Refusal = 1
	// HostUnreachable and NetUnreachable: ICMP said so, or nobody answers ARP.
	HostUnreachable Refusal = 2
	NetUnreachable  Refusal = 3
	// Prohibited: a filter said so by ICMP.
	Prohibited Refusal = 4
	// TimedOut: nobody answered.
	TimedOut Refusal = 5
	// Denied: the far agent's dial rules do not list the destination, or the
	// source is not the peer's. The SYN is passed on as a packet.
	Denied Refusal = 6
	// Unable: the far agent could not try (too many streams, the client's port
	// is taken there). The SYN is passed on as a packet.
	Unable Refusal = 7
	// Mismatch: the far agent's dial rule names another domain than the
	// connection's. The SYN is passed on as a packet.
	Mismatch Refusal = 8
	// unreached: this side got no answer. Never on the wire. The SYN is passed
	// on as a packet.
	unreached Refusal = 255
	// unequipped: nor was it asked, since something had run out here.
	unequipped Refusal = 254
)

// String returns the word used in logs and in Stats.
func (r Refusal) String() string {
	names := [...]string{"none", "refused", "host unreachable", "net unreachable", "prohibited", "timeout", "denied", "unable", "mismatch"}
	if int(r) < len(names) {
		return names[r]
	}
	return fmt.Sprintf("kind %d", uint8(r))
}

// parseRefusal reads the body of REFUSED; an unknown kind counts as Unable.
func parseRefusal(body []byte) Refusal {
	if len(body) != 1 || body[0] == 0 || body[0] > byte(Mismatch) {
		return Unable
	}
	return Refusal(body[0])
}
