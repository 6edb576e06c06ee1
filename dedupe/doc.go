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
// of zeros. Candidates come from an index of anchors (positions chosen by a sum
// of the 64 bytes there, one in 224 or 256); each one is verified by comparing
// bytes and extended both ways, so a collision costs time, never data. The index
// is local: nothing of it is on the wire, and which sum it is depends on the
// processor (gear.go, wide.go). What is
// found is a run: it is followed from block to block without hashing, and
// behind edits in place. Behind an edit of more than 16 bytes the anchors near
// it are asked first: the page may come from elsewhere. Of several candidates
// the one that covers the others and is longer, or else younger, is taken: a
// third trip then refers to the second.
//
// Where most is found, what is still missing between two finds is looked for near
// by (near.go): within 1 KiB of where the run before would be by now, and of what
// stands in front of the source behind. That finds, from 48 bytes on, what bytes
// inserted or removed have moved, and records that stayed between changed ones,
// which are too short for an anchor. It pays for itself by what it finds, or
// is asked seldom; in new data it is not asked at all.
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
// WriterOptions narrow this: Alone to (i); with Lines a reference covers whole
// 64-byte lines of the source unless all of it falls under (i), so that sizes
// do not tell a stranger's bytes one by one.
//
// # Store
//
// With a directory (Config.Dir) a history outlives its process, and may be
// larger than memory. Rings are cut into chunks of 1 MiB. A goroutine writes
// chunks to disk (package store) behind the connections: full ones at once,
// others after they have changed for a second, and ever more rarely; of a
// sent chunk what the peer has acknowledged, of a received one what was
// received. Connections never wait for it. What memory recycles before the
// disk has taken it is dropped and counted; a full or failing disk stops the
// writing, not the traffic.
//
// Open knows at once which chunks there are and their digests: blocks are carried,
// and two sides agree, from the first moment. In the background then come the hints,
// a chunk's anchors (hints.go), for all chunks; a chunk that lies on disk only is
// usable with them. Then come the bytes that belong into memory, newest first, each
// chunk verified before any of it becomes a source. What is not loaded yet and looks
// like what is being sent is loaded before its turn. A chunk whose hints are missing,
// damaged, or of another processor is read and scanned, and its hints are written.
//
// A Reader that needs a chunk which is not loaded waits for it, a tenth of a second
// at most in a block; else the block is late (ErrLate) and comes again without
// references, and the source stays in use. Only if the disk has given nothing at
// all for two seconds does what it holds count as lost.
//
// Chunks older than Config.Memory lie on disk only. Sources there are legal as
// any, but a Writer finds one only after its chunk was read back: candidates
// that lie in it ask for it, three of them, so that an index that is wrong
// about fresh data does not cost disk reads; and the chunks behind one in use
// are read with it.
//
// # Agreement
//
// Two agents that meet exchange one Summary each and call Agree (package
// accord has the rules and the wire form). If both processes have lived since
// they last agreed, all stays. Else the chunks that both have alike are kept,
// on both sides: a live side digests what it has and the restarted one names
// what its disk has, both before verifying it, and what then turns out damaged
// is repaired like any miss. A side that lost its store makes both cold;
// nobody's connection fails for it, but those of the process that died.
//
// # Memory
//
// Config.Memory bytes for each ring, 8 bytes for each 4 KiB of its size (0.2
// %), and an index of 8-byte slots, one for each 256 bytes of history (3.1 %).
// From 64 MiB on
// these lie outside the garbage collector's heap and cost nothing until
// touched. A slot holds ring, 24 bits of tag, and position. The tag is strong
// so that a history on disk is not read in vain. Eight slots share a cache
// line and are a bucket, where the oldest gives way: what is given up is what
// would soon be overwritten in the ring. Blocks' anchors are looked up and
// inserted together, so that the processor waits for many buckets at a time.
// Repeated bytes are not hashed but for a stripe of 256 bytes in 4 KiB, whose
// anchors move to the new copy; nor are those of a link that takes bytes faster
// than they can be matched (Writer.Skim).
//
// # Locks
//
// History.life (shared by every operation, exclusive while emptying and
// agreeing), then History.alloc (taken for each extent), then Writer.mu
// (retention), then a ring segment's lock (256 KiB; held for one copy or
// comparison). The store's locks, tier.mu, Log's and disk.mu, are taken after
// these, held for no I/O, and never two at a time.
package dedupe
