// Package stream carries TCP connections between two sites split at both
// edges: the client's connection ends here, the bytes cross deduplicated and
// compressed over kernel TCP between the two agents, and the far agent talks to
// the server from the client's own address and port. It is what the stream
// process runs.
//
// # A connection's life
//
//  1. The kernel marks a client's SYN that matches a stream rule and routes it
//     into the TUN st-hold, which this package reads. The SYN is held.
//  2. The agent takes a warm connection of the rule's domain to the peer and
//     sends OPEN. The peer checks its dial rules, which must name the same domain,
//     and connects to the server.
//  3. The server answered: the near agent writes the SYN back into st-hold,
//     where the kernel's TPROXY rule gives it to the transparent listener; the
//     accepted connection joins the stream that is ready for it. The server
//     refused: the RST or ICMP error that the far agent got is written into
//     st-hold towards the client. It did not answer: nothing is said.
//  4. Bytes are relayed both ways until both directions have ended and each end
//     has said that everything was acknowledged by its host (DONE). An end of
//     one direction is passed on at once while the other is open; the last one
//     a host is told only when its own bytes have arrived. Until then the death
//     of an agent is a reset. What no proxy can undo: a host that had been told
//     the other's end and then ends itself sees a closed connection, though its
//     last bytes may still be lost; the other host is reset.
//
// A rule with handshake "early" writes the SYN back at once and opens the
// stream in parallel; a refusal is then a reset after connect. Of what a client
// begins at one port at the same time, the first reaches the server first.
//
// # Hosts of one segment
//
// Two hosts of one stretched segment send each other frames, which no TPROXY sees.
// The link process hands their SYNs to this package (package divert) if a rule
// with a segment covers them; what follows is as above, but the SYN is a frame,
// and it is put into the kernel of the segment's own namespace, whose one rule
// gives everything to transparent sockets. OPEN has the two MACs, so that the far
// agent's connection to the server comes from the client's. A client's packets
// are given to the kernel from the moment its connection is split until a while
// after its end (flowLinger), so that last retransmissions are answered by the
// socket that knows them.
//
// # When optimisation cannot be had
//
// If no connection to the peer can be had, or the peer cannot or may not dial,
// the SYN is passed on as a packet: sent through a raw socket bound to the
// peer's link device, so it crosses unoptimised inside the link and nowhere
// else. The client's later packets never come here. The choice is per SYN and
// per peer, so one dead peer of several does not disturb the others, and the
// kernel's rules never change with a peer's health. A tuple that was passed
// stays passed for its retransmissions. When the whole process dies st-hold
// vanishes with it, its routing table is empty, and SYNs fall through to the
// main table.
//
// What this package needs from the kernel's rules: a SYN is marked MarkHold
// only when it came from neither st-hold nor a link and no socket matches it;
// the connection mark MarkSplit is set when TPROXY takes the SYN from st-hold
// (not when it is held: it may yet be passed) and by the SO_MARK of the far
// agent's socket; what comes from st-hold is forwarded, its rp_filter is not 1;
// an ICMP error about a packet of a transparent socket is given to that socket
// although it is addressed to the client, else an unreachable server is a
// timeout.
//
// # Limits
//
// A stream needs two descriptors at each end, memory for what its host has not read
// yet, and at the near end a port towards the peer. So the number of streams is
// bounded, and every 200 ms memory is looked at: of the host, and of each control
// group that limits it. Streams begin while there is room for what they
// may soon take above a mark; below the mark none does, until there is twice as much.
// The collector is told to keep garbage below the mark too. When the kernel says that
// descriptors, memory for sockets or ports have run out, warm connections are closed
// for those that have begun, and for a second none begins. Whatever does not begin
// passes, and is an alarm that names the limit. What has begun is never ended.
//
// # Wire format
//
// Between two agents each stream has a TCP connection of its own, from one link
// address to the other, port 5302. Everything is frames, integers big-endian:
//
//	+--------+----------------+----------------+
//	| type 1 | body length 3  | body           |
//	+--------+----------------+----------------+
//
//	type  name     sent by     body
//	  1   HELLO    dialler     see below
//	  2   WELCOME  listener    as HELLO (same connection id), HMAC 32
//	  3   AUTH     dialler     HMAC 32
//	  4   READY    listener    empty
//	  5   REJECT   listener    instead of WELCOME: HMAC 32, reason in words, at most 200
//	  6   RESYNC   both        summary of a history (package dedupe), at most 64 KiB
//	 16   OPEN     dialler     window 4, mode 1 (0 full, 1 compress, 2 accelerate), family 1 (4 or 6),
//	                           source and destination: address 4 or 16, port 2 each; for hosts of a
//	                           segment: its id 2, MAC of the source 6, of the destination 6
//	 17   DIALING  listener    empty: OPEN has been accepted for dialling
//	 18   OPENED   listener    window 4
//	 19   REFUSED  listener    kind 1 (see Refusal)
//	 20   DATA     both        one block body (tunnel/stream/block), at most 256 KiB of original bytes
//	 21   ACK      both        block acknowledgement body
//	 22   NACK     both        block negative acknowledgement body
//	 23   RESENT   both        the block a NACK asked for; in front of it blocks behind it that may be wanted too
//	 24   CREDIT   both        limit 8: original bytes the receiver of this frame may have sent in all
//	 25   FIN      both        total 8: original bytes sent in this direction; no DATA follows
//	 26   DONE     both        total 8: that many bytes, all there are, were acknowledged by the host here
//	 27   RESET    both        empty: the host here reset its connection
//	 28   URGENT   both        position 8: the byte after so many original bytes of this direction is urgent; the
//	                           frame comes before that byte
//	 29   CONTEXT  both        1: 0 the receiver of this frame ends its compressor's context (tunnel/stream/block)
//	                           and begins none until 1 is sent
//	 32   OFFER    dialler     up to 512 SHA-256 digests of pieces of at most 1 MiB
//	 33   HAVE     listener    for each one 1: 0 not known, 1 a file here has it, 2 planted already
//	 34   PLANT    dialler     index into the last OFFER 2; then unsigned varints: both heads of the
//	                           history, and for each stretch its distance below the first head and length
//	 35   PLANTED  listener    1: 1 planted, 0 not: the file here has changed
//	 36   BENCH    dialler     window 4, service 1 (package far): in the place of OPEN, and answered with
//	                           OPENED or REFUSED
//
// A type that is not listed, a body longer or shorter than its type allows, or
// a frame out of its turn ends the connection, and with it the stream, by
// reset.
//
// The body of HELLO:
//
//	"stch", least version 1, greatest version 1, flags 2 (bit 0: many tenants),
//	features offered 8, features required 8, connection id 8, epoch 8,
//	the peer's epoch that this side is tied to 8 (0: none),
//	nonce 32, length of the domain's name 1, name,
//	head of this side's mirror of the peer's history 8 (may be missing)
//
// Other flags are sent as zero and ignored; so is what follows, up to 512 bytes in
// all. Both sides use the greatest version that both speak and the
// features that both offer. No common version, a required feature that the other
// side does not offer or does not know, or a domain that no rule there names for
// this peer is a REJECT, and is said in the status of both sides; nothing that
// follows is sent, so nothing can be misread. Features: bit 0, SEED
// frames; bit 1, URGENT frames; bit 2, shuffled tables in blocks (package
// block); bit 3, OPEN with a segment; bit 4, BENCH; bit 5, RESENT without a NACK;
// bit 6, CONTEXT.
//
// The HMACs are HMAC-SHA256 keyed with the link's token over a label ("stitch
// stream listener 1", "stitch stream dialler 1"), the HELLO body and the WELCOME
// body up to its HMAC; that of REJECT over "stitch stream reject 1", the HELLO
// body and the reason.
//
// # Keeping histories in step
//
// Each side has, per peer and domain, a history and a random epoch that names its
// present state in memory. Two epochs are tied when the two histories have been
// brought in step, and connections of the domain exist under such a tie only. The
// side with the lesser site name leads: when the WELCOME on a connection of its
// own shows that the tie is past (the peer has restarted, or this side has) it
// sends RESYNC after AUTH, the other side ends what it still had under the old
// tie and answers with RESYNC; then both know what the two histories have in
// common and forget the rest: one round trip. Connections of the other side wait
// for that.
//
// Should the two histories differ all the same, blocks are repaired, and their
// senders soon refer to nothing of what differs (package block): no stream ends for
// it. A side whose peer knows more of its history than there is was set back to an
// earlier state while it ran, as a snapshot of a virtual machine does; it, and one
// that cannot use what it gets sixteen times without a good block between, takes a
// new epoch with an empty history.
//
// # Seeding
//
// Files that both sites have need not cross. Each side is told of its files and
// remembers the digests of their pieces, over a restart too if the history has a
// directory (seedfile.go). Whoever is told offers his digests, on
// a connection where OFFER stands in the place of OPEN; of the pieces that the
// peer has too he puts the bytes into his history and says where they lie
// (PLANT), and the peer puts the same bytes, from its own file, into its mirror.
// Both read the piece again and hold it against the digest first. From then on
// they are like bytes that have crossed.
//
// # Handing over
//
// All that one end of a split connection is, beside its two sockets and the domain's
// history, is one value of plain data, State: Export stops streams between two reads
// and returns them with their sockets, and Resume of another Proxy, perhaps in another
// process, goes on. Neither host nor the peer's agent notices. What is in hand goes
// along: bytes for the host that does not read, half a frame for the peer or from it,
// blocks that are not acknowledged or wait for a repair. A compressor's context does
// not: it is megabytes, and the compressor's own. This side just ends its own; the peer
// is asked by CONTEXT to end that which is decoded here, and the stream goes on until
// it has. A peer of an older release is not asked; there a bulk stream is only stopped
// when it has been quiet for a second or has ended its direction.
//
// A state is encoded with a version and a checksum (State.Append), and refused if its
// parts do not fit each other. A history that was reopened lacks what was not yet
// acknowledged; references to that are repaired.
//
// # Being measured
//
// A peer may ask for a stream to a service in the agent itself instead of to a
// server (BENCH, package far): one that takes bytes, one that sends them back, one
// that counts datagrams on the link. It is carried as any other stream, with a
// history of its own that both sides begin empty and drop at its end, 128 MiB per
// direction at most. An agent serves one that takes bytes at a time and four
// others, each for five minutes at most; services read what is sent and answer
// it, and have no other effect.
//
// # Domains, and what sizes tell
//
// Compression and deduplication make sizes depend on content, and sizes can be
// seen on the way even when the bytes cannot. Somebody who can send through the
// agent and watch the WAN could try guesses and see which one is small: it would
// repeat what another one sent. So what a stream may be matched against is fixed
// by configuration, not by what happens to be there:
//
//   - A stream of a rule without a domain is matched against its own bytes only.
//     There an attacker would have to put his text into the victim's own
//     connection; a protocol that lets him (as a browser does) is encrypted
//     before it comes here, or should be carried with optimize = "accelerate".
//   - Streams of rules that name one domain are matched against each other: that
//     is for the traffic of one operator, such as migrations. A domain with
//     tenants = "many" matches across streams in whole 64-byte lines only: a guess
//     must be right about all of a line's unknown bytes at once, so a secret of 16
//     bytes is 2^128 guesses instead of 16 times 2^8.
//   - Domains have histories, connections and epochs of their own. What a compressor
//     keeps between blocks belongs to one direction of one stream.
//   - TLS and SSH streams are only accelerated: see sniffer.
//
// What remains: the sizes of a stream's blocks tell how well its own bytes
// compress, and the times and amounts of its writes are seen as with any tunnel.
//
// # What limits a stream
//
// The processors, on a fast link. One connection of random data over 900 Mbit/s and
// 20 ms, on two processors (EPYC, Linux 6.18) that both agents, both hosts and the
// emulated WAN share; processor seconds for a GB, next to wireguard-go between
// hosts on BBR in the same minutes, and what each carried:
//
//	                                    stitch          plain
//	link processes, both                15.7-16.1       14.7-17.2
//	stream process, sender's side        2.3-2.4
//	stream process, receiver's side      2.2-2.3
//	hosts                                1.4-1.5         4.1-4.8
//	interrupts                           3.6-3.9         3.6-4.3
//	emulated WAN                         5.3-5.6         4.4-4.6
//	Mbit/s                               513, 495        545-575, 484-521
//
// Of a stream process's time nearly half is for looking at the bytes, keeping
// them in the history and indexing them, at either side, and a tenth for the copies between
// it and the kernel. Blocks are as long as can be (256 KiB) when the host has as
// much to send, so what is done for each block does not count. What counts is how
// often somebody is woken: datagrams come one by one, so the kernel has news for the
// receiving side every 15 KB, and before it was told to wait for the whole of a
// block (Conn.Gather) the receiver's stream process took 6.3 s/GB.
//
// All that is with a history whose memory has been used before. The first time
// the kernel clears each page, at both sites, and under a virtual machine that had
// not used the memory yet the hypervisor has to find it. That took another
// 7 s/GB here, and made 422 Mbit/s of 513; memory once found is cleared at some
// 3 GB/s.
//
// An edge of its own, with neither the other site nor hosts and WAN to compute, needs
// 9 processor seconds for each GB that it sends and 12 for each that it receives,
// interrupts left out. A path of 900 Mbit/s carries 104 MB/s of data: that is
// 0.9 processors at one end and 1.3 at the other.
package stream
