package main

import (
	"maps"
	"strings"
	"testing"
	"time"

	"stitch/tunnel/hypervisor"
)

// The table has every row, aims compare with the best that others can do, and
// what is lost is said.
func TestReport(t *testing.T) {
	r := &Report{Machine: "a machine", WAN: line{100e6, 0}, T3: t3}
	add := func(name, carrier, by string, seconds, down float64, wan int64, given bool) {
		r.Rows = append(r.Rows, Row{Name: name, Carrier: carrier, By: by, Seconds: seconds, DowntimeMS: down, WAN: wan, TunnelCPU: 1, GivenUp: given})
	}
	add(firstMove, stitch.name, "QEMU", 10.1, 200, 90e6, false)
	add(firstMove, vxlan.name, "QEMU", 40, 100, 400e6, false)
	add(firstMove, vxlan.name, "QEMU multifd+zstd", 10, 300, 100e6, false)
	add(returnMove, stitch.name, "QEMU", 1, 200, 6e6, false)
	add(returnMove, vxlan.name, "QEMU", 40, 300, 100e6, false)
	add(siblingMove, stitch.name, "QEMU", 1, 200, 40e6, false)
	add(siblingMove, vxlan.name, "QEMU", 40, 300, 100e6, false)
	add("T3: a busy guest", stitch.name, "QEMU", 30, 200, 40e6, false)
	add("T3: a busy guest", vxlan.name, "QEMU", 3, 0, 1e6, true)
	r.judge()
	var b strings.Builder
	r.print(&b)
	for _, want := range []string{
		"met     0.900, at most 1.000: first move: bytes", "met     1.010, at most 1.020: first move: time",
		"met     0.400, at most 0.400: a sibling's", "MISSED  0.060, at most 0.050: return",
		"lost    first move: downtime is 2.00 of VXLAN, BBR, QEMU\n", "lost    first move: time is 1.01 of VXLAN, BBR, QEMU multifd+zstd",
		"QEMU multifd+zstd  10.0 s", "> 3 s, given up",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
	if n := strings.Count(b.String(), "\nlost"); n != 2 {
		t.Errorf("%d lost rows, want 2: what was given up beats nobody\n%s", n, &b)
	}
}

// An aim without an alternative, or without stitch, is none.
func TestNoAims(t *testing.T) {
	r := &Report{Rows: []Row{{Name: firstMove, Carrier: stitch.name, Seconds: 1, WAN: 1}, {Name: returnMove, Carrier: vxlan.name, Seconds: 1, WAN: 1}}}
	if r.judge(); len(r.Aims)+len(r.Lost) != 0 {
		t.Errorf("%+v", r)
	}
}

// How long a guest is stopped through stitch is held against the better of the direct
// lines and a round trip, by medians; a move that was given up counts for nothing.
func TestStops(t *testing.T) {
	for _, c := range []struct {
		name         string
		ours, theirs []float64 // 0: given up
		aims         int
		met          bool
	}{
		{"within a round trip", []float64{900, 540, 500}, []float64{450, 440, 460}, 1, true},
		{"longer", []float64{600, 560, 500}, []float64{450, 440, 460}, 1, false},
		{"some given up", []float64{0, 500, 500}, []float64{0, 0, 450}, 1, true},
		{"no direct one", []float64{500}, []float64{0}, 0, false},
		{"none of ours", []float64{0}, []float64{500}, 0, false},
	} {
		r := &Report{T3: t3}
		add := func(carrier string, downtimes []float64) {
			for _, d := range downtimes {
				r.Stops = append(r.Stops, Stop{Load: "a load", Carrier: carrier, DowntimeMS: d, GivenUp: d == 0})
			}
		}
		add(stitch.name, c.ours)
		add(direct[0].name, c.theirs)
		add(direct[1].name, []float64{0, 5000})
		if c.aims == 0 {
			r.Stops = r.Stops[:len(r.Stops)-1]
		}
		r.judge()
		if len(r.Aims) != c.aims || c.aims > 0 && r.Aims[0].Met != c.met {
			t.Errorf("%s: %+v", c.name, r.Aims)
		}
		var b strings.Builder
		if r.print(&b); c.name == "longer" && !strings.Contains(b.String(), "560 (500 to 600)") {
			t.Errorf("no median in\n%s", &b)
		}
	}
}

// What the other end had still to read when the guest stopped, and what of it was
// under way, is found between the samples around that moment.
func TestFill(t *testing.T) {
	began := time.Unix(1000, 0)
	seen := map[string][]sample{}
	for ms := range int64(2000) { // 1 MB/s, of which 200 kB are under way; then it ends
		moment := began.Add(time.Duration(ms) * time.Millisecond)
		written := uint64(1000*min(ms, 1500)) + 200_000
		seen["from"] = append(seen["from"], sample{at: moment, written: written, out: 50_000})
		seen["edge"] = append(seen["edge"], sample{at: moment, in: 60_000, peerOut: 7})
		seen["to"] = append(seen["to"], sample{at: moment, read: min(uint64(1000*ms), written)})
	}
	var s Stop
	s.fill(seen, "from", "to", began.Add(1300*time.Millisecond), began.Add(1700*time.Millisecond+time.Microsecond))
	if s.Left != 401_000 || s.Waiting != 200_000 || s.Before != 1e6 || s.Drained < 0.99e6 || s.Drained > 1.01e6 {
		t.Errorf("%+v", s)
	}
	if want := map[string]int64{"from out": 50_000, "edge in": 60_000, "edge peer out": 7}; !maps.Equal(s.Places, want) {
		t.Errorf("places %v", s.Places)
	}
}

// A move is hopeless when its rounds do not get shorter for long enough.
func TestOutlook(t *testing.T) {
	for _, c := range []struct {
		name  string
		left  []int64 // at the begin of each round of 15 s
		after int     // rounds; 0: never
	}{
		{"converges", []int64{1000, 500, 250, 125, 60, 30, 15, 7, 3, 1}, 0},
		{"slowly", []int64{1000, 900, 800, 700, 600, 540, 480, 430, 380, 340}, 0},
		{"never", []int64{1000, 500, 510, 505, 499, 500, 500, 500, 500, 500}, 6},
		{"grows", []int64{500, 600, 700, 700, 700, 700, 700, 700}, 5},
	} {
		var o outlook
		found, now := 0, time.Unix(1000, 0)
		for i, left := range c.left {
			for range 15 {
				now = now.Add(time.Second)
				if o.hopeless(now, hypervisor.RAM{Rounds: int64(i + 1), Remaining: left}) && found == 0 {
					found = i + 1
				}
			}
		}
		if found != c.after {
			t.Errorf("%s: hopeless after %d rounds, want %d", c.name, found, c.after)
		}
	}
}
