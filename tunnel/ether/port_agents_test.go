package ether

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"stitch/tunnel/config"
)

// guardedRig is a running port that finds loops.
func guardedRig(t *testing.T) *rig {
	r := &rig{tap: newFakeTAP(), dc2: &fakeLink{}, dc3: &fakeLink{}, ended: make(chan error, 1)}
	r.Port = Open(Config{
		Segment: testBasic, Peers: map[string]Sender{"dc3": r.dc3, "dc2": r.dc2}, TAP: r.tap, ID: 20,
		OnAnnounce: func(a Announcement) { r.announced = append(r.announced, a) },
		Log:        slog.New(slog.NewTextHandler(&r.log, nil)),
	})
	r.run(t)
	return r
}

// TestPortLoop lets the probe of another edge come from the LAN, again and again,
// and then no more.
func TestPortLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := guardedRig(t)
		defer r.stop(t)
		r.fromLink("dc2", data(broadcast, macB))
		time.Sleep(time.Second)
		if n := r.count(agentGroup); n < 3 {
			t.Errorf("%d probes in the first second", n)
		}
		foreign := agentMsg{kind: msgProbe, segment: 100, id: 10}.appendFrame(nil, 0)
		for range 10 {
			r.fromLAN(foreign)
			time.Sleep(probeEvery)
		}
		st := r.Stats()
		if st.Loop == nil || st.Loop.Own || len(st.Alarms()) != 1 || !strings.Contains(st.Alarms()[0], "segment 100 is blocked") {
			t.Errorf("loop %v, alarms %q", st.Loop, st.Alarms())
		}
		if n := strings.Count(r.log.String(), "has a loop"); n != 1 {
			t.Errorf("%d lines about the loop", n)
		}
		r.dc2.take()
		r.tap.written()
		r.fromLAN(data(macB, macA))
		r.fromLAN(rarp(macA))
		r.fromLink("dc2", data(broadcast, macB))
		carried := slices.DeleteFunc(r.dc2.take(), func(f []byte) bool { return config.MAC(f[:6]) == agentGroup })
		if len(carried)+len(r.announced) > 0 || r.count(broadcast) > 0 {
			t.Error("something passed a blocked segment")
		}
		time.Sleep(loopOver + time.Second)
		r.fromLAN(data(broadcast, macA))
		r.fromLink("dc2", data(broadcast, macB))
		if st = r.Stats(); st.Loop != nil || r.count(broadcast) != 1 || !strings.Contains(r.log.String(), "carries again") {
			t.Errorf("after the loop: %+v, %s", st, &r.log)
		}
		if in, out := st.LinkFrames+st.Made, st.ToLAN+sum(st.FromLink); in != out {
			t.Errorf("%d frames for the LAN, %d written and dropped", in, out)
		}
	})
}

// count takes what was written to the LAN and counts the frames to dst.
func (r *rig) count(dst config.MAC) (n int) {
	synctest.Wait()
	for _, f := range r.tap.written() {
		if config.MAC(f[:6]) == dst {
			n++
		}
	}
	return n
}

// TestPortAnswers has a request answered, an unknown host looked for and a peer
// told which hosts are here.
func TestPortAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := guardedRig(t)
		defer r.stop(t)
		r.fromLink("dc2", garp(macB, ip11))
		r.count(broadcast)
		ask := arpFrame(broadcast, macA, arpRequest, macA, ip10, config.MAC{}, ip11)
		r.fromLAN(ask)
		if n := r.count(macA); n != 1 {
			t.Errorf("%d answers", n)
		}
		if slices.ContainsFunc(r.dc2.take(), func(f []byte) bool { return bytes.Equal(f, ask) }) {
			t.Error("an answered request crossed")
		}
		r.dc2.take()
		r.dc3.take()
		r.fromLAN(from4(macA, ip10)) // to macB: known
		unknown := from4(macA, ip10)
		unknown[5] = 0x77
		r.fromLAN(unknown)
		to2, to3 := r.dc2.take(), r.dc3.take()
		if len(to2) != 2 || len(to3) != 1 || to3[0][13] != 6 {
			t.Errorf("sent to dc2: %x, to dc3: %x; want a packet and a search", to2, to3)
		}
		peer := NewSwitch(testBasic, 2, nil, nil)
		peer.Guard(30)
		r.dc3.take()
		r.fromLink("dc3", peer.askFrame(0))
		synctest.Wait()
		for _, f := range r.dc3.take() {
			peer.FromPeer(0, 1, f)
		}
		if peer.table.places(1) != 1 {
			t.Errorf("the peer was told of %d hosts, want macA", peer.table.places(1))
		}
		st := r.Stats()
		if in, out := st.LinkFrames+st.Made, st.ToLAN+sum(st.FromLink); in != out || st.FromLAN["answered"] != 1 || st.Queries != 1 {
			t.Errorf("%d frames for the LAN, %d written and dropped: %+v", in, out, st)
		}
	})
}
