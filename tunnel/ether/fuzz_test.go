package ether

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"stitch/tunnel/config"
)

// FuzzParse compares the parser with gopacket: where both find an EtherType,
// it and what is behind it must be the same.
func FuzzParse(f *testing.F) {
	for _, v := range filterVectors() {
		f.Add(v.frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		h, r := parse(frame)
		if r != Carried {
			return
		}
		if h.dst != config.MAC(frame[:6]) || h.src != config.MAC(frame[6:12]) {
			t.Fatal("addresses")
		}
		typ, payload, ok := reference(frame)
		if ok && h.etherType != 0 && (typ != h.etherType || !bytes.HasPrefix(h.payload, payload)) {
			t.Fatalf("type %#x and %d bytes, gopacket %#x and %d", h.etherType, len(h.payload), typ, len(payload))
		}
	})
}

// reference returns the last EtherType that gopacket finds, and what follows.
func reference(frame []byte) (typ uint16, payload []byte, ok bool) {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{NoCopy: true})
	for _, l := range p.Layers() {
		switch l := l.(type) {
		case *layers.Ethernet:
			typ, payload, ok = uint16(l.EthernetType), l.Payload, true
		case *layers.Dot1Q:
			typ, payload = uint16(l.Type), l.Payload
		case *layers.SNAP:
			oui := uint32(l.OrganizationalCode[0])<<16 | uint32(l.OrganizationalCode[1])<<8 | uint32(l.OrganizationalCode[2])
			return uint16(l.Type), l.Payload, oui == 0
		case *layers.LLC:
		default:
			return typ, payload, ok && typ >= minEtherType && !isTag(typ) // what is inside is not ours
		}
	}
	return typ, payload, ok && typ >= minEtherType && !isTag(typ)
}

// FuzzSwitch feeds a switch frames from all sides, cut from the input, and
// checks what must hold for every one. A record is a byte for port and time, a
// byte for the length, and the frame.
func FuzzSwitch(f *testing.F) {
	var all []byte
	for _, v := range filterVectors() {
		if len(v.frame) < 256 {
			all = append(all, record(0, v.frame)...)
			f.Add(append(record(0, v.frame), record(1, v.frame)...))
		}
	}
	f.Add(all)
	f.Add(append(record(2, rarp(macVM)), record(0x80, rarp(macVM))...))
	for _, frame := range agentVectors() {
		f.Add(append(record(0, frame), record(1, frame)...))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		s := NewSwitch(testBasic, 2, []config.MAC{macOwn}, []Workload{{MAC: macVM, IP: vmIP, At: Local}})
		s.Guard(7)
		var now time.Duration
		frames := [2]uint64{}
		for len(in) >= 2 {
			port, n := in[0], min(int(in[1]), len(in)-2)
			frame := in[2 : 2+n]
			in = in[2+n:]
			now += time.Duration(port>>2) * 50 * time.Millisecond
			if from := Place(port & 3); from == Local {
				frames[0]++
				checkCrossed(t, frame, s.FromLAN(now, frame), true)
			} else {
				frames[1]++
				checkCrossed(t, frame, s.FromPeer(now, from, frame), false)
			}
		}
		checkCounts(t, s, frames)
		checkDue(t, s, now)
	})
}

// checkDue checks what the switch sends of itself: to the LAN probes and
// announcements, to peers messages of its own.
func checkDue(t *testing.T, s *Switch, now time.Duration) {
	out, wait := s.Due(now, nil, 1000, time.Hour)
	for _, o := range out {
		h, r := parse(o.Frame)
		if own := h.etherType == typeExtended && isAgent(h.payload); r != Carried || !own && (o.To != Local || h.etherType != typeRARP) {
			t.Fatalf("to %d: %x", o.To, o.Frame)
		}
	}
	if wait < 0 || len(s.agents.outbox) > maxOutbox || len(s.agents.news)+len(s.agents.arrived) > 2*maxNews {
		t.Fatalf("wait %v, %d frames and %d hosts wait", wait, len(s.agents.outbox), len(s.agents.news))
	}
}

func record(port byte, frame []byte) []byte {
	return append([]byte{port, byte(len(frame))}, frame...)
}

// checkCrossed checks a verdict with plain reading of the frame: what crosses
// has a way, and never the addresses that must not.
func checkCrossed(t *testing.T, frame []byte, v Verdict, fromLAN bool) {
	if v.Drop >= numReasons || v.Drop.String() == "" {
		t.Fatalf("no reason: %d", v.Drop)
	}
	if !fromLAN && (v.To != Local || v.Announce.Kind != "") {
		t.Fatalf("a frame from a peer goes to %d, announces %q", v.To, v.Announce.Kind)
	}
	if v.Drop != Carried {
		return
	}
	if fromLAN && v.To != 1 && v.To != 2 && v.To != All {
		t.Fatalf("a frame from the LAN goes to %d", v.To)
	}
	dst, src := config.MAC(frame[:6]), config.MAC(frame[6:12])
	switch {
	case group(src), src == macGW, dst == macGW, src == macOwn, dst == macOwn, reserved(dst):
		t.Fatalf("crossed: %v to %v", src, dst)
	case binary.BigEndian.Uint16(frame[12:]) == typeExtended && isAgent(frame[14:]):
		t.Fatalf("a message between agents crossed: %x", frame)
	case group(dst) && fromLAN && v.To != All:
		t.Fatalf("broadcast to %d only", v.To)
	}
	checkNoLeak(t, frame)
}

// checkNoLeak looks for an ARP message about the gateway or a router
// advertisement anywhere near the start of the frame, however wrapped.
func checkNoLeak(t *testing.T, frame []byte) {
	for at := 12; at+2+arpLen <= len(frame) && at < 32; at++ {
		typ, p := binary.BigEndian.Uint16(frame[at:]), frame[at+2:]
		plainARP := at == 12 || at == 16 && isTag(binary.BigEndian.Uint16(frame[12:]))
		if plainARP && typ == typeARP && (bytes.Equal(p[14:18], gateway.AsSlice()) || bytes.Equal(p[24:28], gateway.AsSlice())) {
			t.Fatalf("ARP about the gateway crossed: %x", frame)
		}
		if plainARP && typ == typeIPv6 && len(p) > 40 && p[6] == protoICMP6 && p[40] == ndRouter {
			t.Fatalf("a router advertisement crossed: %x", frame)
		}
	}
}

// checkCounts checks that every frame is counted once.
func checkCounts(t *testing.T, s *Switch, frames [2]uint64) {
	for i, c := range []counts{s.lan, s.link} {
		var sum uint64
		for _, n := range c {
			sum += n
		}
		if sum != frames[i] {
			t.Fatalf("%d frames, %d counted", frames[i], sum)
		}
	}
}
