// Package redirect decides where the packets of workloads go and programs the
// kernel accordingly.
//
// Three pure parts: Table (which site owns which workload), Gossip (keeps the
// tables of the sites equal) and Plan (configuration, links and owners in; one
// nftables text, routes, rules, addresses and neighbours out). Two thin shells:
// Manager (one run loop) and Linux (netlink and "nft -f -"). The agent is not in
// the path of a redirected packet beyond the link itself: Linux forwards.
//
// # Where a connection goes
//
// Flow state never moves. A connection stays with the edge whose conntrack knows
// it (it may be translated there) and is carried from there. Two things decide:
// host routes (a workload's /32 or /128 leads to the local bridge or into the
// link of the site that owns it), and marks. A packet's mark selects a link's
// routing table. A connection's mark holds a link number in
// config.MarkLinkMask, and says with one bit more how it got there:
//
//	came   set on packets of the original direction that come out of link n
//	       towards a workload: its answers go into link n.
//	anchor set on the first packet of a workload here that begins nothing (no
//	       entry, not a bare SYN) and whose other site is known: whatever it
//	       sends in the original direction goes into that link.
//
// The other site is the previous one of a workload that is here, and the present
// one of a workload that is not: so a machine that speaks at its new site before
// anybody has heard of its arrival is anchored, and the table of the new site
// does not change with a move. Packets without entry that conntrack calls
// invalid (a FIN, RST or SYN-ACK first) go the same way. A fresh SYN uses the
// local edge. UDP is anchored for AnchorTime after a move, and the old edge lets
// it out as long; what is within this site's own prefixes needs no detour.
//
// Workload W, sites 1 (home) and 2; "1, link, 2" is the way of both directions.
//
//	opened while W was at                      W at 1      W at 2
//	1  client -> service of site 1             1           1, link, 2
//	1  W -> database at site 1                 1           1, link, 2
//	1  W -> Internet (SNAT of site 1)          1           1, link, 2
//	1  host of site 2 -> W, W -> it            1, link, 2  2
//	2  client -> service of site 2             2, link, 1  2
//	2  W -> Internet (SNAT of site 2)          2, link, 1  2
//	2  W -> database at site 1                 1           1, link, 2
//	   new connection through DNS              1           2
//
// How the entries say so, after W went from 1 to 2 and back:
//
//	connection              entry at 1             entry at 2
//	client -> service of 1  DNAT, no mark          original towards W: came
//	W -> Internet by 1      SNAT, no mark          W spoke first: anchor; the
//	                                               far end did: came
//	client -> service of 2  came (or anchor, when  DNAT, no mark
//	                        W spoke first)
//	W -> Internet by 2      anchor (or came)       SNAT, no mark
//
// A return finds the old entries and needs nothing; marks that stay behind at
// the site it left do no harm, because only packets that come in from the
// workload's own bridge (or, with three sites, from another link) look at them.
// TestPacketWalk holds both tables against real tables in namespaces.
//
// A packet that comes out of a link for a workload that has just left again goes
// back into it once, with its lifetime cut to 3: the second time it is dropped,
// so nothing crosses more than twice.
//
// # What may come out of a link
//
// Forwarding and input from a link are default-drop: established and related
// packets; peer's prefixes to ours; anybody to a workload; workloads whose
// segment is stretched to that peer to our prefixes, also before the peer's
// claim has arrived (it could claim them anyway); never another address of ours
// as source. Link addresses exist on their link only, and of our own ports there
// only config.StreamPort (TCP, and UDP for what a benchmark counts). Everything else on this host is left alone: the chains
// accept, and only routes and rules with protocol 153 are ever removed.
//
// Guard routes ("unreachable", metric 4000000) stand behind every route into a
// link and outlive the agent.
//
// # Ownership
//
// RFC 7432 section 7.7: an announcement on our own LAN takes the workload with
// the next sequence number and acts at once; a peer's claim wins with a higher
// number, between equals the site whose name sorts first. Five moves in 180 s
// (its segment may have another limit) are believed, then announcements of that
// workload are ignored for 180 s and an alarm is raised; so is the loser of two
// claims with one number (a healed split brain).
//
// # Gossip on the wire
//
// One control datagram of a link, at most 1172 bytes (1200 of earlier agents),
// big endian. The link authenticates the sender. Bytes after the last record are
// ignored; another type or version is not ours and dropped whole.
//
//	 0  type 'O'
//	 1  version 1
//	 2  chunk, u16: number of this part of the table
//	 4  chunks, u16: parts in all, at most 64; 0: an echo only
//	 6  sender's epoch u32 (random per run), revision u32 (of its table)
//	14  epoch u32 and revision u32 of the receiver's table that the sender has
//	    whole; 0, 0: none
//	22  records in this part, u8
//	23  records: sequence u64, then workload, site and previous site, each with
//	    a length byte; a previous site of length 0 means none
//
// Names are [a-z0-9-]{1,32}. The whole table is sent at once after a change,
// again every 200 ms until the peer has named that epoch and revision as its
// newest, and every 5 s otherwise. A whole state that comes in is echoed at once.
//
// # Not done
//
// A machine that has moved twice (three sites) has its connections looked for at
// its last site only, which passes on those it carried itself. A client behind
// an edge's own public address cannot keep using the other edge's virtual
// address across a move: the answer would be for this host. Hosts of a
// workload's own subnet cannot use its virtual address at all (that would need
// SNAT).
package redirect
