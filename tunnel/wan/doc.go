// Package wan emulates a wide-area network: rate, delay, jitter, loss, queue,
// duplication, reordering and black holes, from one pure model (Model).
//
// The model is used in two places:
//
//   - Net is a network in memory with WireGuard binds as its hosts. It takes
//     its time from package time, so inside a testing/synctest bubble hours of
//     WAN pass in milliseconds.
//   - Emulator is a small router in user space between real interfaces, for
//     network namespaces: AF_PACKET sockets, static ports, one Model for each
//     ordered pair of ports.
//
// # What a byte is
//
// Every size, rate, queue and counter of this package is in bytes of IP
// packets: IP header included, Ethernet header not. In Net a datagram counts
// with the UDP and IP headers it would have had.
//
// # The path of a packet through a Model
//
//  1. Down: a packet offered while the path is down is dropped. What was
//     accepted before is still delivered: it was on the wire already.
//  2. Queue: a packet that does not fit into the queue in front of the
//     transmitter is dropped (tail drop).
//  3. Rate: the transmitter sends one packet after the other.
//  4. Loss: independent and burst loss hit the packet after it was
//     transmitted, so a lost packet has used its share of the rate.
//  5. Delay, and jitter that never reorders; then, only if asked for,
//     reordering and duplication.
package wan
