// Package block turns pieces of a stream into blocks, deduplicated against a
// history, compressed and checked, and back.
//
// It is pure: no sockets, no clock. An Encoder and a Decoder serve one
// direction of one connection; blocks are numbered and travel in order.
//
// # Format
//
// This is format version 1 (Version). All numbers are unsigned varints unless
// said otherwise. Both ends keep, from the blocks of the connection so far: how
// many there were (seq of the next, from 0), their application bytes (off),
// where the last one ended in the sender's ring (end), both heads, the token
// model and the compressor's context. A block body is
//
//	flags     1 byte: bits 0-1 codec of the literals (0 raw, 1 S2, 2 zstd,
//	          3 zstd that goes on from the blocks before)
//	          bits 2-3 tokens (0 none, 1 a section, 3 the block is one match
//	          in step)
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
//	-- tokens 1: section: bytes of the token section, at least 1
//	sum       8 bytes, little endian: see below
//	token section, literal section (the rest of the body)
//
// A block of one byte is a body of 11 bytes. A repeat of 256 KiB in step is a
// body of 9.
//
// sum is XXH3-64 of the application's bytes, seeded with XXH3-64 of the eight
// numbers seq, n, position and length of both spans, txhead, rxhead (8 bytes
// each, little endian), seeded with the connection's id: a body in the wrong
// place or on the wrong connection, and ends that do not keep the same account,
// do not check.
//
// # Tokens
//
// A token says: so many literal bytes, then so many bytes from a source. The
// section is coded by a binary range coder whose probabilities follow what was
// coded before on this connection (coder.go); what repeats costs almost
// nothing, and an edit in place costs its bytes and about two more. It is the
// count, then for each token
//
//	lit     literal bytes in front of it
//	kind    4 bits: 0-7 in step with one of the eight latest courses, latest
//	        first, 8 zeros, 9 and 10 a source in the sender's and the
//	        receiver's ring that is given
//	given   kind 9 and 10: sign and size of the distance from the latest course
//	        in that ring
//	patch   1 bit, kind 0 and lit 1 to 256: the literals are differences, byte by
//	        byte, from what stands in front of the source
//	last    1 bit: the token ends the block
//	length  unless it does: less 16
//
// A course is a ring and position - off of a source. The numbers and their
// contexts are those of model.go. A number, plus 1, is coded as its length in
// bits, the three bits under the highest one, and the rest, of which the lowest
// eight with probabilities, and none of a number of more than 19 bits.
//
// # Literals
//
// What the tokens leave is literal. The literal section decodes to the
// differences of all patches, then the other literals. Both ends follow the
// records of a guest's memory as QEMU streams it through the application's
// bytes: 8 bytes address and flags, big endian, then 4096 bytes (flags 0x28) or
// one (0x22). A block in which the next header is known when it begins has those
// bytes of headers that are literals (and no patch) at the end of the section,
// the last one first, less the bytes of the header before plus 4096. Headers are
// looked for in the first 8 KiB of a block (predict.go). So a page's header
// costs next to nothing.
//
// Codec 3 is one zstd frame (window at most 8 MiB, no checksum, no dictionary)
// over many blocks of a connection, each with whole zstd blocks; a section that
// begins with zstd's magic begins another frame. It is used by at most 8
// connections between two agents at once. If both ends can (Options.Tables), a
// section may begin with the byte 6 and the widths of its literals' pieces: of
// each whole 2048 bytes of the n it decodes to, 2 bits, from the lowest ones of
// the first byte on, the rest of the last byte zero. Width 0 is a plain piece;
// width w is a table, shuffled: seen as words of 2<<w bytes, all their first
// bytes, then all second ones and so on, in each of these rows every byte less
// the one before it (compress/shuffle.go). The zstd blocks decode to the plain
// pieces and what is left behind the last whole one, then to the shuffled ones.
// No zstd block or frame begins with 6. The body 03 00 is no block and has no
// seq: it ends the frame, so that both ends can give up its memory.
//
// The heads are the sender's at the time, or lag by at most 1/64 of the ring.
// A resent block has place 2, 3 or 0, no tokens, and raw literals, and leaves
// the account alone: the blocks behind a missing one go on from its sections,
// which have arrived, whether or not its sources are there. The next literal
// section of codec 3 begins another frame.
//
// An acknowledgement body is one number: how many blocks are stored, from the
// connection's start. A nack body is the seq of the block wanted again, a
// count (at most 16), and for each unusable source: ring (as in tokens),
// position, length (at most 262144).
//
// # Misses
//
// When the Decoder does not hold a source, or the sum of a block with tokens or
// compressed literals does not fit, Decode returns ErrMiss. The caller sends
// AppendNack and goes on reading and calling Decode, also with DATA already in
// flight: those blocks are kept (nothing returned, no error) and decoded behind
// the resent one, whose Decode returns all their bytes. If one of them misses
// in turn, Decode returns the good bytes and ErrMiss again. A source that is held,
// on a disk that has not given it within a tenth of a second, is a miss too,
// ErrLate, but the nack then names no source: the block comes again, and all
// stays in use. The peer's caller
// gives the nack to Encoder.Resend and sends the result as an ordinary block.
//
// A second nack for what was under way when the first one came says that the
// histories differ in more than a page. If both ends can (Options.Repairs), the
// blocks behind the wanted one that have tokens are then resent in front of it, up
// to 8 MiB of them; the Decoder keeps what comes so before it is missed, and uses it
// if it is. And the encoder trusts its history less with each nack, and more again
// with each 64 good blocks: it gives up the pages of the sources named, then what
// lies within 16 MiB of them, then within 1 GiB, then all. So histories that have
// nothing in common cost a few round trips. Many misses in a row all the same are
// the caller's reason to call History.Restart and reset its connections.
package block
