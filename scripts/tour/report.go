package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"stitch/scripts/traffic"
)

// maxReturn is the share of the guest's non-zero memory that the return trip
// may put on the WAN.
const maxReturn = 1.0 / 30

// Move is one live migration.
type Move struct {
	Direction string `json:"direction"`
	// TotalMillis is from the command to the guest running at the target,
	// DowntimeMillis from STOP at the source to RESUME at the target.
	TotalMillis    int64 `json:"total_ms"`
	DowntimeMillis int64 `json:"downtime_ms"`
	// OfferedBytes is what the hypervisor sent, NonzeroPageBytes the guest's
	// pages that were not all zero just before, WANBytes everything the edges
	// sent each other meanwhile, connections included.
	OfferedBytes     int64     `json:"offered_bytes"`
	NonzeroPageBytes int64     `json:"nonzero_page_bytes"`
	WANBytes         int64     `json:"wan_bytes"`
	Rounds           int64     `json:"rounds"`
	Start            time.Time `json:"start"`
	End              time.Time `json:"end"`
}

// Via says by which edge connections go, and how that is known.
type Via struct {
	Via      string `json:"via"`
	Evidence string `json:"evidence"`
}

// Connections sums up all connections that were open during the moves.
type Connections struct {
	Total        int          `json:"total"`
	Survived     int          `json:"survived"`
	Resets       int          `json:"resets"`
	LongestGapMS int64        `json:"longest_gap_ms"`
	Each         []Connection `json:"each"`
}

// Connection is one of them.
type Connection struct {
	snapshot
	Survived bool          `json:"survived"`
	Gaps     []traffic.Gap `json:"gaps,omitempty"`
}

// Canary counts a known string: on the WAN, and where it must be seen.
type Canary struct {
	WAN     int `json:"wan_hits"`
	Control int `json:"control_hits"`
}

// Check is one thing that must be true.
type Check struct {
	What string `json:"what"`
	OK   bool   `json:"ok"`
}

// Report is report.json.
type Report struct {
	Started        time.Time   `json:"started"`
	Moves          []Move      `json:"moves"`
	Plain          Move        `json:"plain"`
	Connections    Connections `json:"connections"`
	NewConnections Via         `json:"new_connections"`
	OldConnections Via         `json:"old_connections"`
	Canary         Canary      `json:"canary"`
	Checks         []Check     `json:"checks"`
	Samples        []Sample    `json:"samples"`
}

// add enters a connection. The download ends by itself, the others when told to;
// the guest's own still run.
func (r *Report) add(s snapshot, gaps []traffic.Gap) {
	c := Connection{snapshot: s, Survived: s.Exact(), Gaps: gaps}
	k := &r.Connections
	k.Each = append(k.Each, c)
	k.Total++
	k.Resets += s.Resets
	if c.Survived {
		k.Survived++
	}
	k.LongestGapMS = max(k.LongestGapMS, s.Longest.Milliseconds())
}

// judge fills in the checks.
func (r *Report) judge() {
	check := func(ok bool, format string, args ...any) {
		r.Checks = append(r.Checks, Check{fmt.Sprintf(format, args...), ok})
	}
	c, there, back := r.Connections, r.Moves[0], r.Moves[1]
	check(c.Survived == c.Total && c.Resets == 0, "%d of %d connections survived both moves byte-exact, %d resets", c.Survived, c.Total, c.Resets)
	check(r.OldConnections.Via == "e1", "old connections stay at edge 1: %s", r.OldConnections.Evidence)
	check(r.NewConnections.Via == "e2", "new connections go to edge 2: %s", r.NewConnections.Evidence)
	share := float64(back.WANBytes) / float64(back.NonzeroPageBytes)
	check(share <= maxReturn, "the return trip put 1/%.0f of the guest's non-zero memory on the WAN (at most 1/30)", 1/share)
	check(r.Canary.WAN == 0, "the canary is %d times in the capture of the WAN", r.Canary.WAN)
	check(r.Canary.Control > 0, "control: it is %d times in the capture of the LAN", r.Canary.Control)
	if r.Plain.TotalMillis > 0 {
		check(there.TotalMillis < r.Plain.TotalMillis, "the first move took %.1f s, through plain WireGuard %.1f s", seconds(there.TotalMillis), seconds(r.Plain.TotalMillis))
		check(there.WANBytes < r.Plain.WANBytes, "the first move put %s on the WAN, through plain WireGuard %s", mib(there.WANBytes), mib(r.Plain.WANBytes))
	}
}

func seconds(ms int64) float64 { return float64(ms) / 1000 }
func mib(n int64) string       { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// failures is how many checks do not hold.
func (r *Report) failures() (n int) {
	for _, c := range r.Checks {
		if !c.OK {
			n++
		}
	}
	return n
}

// write makes report.json and report.html in dir.
func (r *Report) write(dir string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "report.json"), append(data, '\n'), 0o644); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "report.html"))
	if err != nil {
		return err
	}
	if err := r.html(f); err != nil {
		return err
	}
	return f.Close()
}

// summary prints what a person wants to know.
func (r *Report) summary(w io.Writer) {
	fmt.Fprintf(w, "\n%-24s %10s %12s %14s %14s %8s\n", "MOVE", "TOTAL", "DOWNTIME", "OFFERED", "ON THE WAN", "RATIO")
	line := func(title string, m Move) {
		fmt.Fprintf(w, "%-24s %8.1f s %9d ms %14s %14s %7.1fx\n", title, seconds(m.TotalMillis), m.DowntimeMillis, mib(m.OfferedBytes), mib(m.WANBytes), float64(m.OfferedBytes)/float64(max(1, m.WANBytes)))
	}
	for _, m := range r.Moves {
		line("stitch, "+m.Direction, m)
	}
	if r.Plain.TotalMillis > 0 {
		line("plain WireGuard, "+r.Plain.Direction, r.Plain)
	}
	fmt.Fprintf(w, "\n%-16s %9s %10s %12s %8s\n", "CONNECTION", "SURVIVED", "REQUESTS", "BYTES", "GAP")
	for _, c := range r.Connections.Each {
		fmt.Fprintf(w, "%-16s %9v %10d %12d %5d ms %s\n", c.Name, c.Survived, c.Requests, c.BytesIn+c.BytesOut, c.Longest.Milliseconds(), c.Error)
	}
	fmt.Fprintln(w)
	for _, c := range r.Checks {
		mark := "ok  "
		if !c.OK {
			mark = "FAIL"
		}
		fmt.Fprintf(w, "%s  %s\n", mark, c.What)
	}
}
