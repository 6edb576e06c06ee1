// Package pack compresses TCP super-packets on their way into a link, each as
// one unit, and decides when that pays.
//
// A connection that is not split crosses as packets. With segmentation offload
// the kernel hands over up to 64 KiB of it at once, and that is enough to
// compress: a unit crosses in fewer datagrams, and at the other end comes out as
// the very packets that would have crossed without.
//
// # The rule
//
// Of n datagrams that the packets of a super-packet take, k of the unit leave in
// their place if
//
//	k <= 3n/4             that saves a quarter of them, and
//	k <= n (1-p)^(k-1)    it pays at loss p of the direction.
//
// One lost part loses the unit, so of a unit n(1-p)^k packets arrive for k sent,
// and without it n(1-p) for n: the second line says that the first share is no
// worse. What the probes of the link have measured is p; until they have, 1 %.
// With n = 46, which is 64 KiB:
//
//	p     0.1 %  1 %  2 %  3 %  5 %  10 %
//	k <=     34   33   27   23   18    12
//
// It is decided at once, on what the kernel handed over: nothing waits for more.
// What is behind a unit in the queue waits while it is compressed, at most some
// 0.2 ms of a core for 64 KiB.
//
// # Gain and cost
//
// One connection (CUBIC) of log lines, which compress to a fifth, or of random
// bytes, between two agents on one machine of two cores, with and without; WAN is
// bytes on the link for one that arrived (`stitch-packets -pack`, medians of 3
// rounds, of 4 without a WAN, one at 0.1 %):
//
//	                              text              random
//	                          with  without     with  without
//	100 Mbit/s, 40 ms, 0 %     475       93       82       57   Mbit/s
//	                           .21     1.18     1.18     1.17   WAN
//	the same, 0.1 %           11.1     11.1     11.9     13.4   Mbit/s
//	                           .35     1.17     1.18     1.14   WAN
//	the same, 1 %              3.7      2.8      2.6      3.0   Mbit/s
//	                           .43     1.21     1.20     1.25   WAN
//	a plain veth              3925     3991     3894     4074   Mbit/s
//	                          1.05     1.06     1.06     1.06   WAN
//
// The last is where the line is: a link that carries 4 Gbit/s is faster than the
// compressor, which gives up and costs 2 % (random: 4 %, nothing compressed; the
// rounds differ by as much). Where loss bounds a connection, packing spares bytes
// and little time: a lost part is a lost super-packet, which is short there.
//
// # When it is not tried
//
//   - A flow that looks encrypted (TLS records, SSH, or random bytes) is passed
//     over for 255 units, four times as many each time it still does, up to 4095.
//     One whose unit did not save enough is for 1, 3, 7, ... up to 255. What is
//     known of a flow is in a table of fixed size, where a newer one may take an
//     older one's place; then that is looked at again.
//   - Compressing may take a quarter of the reader's time, with 20 ms saved up.
//     Who would take more has a link that is faster than the compressor: zstd
//     gives way to S2, and S2 to nothing for 1 s, 2 s, ... up to 64 s, when S2
//     is tried again. zstd comes back when S2 takes less than a twelfth.
//   - The peer has not said in its probes that it takes units: it is older, or
//     one end's configuration has offload_off = ["pack"].
//
// # What sizes tell
//
// Whoever sees the link and can have text of his choice put next to a secret
// learns from sizes whether they are alike (CRIME, BREACH; VORACLE was the same
// of a VPN that compressed, and OpenVPN compresses no more by default). So a unit
// is compressed by itself: no compressor sees another flow's bytes, nor those of an
// earlier unit. What fits into one packet never is compressed, and what
// is encrypted neither. What is left is a flow in clear that carries somebody's
// secret and somebody else's text in the same 64 KiB: for those there is
// offload_off = ["pack"], at either end. What was sent by hosts that the
// configuration lists may be referred to; what that tells, and to whom, is in
// package history.
//
// # Repeats, near and far
//
// What crossed once may be referred to when it crosses again, if the configuration
// says of whom (packet_history, packet_history_from; package history). It is for
// repeats at a distance, which nothing else makes small: the same file for the next
// client. 8 MiB of random bytes between two agents (100 Mbit/s, 40 ms;
// TestE2EPackHistory), bytes on the WAN:
//
//	                  first   again
//	on the link   9,643,908 152,580
//	on a segment 11,056,760 158,328
//
// Looking through 60,000 bytes takes 3.5 us where they are known and 38 us where they
// are not, on one core (BenchmarkMatch). It counts as compressing does, and is the
// first thing to be given up.
//
// A compressor's window over the flow's last units would be another thing, for
// repeats that are near, and there is none. It was measured on 8 MiB of each of
// these, zstd's fastest level, as the bytes in the datagrams' payload: a unit of
// 63,360 bytes by itself, and with the flow's last 64 KiB and 1 MiB before it.
//
//	                   alone  64 KiB  1 MiB
//	a web server's log  .145    .138   .135
//	a database's dump   .189    .186   .180
//	a source tree       .148    .122   .093
//	guest memory        .854    .846   .842
//
// (Alone includes the datagrams' headers, the others do not, so it is less than it
// seems.) Where most is saved, by the first division by five, a window saves some
// percent of the whole more, and every secret in it would be there to be guessed
// byte by byte.
//
// # Wire format
//
// A unit is a message of carrier.Unit; numbers are big-endian:
//
//		 0                   1                   2                   3
//		 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//		+---------------+---------------+-------------------------------+
//		|     codec     |     flags     |            segment            |
//		+---------------+---------------+-------------------------------+
//		|             size              |             start             |
//		+-------------------------------+-------------------------------+
//		|                            length                             |
//		+---------------------------------------------------------------+
//		|                   checksum of the super-packet                |
//		|                                                               |
//		+---------------------------------------------------------------+
//		|  super-packet, compressed ...
//
//	  - codec is 1 (S2 block) or 2 (zstd frame with its content size).
//	  - flags: 1, behind the header is what the unit refers to (epoch u32, base u32,
//	    length u32, references; package history) and what follows are the
//	    literals, codec 0 being allowed; 2, behind that is a history.Note. Both only
//	    to who keeps a history. Codec 3, zeros, and a note is a note alone.
//	  - segment is that of an Ethernet frame; 0: an IP packet.
//	  - size is how much each packet but the last carries behind its headers, 256
//	    at least; start is the offset of the TCP header.
//	  - length of the super-packet, 65,557 at most; its XXH3 hash of 64 bits.
//
// The super-packet is what the sender's kernel handed over, its headers included,
// so they come out bit by bit. A receiver drops and counts a unit that breaks any
// of this, and before it allocates anything checks length and what the compressed
// bytes claim. It believes nothing about the packets: they are cut and their
// checksums made anew, at most 256 of one unit: so much a hostile peer can make
// of one datagram, and no more. See testdata/wire/unit.txt and
// packet-history.txt for vectors.
//
// This package is pure; its time comes from the caller.
package pack
