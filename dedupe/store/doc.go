// Package store keeps a history's segments on disk. It survives whatever a
// disk and a crash can do to files by believing nothing that does not verify:
// a segment whose record or bytes are wrong is as if it had never been written.
// So no order of writes and no fsync is needed for safety, and it does not
// matter whether the machine was booted since: a lost write is a lost segment.
// (Fsync comes now and then all the same, so that a power cut costs seconds of
// history and not half a minute.)
//
// # Files
//
// The directory has mode 0700, its files 0600; it must belong to the process's
// user and be no symbolic link. One process holds the lock. Integers are
// little-endian.
//
//	lock           empty; flock
//	state          who we are and whom we know: two slots of 512 bytes,
//	               written in turn
//	sent.data      slots of 1 MiB
//	sent.meta      a record of 1 KiB for each slot
//	sent.hints     40 KiB for each slot: what the history's user needs to find
//	               something in the segment without reading it
//	received.data, received.meta, received.hints: the same for the mirror of
//	               the peer
//
// A record is
//
//	0    magic "stS1"; flags 4: bit 0: encrypted; epoch 8, segment number 8,
//	     sequence 8 (rises with every record written; the highest one counts)
//	32   nonce 12 of the record, 0 if not encrypted
//	44   digest 16; check 16 of the slot's bytes; nonce 12 and tag 16 of them,
//	     0 if not encrypted; the map: for each 4 KiB page of the segment how
//	     many leading bytes are valid, 256 x 2
//	616  tag 16 of the record, 0 if not encrypted
//	632  0
//	1008 checksum 16: SHA-256 of the bytes before it, first half
//
// The digest is the first half of the SHA-256 of segment number 8, map, and
// the segment's 1 MiB, in which bytes that are not valid are 0. It is what two
// sites compare (package accord). Reading back needs less: check is the XXH3-128
// of the 1 MiB before encryption, three times as fast as the digest. Who can
// write to an unencrypted store could forge either; the tag of an encrypted one
// nobody can.
//
// A segment is never overwritten in place: a newer version goes to a free
// slot, and the old one's slot becomes free when the new record is written. A
// slot's record is erased before its bytes change. So a process that dies
// between two writes loses nothing that was on disk and leaves nothing damaged. Any
// slot can hold any segment, so a store can grow and shrink between two runs.
// The files are sparse and grow with use, up to 16 slots more than the history
// has segments: a store that reserved 128 GiB at its first start would fill
// disks for data that may never come, and a full disk has to be survived
// anyhow.
//
// A slot of hints is
//
//	0    magic "stH1"; flags 4: bit 0: encrypted; epoch 8, segment number 8,
//	     sequence 8 as in the record that they are about
//	32   nonce 12, 0 if not encrypted; length 4 of the hints, at most 40,880
//	48   checksum 16: XXH3-128 of all other bytes, the tag too
//	64   the hints; tag 16 if encrypted
//
// They are written before the record, and count only for the record with their
// sequence: what an earlier version, a copy or a release without hints left is no
// hint. A segment without hints is as good as any; it has to be read to be searched.
// Reading hints takes 1/26 of what reading the segments does.
//
// A state slot is
//
//	0    magic "stitchst"; version 4, flags 4: bit 0: encrypted; sequence 8
//	24   store id 16, machine 16, key check 16: the first halves of
//	     SHA-256 of the machine's id and of HMAC-SHA256 (see below)
//	72   generation 8, epoch 8 of sent, epoch 8 of received
//	96   the peer as of the last agreement: store id 16, instance 8, generation 8
//	128  salt 16
//	144  0
//	496  checksum 16, as in a record
//
// Magic, version and checksum stay where they are in all versions: a newer
// version is known as such, left alone, and the history runs in memory.
//
// # Encryption
//
// The configured key is for many stores; each uses HKDF-SHA256 of it with the
// salt of its state and "stitch history" as info, for AES-256-GCM. Every write
// has a fresh random nonce. A record's bytes 44 to 616 are sealed with its
// first 44 as additional data; they contain the nonce and tag of the slot's
// bytes, so nothing can be exchanged one by one. Hints are sealed with the first 48
// bytes of their slot. Key check is the HMAC of
// "stitch key check" under the derived key. What a thief of the disk learns is
// how much was stored when, and in which segments.
package store
