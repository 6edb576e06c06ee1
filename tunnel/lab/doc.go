// Package lab builds two sites, the WAN between them and a client on it, on
// one machine, in network namespaces. It is what `stitch lab`, the demo and
// the end-to-end tests use.
//
//	        dc1                       WAN                      dc2
//	h1 10.1.0.10 ─┐                                    ┌─ h2 10.2.0.10
//	s1 10.1.0.11 ─┤ br-lan  e1 ─wan0─ [ wan ] ─wan0─ e2 ├─ br-lan
//	h1's br-vm   ─┘ 10.1.0.1     203.0.113.10  198.51.100.20  10.2.0.1
//	                 br-db              │               br-app ─┬─ s2 10.1.0.12
//	d1 10.1.1.20 ─── 10.1.1.1     c1 192.0.2.7    (segment 100) └─ h2's br-vm
//
// The namespaces are called <name>-<host> (stitch-e1) under /run/netns, so
// plain `ip netns exec` works. All else the lab leaves on the machine is its
// directory, /run/<name>-lab: configuration, keys, logs, sockets and lab.json,
// and the processes that live in its namespaces. Down removes all of it, also
// after any of it was killed.
//
// Hosts use CUBIC (or Options.Congestion) by a route attribute, as Debian does
// by default; the edges keep the machine's because the agents choose for
// themselves.
//
// The program needs root, iproute2 and nftables.
package lab
