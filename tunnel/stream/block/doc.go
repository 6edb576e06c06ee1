// Package block turns pieces of a stream into blocks, deduplicated against a
// history, compressed and checked, and back.
//
// It is pure: no sockets, no clock. An Encoder and a Decoder serve one
// direction of one connection; blocks are numbered and travel in order.
//
// # Format
//
// All numbers are unsigned varints unless said otherwise. Both ends keep, from
// the blocks of the connection so far: how many there were (seq of the next,
// from 0), their application bytes (off), where the last one ended in the
// sender's ring (end), both heads, and the course: the ring (0 at first) and
// for each ring position - off of the last source (0 at first). A block body
// is
//
//	flags     1 byte: bits 0-1 codec of the literals (0 raw, 1 S2, 2 zstd)
//	          bits 2-3 tokens (a codec, or 3: the block is one match in step)
//	          bits 4-5 place (0 none: the block stays out of the history,
//	          1 goes on at end, heads as known, 2 one span, 3 two spans)
//	          bit 6 n is 262144, bit 7 resent
//	seq       only if resent: the block it repairs
//	n         unless bit 6: application bytes, 1 to 262143
//	-- place 2 or 3:
//	txhead    head of the sender's ring of sent bytes
//	back      the block lies at txhead - back of that ring
//	rxhead    head of the sender's mirror of the receiver's ring
//	-- place 3: len, back2: only len bytes do, the rest at txhead - back2
//	-- place not 0 and tokens not 3:
//	tokens    how many, at most n/16
//	  -- tokens not raw: rawlen, complen: bytes of the token section
//	sum       8 bytes, little endian: see below
//	token section, literal section (the rest of the body)
//
// The token section is three columns one after the other. First, for each
// token, the literal bytes in front of it. Second, for each token, its length
// - 15, or 0 if it ends the block, doubled, plus 1 if its source is given;
// else it is in step: in the ring of the last source, at that ring's
// position - off of the course plus the token's offset in the connection.
// Third the given sources: (zigzag(delta) << 2 | ring), ring 0 the sender's, 1
// the receiver's, 2 zeros (then delta is 0 and the course stays); delta is how
// far position - off lies from that ring's in the course, which it replaces.
// So an edit in place costs its bytes and four or five more, and 256 KiB of a
// run nine bytes.
//
// What the tokens leave is literal. sum is XXH3-64 of the application's bytes,
// seeded with XXH3-64 of the eight numbers seq, n, position and length of both
// spans, txhead, rxhead (8 bytes each, little endian), seeded with the
// connection's id: a body in the wrong place or on the wrong connection, and
// ends that do not keep the same account, do not check.
//
// The heads are the sender's at the time, or lag by at most 1/64 of the ring.
// A resent block has place 2, 3 or 0, no tokens, and raw literals, and leaves
// the account alone.
//
// An acknowledgement body is one number: how many blocks are stored, from the
// connection's start. A nack body is the seq of the block wanted again, a
// count (at most 16), and for each unusable source: ring (as in tokens),
// position, length (at most 262144).
//
// # Misses
//
// When the Decoder does not hold a source, or the sum of a block with tokens
// does not fit, Decode returns ErrMiss. The caller sends AppendNack and goes
// on reading and calling Decode, also with DATA already in flight: those
// blocks are kept (nothing returned, no error) and decoded behind the resent
// one, whose Decode returns all their bytes. If one of them misses in turn,
// Decode returns the good bytes and ErrMiss again. The peer's caller gives the
// nack to Encoder.Resend and sends the result as an ordinary block. Three
// misses in a row without a good block are the caller's reason to call
// History.Restart and reset its connections.
package block
