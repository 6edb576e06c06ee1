package ether

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"stitch/tunnel/config"
)

// agentVectors are one message of each kind.
func agentVectors() map[string][]byte {
	hosts := []byte{2}
	hosts = binary.BigEndian.AppendUint64(hosts, uint64(keyOf(macA, 0)))
	hosts = binary.BigEndian.AppendUint64(hosts, uint64(keyOf(macB, 10)))
	one := binary.BigEndian.AppendUint64(nil, uint64(keyOf(macB, 10)))
	m := agentMsg{segment: 100, id: 0x1122334455667788}
	frame := func(kind, flags byte, rest []byte, vlan uint16) []byte {
		m := m
		m.kind, m.flags, m.rest = kind, flags, rest
		return m.appendFrame(nil, vlan)
	}
	return map[string][]byte{
		"probe": frame(msgProbe, 0, nil, 0), "probe-blocked-vlan": frame(msgProbe, flagBlocked, nil, 10),
		"ask-all": frame(msgAsk, 0, make([]byte, 8), 0), "ask-one": frame(msgAsk, 0, one, 0),
		"have-last": frame(msgHave, flagLast, hosts, 0), "have-news": frame(msgHave, flagNews, hosts, 0),
	}
}

// TestAgentGolden holds the format against testdata/wire/segment-*.hex.
func TestAgentGolden(t *testing.T) {
	for name, frame := range agentVectors() {
		file := "../../testdata/wire/segment-" + name + ".hex"
		got := []byte(hex.Dump(frame))
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, now\n%s", file, err, got)
		}
		h, r := parse(frame)
		if m, ok := parseAgent(h.payload); r != Carried || !isAgent(h.payload) || !ok || !bytes.Equal(m.appendFrame(nil, h.vlan), frame) {
			t.Errorf("%s: not read as it was written: %+v", name, m)
		}
		for n := range agentLen {
			if _, ok := parseAgent(h.payload[:n]); ok {
				t.Errorf("%s: %d bytes are a message", name, n)
			}
		}
	}
}

// TestAgentMessages sends messages from where they must not come, cut short or
// for another segment. None crosses, none is believed, none panics.
func TestAgentMessages(t *testing.T) {
	for name, frame := range agentVectors() {
		for n := range len(frame) + 1 {
			for _, guarded := range []bool{true, false} {
				s := NewSwitch(testBasic, 1, nil, nil)
				if guarded {
					s.Guard(1)
				}
				lan, link := s.FromLAN(0, frame[:n]), s.FromPeer(0, 1, frame[:n])
				whole := n == len(frame)
				if whole && (lan.Drop == Carried || link.Drop == Carried) {
					t.Errorf("%s crossed", name)
				}
				if learnt := s.table.places(1); learnt > 0 && (name[:4] != "have" || !guarded) {
					t.Errorf("%s, %d bytes: %d hosts learnt", name, n, learnt)
				}
				if loop := s.Loop(); loop != nil && (!guarded || name[:5] != "probe") {
					t.Errorf("%s, %d bytes: a loop", name, n)
				}
			}
		}
	}
}

// TestHave learns what a peer has: only what is unknown, allowed and within the
// peer's share.
func TestHave(t *testing.T) {
	s := NewSwitch(testBasic, 2, []config.MAC{macOwn}, []Workload{{MAC: macVM, IP: vmIP, At: Local}})
	s.Guard(1)
	s.FromLAN(0, data(broadcast, macA))
	have := func(from Place, hosts ...key) {
		peer := NewSwitch(testBasic, 2, nil, nil)
		peer.Guard(2)
		peer.have(1, hosts, flagLast)
		s.FromPeer(time.Second, from, peer.agents.outbox[0].Frame)
	}
	have(1, keyOf(macA, 0), keyOf(macB, 0), keyOf(macB, 10), keyOf(macGW, 0), keyOf(macOwn, 0), keyOf(groupMAC, 0), keyOf(macVM, 0), keyOf(macB, 4095), keyOf(macB, 0xffff), 0)
	have(2, keyOf(macB, 0))
	for k, want := range map[key]Place{keyOf(macA, 0): Local, keyOf(macB, 0): 1, keyOf(macVM, 0): Local} {
		if e := s.table.get(time.Second, k); e == nil || e.place != want {
			t.Errorf("%v: %+v, want place %d", k.mac(), e, want)
		}
	}
	if n := len(s.table.byMAC); n != 3 {
		t.Errorf("%d hosts in the table, want 3", n)
	}
	for i := range 2 * maxLearned / maxHave {
		var many []key
		for j := range maxHave {
			many = append(many, key(2<<40|i<<16|j))
		}
		have(1, many...)
	}
	if got, want := s.table.places(1), maxLearned/4; got != want {
		t.Errorf("%d hosts of a peer that claims too many, want its share %d", got, want)
	}
}

