package ether

import (
	"slices"
	"testing"
	"time"

	"stitch/tunnel/config"
)

// TestReportStorm announces many MACs at once: reports of strangers are
// limited, that of a workload is not lost among them.
func TestReportStorm(t *testing.T) {
	s := NewSwitch(testBasic, 1, nil, []Workload{{MAC: macVM, IP: vmIP, At: 1}})
	reports := 0
	for i := range 2 * maxLearned {
		if s.FromLAN(time.Second, rarp(config.MAC{2, 9, 4: byte(i >> 8), 5: byte(i)})).Announce.Kind != "" {
			reports++
		}
	}
	if reports != 100 {
		t.Errorf("%d reports of strangers at once, want a fifth of 500", reports)
	}
	if v := s.FromLAN(time.Second, rarp(macVM)); v.Announce.Kind != KindRARP || v.Drop != Carried {
		t.Errorf("the workload's announcement: %+v", v)
	}
	if got := s.table.places(Local); got != maxLearned/2+1 {
		t.Errorf("%d MACs learnt", got)
	}
	// What could not be learnt still works: its frames pass, unknown to us.
	if v := s.FromLAN(2*time.Second, data(broadcast, config.MAC{4})); v.Drop != Carried {
		t.Errorf("a host beyond the quota: %v", v.Drop)
	}
}

// TestMoveWithoutRoom moves an address to a place whose share is used up: it
// is forgotten rather than left at the wrong place.
func TestMoveWithoutRoom(t *testing.T) {
	s := NewSwitch(testBasic, 1, nil, nil)
	s.table.quota[1] = 1
	s.FromPeer(0, 1, data(broadcast, macB))
	s.FromLAN(0, data(broadcast, macA))
	if v := s.FromPeer(0, 1, rarp(macA)); v.Drop != Carried || v.Froze {
		t.Errorf("announcement: %+v", v)
	}
	if v := s.FromLAN(0, data(macA, testMAC("ac"))); v.Drop != UnknownUnicast {
		t.Errorf("to the address that moved: %v", v.Drop)
	}
	if s.table.refused != 1 {
		t.Errorf("refused %d", s.table.refused)
	}
}

// TestFreezeByClaim counts claims as moves: the fifth freezes, and is obeyed.
func TestFreezeByClaim(t *testing.T) {
	s := NewSwitch(testBasic, 1, nil, nil)
	for i := range 10 {
		_, froze := s.Claim(time.Duration(i)*time.Second, macVM, Place(i%2))
		if want := i == config.DefaultMoveLimit; froze != want { // the first claim is no move
			t.Errorf("claim %d froze %v", i, froze)
		}
		if e := s.table.get(0, keyOf(macVM, 0)); e.place != Place(i%2) {
			t.Errorf("claim %d not obeyed", i)
		}
	}
}

// TestClaimOfLearnt makes a workload of an address that was learnt: it no
// longer ages.
func TestClaimOfLearnt(t *testing.T) {
	s := NewSwitch(testBasic, 1, nil, nil)
	s.FromLAN(0, data(broadcast, macVM))
	if relearn, _ := s.Claim(time.Second, macVM, Local); relearn {
		t.Error("relearn for a workload that is here")
	}
	s.Tick(2 * ageing)
	if v := s.FromPeer(2*ageing, 1, data(broadcast, macVM)); v.Drop != Owned {
		t.Errorf("data frame from a peer after ageing: %v", v.Drop)
	}
}

// TestFreezeWindow puts as many moves as freeze in exactly the window, then in a
// little more, and freezes again only after as many more.
func TestFreezeWindow(t *testing.T) {
	for _, limit := range []int{2, config.DefaultMoveLimit, 20} {
		for _, late := range []time.Duration{0, 1} {
			tab := newTable(1, limit)
			e := tab.learn(0, keyOf(macA, 0), Local)
			froze := false
			for i := range limit {
				now := time.Duration(i) * moveWindow / time.Duration(limit-1)
				if i == limit-1 {
					now += late
				}
				froze = tab.move(now, e, Place((i+1)%2))
			}
			if want := late == 0; froze != want {
				t.Errorf("limit %d, %d ns beyond the window: froze %v", limit, late, froze)
			}
		}
		tab := newTable(1, limit)
		e := tab.learn(0, keyOf(macA, 0), Local)
		var freezes []int
		for i := range 2 * limit {
			now := time.Duration(i) * time.Millisecond
			if i >= limit {
				now += moveWindow
			}
			if tab.move(now, e, Place((i+1)%2)) {
				freezes = append(freezes, i)
			}
		}
		if !slices.Equal(freezes, []int{limit - 1, 2*limit - 1}) {
			t.Errorf("limit %d: moves that froze: %v", limit, freezes)
		}
	}
}

// TestMoveLimit is L-06: a segment's own limit holds for what moves on it.
func TestMoveLimit(t *testing.T) {
	for _, c := range []struct{ limit, froze int }{{0, 5}, {2, 2}, {9, 9}} {
		seg := testBasic
		seg.MoveLimit = c.limit
		s := NewSwitch(seg, 1, nil, nil)
		s.FromLAN(0, data(broadcast, macA))
		moves := 0
		for i := range 20 {
			now := time.Duration(i+1) * time.Second
			frame := arpFrame(broadcast, macA, arpRequest, macA, ip10, macB, ip10)
			v := s.FromPeer(now, 1, frame)
			if i%2 == 1 {
				v = s.FromLAN(now, frame)
			}
			if moves++; v.Froze {
				break
			}
		}
		if moves != c.froze {
			t.Errorf("limit %d: frozen by move %d", c.limit, moves)
		}
	}
}

// TestFlood lets a peer send unicast to addresses the bridge would flood:
// unknown ones, and ones that are at a peer.
func TestFlood(t *testing.T) {
	for name, dst := range map[string]config.MAC{"unknown": testMAC("01"), "at the peer itself": macB} {
		s := NewSwitch(testBasic, 1, nil, nil)
		carried := 0
		for range 1000 {
			if s.FromPeer(0, 1, data(dst, macB)).Drop == Carried {
				carried++
			}
		}
		if carried != 100 {
			t.Errorf("%s: %d carried at once, want a fifth of 500", name, carried)
		}
	}
}
