// Package dedupe finds, in what is about to be sent, bytes that the two
// agents of a link have already exchanged, and names them by position.
//
// # Model
//
// A History is two rings of original bytes: tx holds what we sent, rx mirrors
// what the peer sent. Ring positions are 64-bit, count bytes, and are never
// reused within an epoch. Each connection's Writer takes page-aligned extents
// (4 KiB growing to 1 MiB) of tx and fills them in order; the peer's Reader
// writes the same bytes at the same positions of its rx. So both sides can
// name any stretch of either ring, and no hash ever stands for data.
//
// A Writer turns a block into Tokens: literals, then a stretch of a ring or
// of zeros. Candidates come from an index of anchors (positions where a
// rolling hash over 64 bytes has 7 zero bits, one in 128 bytes); each one is
// verified by comparing bytes and extended both ways, so a collision costs
// time, never data. The index is local: nothing of it is on the wire.
//
// # Which sources are legal
//
// A Writer refers only to bytes (i) sent earlier on its own connection,
// (ii) acknowledged by the peer, whoever sent them, or (iii) in rx, decoded by
// us. For every 4 KiB page of a ring one word says who owns it and up to where
// it is filled and acknowledged; pages are filled in order, so a prefix says
// it all. Sources lie a margin (1/8 of the ring) above the tail, and are
// checked again after matching. A Reader checks every source against its own
// rings under the lock that excludes overwriting, and reports a miss; it never
// copies bytes that have been recycled.
//
// # Memory
//
// size bytes for each ring, 8 bytes for each 4 KiB (0.2 %), and an index of
// 4-byte slots, one for each 128 bytes of history (3.1 %). From 64 MiB on
// these lie outside the garbage collector's heap and cost nothing until
// touched. A slot holds ring, tag and position in units of 2^k bytes (k is 0
// up to 32 MiB, 5 at 1 GiB, at most 6); the bytes inside a unit are tried one
// by one.
//
// # Locks
//
// History.life (shared by every operation, exclusive while emptying), then
// History.alloc (taken for each extent), then Writer.mu (retention), then a
// ring segment's lock (256 KiB; held for one copy or comparison).
package dedupe
