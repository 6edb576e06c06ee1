package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// Report is one run of the program; its JSON form is stable.
type Report struct {
	Machine string `json:"machine"`
	// Limit is the seconds after which a transfer was cut off.
	Limit float64 `json:"limit_s"`
	// Sizes are the bytes of each kind of data.
	Sizes map[string]int64 `json:"sizes"`
	// Patches are the bytes that zstd --patch-from makes of the returns.
	Patches map[string]int64 `json:"patches,omitempty"`
	Runs    []Run            `json:"runs"`
	Rows    []Row            `json:"rows"`
	Aims    []Aim            `json:"aims"`
	// Bounds are for the returns on the first link.
	Bounds []Bound `json:"bounds,omitempty"`
}

// Run is one transfer, verified.
type Run struct {
	Link    string `json:"link"`
	Carrier string `json:"carrier"`
	Data    string `json:"data"`
	// Bytes arrived in Seconds; Cut if these were not all.
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
	Cut     bool    `json:"cut,omitempty"`
	// Window is bytes a second between the 5th and the 65th second; 0 if it did not
	// last so long.
	Window float64 `json:"window,omitempty"`
	// WAN is what both edges put on the wire, in bytes of IP packets.
	WAN int64 `json:"wan_bytes"`
	// Tunnel and Emulator are processor seconds of the processes on both edges
	// and of the emulated WAN; what the kernel does in interrupts is in neither.
	Tunnel   float64 `json:"tunnel_cpu_s"`
	Emulator float64 `json:"emulator_cpu_s"`
	// Busy is the share of the machine's processors that was in use by anybody.
	Busy float64 `json:"busy"`
	// Dropped packets fell to a machine that was too slow for the emulator.
	Dropped uint64 `json:"host_drops,omitempty"`
}

// rate is bytes a second: of incompressible data in the window.
func (r Run) rate() float64 {
	if r.Data == incompressible && r.Window > 0 {
		return r.Window
	}
	return r.whole()
}

// whole is bytes a second from beginning to end.
func (r Run) whole() float64 { return float64(r.Bytes) / r.Seconds }

// String is a run in words.
func (r Run) String() string {
	s := fmt.Sprintf("%s, %s, %s: %.1f s, %.1f Mbit/s, %s on the WAN, machine %.0f %% busy", r.Link, r.Carrier, r.Data,
		r.Seconds, r.rate()*8/1e6, megabytes(float64(r.WAN)), 100*r.Busy)
	if r.Cut {
		s += ", cut off"
	}
	if r.Dropped > 0 {
		s += fmt.Sprintf("; the emulator lost %d packets that it should not have", r.Dropped)
	}
	return s
}

// Row compares the carriers on one link with one kind of data.
type Row struct {
	Link  string `json:"link"`
	Data  string `json:"data"`
	Cells []Cell `json:"cells"` // of CUBIC, BBR and stitch; Seconds 0: not measured
}

// Cell is what one carrier made of it.
type Cell struct {
	Seconds float64 `json:"seconds"`
	// Cut: it was not through after Seconds.
	Cut bool `json:"cut,omitempty"`
	// Computed from another kind of data by the number of bytes.
	Computed bool `json:"computed,omitempty"`
	// Rate is bytes of data a second: of incompressible data in the window, and
	// Whole that from beginning to end.
	Rate  float64 `json:"rate"`
	Whole float64 `json:"whole_rate"`
	WAN   float64 `json:"wan_bytes"`
	Busy  float64 `json:"busy"`
}

// Aim is a figure held against its bound.
type Aim struct {
	What  string  `json:"what"`
	Got   float64 `json:"got"`
	Least float64 `json:"least"`
	// AtLeast: the true figure is larger, because plain was cut off.
	AtLeast bool `json:"at_least,omitempty"`
	Met     bool `json:"met"`
}

// find returns a run, or nil.
func (r *Report) find(link, carrier, data string) *Run {
	i := slices.IndexFunc(r.Runs, func(x Run) bool { return x.Link == link && x.Carrier == carrier && x.Data == data })
	if i < 0 {
		return nil
	}
	return &r.Runs[i]
}

// cell is what a carrier made of data, or, of plain, would have.
func (r *Report) cell(link, carrier, data string) Cell {
	if x := r.find(link, carrier, data); x != nil {
		return Cell{Seconds: x.Seconds, Cut: x.Cut, Rate: x.rate(), Whole: x.whole(), WAN: float64(x.WAN), Busy: x.Busy}
	}
	x := r.find(link, carrier, first)
	if carrier == stitch || x == nil {
		return Cell{}
	}
	c := Cell{Computed: true, Cut: x.Cut, Rate: x.rate(), Whole: x.whole(), WAN: float64(x.WAN), Busy: x.Busy, Seconds: x.Seconds}
	if data == incompressible {
		if x.Window > 0 {
			c.Rate = x.Window
		}
		return c
	}
	if !x.Cut {
		share := float64(r.Sizes[data]) / float64(x.Bytes)
		c.Seconds, c.WAN = c.Seconds*share, c.WAN*share
	}
	return c
}

