package wg

import (
	"bytes"
	"encoding/binary"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

const (
	// minWindow is the least time an own initiation has precedence, and
	// minResend the least time between two copies of a handshake message.
	minWindow = 1500 * time.Millisecond
	minResend = 250 * time.Millisecond
	// giveUp is when wireguard-go makes a new initiation by itself.
	giveUp = device.RekeyTimeout
	// digest is how long wireguard-go may need to answer an initiation that
	// was let through to it.
	digest = 100 * time.Millisecond
)

// handshaker decides what happens to handshake messages besides what
// wireguard-go does with them. It is pure, and not safe for concurrent use.
//
// Two ends that initiate at the same time each accept the other's initiation,
// which makes each forget its own, so both answers are refused and both try
// again five seconds later, again together. The rule against it: an initiation
// of the end that wins (the one with the lower public key; against a stock
// peer, ours) has precedence for a window. While it is unanswered the winner
// drops what the other end initiates. After the window it accepts again, for
// the case that its own messages do not reach the peer but the peer's reach us.
//
// A lost message costs five seconds too, so the very same datagram is sent
// again until it is answered. This changes nothing at a receiver that has it
// already: an initiation must have a later timestamp than the last one, or it
// is ignored (wireguard-go ConsumeMessageInitiation, "handshake replay"; so
// does the kernel), and the receiver index of a response belongs to a handshake
// only until it is used (BeginSymmetricSession swaps it).
//
// Both ends must never accept an initiation at once. So the winner stops its
// copies early enough that none is on its way when the window ends. And since
// wireguard-go handles messages on several goroutines, what it is doing at this
// moment is left to end first: an initiation is held back for a moment when one
// of the peer may just be accepted or has just been answered, and dropped when
// an answer to ours has just arrived.
type handshaker struct {
	wins bool
	// rtt is the smoothed round-trip time; 0 means not known yet.
	rtt time.Duration
	// own is our initiation, reply our response, each until it is answered.
	own, reply pending
	// passed is when an initiation was last let through and not yet answered;
	// answered is when the answer to ours came.
	passed, answered time.Time
	// initiation and response are the last of each that were let through.
	initiation, response arrived
	signs                obstacles
}

// arrived is a message from the network.
type arrived struct {
	data []byte
	at   time.Time
}

// copied reports whether msg is the last message once more, so soon that
// wireguard-go may be at it still; else msg is the last one from now on.
func (a *arrived) copied(msg []byte, now time.Time) bool {
	if now.Sub(a.at) < digest && bytes.Equal(a.data, msg) {
		return true
	}
	a.data, a.at = append(a.data[:0], msg...), now
	return false
}

// pending is a message of ours that waits for its answer.
type pending struct {
	data  []byte // empty: none
	to    conn.Endpoint
	index uint32 // what the answer is addressed to
	born  time.Time
	next  time.Time // when to send it again; zero: never
	held  bool      // it has not been sent at all yet
}

func (p *pending) live() bool { return len(p.data) > 0 }
func (p *pending) clear()     { p.data, p.to = p.data[:0], nil }

func (p *pending) set(data []byte, to conn.Endpoint, now time.Time, again time.Duration) {
	p.data = append(p.data[:0], data...)
	p.to, p.index = to, binary.LittleEndian.Uint32(data[4:])
	p.born, p.next, p.held = now, now.Add(again), false
}

// window is how long our initiation has precedence.
func (h *handshaker) window() time.Duration { return max(minWindow, 3*h.rtt) }

// again is the time between two copies.
func (h *handshaker) again() time.Duration { return max(minResend, h.rtt*3/2) }

// quiet is the end of the window in which the winner sends no copies: longer
// than a round trip.
func (h *handshaker) quiet() time.Duration {
	if h.rtt == 0 {
		return minWindow / 2
	}
	return h.rtt*3/2 + 100*time.Millisecond
}

// sent notes a handshake message that wireguard-go sends, and reports whether
// to hold it back for now; other messages are ignored.
func (h *handshaker) sent(msg []byte, to conn.Endpoint, now time.Time) (hold bool) {
	h.signs.sent(msg, !h.reply.live(), now)
	switch messageType(msg) {
	case device.MessageInitiationType:
		answering := h.reply.live() && now.Sub(h.reply.born) < digest
		if answering || h.wins && now.Sub(h.passed) < digest {
			h.own.set(msg, to, now, digest)
			h.own.held = true
			return true
		}
		h.own.set(msg, to, now, h.again())
		h.reply.clear()
	case device.MessageResponseType:
		// It accepted an initiation of the peer, and forgot its own.
		h.reply.set(msg, to, now, h.again())
		h.own.clear()
		h.passed = time.Time{}
	}
	return false
}

// received looks at a message from the network and reports whether to drop it.
func (h *handshaker) received(msg []byte, now time.Time) (drop bool) {
	answer := false
	defer func() { h.signs.received(msg, !drop, answer, now) }()
	switch messageType(msg) {
	case device.MessageInitiationType:
		ours := h.wins && h.own.live() && !h.own.held && now.Sub(h.own.born) < h.window()
		if ours || now.Sub(h.answered) < digest || h.initiation.copied(msg, now) {
			return true
		}
		h.passed = now
	case device.MessageResponseType:
		if h.response.copied(msg, now) {
			return true
		}
		if h.own.live() && binary.LittleEndian.Uint32(msg[8:]) == h.own.index {
			h.own.clear()
			h.answered, answer = now, true
		}
	case device.MessageTransportType:
		if h.reply.live() && binary.LittleEndian.Uint32(msg[4:]) == h.reply.index {
			h.reply.clear()
			if h.own.held {
				h.own.clear() // there is a session: it is not needed
			}
		}
	}
	return false
}

// due returns a message to send again at now, if any, and when to ask next;
// the zero time means when a message has been sent. It lends data.
func (h *handshaker) due(now time.Time) (data []byte, to conn.Endpoint, next time.Time) {
	ownFor := giveUp
	if h.wins {
		ownFor = min(ownFor, h.window()-h.quiet())
	}
	for _, p := range []struct {
		*pending
		lasts time.Duration
	}{{&h.own, ownFor}, {&h.reply, giveUp}} {
		switch {
		case !p.live() || p.next.IsZero():
		case now.Sub(p.born) >= p.lasts:
			p.next = time.Time{}
		case !now.Before(p.next):
			p.next, p.held = now.Add(h.again()), false
			return p.data, p.to, now
		case next.IsZero() || p.next.Before(next):
			next = p.next
		}
	}
	return nil, nil, next
}

// messageType returns the type of a message that has the length of its type,
// or 0.
func messageType(msg []byte) uint32 {
	if len(msg) < device.MinMessageSize {
		return 0
	}
	t := binary.LittleEndian.Uint32(msg)
	switch {
	case t == device.MessageInitiationType && len(msg) == device.MessageInitiationSize,
		t == device.MessageResponseType && len(msg) == device.MessageResponseSize,
		t == device.MessageTransportType:
		return t
	}
	return 0
}
