package main

import (
	"strings"
	"testing"
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

// A busy guest's downtime through stitch is held against that on a line as fast.
func TestDowntimeAim(t *testing.T) {
	for _, c := range []struct {
		name         string
		ours, theirs float64
		given, met   bool
	}{{"shorter", 500, 450, false, true}, {"longer", 600, 450, false, false}, {"given up", 0, 450, true, false}} {
		r := &Report{T3: t3, Rows: []Row{
			{Name: busyMove, Carrier: stitch.name, Seconds: 40, DowntimeMS: c.ours, Offered: 500e6, GivenUp: c.given},
			{Name: busyMove, Carrier: plain.name, Seconds: 120, GivenUp: true},
			{Name: busyAsFast, Carrier: asFast.name, Seconds: 40, DowntimeMS: c.theirs},
		}}
		r.judge()
		switch {
		case c.given && len(r.Aims) != 0:
			t.Errorf("%s: %+v", c.name, r.Aims)
		case !c.given && (len(r.Aims) != 1 || r.Aims[0].Met != c.met):
			t.Errorf("%s: %+v", c.name, r.Aims)
		}
		if len(r.Lost) != 0 {
			t.Errorf("%s: lost %v: the line as fast is no alternative", c.name, r.Lost)
		}
	}
	if got := (Row{Seconds: 40, Offered: 500e6}).effective(); got < 108e6 || got > 109e6 {
		t.Errorf("a line as fast has %.0f bit/s", got)
	}
}
