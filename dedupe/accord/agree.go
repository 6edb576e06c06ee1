package accord

import (
	"crypto/sha256"
	"encoding/binary"
)

// Range is the segments [From, To).
type Range struct{ From, To uint64 }

// Course is what an agreement makes of one ring: its epoch, where it goes on,
// and the segments kept.
type Course struct {
	Epoch uint64
	Head  uint64
	Kept  []Range // rising, not touching
}

// Verdict is an agreement from one side's view.
type Verdict struct {
	// Live: both processes have lived since they last agreed. Nothing
	// changes, and the courses are empty.
	Live           bool
	Sent, Received Course
	// Suspect and PeerSuspect: our store, or the peer's, is a clone or an old
	// copy. Nothing is kept.
	Suspect, PeerSuspect bool
}

// Agree compares two summaries. The peer that calls it with the arguments
// exchanged gets the mirror image.
func Agree(own, peer *Summary) Verdict {
	v := Verdict{Suspect: suspect(own, peer), PeerSuspect: suspect(peer, own)}
	if !v.Suspect && !v.PeerSuspect && live(own, peer) && live(peer, own) {
		return Verdict{Live: true}
	}
	cold := v.Suspect || v.PeerSuspect
	v.Sent = course(&own.Sent, &peer.Received, cold)
	v.Received = course(&peer.Sent, &own.Received, cold)
	if v.Suspect {
		v.Sent.Epoch = derive(own, peer)
	}
	if v.PeerSuspect {
		v.Received.Epoch = derive(peer, own)
	}
	return v
}

// live says that a has stayed what b remembers of it.
func live(a, b *Summary) bool {
	return b.Peer.Instance == a.Self.Instance && b.Received.Epoch == a.Sent.Epoch
}

// suspect says that a's store is a clone or an old copy of what b remembers.
func suspect(a, b *Summary) bool {
	return a.Self.Store != [16]byte{} && a.Self.Store == b.Peer.Store &&
		a.Self.Instance != b.Peer.Instance && a.Self.Generation <= b.Peer.Generation
}

// course compares a ring with its mirror.
func course(tx, rx *Ring, cold bool) Course {
	c := Course{Epoch: tx.Epoch, Head: tx.Head}
	if tx.Epoch == rx.Epoch {
		c.Head = max(c.Head, rx.Head)
		if !cold {
			c.Kept = common(tx, rx)
		}
	}
	c.Head = (c.Head + Segment - 1) / Segment * Segment
	return c
}

// common is the segments that both rings name alike.
func common(a, b *Ring) (kept []Range) {
	la, lb := a.layout(), b.layout()
	for at := max(la.first, lb.first); at < min(la.end, lb.end); at += block {
		level := max(la.level(at), lb.level(at))
		sa, sb := a.at(&la, at, level), b.at(&lb, at, level)
		for i := range min(len(sa), len(sb)) {
			if sa[i] == sb[i] && sa[i] != (Digest{}) {
				n := uint64(1) << (3 * level)
				kept = join(kept, Range{at + uint64(i)*n, at + uint64(i+1)*n})
			}
		}
	}
	return kept
}

// join adds r behind rs.
func join(rs []Range, r Range) []Range {
	if k := len(rs) - 1; k >= 0 && rs[k].To == r.From {
		rs[k].To = r.To
		return rs
	}
	return append(rs, r)
}

// derive is the new epoch of a suspect.
func derive(suspect, other *Summary) uint64 {
	b := []byte("stitch cold start")
	for _, v := range [...]uint64{suspect.Sent.Epoch, suspect.Self.Instance, other.Self.Instance, other.Sent.Head} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	h := sha256.Sum256(b)
	return binary.BigEndian.Uint64(h[:]) | 1
}
