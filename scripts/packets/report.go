package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is one run; its JSON form is stable.
type Report struct {
	Machine string            `json:"machine"`
	Rounds  int               `json:"rounds"`
	Length  float64           `json:"length_seconds"`
	Rows    []Row             `json:"rows"`
	Skipped map[string]string `json:"skipped,omitempty"` // tunnel to reason
	Aims    []Aim             `json:"aims"`
}

// Row has the medians of one tunnel.
type Row struct {
	Tunnel string `json:"tunnel"`
	// Figures by name: tcp1 and tcp8 in Mbit/s, udp64, udp512 and udp1400 in
	// packets a second that arrived, p50 and p99 of ping in microseconds,
	// tunnel_cpu and all_cpu in processor seconds for 10^9 bytes of tcp1: of
	// the tunnel's processes, and with those of sender and receiver. What the
	// kernel does in interrupts is in neither.
	Figures map[string]float64   `json:"figures"`
	Samples map[string][]float64 `json:"samples"`
}

// Aim is a ratio that issue or design ask for.
type Aim struct {
	What string  `json:"what"`
	Got  float64 `json:"got"`
	Met  bool    `json:"met"`
}

// columns of the table, in order.
var columns = []struct{ figure, title, format string }{
	{"tcp1", "TCP 1\tMbit/s", "%.0f"}, {"tcp8", "TCP 8\tMbit/s", "%.0f"},
	{"udp64", "UDP 64\tpackets/s", "%.0f"}, {"udp512", "UDP 512\tpackets/s", "%.0f"}, {"udp1400", "UDP 1400\tpackets/s", "%.0f"},
	{"p50", "ping p50\tus", "%.0f"}, {"p99", "ping p99\tus", "%.0f"},
	{"tunnel_cpu", "tunnel\tCPU s/GB", "%.2f"}, {"all_cpu", "with ends\tCPU s/GB", "%.2f"},
}

// measure does all rounds.
func measure(ctx context.Context, o options) (r *Report, err error) {
	fmt.Fprintln(os.Stderr, "building the programs and starting the tunnels")
	f, err := start(ctx, o.among)
	defer func() { err = errors.Join(err, f.close()) }()
	if err != nil {
		return nil, err
	}
	r = &Report{Machine: fmt.Sprintf("%d processors, %s", runtime.NumCPU(), release()), Rounds: o.rounds, Length: o.length.Seconds(), Skipped: f.skipped}
	for _, t := range f.tunnels {
		r.Rows = append(r.Rows, Row{Tunnel: t.name, Figures: map[string]float64{}, Samples: map[string][]float64{}})
	}
	for round := range o.rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, o.rounds)
		for _, load := range loads {
			if !o.only.MatchString(load) {
				continue
			}
			for i, t := range f.tunnels {
				s, err := t.apply(ctx, load, o.length)
				if err != nil {
					return nil, err
				}
				r.Rows[i].add(load, s)
			}
		}
	}
	for i := range r.Rows {
		r.Rows[i].finish()
	}
	r.judge()
	return r, nil
}

// add takes in one measurement.
func (r *Row) add(load string, s sample) {
	add := func(figure string, v float64) { r.Samples[figure] = append(r.Samples[figure], v) }
	switch kind, _ := split(load); kind {
	case "ping":
		add("p50", float64(percentile(s.pings, 50))/1e3)
		add("p99", float64(percentile(s.pings, 99))/1e3)
	case "udp":
		add(load, float64(s.packets)/s.took.Seconds())
	default:
		add(load, float64(s.bytes)*8/1e6/s.took.Seconds())
		if gb := float64(s.bytes) / 1e9; load == "tcp1" && gb > 0 {
			// The processor was watched a quarter longer than the bytes.
			share := 1 / 1.25 / gb
			add("tunnel_cpu", s.tunnel.Seconds()*share)
			add("all_cpu", s.total.Seconds()*share)
		}
	}
}

// finish computes the medians.
func (r *Row) finish() {
	for figure, values := range r.Samples {
		r.Figures[figure] = median(values)
	}
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 && n > 0 {
		return (s[n/2-1] + s[n/2]) / 2
	} else if n > 0 {
		return s[n/2]
	}
	return 0
}

// percentile returns the smallest value that p percent do not exceed.
func percentile(values []time.Duration, p int) time.Duration {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	return s[(len(s)*p+99)/100-1]
}

// judge holds the figures against the aims. A ratio is the median of the
// rounds' ratios: what disturbs the machine disturbs both sides of a round.
func (r *Report) judge() {
	r.aim("stitch (L3) TCP 1 / wireguard-go >= 1.0", "tcp1", stitchL3, wireguardL3, 1)
	r.aim("stitch (L2) TCP 1 / stitch (L3) >= 0.9", "tcp1", stitchL2, stitchL3, 0.9)
	r.aim("stitch (L2) TCP 1 / VXLAN over wireguard-go >= 4", "tcp1", stitchL2, vxlanL2, 4)
	for _, name := range []string{stitchL3, stitchL2} {
		ours, theirs := r.samples(name, "p50"), r.samples(wireguardL3, "p50")
		if n := min(len(ours), len(theirs)); n > 0 {
			more := make([]float64, n)
			for i := range more {
				more[i] = ours[i] - theirs[i]
			}
			got := median(more)
			r.Aims = append(r.Aims, Aim{name + " ping p50 - wireguard-go <= 50 us", got, got <= 50})
		}
	}
}

func (r *Report) aim(what, figure, ours, theirs string, least float64) {
	a, b := r.samples(ours, figure), r.samples(theirs, figure)
	var ratios []float64
	for i := range min(len(a), len(b)) {
		if b[i] > 0 {
			ratios = append(ratios, a[i]/b[i])
		}
	}
	if len(ratios) > 0 {
		got := median(ratios)
		r.Aims = append(r.Aims, Aim{what, got, got >= least})
	}
}

func (r *Report) samples(tunnel, figure string) []float64 {
	i := slices.IndexFunc(r.Rows, func(row Row) bool { return row.Tunnel == tunnel })
	if i < 0 {
		return nil
	}
	return r.Rows[i].Samples[figure]
}

// print writes the table.
func (r *Report) print(out io.Writer) {
	fmt.Fprintf(out, "%s; medians of %d rounds of %.1f s\n\n", r.Machine, r.Rounds, r.Length)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	for line := range 2 {
		for _, c := range columns {
			fmt.Fprint(w, strings.Split(c.title, "\t")[line], "\t")
		}
		fmt.Fprintln(w)
	}
	for _, row := range r.Rows {
		for _, c := range columns {
			if v, ok := row.Figures[c.figure]; ok {
				fmt.Fprintf(w, c.format, v)
			}
			fmt.Fprint(w, "\t")
		}
		fmt.Fprintf(w, "  %s\n", row.Tunnel)
	}
	w.Flush()
	fmt.Fprintln(out)
	for _, a := range r.Aims {
		fmt.Fprintf(out, "%-6s  %.2f  %s\n", map[bool]string{true: "met", false: "MISSED"}[a.Met], a.Got, a.What)
	}
	for name, why := range r.Skipped {
		fmt.Fprintf(out, "left out: %s: %s\n", name, why)
	}
}

// release is the kernel's.
func release() string {
	data, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return "Linux " + strings.TrimSpace(string(data))
}
