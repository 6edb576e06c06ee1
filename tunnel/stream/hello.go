package stream

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"stitch/tunnel/stream/block"
)

const (
	helloMagic = "stch"
	// minVersion and maxVersion are the versions of the wire format, frames and
	// blocks, that this release speaks.
	minVersion, maxVersion = block.Version, block.Version
	nonceLen               = 32
	macLen                 = sha256.Size
	maxDomain              = 32
	// helloLen is the length of a hello without the domain's name; maxHello
	// leaves room for what later versions append.
	helloLen = 4 + 1 + 1 + 2 + 5*8 + nonceLen + 1
	maxHello = 512
	// maxReason bounds the text of a rejection.
	maxReason = 200

	listenerLabel = "stitch stream listener 1"
	diallerLabel  = "stitch stream dialler 1"
	rejectLabel   = "stitch stream reject 1"
)

// features are what an agent can do beyond its version. What the peer does not
// offer is not used; what one side requires and the other lacks, or does not
// know, ends the connection with a reason on both sides.
type features uint64

const (
	// featureSeed: pieces of files both sites have are put into the history.
	featureSeed features = 1 << iota
	// featureUrgent: bytes that a host sent as urgent are sent so at the other end.
	featureUrgent
	// featureTables: tables among a stream's literals may be shuffled.
	featureTables
	// featureSegment: connections between hosts of a segment are split.
	featureSegment
	// featureBench: the agent serves benchmarks of its peer.
	featureBench
	// featureRepairs: blocks may be resent before they are asked for.
	featureRepairs
	// featureContexts: a side can be asked to do without compressors' contexts.
	featureContexts

	ourFeatures = featureSeed | featureUrgent | featureTables | featureSegment | featureBench | featureRepairs | featureContexts
)

// flagTenants in a hello: the domain's streams belong to many tenants.
const flagTenants = 1

// errAuth is returned when a peer does not know the link's token.
var errAuth = errors.New("stream: the peer's token is wrong: both ends of the link must have each other's keys")

// errTerms is wrapped by every error of two agents that cannot work together
// although both are what they should be.
var errTerms = errors.New("stream: no common terms")

// hello is the body of HELLO and the first part of WELCOME.
type hello struct {
	Min, Max uint8 // versions
	Tenants  bool  // of the domain are many
	Offered  features
	Required features
	ConnID   uint64
	Epoch    uint64 // names the state of this side's history
	Tied     uint64 // the peer's epoch that it is tied to; 0: none
	Nonce    [nonceLen]byte
	Domain   string
	Received uint64 // how far the sender knows the other side's history; 0: it does not say
}

// append appends the body.
func (h hello) append(b []byte) []byte {
	b = append(b, helloMagic...)
	flags := uint16(0)
	if h.Tenants {
		flags = flagTenants
	}
	b = append(b, h.Min, h.Max)
	b = binary.BigEndian.AppendUint16(b, flags)
	for _, v := range []uint64{uint64(h.Offered), uint64(h.Required), h.ConnID, h.Epoch, h.Tied} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = append(b, h.Nonce[:]...)
	b = append(b, byte(len(h.Domain)))
	b = append(b, h.Domain...)
	return binary.BigEndian.AppendUint64(b, h.Received)
}

// parseHello reads a HELLO body. What follows the domain's name may be missing, and
// what follows that belongs to a later version and is ignored. It borrows b.
func parseHello(b []byte) (hello, error) {
	var h hello
	switch {
	case len(b) < helloLen || len(b) > maxHello:
		return h, fmt.Errorf("%w: hello of %d bytes", errFrame, len(b))
	case string(b[:4]) != helloMagic:
		return h, fmt.Errorf("%w: not a stitch hello", errFrame)
	}
	h.Min, h.Max = b[4], b[5]
	h.Tenants = binary.BigEndian.Uint16(b[6:])&flagTenants != 0
	var v [5]uint64
	for i := range v {
		v[i] = binary.BigEndian.Uint64(b[8+8*i:])
	}
	h.Offered, h.Required = features(v[0]), features(v[1])
	h.ConnID, h.Epoch, h.Tied = v[2], v[3], v[4]
	copy(h.Nonce[:], b[helloLen-1-nonceLen:])
	n := int(b[helloLen-1])
	if n > maxDomain || helloLen+n > len(b) {
		return h, fmt.Errorf("%w: name of %d bytes in a hello", errFrame, n)
	}
	h.Domain = string(b[helloLen : helloLen+n])
	if rest := b[helloLen+n:]; len(rest) >= 8 {
		h.Received = binary.BigEndian.Uint64(rest)
	}
	if h.Epoch == 0 || h.Min > h.Max {
		return h, fmt.Errorf("%w: epoch %d, versions %d to %d", errFrame, h.Epoch, h.Min, h.Max)
	}
	return h, nil
}

// terms is what two agents have agreed on for a connection.
type terms struct {
	Version  uint8
	Features features
	Tenants  bool // one side says that they are many: the stricter word counts
}

// negotiate finds the terms of two hellos; both sides find the same. The error
// wraps errTerms and says what to do. Pure.
func negotiate(own, peer hello) (terms, error) {
	t := terms{
		Version:  min(own.Max, peer.Max),
		Features: own.Offered & peer.Offered,
		Tenants:  own.Tenants || peer.Tenants,
	}
	if t.Version < own.Min || t.Version < peer.Min {
		return terms{}, fmt.Errorf("%w: versions %d to %d meet %d to %d: run releases at both sites that have a version in common",
			errTerms, own.Min, own.Max, peer.Min, peer.Max)
	}
	if lacking := (own.Required | peer.Required) &^ t.Features; lacking != 0 {
		return terms{}, fmt.Errorf("%w: features %#x are required on one side and missing on the other: run the same release at both sites", errTerms, uint64(lacking))
	}
	if own.Domain != peer.Domain {
		return terms{}, fmt.Errorf("%w: domain %q meets %q", errTerms, own.Domain, peer.Domain)
	}
	return t, nil
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

// appendReject appends the body of REJECT, the answer to a HELLO that has no
// common terms with us.
func appendReject(b []byte, token *[32]byte, dialler []byte, why error) []byte {
	text := []byte(why.Error())
	text = text[:min(len(text), maxReason)]
	mac := helloMAC(token, rejectLabel, dialler, text)
	return append(append(b, mac[:]...), text...)
}

// parseReject reads the body of REJECT and returns the error it stands for.
func parseReject(body []byte, token *[32]byte, dialler []byte) error {
	if len(body) < macLen || !validMAC(token, rejectLabel, dialler, body[macLen:], body[:macLen]) {
		return errAuth
	}
	return fmt.Errorf("%w: the peer says: %q", errTerms, body[macLen:])
}

// epochs is our epoch towards one peer and the peer's it is tied to; peer is 0
// until the two histories have been brought in step. Pure; not safe for
// concurrent use.
type epochs struct{ own, peer uint64 }

// tied reports whether our history is in step with the peer's of that epoch.
func (e epochs) tied(peer uint64) bool { return peer != 0 && e.peer == peer }
