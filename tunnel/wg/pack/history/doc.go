// Package history remembers, at both ends of a link, what crossed as packets, so
// that what crosses again need not.
//
// # Records
//
// A record is a stretch of one TCP flow, 8 to 64 KiB: the sender says in a note
// that record number S is so many bytes of a flow from a sequence number on, and
// the receiver fills it with what comes of the flow, as units or as packets, in
// any order and as often as it likes. Nothing of it costs a datagram more than the
// note, and what is lost is filled by TCP's own repetition. The receiver reports
// which of the latest 512 records it holds, after every eight, or a little later,
// and once more in case that got lost; late and repeated reports do no harm. Only
// what is reported may be referred to: bytes of a record by its number and offset.
//
// A flow's first records are short, since what of one is missing when the flow
// ends makes it useless; each is a quarter of what there was of the flow, so four
// fifths of it at least are kept, behind the first 8 KiB.
//
// Both ends keep the latest bytes in a ring. The sender leaves an eighth of the
// smaller ring alone, so that the receiver has what comes by then. All the same a
// record may be missing: after a restart, say. Then the unit is dropped and
// counted, the receiver names the record, and the sender forgets it; TCP sends
// again. A receiver that is another process than before makes the sender begin an
// epoch, in which nothing is known; an epoch that is over does not come again.
// That the two ends have the same bytes is not believed but seen: the checksum of
// each unit is over what comes out, and when it is wrong, all that the unit refers
// to is forgotten.
//
// # Matching
//
// Positions where a rolling hash over 64 bytes has 7 zero bits are looked up in an
// index; what is found there is verified by comparing bytes, extended both ways,
// and referred to if it is 256 bytes or more. Where a flow's bytes were found last
// is where its next ones are looked for first, without hashing. TCP cuts the same
// file elsewhere each time, which is why whole records or packets are not compared.
// Package dedupe has the same idea for streams; its extents are filled in order by
// one connection each, and a hole in them would be an error and not a daily event.
//
// Memory: the ring at either end, and for the sender an index of 1/16 of it.
//
// # What sizes tell
//
// What of a flow's bytes is known already shows in the sizes on the link. Who can
// have bytes of his choice sent and sees the link could find out others'. So
//
//   - nothing is kept unless the configuration names the hosts whose bytes may
//     be (packet_history_from): those that send to all the same;
//   - a group (one sending address, in one segment and VLAN) refers to itself only;
//   - what is referred to is whole lines of 64 bytes of the source, 256 bytes at
//     least, so a byte that is guessed right changes nothing: the whole line has to
//     be. Where lines begin is drawn for each record, so that who can shift a
//     secret does not know what he shifts it to;
//   - an anchor counts only if all of its window is in the lines it leads to: where
//     anchors are is no secret, so else who makes text that has one only if his
//     guess is right would see whether anything was found;
//   - nothing but references crosses from flow to flow: literals are compressed by
//     themselves.
//
// What is left: who knows 63 bytes around the byte he guesses, and can have the
// secret sent again and again with new lines each time, needs 64 times as many
// tries. A host that sends secrets in clear, next to text that others choose, does
// not belong into the list.
//
// # Wire format
//
// Numbers are big-endian. A note, in units and by itself (package pack):
//
//	epoch u32, record u32, TCP sequence number u32, length u32, flow u64
//
// flow is the XXH3 hash of segment (2 bytes), addresses (32, IPv4 filled up with
// zeros) and ports (4). A reference to be made of literals and records:
//
//	literals, base minus record, offset, length: unsigned varints
//
// A report crosses as a message of carrier.Probe:
//
//	11, number of missed u8, size of the ring in MiB u16, instance u32, epoch u32,
//	latest record u32, bit i of 512: the latest minus i is held; missed: u32 each
//
// This package is pure.
package history
