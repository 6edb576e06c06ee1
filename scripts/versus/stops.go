package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// spread is the middle of some figures, and the least and the most of them.
type spread struct {
	Median, Least, Most float64
	N                   int
}

// spreadOf takes a figure of each of the moves that came to an end.
func spreadOf(stops []Stop, of func(Stop) float64) (s spread) {
	var all []float64
	for _, stop := range stops {
		if !stop.GivenUp {
			all = append(all, of(stop))
		}
	}
	if s.N = len(all); s.N == 0 {
		return s
	}
	slices.Sort(all)
	s.Least, s.Most = all[0], all[s.N-1]
	s.Median = (all[(s.N-1)/2] + all[s.N/2]) / 2
	return s
}

// format writes the figures with a unit's format, such as "%.0f".
func (s spread) format(f string) string {
	if s.N == 0 {
		return ""
	}
	return fmt.Sprintf(f+" ("+f+" to "+f+")", s.Median, s.Least, s.Most)
}

// figures are what the table of stops shows.
var figures = []struct {
	name, format string
	of           func(Stop) float64
}{
	{"time, s", "%.1f", func(s Stop) float64 { return s.Seconds }},
	{"downtime, ms", "%.0f", downtime},
	{"expected, ms", "%.0f", func(s Stop) float64 { return float64(s.ExpectedMS) }},
	{"sent before, MB/s", "%.1f", func(s Stop) float64 { return s.Mean / 1e6 }},
	{"believed, MB/s", "%.1f", func(s Stop) float64 { return s.Believed / 1e6 }},
	{"drained, MB/s", "%.1f", func(s Stop) float64 { return s.Drained / 1e6 }},
	{"under way, MB", "%.2f", func(s Stop) float64 { return float64(s.Waiting) / 1e6 }},
	{"left, MB", "%.2f", func(s Stop) float64 { return float64(s.Left) / 1e6 }},
}

func downtime(s Stop) float64 { return s.DowntimeMS }

// stopsOf are the moves with a load by a carrier.
func (r *Report) stopsOf(load, carrier string) (some []Stop) {
	for _, s := range r.Stops {
		if s.Load == load && s.Carrier == carrier {
			some = append(some, s)
		}
	}
	return some
}

// kinds are the loads and carriers of stops, in order.
func (r *Report) kinds(of func(Stop) string) (names []string) {
	for _, s := range r.Stops {
		if name := of(s); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// judgeStops holds how long guests were stopped through stitch against how long
// on the better of the direct lines that are as fast, and a round trip. More would
// be bytes that the hypervisor does not know to be on their way.
func (r *Report) judgeStops() {
	for _, load := range r.kinds(func(s Stop) string { return s.Load }) {
		ours := spreadOf(r.stopsOf(load, stitch.name), downtime)
		var least spread
		for _, c := range direct {
			if s := spreadOf(r.stopsOf(load, c.name), downtime); s.N > 0 && (least.N == 0 || s.Median < least.Median) {
				least = s
			}
		}
		if ours.N == 0 || least.N == 0 {
			continue
		}
		got := ours.Median / (least.Median + float64(r.T3.RTT.Milliseconds()))
		r.Aims = append(r.Aims, Aim{load + ": downtime of that on a direct line as fast, and a round trip", got, 1, got <= 1})
	}
}

// printStops writes their table: medians, and in brackets the least and the most.
func (r *Report) printStops(out io.Writer) {
	if len(r.Stops) == 0 {
		return
	}
	fmt.Fprintf(out, "How guests were stopped, over %v and over direct lines as fast as stitch was; medians (least to most)\n\n", r.T3)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "the guest\tcarried by\tmoves")
	for _, f := range figures {
		fmt.Fprint(w, "\t", f.name)
	}
	fmt.Fprintln(w)
	for _, load := range r.kinds(func(s Stop) string { return s.Load }) {
		for i, c := range r.kinds(func(s Stop) string { return s.Carrier }) {
			stops := r.stopsOf(load, c)
			if len(stops) == 0 {
				continue
			}
			title := load
			if i > 0 {
				title = ""
			}
			n := spreadOf(stops, downtime).N
			fmt.Fprintf(w, "%s\t%s\t%d of %d", title, c, n, len(stops))
			for _, f := range figures {
				fmt.Fprint(w, "\t", spreadOf(stops, f.of).format(f.format))
			}
			fmt.Fprintln(w)
		}
	}
	w.Flush()
	fmt.Fprintln(out)
}
