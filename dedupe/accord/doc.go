// Package accord lets two agents that meet again find out, in one round trip,
// which parts of their histories are still the same on both sides. It is pure:
// summaries in, a verdict out, the same on both sides.
//
// # Model
//
// Each side has two rings: Sent, its own bytes, and Received, its mirror of
// the peer's Sent. Rings are compared in segments of 1 MiB by 128-bit digests
// over the segment's number, which of its bytes are valid, and these bytes. A
// segment is kept if both sides name the same digest; the others are dropped,
// on both sides. If both processes have lived since they last agreed, nothing
// needs comparing and all is kept.
//
// 64 GiB have 65,536 segments, too many to name. So old segments are named in
// groups: a sum over 8 segments is the digest of their 8 digests, a sum over
// 64 that of 8 such sums. The newest 256 to 319 segments are named one by one,
// the 192 groups of 8 before them as such, the rest in groups of 64; where the
// two sides differ in that the coarser view counts, and the finer side's sums
// are folded to it. One wrong segment so costs 1, 8 or 64 MiB. An absent
// segment has the digest zero, and so has a group of absent ones; zero equals
// nothing.
//
// # Identity
//
// A store has a random id, a generation that rises with every opening and now
// and then between, and each process life has a random instance. Each side
// remembers what the peer last showed. A peer that shows the remembered store
// under another instance with no higher generation is a clone of the store or
// an older copy of it: both sides start cold, and the suspect's epoch changes
// to one that both compute. The data would be safe without this, since nothing
// is kept without equal digests; it is the operator who should hear of it.
//
// # Positions
//
// A position never gets two meanings within an epoch: after an agreement a
// ring goes on at the higher of the two sides' heads, rounded up to a segment.
//
// # Wire format
//
// Integers are big-endian. A summary is
//
//	version 1 (1), reserved 3 (0, ignored), history size 8,
//	self:   store id 16 (0: memory only), instance 8, generation 8,
//	peer:   the same, as remembered of the peer; 0 if none,
//	sent:   epoch 8, head 8, tail 8,
//	received: the same; epoch is that of the mirrored ring, 0 if none,
//	sums of sent, sums of received: 16 each.
//
// Head and tail say how many sums follow. With h = head/1 MiB rounded up and
// t = tail/1 MiB rounded down to a multiple of 64, the segments from
// s = max(t, (h-256) rounded down to 64; at least 0) to h have a sum each, those
// from e = max(t, s-1536) to s one for 8, those from t to e one for 64. They
// come oldest first: groups of 64, groups of 8, single ones. A summary of 64
// GiB in both directions is below MaxLen, which bounds every summary.
package accord
