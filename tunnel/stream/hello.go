package stream

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

const (
	helloMagic   = "stch"
	helloVersion = 1
	nonceLen     = 32
	macLen       = sha256.Size
	helloLen     = 4 + 1 + 3 + 8 + 8 + 8 + nonceLen

	listenerLabel = "stitch stream listener 1"
	diallerLabel  = "stitch stream dialler 1"
)

// errAuth is returned when a peer does not know the link's token.
var errAuth = errors.New("stream: the peer's token is wrong: both ends of the link must have each other's keys")

// hello is the body of HELLO and the first part of WELCOME.
type hello struct {
	ConnID  uint64
	Epoch   uint64
	History uint64 // bytes of history per direction
	Nonce   [nonceLen]byte
}

// append appends the body.
func (h hello) append(b []byte) []byte {
	b = append(b, helloMagic...)
	b = append(b, helloVersion, 0, 0, 0)
	b = binary.BigEndian.AppendUint64(b, h.ConnID)
	b = binary.BigEndian.AppendUint64(b, h.Epoch)
	b = binary.BigEndian.AppendUint64(b, h.History)
	return append(b, h.Nonce[:]...)
}

// parseHello reads a HELLO body.
func parseHello(b []byte) (hello, error) {
	var h hello
	switch {
	case len(b) != helloLen:
		return h, fmt.Errorf("%w: hello of %d bytes", errFrame, len(b))
	case string(b[:4]) != helloMagic:
		return h, fmt.Errorf("%w: not a stitch hello", errFrame)
	case b[4] != helloVersion:
		return h, fmt.Errorf("stream: the peer speaks version %d, this agent %d: run the same release at both sites", b[4], helloVersion)
	}
	h.ConnID = binary.BigEndian.Uint64(b[8:])
	h.Epoch = binary.BigEndian.Uint64(b[16:])
	h.History = binary.BigEndian.Uint64(b[24:])
	copy(h.Nonce[:], b[32:])
	if h.Epoch == 0 || h.History > math.MaxInt64 {
		return h, fmt.Errorf("%w: epoch %d, history %d", errFrame, h.Epoch, h.History)
	}
	return h, nil
}

// helloMAC authenticates one side over both hellos.
func helloMAC(token *[32]byte, label string, dialler, listener []byte) [macLen]byte {
	m := hmac.New(sha256.New, token[:])
	m.Write([]byte(label))
	m.Write(dialler)
	m.Write(listener)
	return [macLen]byte(m.Sum(nil))
}

// validMAC compares in constant time.
func validMAC(token *[32]byte, label string, dialler, listener, mac []byte) bool {
	want := helloMAC(token, label, dialler, listener)
	return hmac.Equal(want[:], mac)
}

// epochs is our epoch towards one peer and the peer's it is tied to; peer is 0
// until a connection became ready. Pure; not safe for concurrent use.
type epochs struct{ own, peer uint64 }

// accept reports whether a connection that shows the peer's epoch may use our
// present one. If not, the owner must drop its history and call restart.
func (e epochs) accept(peer uint64) bool { return e.peer == 0 || e.peer == peer }

// tie is called when a connection becomes ready. It reports whether the
// connection is still good: our epoch is the one it was made with.
func (e *epochs) tie(own, peer uint64) bool {
	if e.own != own || !e.accept(peer) {
		return false
	}
	e.peer = peer
	return true
}

// restart begins a new epoch with a new, empty history.
func (e *epochs) restart(own uint64) { e.own, e.peer = own, 0 }
