package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
)

// Names of rows that aims are about.
const (
	firstMove   = "first move"
	returnMove  = "return"
	siblingMove = "a sibling's move"
	busyMove    = "T3: a busy guest"
)

// Report is one run; its JSON form is stable.
type Report struct {
	Machine string        `json:"machine"`
	WAN     line          `json:"wan"`
	T3      line          `json:"t3"`
	Dwell   time.Duration `json:"dwell_ns"`
	Rows    []Row         `json:"rows"`
	Stops   []Stop        `json:"stops"`
	Aims    []Aim         `json:"aims"`
	// Lost says, row by row, in what an alternative was better.
	Lost []string `json:"lost"`
}

// Row is one piece of work by one carrier.
type Row struct {
	Name    string `json:"name"`
	Carrier string `json:"carrier"`
	// By is the program and how it was told to reduce data.
	By      string  `json:"by"`
	Seconds float64 `json:"seconds"`
	// GivenUp: a move that had not converged after Seconds.
	GivenUp bool `json:"given_up,omitempty"`
	// DowntimeMS is from STOP at the source to RESUME at the target, of moves.
	DowntimeMS float64 `json:"downtime_ms,omitempty"`
	// WAN is what both edges put on the wire, in bytes of IP packets.
	WAN int64 `json:"wan_bytes"`
	// TunnelCPU is of the processes on both edges. What the kernel does for a
	// VXLAN device is not in it.
	TunnelCPU float64 `json:"tunnel_cpu_s"`
	// EndsCPU is of the hypervisors at both ends, the guest's own work with it.
	EndsCPU float64 `json:"ends_cpu_s,omitempty"`
	// Offered and Rounds are what the hypervisor says: bytes it sent, and how
	// often it collected dirty pages.
	Offered int64 `json:"offered_bytes,omitempty"`
	Rounds  int64 `json:"rounds,omitempty"`
}

// String is a row in words.
func (r Row) String() string {
	s := fmt.Sprintf("%s, %s, %s: %.1f s, %s on the WAN", r.Name, r.Carrier, r.By, r.Seconds, megabytes(r.WAN))
	if r.GivenUp {
		s += ", given up"
	}
	return s
}

// Aim is a ratio of stitch to the best alternative.
type Aim struct {
	What  string  `json:"what"`
	Got   float64 `json:"got"`
	Bound float64 `json:"bound"`
	Met   bool    `json:"met"`
}

// measures are what rows are compared in; one that a row does not have is 0.
var measures = []struct {
	name string
	of   func(Row) float64
}{
	{"time", func(r Row) float64 { return r.Seconds }},
	{"downtime", func(r Row) float64 { return r.DowntimeMS }},
	{"bytes on the WAN", func(r Row) float64 { return float64(r.WAN) }},
	{"CPU of the tunnel", func(r Row) float64 { return r.TunnelCPU }},
	{"CPU of the ends", func(r Row) float64 { return r.EndsCPU }},
}

// split returns stitch's row of a name and the alternatives that came to an end.
func (r *Report) split(name string) (ours *Row, theirs []Row) {
	for i, row := range r.Rows {
		switch {
		case row.Name != name:
		case row.Carrier == stitch.name:
			ours = &r.Rows[i]
		case !row.GivenUp:
			theirs = append(theirs, row)
		}
	}
	return ours, theirs
}

// best is the smallest of a measure, and whose; 0 if nobody has it.
func best(rows []Row, of func(Row) float64) (least float64, by Row) {
	for _, r := range rows {
		if v := of(r); v > 0 && (least == 0 || v < least) {
			least, by = v, r
		}
	}
	return least, by
}

// judge holds the rows against the aims, and finds those that are lost.
func (r *Report) judge() {
	const time, bytes = 0, 2
	r.aim(firstMove, bytes, 1)
	r.aim(firstMove, time, 1.02)
	r.aim(siblingMove, bytes, 1/2.5)
	r.aim(returnMove, bytes, 1./20)
	r.judgeStops()
	var names []string
	for _, row := range r.Rows {
		if row.Carrier == stitch.name {
			names = append(names, row.Name)
		}
	}
	for _, name := range names {
		ours, theirs := r.split(name)
		if ours.GivenUp && len(theirs) > 0 {
			r.Lost = append(r.Lost, name+": stitch did not get there")
		}
		for _, m := range measures {
			if got, by := best(theirs, m.of); got > 0 && m.of(*ours) > got {
				r.Lost = append(r.Lost, fmt.Sprintf("%s: %s is %.2f of %s, %s", name, m.name, m.of(*ours)/got, by.Carrier, by.By))
			}
		}
	}
}

// aim compares stitch with the best alternative in a row and a measure.
func (r *Report) aim(name string, measure int, bound float64) {
	m := measures[measure]
	ours, theirs := r.split(name)
	least, _ := best(theirs, m.of)
	if ours == nil || least == 0 {
		return
	}
	got := m.of(*ours) / least
	what := fmt.Sprintf("%s: %s of the best alternative's", name, m.name)
	r.Aims = append(r.Aims, Aim{what, got, bound, got <= bound && !ours.GivenUp})
}

// print writes the table.
func (r *Report) print(out io.Writer) {
	fmt.Fprintf(out, "\n%s; WAN of %v, T3 rows %v; guests of 1 GiB, %v between there and back\n\n", r.Machine, r.WAN, r.T3, r.Dwell)
	r.printRows(out)
	r.printStops(out)
	for _, a := range r.Aims {
		fmt.Fprintf(out, "%-6s  %.3f, at most %.3f: %s\n", map[bool]string{true: "met", false: "MISSED"}[a.Met], a.Got, a.Bound, a.What)
	}
	for _, l := range r.Lost {
		fmt.Fprintln(out, "lost   ", l)
	}
}

// printRows writes the table of what was done.
func (r *Report) printRows(out io.Writer) {
	if len(r.Rows) == 0 {
		return
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "work\tcarried by\twith\ttime\tdowntime\ton the WAN\tCPU tunnel\tCPU ends")
	last := ""
	for _, name := range r.names() {
		for _, row := range r.Rows {
			if row.Name != name {
				continue
			}
			title := name
			if title == last {
				title = ""
			}
			last = name
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%.1f s\t%s\n", title, row.Carrier, row.By, row.time(),
				orNone(row.DowntimeMS, "%.0f ms"), megabytes(row.WAN), row.TunnelCPU, orNone(row.EndsCPU, "%.1f s"))
		}
	}
	w.Flush()
	fmt.Fprintln(out)
}

// names are the rows' names, in order.
func (r *Report) names() (names []string) {
	seen := map[string]bool{}
	for _, row := range r.Rows {
		if !seen[row.Name] {
			seen[row.Name] = true
			names = append(names, row.Name)
		}
	}
	return names
}

func (r Row) time() string {
	if r.GivenUp {
		return fmt.Sprintf("> %.0f s, given up", r.Seconds)
	}
	return fmt.Sprintf("%.1f s", r.Seconds)
}

// orNone formats a figure, if there is one.
func orNone(v float64, format string) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf(format, v)
}

// megabytes writes a count of bytes.
func megabytes(n int64) string {
	if n < 10_000_000 {
		return fmt.Sprintf("%.2f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.0f MB", float64(n)/1e6)
}

// release is the kernel's.
func release() string {
	data, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(data))
}
