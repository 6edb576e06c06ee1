// Package divert takes TCP connections out of a stretched segment, so that the
// stream process can split those between two fixed hosts of one subnet, whose
// packets no router ever sees. Both hosts keep seeing each other's MAC, address
// and port.
//
// # How a connection is taken
//
// The link process, which moves the segment's frames, offers each one that is
// about to go to a peer ([Segment.FromLAN]). A SYN that a rule of the segment
// covers is given to the stream process as it is. That one holds it, has the
// peer's agent connect, and answers: the frame goes on after all (PASS), the host
// is refused (LAN), or the connection is split (ADD). Of a split connection the
// frames from the LAN are given to the kernel by a TAP that the stream process
// made; what the kernel sends into the TAP gets the MACs of the two hosts and goes
// on as if the peer had sent it: through the segment's filters, so that tables and
// the LAN's bridge keep knowing where the far host is. Frames of the connection
// that come from the peer all the same are dropped and answered by a reset, since
// this site's host talks to another TCP.
//
// The TAP is in a network namespace of its own, one for each segment, with
// nothing else in it: all that comes from the TAP is for transparent sockets, all
// that those send goes into the TAP. So no route, rule, filter or address of the
// host can get between, two segments may use the same addresses, and nothing is
// left when the processes end. The alternative, sockets bound to a device in the
// host's namespace, needs an address, a reverse-path setting, policy routes for
// two families and the consent of the host's firewall. The price is that the
// stream process needs CAP_SYS_ADMIN. Filtering by nftables' bridge family was
// not taken: it would decide in the kernel what is decided here, and answers
// would still need their MACs.
//
// # When a process dies
//
// The link process knows that the stream process lives by their connection. If
// that ends, new connections pass as frames at once; the kernel resets the split
// ones, and the TAP, which the link process has too, is served for a minute more
// so that the resets arrive and what hosts still send is answered by one. If the
// link process dies, the stream process hands the TAP and the connections to the
// next one, and they go on.
//
// # Messages
//
// On a packet socket (SOCK_SEQPACKET) in the run directory, each packet is one
// message of one type byte and a body; integers big-endian, addresses 4 or 16
// bytes behind their length, names behind their length:
//
//	type  name     sent by  body
//	  1   HELLO    link     version 1, then for each segment with rules: id 2, MTU 2
//	  2   SYN      link     segment 2, peer, frame
//	  3   ADDED    link     number 8, taken 1
//	  4   MOVED    link     flow: one of its hosts is elsewhere
//	  5   PASSED   link     why 1, flow: its SYN passed, though a rule is about it
//	 16   DEVICE   stream   segment 2; with the descriptor of the TAP
//	 17   ADD      stream   number 8, flow
//	 18   REMOVE   stream   flow
//	 19   LAN      stream   segment 2, peer, frame for the LAN
//	 20   PASS     stream   segment 2, peer, frame for the peer
//
// A flow is segment 2, peer, the local and the remote host's address, port 2 and
// MAC 6. Both processes are one binary; another version ends the connection.
package divert