// TestNewsBound lets a peer announce all hosts of this LAN at once: they go, and
// the bridge hears of them at the limit, not faster.
func TestNewsBound(t *testing.T) {
	s := NewSwitch(testBasic, 1, nil, nil)
	s.Guard(1)
	peer := NewSwitch(testBasic, 1, nil, nil)
	peer.Guard(2)
	var hosts []key
	for i := range 3000 {
		mac := config.MAC{2, 1, 4: byte(i >> 8), 5: byte(i)}
		s.FromLAN(0, data(broadcast, mac))
		hosts = append(hosts, keyOf(mac, 0))
	}
	for len(hosts) > 0 {
		n := min(maxHave, len(hosts))
		peer.have(1, hosts[:n], flagNews)
		hosts = hosts[n:]
	}
	for _, o := range peer.agents.outbox {
		s.FromPeer(time.Second, 1, o.Frame)
	}
	if got := s.table.places(1); got != 3000 {
		t.Errorf("%d hosts moved", got)
	}
	told := 0
	for ms := range 1000 {
		out, _ := s.Due(time.Second+time.Duration(ms)*time.Millisecond, nil, maxBatch, time.Second)
		for _, o := range out {
			if h, _ := parse(o.Frame); o.To == Local && h.etherType == typeRARP {
				told++
			}
		}
	}
	if told < 500 || told > 600 {
		t.Errorf("the bridge heard of %d hosts in a second, want the limit of 500 and a burst", told)
	}
}

// TestAskedBound asks for everything again and again: the answers are limited.
func TestAskedBound(t *testing.T) {
	s := NewSwitch(testBasic, 1, nil, nil)
	s.Guard(1)
	for i := range maxLearned / 2 {
		s.FromLAN(0, data(broadcast, config.MAC{2, 1, 4: byte(i >> 8), 5: byte(i)}))
	}
	asker := NewSwitch(testBasic, 1, nil, nil)
	asker.Guard(2)
	sent, learnt := 0, 0
	for ms := range 1000 {
		now := time.Duration(ms) * time.Millisecond
		s.FromPeer(now, 1, asker.askFrame(0))
		out, _ := s.Due(now, nil, 2, time.Second)
		for _, o := range out {
			if o.To == 1 {
				sent++
				asker.FromPeer(now, 1, o.Frame)
			}
		}
	}
	learnt = asker.table.places(1)
	if want := maxLearned / 2; learnt != want {
		t.Errorf("%d hosts learnt, want all %d", learnt, want)
	}
	if most := 1 + (maxLearned/2+maxHave-1)/maxHave; sent > most { // and our own question
		t.Errorf("%d messages within a second, want at most %d", sent, most)
	}
	if next := asker.agents.nextAsk[0]; next < askAnew {
		t.Errorf("the next question is at %v, want a minute later", next)
	}
}

// TestFoundAfterRestart is L-11: neighbours have each other's MAC and only speak
// unicast; agents restart and know nothing.
func TestFoundAfterRestart(t *testing.T) {
	seg := testBasic
	seg.Subnet = netip.MustParsePrefix("10.1.0.0/24")
	toB := from4(macA, ip10)
	copy(toB[headerLen+16:], ip11.AsSlice())
	toB6 := eth(macB, macA, typeIPv6, ipv6Packet(hostGUA, vmGUA, 6, 1)...)
	routed := from4(macA, netip.MustParseAddr("192.0.2.1"))
	copy(routed[headerLen+16:], []byte{192, 0, 2, 2})
	for _, c := range []struct {
		name      string
		frame     []byte
		guarded   bool
		restart   []int // sites
		speaks    bool  // the destination does before the far agent restarts
		wantFound bool
	}{
		{"nobody restarted", toB, true, nil, true, true},
		{"near agent, not IP", data(macB, macA), true, []int{0}, true, true},
		{"near agent, routed", routed, true, []int{0}, true, true},
		{"both agents, IPv4", toB, true, []int{0, 1}, false, true},
		{"both agents, IPv6", toB6, true, []int{0, 1}, false, true},
		{"both agents, IPv4, without guard", toB, false, []int{0, 1}, false, true},
		{"near agent, not IP, without guard", data(macB, macA), false, []int{0}, true, false}, // control
		{"both agents, not IP", data(macB, macA), true, []int{0, 1}, false, false},            // nobody can know
	} {
		w := newSites(2, seg, c.guarded)
		a, b := w.host(0, macA), w.host(1, macB)
		b.answer = answering
		w.from(a, data(broadcast, macA))
		if c.speaks {
			w.from(b, data(broadcast, macB))
		}
		w.run(time.Second)
		for _, i := range c.restart {
			w.start(i, seg, c.guarded)
		}
		found := time.Duration(-1)
		for start := w.now; w.now-start < 5*time.Second && found < 0; w.run(100 * time.Millisecond) {
			b.take()
			w.from(a, c.frame)
			w.run(50 * time.Millisecond)
			for _, got := range b.take() {
				if bytes.Equal(got, c.frame) {
					found = w.now - start
				}
			}
		}
		if (found >= 0) != c.wantFound || found > 3*time.Second {
			t.Errorf("%s: the first frame arrived after %v", c.name, found)
		}
	}
}

