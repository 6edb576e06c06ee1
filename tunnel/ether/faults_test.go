package ether

import (
	"testing"
	"time"
)

// TestStorm is L-03: 20,000 broadcasts a second for 5 s. What crosses is held at
// the limit, counted by size; unicast is not touched, and neither is ARP.
func TestStorm(t *testing.T) {
	for _, c := range []struct{ size, counts int }{{60, 1}, {250, 1}, {251, 2}, {1514, 7}} {
		s := NewSwitch(testBasic, 2, nil, nil)
		s.FromPeer(0, 1, data(broadcast, macB))
		storm := eth(broadcast, testMAC("ad"), 0x88b5, make([]byte, c.size-headerLen)...)
		ask := arpFrame(broadcast, macA, arpRequest, macA, noIP, macB, ip11)
		crossed, unicast, asked := 0, 0, 0
		for i := range 100_000 {
			now := time.Duration(i) * 50 * time.Microsecond
			if s.FromLAN(now, storm).Drop == Carried {
				crossed++
			}
			if i%100 == 0 && s.FromLAN(now, ask).Drop == Carried {
				asked++
			}
			if s.FromLAN(now, data(macB, macA)).To == 1 {
				unicast++
			}
		}
		if most := (500*5 + 100) / c.counts; crossed > most+1 || crossed < 500*5/c.counts-1 {
			t.Errorf("%d bytes: %d crossed in 5 s, want %d", c.size, crossed, most)
		}
		if unicast != 100_000 || asked != 1000 {
			t.Errorf("%d bytes: %d of 100000 unicast frames and %d of 1000 ARP requests crossed", c.size, unicast, asked)
		}
		if n := s.lan[LimitBroadcast]; n != uint64(100_000-crossed) {
			t.Errorf("%d bytes: %d counted as dropped", c.size, n)
		}
	}
}

// TestTalkingHostStays lets a peer send with the MAC of a host that talks on the
// LAN: it stays. When the host is silent it may have moved, and follows.
func TestTalkingHostStays(t *testing.T) {
	s := NewSwitch(testBasic, 1, nil, nil)
	var now time.Duration
	for ; now < 10*time.Second; now += 100 * time.Millisecond {
		s.FromLAN(now, data(broadcast, macA))
		if v := s.FromPeer(now+time.Millisecond, 1, data(broadcast, macA)); v.Drop != Late {
			t.Fatalf("at %v: %v", now, v.Drop)
		}
	}
	if v := s.FromPeer(now+moveHold, 1, data(broadcast, macA)); v.Drop != Carried {
		t.Errorf("after silence: %v", v.Drop)
	}
	// The peer has it now and never stops: the host gets it back all the same.
	now += 2 * moveHold
	for ; now < 13*time.Second; now += 10 * time.Millisecond {
		s.FromPeer(now, 1, data(broadcast, macA))
		if s.FromLAN(now, data(broadcast, macA)).Drop == Carried {
			return
		}
	}
	t.Error("a peer that never stops keeps the address of a host here")
}
