package ether

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"stitch/tunnel/config"
)

const (
	// maxIPs is the most addresses remembered of one MAC.
	maxIPs = 8
	// answerFor is how old the last sign of an address may be for a request to
	// be answered here: a dead machine is not spoken for longer.
	answerFor = 30 * time.Second
	// askAgain is how soon a repeated request of one host crosses, in case that
	// what we know is wrong.
	askAgain = 2 * time.Second
	// refreshAfter spares the work of noting every packet of an address.
	refreshAfter = time.Second
)

// ipKey is an address in a VLAN.
type ipKey struct {
	ip   netip.Addr
	vlan uint16
}

// neighbour is an address and the MAC that has it, learnt from ARP and neighbour
// advertisements, or a workload's by configuration. Its place is that of the
// MAC.
type neighbour struct {
	ip     netip.Addr
	owner  *entry
	static bool
	router bool // the R flag of its last advertisement
	seen   time.Duration
	// The last request that did not cross: when, and whose.
	asked time.Duration
	asker key
	flaps flaps // changes of owner
}

// bind notes that e has the address ip and reports whether ip has now been
// claimed by different MACs so often that nobody is believed for a while.
// Beyond the bounds e's address that was not seen for longest is forgotten.
func (t *table) bind(now time.Duration, e *entry, ip netip.Addr) (n *neighbour, disputed bool) {
	k := ipKey{ip, e.key.vlan()}
	n = t.byIP[k]
	switch {
	case n == nil:
		n = &neighbour{ip: ip}
	case n.owner == e || n.static:
		n.seen = now
		return n, false
	default:
		disputed = n.flaps.note(now, maxClaims)
		t.unbind(n)
	}
	if len(e.ips) == maxIPs || t.bound[e.place] >= t.quota[e.place] {
		old := e.oldestIP()
		if old == nil {
			t.refused++
			return nil, disputed
		}
		t.unbind(old)
	}
	n.owner, n.seen, n.asker = e, now, 0
	e.ips = append(e.ips, n)
	t.byIP[k] = n
	t.bound[e.place]++
	if disputed {
		t.disputes++
	}
	return n, disputed
}

// bindWorkload gives the workload e its address, for good.
func (t *table) bindWorkload(e *entry, ip netip.Addr) {
	k := ipKey{ip, e.key.vlan()}
	if t.byIP[k] != nil {
		return // two workloads with one address: the first has it
	}
	n := &neighbour{ip: ip, owner: e, static: true}
	e.ips = append(e.ips, n)
	t.byIP[k] = n
	t.bound[e.place]++
}

// oldestIP returns the learnt address of e that was not seen for longest, nil
// if there is none.
func (e *entry) oldestIP() (old *neighbour) {
	for _, n := range e.ips {
		if !n.static && (old == nil || n.seen < old.seen) {
			old = n
		}
	}
	return old
}

// unbind forgets n.
func (t *table) unbind(n *neighbour) {
	e := n.owner
	e.ips = slices.DeleteFunc(e.ips, func(o *neighbour) bool { return o == n })
	delete(t.byIP, ipKey{n.ip, e.key.vlan()})
	t.bound[e.place]--
}

// refresh notes a packet of e from the address ip. It says that the machine is
// alive; that it has the address is known already, or not believed: a router
// sends from others' addresses.
func (e *entry) refresh(now time.Duration, ip netip.Addr) {
	for _, n := range e.ips {
		if n.ip == ip {
			if now-n.seen >= refreshAfter {
				n.seen = now
			}
			return
		}
	}
}

// answerable returns the neighbour that h asks for, if it is certain enough
// where it is that the request need not cross; else nil. Behind two tags the
// addresses are of the networks of the inner ones: nothing is known of them.
func (t *table) answerable(now time.Duration, h *header, in *info) *neighbour {
	n := t.byIP[ipKey{in.wants, h.vlan}]
	if n == nil || h.snap || h.inner != 0 {
		return nil
	}
	e, asker, seen := n.owner, keyOf(h.src, h.vlan), n.seen
	if n.static {
		seen = e.seen
	}
	switch {
	case e.key == asker, now-seen > answerFor, n.flaps.frozen(now), e.flaps.frozen(now):
		return nil
	case n.asker == asker && now-n.asked < askAgain:
		n.asker = 0
		return nil
	}
	n.asker, n.asked = asker, now
	return n
}

// appendAnswer appends the answer of n to the request in frame, with the tags
// of the request: an ARP reply or a solicited neighbour advertisement. It does
// not override what the asker knows (RFC 4861 section 7.2.8, RFC 9161).
func appendAnswer(dst, frame []byte, h *header, in *info, n *neighbour) []byte {
	mac := n.owner.key.mac()
	dst = append(dst, h.src[:]...)
	dst = append(dst, mac[:]...)
	dst = append(dst, frame[12:len(frame)-len(h.payload)]...)
	if in.wants.Is4() {
		return appendARPReply(dst, mac, n.ip, h.src, in.ip)
	}
	return appendAdvertisement(dst, mac, n, in.ip)
}

// appendARPReply appends the payload of an ARP reply, padded.
func appendARPReply(dst []byte, sha config.MAC, spa netip.Addr, tha config.MAC, tpa netip.Addr) []byte {
	s, t := spa.As4(), tpa.As4()
	dst = append(dst, 0, 1, 8, 0, 6, 4, 0, arpReply)
	dst = append(dst, sha[:]...)
	dst = append(dst, s[:]...)
	dst = append(dst, tha[:]...)
	dst = append(dst, t[:]...)
	return append(dst, make([]byte, minPayload-arpLen)...)
}

// minPayload is what Ethernet pads a frame's payload to.
const minPayload = 46

// appendAdvertisement appends an IPv6 packet with n's advertisement to asker.
func appendAdvertisement(dst []byte, mac config.MAC, n *neighbour, asker netip.Addr) []byte {
	const size = ndLen + 8
	const router, solicited = 0x80, 0x40
	flags := byte(solicited)
	if n.router {
		flags |= router
	}
	src, to := n.ip.As16(), asker.As16()
	dst = append(dst, 0x60, 0, 0, 0, 0, size, protoICMP6, 255)
	dst = append(dst, src[:]...)
	dst = append(dst, to[:]...)
	start := len(dst)
	dst = append(dst, ndAdvertise, 0, 0, 0, flags, 0, 0, 0)
	dst = append(dst, src[:]...)
	dst = append(dst, 2, 1)
	dst = append(dst, mac[:]...)
	binary.BigEndian.PutUint16(dst[start+2:], icmp6Checksum(dst[start-32:start], dst[start:]))
	return dst
}

// icmp6Checksum is the checksum of an ICMPv6 message of even length between
// addrs, source and destination (RFC 8200 section 8.1).
func icmp6Checksum(addrs, msg []byte) uint16 {
	sum := uint32(len(msg)) + protoICMP6
	for _, p := range [...][]byte{addrs, msg} {
		for i := 0; i+1 < len(p); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(p[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
