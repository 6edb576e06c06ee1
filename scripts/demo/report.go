package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"stitch/scripts/program"
	"stitch/scripts/traffic"
)

// returnShare is the most of the guest's non-zero pages that may cross the WAN
// when it moves back: one part in so many.
const returnShare = 30

// Report is the outcome of one run: report.json.
type Report struct {
	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"`
	// RateBit and RTTMS describe the WAN.
	RateBit     int64   `json:"wan_bit_per_s"`
	RTTMS       float64 `json:"wan_rtt_ms"`
	QEMU        string  `json:"qemu"`
	GuestKernel string  `json:"guest_kernel"`
	// Moves are those through stitch, in order.
	Moves []Move `json:"moves"`
	// Plain is the first move again, through plain WireGuard.
	Plain *Move `json:"plain,omitempty"`
	// Connections are all that had to live through a move.
	Connections    Connections `json:"connections"`
	NewConnections Group       `json:"new_connections"`
	OldConnections Group       `json:"old_connections"`
	// Paths prove by the WAN's own counters which way the traffic went.
	Paths []Paths `json:"paths"`
	// WAN and LAN are what the canary was searched in: between the edges, and in
	// front of the edge, where it must be found.
	WAN Scan `json:"canary_wan"`
	LAN Scan `json:"canary_lan"`
	// GuestUptime is the guest program's own age in the end.
	GuestUptime float64  `json:"guest_uptime_s"`
	Checks      []Check  `json:"checks"`
	Timeline    []Sample `json:"timeline"`
	// PlainTimeline is the run through plain WireGuard, on a time of its own.
	PlainTimeline []Sample `json:"plain_timeline,omitempty"`
}

// Connections sums the connections up.
type Connections struct {
	Total        int          `json:"total"`
	Survived     int          `json:"survived"`
	Resets       int          `json:"resets"`
	LongestGapMS float64      `json:"longest_gap_ms"`
	Each         []Connection `json:"each"`
}

// Connection is one of them.
type Connection struct {
	Name     string `json:"name"`
	Kind     string `json:"kind"`
	Survived bool   `json:"survived"`
	// LongestGapMS is the longest wait for an answer, or, for a connection the
	// guest opened, between its requests beyond its own pace.
	LongestGapMS float64 `json:"longest_gap_ms"`
	Requests     uint64  `json:"requests"`
	BytesIn      uint64  `json:"bytes_in"`
	BytesOut     uint64  `json:"bytes_out"`
	Resets       int     `json:"resets"`
	Error        string  `json:"error,omitempty"`
	Gaps         []Pause `json:"gaps,omitempty"`
}

// Pause is a gap on the timeline.
type Pause struct {
	At float64 `json:"at_s"`
	MS float64 `json:"ms"`
}

// Group says by which site connections of one kind entered.
type Group struct {
	Count int `json:"count"`
	// Via is the site; several, if they differ.
	Via string `json:"via"`
}

// newGroup makes a Group from a count by site.
func newGroup(bySite map[string]int) (g Group) {
	for _, site := range []string{"dc1", "dc2", "?"} {
		if n := bySite[site]; n > 0 {
			g.Count += n
			g.Via = strings.TrimPrefix(g.Via+"+"+site, "+")
		}
	}
	return g
}

// Check is one promise and whether it was kept.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

func (r *Report) check(ok bool, name, format string, args ...any) {
	r.Checks = append(r.Checks, Check{name, ok, fmt.Sprintf(format, args...)})
}

// passed reports whether there were checks and all were kept.
func (r *Report) passed() bool {
	for _, c := range r.Checks {
		if !c.OK {
			return false
		}
	}
	return len(r.Checks) > 0
}

// addConnection judges one connection. own is what the guest itself says about
// a connection it opened, else nil.
func (r *Report) addConnection(c *connection, tl *timeline, own *traffic.Snapshot) {
	s := c.meter.Snapshot()
	e := Connection{
		Name: c.name, Kind: c.kind, Survived: s.Exact(), LongestGapMS: millis(s.Longest),
		Requests: s.Requests, BytesIn: s.BytesIn, BytesOut: s.BytesOut, Resets: s.Resets, Error: s.Error,
	}
	if c.kind == guestOpened {
		e.Survived = e.Survived && s.Up && own != nil && own.Exact() && own.Up
		if own != nil {
			e.Resets = max(e.Resets, own.Resets)
		}
	}
	if c.whole != nil && e.Survived {
		if err := c.whole(); err != nil {
			e.Survived, e.Error = false, err.Error()
		}
	}
	for _, g := range c.meter.Gaps() {
		e.Gaps = append(e.Gaps, Pause{At: tl.at(g.Start), MS: millis(g.Length)})
	}
	all := &r.Connections
	all.Each = append(all.Each, e)
	all.Total++
	all.Resets += e.Resets
	all.LongestGapMS = max(all.LongestGapMS, e.LongestGapMS)
	if e.Survived {
		all.Survived++
	}
}

