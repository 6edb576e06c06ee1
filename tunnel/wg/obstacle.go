package wg

import (
	"encoding/binary"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// Obstacle is why no session with the peer begins, as far as the handshake
// messages tell. It is a guess from what anybody can send: good for a hint to a person, not
// for a decision.
type Obstacle string

const (
	// Silence: what we send is not answered, and nothing comes in.
	Silence Obstacle = "silence"
	// OurKey: handshakes come in that are made for another public key than ours.
	OurKey Obstacle = "our key"
	// PeerKey: handshakes come in that are made for us, but they are not from the
	// owner of the configured public key, or from before the last one: its clock
	// was set back.
	PeerKey Obstacle = "peer's key"
	// Secret: the keys fit, but the answers to a handshake are not understood at the
	// other end: the preshared keys differ, or answers get lost.
	Secret Obstacle = "preshared key"
)

const (
	// silent is how long an initiation waits for its answer before that is silence.
	silent = 4 * time.Second
	// unknownAfter is how long wireguard-go gets to answer an initiation.
	unknownAfter = time.Second
	// refusedWithin is how soon after an answer another initiation says that the
	// answer was of no use: later than wireguard-go's own repetition, sooner than
	// it renews a session that gives no data.
	refusedWithin = device.KeepaliveTimeout
	// obstacleKept is how long a sign counts.
	obstacleKept = 30 * time.Second
)

// obstacles collects signs of what hinders a session. It is pure, and not safe for
// concurrent use.
type obstacles struct {
	// forUs reports whether a handshake message was made for our public key; nil:
	// all are.
	forUs func(msg []byte) bool
	// asked is when the first of our initiations was sent that are not answered.
	asked time.Time
	// heard is when any handshake message came in.
	heard time.Time
	// stranger is the sender index of an initiation that waits for wireguard-go's
	// answer since strangerAt; known that of the last one answered.
	stranger, known uint32
	strangerAt      time.Time
	// answered is when our own initiation was answered, replied when we answered
	// one of the peer's that it has not confirmed.
	answered, replied time.Time
	// misled and refused are when the signs of OurKey and Secret were last seen.
	misled, refused time.Time
}

// sent notes a handshake message of ours that is no copy; confirmed says that the
// peer has used our last answer.
func (o *obstacles) sent(msg []byte, confirmed bool, now time.Time) {
	switch messageType(msg) {
	case device.MessageInitiationType:
		if o.asked.IsZero() {
			o.asked = now
		}
		if !o.answered.IsZero() && now.Sub(o.answered) < refusedWithin {
			o.refused = now
		}
	case device.MessageResponseType:
		o.known = binary.LittleEndian.Uint32(msg[8:])
		if o.known == o.stranger {
			o.strangerAt = time.Time{}
		}
		o.asked = time.Time{}
		if !confirmed && !o.replied.IsZero() && now.Sub(o.replied) < refusedWithin {
			o.refused = now
		}
		o.replied = now
	}
}

// received notes a handshake message that came in: passed, that wireguard-go gets
// to see it, ours, that it answers our initiation.
func (o *obstacles) received(msg []byte, passed, ours bool, now time.Time) {
	switch messageType(msg) {
	case device.MessageInitiationType, device.MessageResponseType:
	default:
		return
	}
	o.heard = now
	switch {
	case o.forUs != nil && !o.forUs(msg):
		o.misled = now
	case ours:
		o.asked, o.answered = time.Time{}, now
	case passed && messageType(msg) == device.MessageInitiationType:
		if i := binary.LittleEndian.Uint32(msg[4:]); i != o.known && (o.strangerAt.IsZero() || i != o.stranger) {
			if o.strangerAt.IsZero() {
				o.strangerAt = now
			}
			o.stranger = i
		}
	}
}

// verdict is what most likely hinders a session; "" if there is no sign, or if one
// began lately, at session.
func (o *obstacles) verdict(session, now time.Time) Obstacle {
	fresh := func(t time.Time) bool { return !t.IsZero() && now.Sub(t) < obstacleKept }
	switch {
	case fresh(session):
	case fresh(o.misled):
		return OurKey
	case fresh(o.heard) && !o.strangerAt.IsZero() && now.Sub(o.strangerAt) >= unknownAfter:
		return PeerKey
	case fresh(o.refused):
		return Secret
	case !o.asked.IsZero() && now.Sub(o.asked) >= silent && !fresh(o.heard):
		return Silence
	}
	return ""
}