// compare makes the rows and holds them against the aims.
func (r *Report) compare() {
	r.Rows, r.Aims, r.Bounds = nil, nil, nil
	for _, l := range links {
		for _, kind := range kinds {
			if r.find(l.name, stitch, kind) == nil && (kind != first || r.find(l.name, cubic, kind) == nil && r.find(l.name, bbr, kind) == nil) {
				continue
			}
			row := Row{Link: l.name, Data: kind}
			for _, carrier := range []string{cubic, bbr, stitch} {
				row.Cells = append(row.Cells, r.cell(l.name, carrier, kind))
			}
			r.Rows = append(r.Rows, row)
			r.judge(l, row)
			if b, ok := r.bound(l, row); ok && l == links[0] {
				r.Bounds = append(r.Bounds, b)
			}
		}
	}
}

// least are the aims on the T3 line, in multiples of plain CUBIC's speed.
var least = map[string]float64{first: 2.7, seeded: 3.8, sibling: 7, back: 40, gentle: 40}

// judge holds a row against the aims about it.
func (r *Report) judge(l link, row Row) {
	ours := row.Cells[2]
	if ours.Seconds == 0 {
		return
	}
	for i, carrier := range []string{cubic, bbr} {
		plain := row.Cells[i]
		if plain.Seconds == 0 {
			continue
		}
		got := ours.over(plain, row.Data)
		switch {
		case l.name == "T3" && carrier == cubic && least[row.Data] > 0:
			r.aim(fmt.Sprintf("%s, %s: times as fast as %s", l.name, row.Data, carrier), got, least[row.Data], plain.Cut)
		case row.Data == first:
			r.aim(fmt.Sprintf("%s, %s: times as fast as %s", l.name, row.Data, carrier), got, 1/1.02, plain.Cut)
		case row.Data == incompressible && (l.name != fast || carrier == bbr):
			// The beginning counts here, as it does for a first migration.
			r.aim(fmt.Sprintf("%s, %s: times as fast as %s", l.name, row.Data, carrier), ours.Whole/plain.Whole, 1/1.02, false)
		}
	}
	if row.Data == incompressible && l.name != fast {
		share := 0.93
		if l.loss > 0.01 {
			share = 0.88
		}
		r.aim(fmt.Sprintf("%s, %s: share of the %.1f Mbit/s that are possible", l.name, row.Data, l.ceiling()*8/1e6), ours.Rate/l.ceiling(), share, false)
	}
}

func (r *Report) aim(what string, got, least float64, more bool) {
	r.Aims = append(r.Aims, Aim{what, got, least, more, got >= least})
}

// over is how many times as fast c is; where plain was cut off it is at least so
// many times.
func (c Cell) over(plain Cell, data string) float64 {
	if data == incompressible {
		return c.Rate / plain.Rate
	}
	return plain.Seconds / c.Seconds
}

// print writes the table.
func (r *Report) print(out io.Writer) {
	fmt.Fprintf(out, "\n%s; transfers are cut off after %.0f s; ~: computed from another kind of data\n", r.Machine, r.Limit)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	last := ""
	for _, row := range r.Rows {
		if row.Link != last {
			w.Flush()
			last = row.Link
			i := slices.IndexFunc(links, func(l link) bool { return l.name == last })
			fmt.Fprintf(out, "\n%s\n", links[i])
			fmt.Fprintln(w, "data\tplain CUBIC\tMbit/s\tWAN\tplain BBR\tMbit/s\tWAN\tstitch\tMbit/s\tWAN\tto CUBIC\tto BBR\tbusy")
		}
		ours := row.Cells[2]
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%.0f %%\n", row.Data, row.Cells[0], row.Cells[1], ours,
			ours.ratio(row.Cells[0], row.Data), ours.ratio(row.Cells[1], row.Data), 100*ours.Busy)
	}
	w.Flush()
	fmt.Fprintln(out)
	for _, a := range r.Aims {
		more := ""
		if a.AtLeast {
			more = " or more"
		}
		fmt.Fprintf(out, "%-6s  %.2f%s, at least %.2f: %s\n", map[bool]string{true: "met", false: "MISSED"}[a.Met], a.Got, more, a.Least, a.What)
	}
	for _, b := range r.Bounds {
		fmt.Fprintf(out, "bound   %.2f: %s, %s: the %.2f MB of zstd --patch-from would take %.2f s, and its own time\n",
			b.Over, b.Link, b.Data, float64(b.Bytes)/1e6, b.Seconds)
	}
}

// ratio writes how many times as fast c is.
func (c Cell) ratio(plain Cell, data string) string {
	if c.Seconds == 0 || plain.Seconds == 0 {
		return ""
	}
	more := ""
	if plain.Cut && data != incompressible {
		more = "> "
	}
	return fmt.Sprintf("%s%.2f", more, c.over(plain, data))
}

// String is three columns.
func (c Cell) String() string {
	if c.Seconds == 0 {
		return "\t\t"
	}
	about, more := "", ""
	if c.Computed {
		about = "~"
	}
	if c.Cut {
		more = "> "
	}
	return fmt.Sprintf("%s%s%.1f s\t%s%.1f\t%s%s", more, about, c.Seconds, about, c.Rate*8/1e6, about, megabytes(c.WAN))
}

// megabytes writes a count of bytes.
func megabytes(n float64) string {
	if n < 10e6 {
		return fmt.Sprintf("%.2f MB", n/1e6)
	}
	return fmt.Sprintf("%.0f MB", n/1e6)
}