// judge makes the checks that follow from the numbers. moves says how many there
// had to be.
func (r *Report) judge(moves int, plain bool) {
	c := r.Connections
	r.check(c.Total > 0 && c.Survived == c.Total, "every connection survives both moves byte-exact", "%d of %d", c.Survived, c.Total)
	r.check(c.Resets == 0, "no connection is reset", "%d resets", c.Resets)
	r.check(len(r.Moves) == moves, "the guest moves there and back", "%d of %d moves", len(r.Moves), moves)
	if len(r.Moves) > 1 {
		back := r.Moves[1]
		r.check(back.WANBytes*returnShare <= back.NonzeroPageBytes, fmt.Sprintf("the way back costs at most 1/%d of the memory", returnShare),
			"%s of %s: 1/%.0f", megabytes(back.WANBytes), megabytes(back.NonzeroPageBytes), float64(back.NonzeroPageBytes)/float64(max(1, back.WANBytes)))
	}
	if plain && r.Plain != nil && len(r.Moves) > 0 {
		a, b := r.Moves[0], *r.Plain
		r.check(a.TotalMS < b.TotalMS, "the first move is faster than through plain WireGuard", "%.1f s against %.1f s", a.TotalMS/1e3, b.TotalMS/1e3)
		r.check(a.WANBytes < b.WANBytes, "and sends less", "%s against %s", megabytes(a.WANBytes), megabytes(b.WANBytes))
	} else if plain {
		r.check(false, "the first move is faster than through plain WireGuard", "not measured")
	}
	r.check(r.OldConnections.Via == "dc1", "old connections stay at the edge they came in by", "%d via %s", r.OldConnections.Count, r.OldConnections.Via)
	r.check(r.NewConnections.Via == "dc2", "new connections go straight to the guest's site", "%d via %s", r.NewConnections.Count, r.NewConnections.Via)
	r.check(r.WAN.Packets > 0 && r.WAN.Hits == 0, "nothing crosses the WAN in clear", "canary in %d of %d packets", r.WAN.Hits, r.WAN.Packets)
	r.check(r.LAN.MigrationHits > 0 && r.LAN.Hits > r.LAN.MigrationHits, "and the search finds what is in clear, before the edge",
		"canary in %d packets of migration, %d of clients", r.LAN.MigrationHits, r.LAN.Hits-r.LAN.MigrationHits)
}

// write puts report.json and report.html into dir.
func (r *Report) write(dir string) error {
	if err := program.WriteReport(filepath.Join(dir, "report.json"), r); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "report.html"))
	if err != nil {
		return err
	}
	if err := r.html(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// print writes the summary for a person.
func (r *Report) print(w io.Writer) {
	fmt.Fprintf(w, "\nA guest with %s in use, moved over %d Mbit/s and %.0f ms while its clients stay connected\n\n",
		megabytes(r.memory()), r.RateBit/1_000_000, r.RTTMS)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "move\tthrough\ttotal\tdowntime\toffered\ton the WAN\tratio\tspeed\t")
	for _, m := range r.moves() {
		fmt.Fprintf(t, "%s\t%s\t%.1f s\t%.0f ms\t%s\t%s\t%.1f\t%.0f Mbit/s\t\n", m.Direction, m.Through, m.TotalMS/1e3,
			m.DowntimeMS, megabytes(m.OfferedBytes), megabytes(m.WANBytes), m.Ratio(), m.MBitPerSecond())
	}
	t.Flush()
	fmt.Fprintln(w)
	t = tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "connection\tkind\tsurvived\tlongest gap\trequests\tbytes checked")
	for _, c := range r.Connections.Each {
		survived := "yes"
		if !c.Survived {
			survived = "NO " + c.Error
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%.0f ms\t%d\t%d\n", c.Name, c.Kind, survived, c.LongestGapMS, c.Requests, c.BytesIn)
	}
	t.Flush()
	fmt.Fprintln(w)
	for _, p := range r.Paths {
		fmt.Fprintf(w, "%s: edge 1 to client %s, edge 2 to client %s, between the edges %s\n",
			p.What, megabytes(p.ClientE1), megabytes(p.ClientE2), megabytes(p.Link))
	}
	fmt.Fprintln(w)
	for _, c := range r.Checks {
		mark := "ok  "
		if !c.OK {
			mark = "FAIL"
		}
		fmt.Fprintf(w, "%s  %s: %s\n", mark, c.Name, c.Detail)
	}
}

// moves are all measured ones.
func (r *Report) moves() []Move {
	all := append([]Move(nil), r.Moves...)
	if r.Plain != nil {
		all = append(all, *r.Plain)
	}
	return all
}

// memory is the guest's memory in use.
func (r *Report) memory() (n int64) {
	for _, m := range r.moves() {
		n = max(n, m.NonzeroPageBytes)
	}
	return n
}

// megabytes writes a count of bytes.
func megabytes(n int64) string {
	if n < 10_000_000 {
		return fmt.Sprintf("%.2f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.0f MB", float64(n)/1e6)
}
