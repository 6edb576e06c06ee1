package main

import (
	"strings"
	"testing"
)

// report is what two links made of migrations and incompressible data.
func report() *Report {
	r := &Report{Machine: "a machine", Limit: 100, Sizes: map[string]int64{first: 360e6, back: 400e6, sibling: 350e6, again: 360e6, seeded: 360e6}, Patches: map[string]int64{back: 7e6}}
	add := func(link, carrier, data string, bytes int64, seconds float64, cut bool, window float64) {
		r.Runs = append(r.Runs, Run{Link: link, Carrier: carrier, Data: data, Bytes: bytes, Seconds: seconds, Cut: cut, Window: window, WAN: bytes, Busy: 0.5})
	}
	add("T3", cubic, first, 360e6, 72, false, 5.1e6)
	add("T3", bbr, first, 360e6, 71, false, 5.0e6)
	add("T3", stitch, first, 360e6, 20, false, 18e6)
	add("T3", stitch, back, 400e6, 4, false, 0)
	add("T3", stitch, incompressible, 320e6, 66, false, 4.9e6)
	add("100/80 3%", cubic, first, 20e6, 100, true, 0.2e6)
	add("100/80 3%", bbr, first, 360e6, 40, false, 9e6)
	add("100/80 3%", stitch, first, 360e6, 41, false, 9e6)
	add("100/80 3%", stitch, incompressible, 500e6, 66, false, 8e6)
	return r
}

// The table has a row for what was measured, plain's cells are computed where it
// did not carry the data, and every aim that is missed is said.
func TestReport(t *testing.T) {
	r := report()
	r.compare()
	var b strings.Builder
	r.print(&b)
	for _, want := range []string{
		"T3: 45 Mbit/s, 100ms\n", "100/80 3%: 100 Mbit/s, 80ms, 3.0 % lost\n",
		"met     3.60, at least 2.70: T3, first migration: times as fast as plain CUBIC",
		"met     3.55, at least 0.98: T3, first migration: times as fast as plain BBR",
		"MISSED  20.00, at least 40.00: T3, return: times as fast as plain CUBIC",
		"met     0.94, at least 0.93: T3, incompressible: share of the 41.6 Mbit/s that are possible",
		"MISSED  0.71, at least 0.88: 100/80 3%, incompressible",
		"met     2.44 or more, at least 0.98: 100/80 3%, first migration: times as fast as plain CUBIC",
		"MISSED  0.98, at least 0.98: 100/80 3%, first migration: times as fast as plain BBR",
		"MISSED  0.97, at least 0.98: T3, incompressible: times as fast as plain CUBIC",
		"met     37.88, at least 0.98: 100/80 3%, incompressible: times as fast as plain CUBIC",
		"~80.0 s", "> 100.0 s",
		// 7 MB at 5.2 MB/s and 0.15 s, where plain takes 80 s.
		"bound   53.46: T3, return: the 7.00 MB of zstd --patch-from would take 1.50 s",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
	if got := len(r.Rows); got != 5 {
		t.Errorf("%d rows, want 5\n%s", got, &b)
	}
}

// Without stitch there is nothing to hold against an aim, and without plain only
// what the link itself allows.
func TestAlone(t *testing.T) {
	all := report().Runs
	for carrier, want := range map[string]int{cubic: 0, bbr: 0, stitch: 2} {
		r := &Report{Sizes: map[string]int64{}}
		for _, x := range all {
			if x.Carrier == carrier {
				r.Runs = append(r.Runs, x)
			}
		}
		if r.compare(); len(r.Aims) != want {
			t.Errorf("%s alone: %d aims, want %d: %+v", carrier, len(r.Aims), want, r.Aims)
		}
	}
}
