package tunnel_test

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"time"

	"stitch/tunnel/ether"
	"stitch/tunnel/lab"
)

// segmentStats are the counters of an edge's first segment.
func segmentStats(t *testing.T, l *lab.Lab, edge string) (out ether.Stats) {
	t.Helper()
	if err := json.Unmarshal(status(t, l, edge).Segments[0], &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestE2ELoop lays a second cable between the LANs of a segment (L-01): one
// edge blocks within 2 s and says so, routed traffic is not touched, and the
// segment carries again when the cable is gone.
func TestE2ELoop(t *testing.T) {
	l := world(t, lab.Options{})
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	run(t, l, "s1", "ping", "-c2", "-i0.2", "-W2", "10.1.0.12")
	lost := pinger(t, l)
	ip("link", "add", "loop0", "netns", "e2e-e1", "type", "veth", "peer", "name", "loop0", "netns", "e2e-e2")
	ip("-n", "e2e-e1", "link", "set", "loop0", "master", "br-lan", "up")
	ip("-n", "e2e-e2", "link", "set", "loop0", "master", "br-app", "up")
	blocked := func() int {
		n := 0
		for _, e := range []string{"e1", "e2"} {
			if segmentStats(t, l, e).Loop != nil {
				n++
			}
		}
		return n
	}
	start := time.Now()
	eventually(t, 10*time.Second, "an edge blocks its segment", func() bool { return blocked() > 0 })
	t.Logf("blocked %v after the cable was laid", time.Since(start).Round(time.Millisecond))
	time.Sleep(2 * time.Second)
	if n := blocked(); n != 1 {
		t.Errorf("%d edges are blocked, want one", n)
	}
	alarms := strings.Join(append(status(t, l, "e1").Alarms, status(t, l, "e2").Alarms...), "\n")
	if !strings.Contains(alarms, "segment 100 is blocked") {
		t.Errorf("no alarm: %s", alarms)
	}
	for _, e := range []string{"e1", "e2"} {
		if st := segmentStats(t, l, e); st.ToPeers > 1000 {
			t.Errorf("%s sent %d frames into the loop, want at most 1000", e, st.ToPeers)
		}
	}
	ip("-n", "e2e-e1", "link", "del", "loop0")
	eventually(t, 10*time.Second, "the segment carries again", func() bool { return blocked() == 0 })
	eventually(t, 5*time.Second, "s1 reaches s2 by the segment", func() bool {
		return l.Command("s1", "ping", "-c1", "-W1", "10.1.0.12").Run() == nil
	})
	if n := lost(); n > 0 {
		t.Errorf("%d routed pings were lost", n)
	}
}

// TestE2ESilentHost restarts an edge whose hosts keep the MAC of a host at the
// other site for ever, so that nobody asks for it (L-11).
func TestE2ESilentHost(t *testing.T) {
	l := world(t, lab.Options{})
	run(t, l, "s2", "ping", "-c2", "-i0.2", "-W2", "10.1.0.11")
	run(t, l, "s2", "ip", "neigh", "replace", "10.1.0.11", "lladdr", "02:53:54:01:00:11", "dev", "eth0", "nud", "permanent")
	old := kill(t, l, "e2", "link")
	restarted(t, l, "e2", "link", old)
	eventually(t, 15*time.Second, "the link is up again", func() bool {
		s, err := agentStatus(l, "e2")
		return err == nil && len(s.Links) == 1 && s.Links[0].State == "up"
	})
	start := time.Now()
	eventually(t, 3*time.Second, "s2 reaches s1 without asking", func() bool {
		return l.Command("s2", "ping", "-c1", "-W1", "10.1.0.11").Run() == nil
	})
	t.Logf("reached after %v; %d searches", time.Since(start).Round(time.Millisecond), segmentStats(t, l, "e2").Queries)
}