// TestSilentMove is G-22: a host goes to another site and says nothing at all.
// Its neighbour's next packets find it; and where it is now, its answer is the
// news from which its ownership follows.
func TestSilentMove(t *testing.T) {
	seg := testBasic
	seg.Subnet = netip.MustParsePrefix("10.1.0.0/24")
	toB := from4(macA, ip10)
	copy(toB[headerLen+16:], ip11.AsSlice())
	for _, workloads := range [][]config.MAC{nil, {macB}} {
		w := newSites(3, seg, true, workloads...)
		a, b := w.host(0, macA), w.host(0, macB)
		b.answer = answering
		w.from(a, data(broadcast, macA))
		w.from(b, data(broadcast, macB))
		w.run(3 * time.Second)
		w.move(b, 2)
		b.take()
		start := w.now
		for len(b.got) == 0 && w.now-start < 10*time.Second {
			w.from(a, toB)
			w.run(50 * time.Millisecond)
			if n := len(w.all[2].heard); n > 0 && w.all[2].heard[n-1].MAC == macB {
				for _, s := range w.all { // what the agents agree on then
					s.sw.Claim(w.now, macB, s.place(w.all[2]))
				}
			}
			b.got = slices.DeleteFunc(b.got, func(f []byte) bool { return !bytes.Equal(f, toB) })
		}
		if took := w.now - start; took > time.Second {
			t.Errorf("workloads %v: found after %v", workloads, took)
		}
	}
	// Control case: a host that talks is not looked for.
	w := newSites(2, seg, true)
	a, b := w.host(0, macA), w.host(0, macB)
	w.from(a, data(broadcast, macA))
	for range 100 {
		w.from(b, data(macA, macB))
		w.from(a, toB)
		w.run(50 * time.Millisecond)
	}
	if n := w.all[0].sw.queries.sent; n != 0 {
		t.Errorf("%d searches for hosts that talk", n)
	}
}

// answering answers ARP and neighbour solicitations for 10.1.0.11 and its IPv6
// address, and checks their checksum.
func answering(frame []byte) []byte {
	h, _ := parse(frame)
	switch {
	case h.etherType == typeARP && h.payload[7] == arpRequest && netip.AddrFrom4([4]byte(h.payload[24:28])) == ip11:
		asker := config.MAC(h.payload[8:14])
		return arpFrame(asker, macB, arpReply, macB, ip11, asker, netip.AddrFrom4([4]byte(h.payload[14:18])))
	case h.etherType == typeIPv6 && h.payload[6] == protoICMP6 && h.payload[40] == ndSolicit:
		if !rightChecksum(frame) {
			return nil
		}
		return eth(h.src, macB, typeIPv6, ipv6Packet(vmGUA, hostGUA, protoICMP6, nd(ndAdvertise, 0x60, vmGUA, macB)...)...)
	}
	return nil
}

// rightChecksum asks gopacket about an ICMPv6 message.
func rightChecksum(frame []byte) bool {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	ip, _ := p.NetworkLayer().(*layers.IPv6)
	icmp, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	if !ok {
		return false
	}
	want := icmp.Checksum
	_ = icmp.SetNetworkLayerForChecksum(ip)
	b := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{ComputeChecksums: true}, icmp, gopacket.Payload(icmp.Payload))
	return err == nil && binary.BigEndian.Uint16(b.Bytes()[2:]) == want
}

// TestQueryBound is L-04: 20,000 random destinations cause no flood and a
// bounded number of queries.
func TestQueryBound(t *testing.T) {
	s := NewSwitch(testBasic, 2, nil, nil)
	s.Guard(1)
	queries := 0
	for i := range 20_000 {
		now := time.Duration(i) * 50 * time.Microsecond
		frame := from4(macA, ip10)
		copy(frame, []byte{2, 9, 0, 0, byte(i >> 8), byte(i)})
		v := s.FromLAN(now, frame)
		if v.Drop != UnknownUnicast {
			t.Fatal(v.Drop)
		}
		if v.Query != nil {
			queries++
		}
	}
	if queries > maxQueries+maxQueries/5 {
		t.Errorf("%d queries in a second", queries)
	}
	before := s.queries.sent
	for i := range 50 { // one host, every 100 ms
		s.FromLAN(10*time.Second+time.Duration(i)*100*time.Millisecond, data(macB, macA))
	}
	if n := s.queries.sent - before; n != 5 {
		t.Errorf("%d queries for one host in 5 s, want one a second", n)
	}
	if st := stats(s, "dc2", "dc3"); st.Queries != s.queries.sent || fmt.Sprint(st.FromLAN) != "map[unknown-unicast:20050]" {
		t.Errorf("%+v", st)
	}
}
