package main

import (
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"
)

// Geometry of the plot, in SVG units.
const (
	plotW, plotH      = 960, 300
	marginL, marginB  = 70, 30
	innerW            = plotW - marginL - 10
	innerH            = plotH - marginB - 10
	bitsPerMegabit    = 1e6
	minimumAxisMbit   = 150
	gapRowsY, gapRowH = plotH + 10, 10
)

// view is what the page's template sees.
type view struct {
	*Report
	Raw, Wire string // polylines
	Bands     []band
	Gaps      []band
	Ticks     []tick
	Height    int
}

// band is a stretch of time in the plot.
type band struct {
	X, Y, W float64
	Label   string
}

// tick is a label of an axis.
type tick struct {
	X, Y  float64
	Label string
}

// html writes a page that needs nothing else.
func (r *Report) html(w io.Writer) error { return page.Execute(w, r.view()) }

// view lays out the timeline.
func (r *Report) view() view {
	v := view{Report: r, Height: plotH}
	if len(r.Samples) < 2 {
		return v
	}
	start, end := r.Samples[0].At, r.Samples[len(r.Samples)-1].At
	span := end.Sub(start).Seconds()
	x := func(t time.Time) float64 { return marginL + innerW*min(1, max(0, t.Sub(start).Seconds()/span)) }
	raw, wire, top := r.rates()
	v.Raw, v.Wire = line(r.Samples[1:], raw, x, top), line(r.Samples[1:], wire, x, top)
	for _, m := range r.Moves {
		v.Bands = append(v.Bands, band{x(m.Start), 0, max(2, x(m.End)-x(m.Start)), m.Direction})
	}
	for _, c := range r.Connections.Each {
		for _, g := range c.Gaps {
			label := fmt.Sprintf("%s: %d ms", c.Name, g.Length.Milliseconds())
			v.Gaps = append(v.Gaps, band{x(g.Start), float64(gapRowsY), max(1, x(g.Start.Add(g.Length))-x(g.Start)), label})
		}
	}
	for i := range 6 {
		f := float64(i) / 5
		v.Ticks = append(v.Ticks, tick{4, 10 + innerH*(1-f) + 4, fmt.Sprintf("%.0f", f*top)}, tick{marginL + innerW*f - 10, plotH - 8, fmt.Sprintf("%.0f s", f*span)})
	}
	v.Height = plotH + 2*gapRowH + 10
	return v
}

// rates are the Mbit/s between samples, and the top of the axis.
func (r *Report) rates() (raw, wire []float64, top float64) {
	top = minimumAxisMbit
	for i := 1; i < len(r.Samples); i++ {
		a, b := r.Samples[i-1], r.Samples[i]
		dt := max(b.At.Sub(a.At).Seconds(), 1e-3)
		raw = append(raw, float64(b.Raw-a.Raw)*8/dt/bitsPerMegabit)
		wire = append(wire, float64(b.WAN-a.WAN)*8/dt/bitsPerMegabit)
		top = max(top, raw[i-1], wire[i-1])
	}
	return raw, wire, top
}

// line returns the points of a polyline.
func line(at []Sample, values []float64, x func(time.Time) float64, top float64) string {
	var b strings.Builder
	for i, v := range values {
		fmt.Fprintf(&b, "%.1f,%.1f ", x(at[i].At), 10+innerH*(1-max(0, v)/top))
	}
	return b.String()
}

var page = template.Must(template.New("report").Funcs(template.FuncMap{"seconds": seconds, "mib": mib}).Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><title>stitch: a machine moves</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem;color:#1b2733}
h1{font-size:1.5rem}table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;border-bottom:1px solid #dde3ea;text-align:right}
td:first-child,th:first-child{text-align:left}.ok{color:#12724a}.bad{color:#b3261e;font-weight:bold}
svg{width:100%;background:#fafbfc;border:1px solid #dde3ea}.raw{stroke:#2b6cb0}.wire{stroke:#d9480f}polyline{fill:none;stroke-width:1.5}
.band{fill:#ffe8a3;opacity:.6}.gap{fill:#b3261e}text{font-size:11px;fill:#52606d}
</style>
<h1>A virtual machine moves to another data center and back</h1>
<p>{{.Started.Format "2006-01-02 15:04:05"}}. 100 Mbit/s and 40 ms between the sites; a real QEMU guest under load, moved by QEMU's own live migration through the tunnel.</p>
<svg viewBox="0 0 960 {{.Height}}" role="img" aria-label="throughput over time">
{{range .Bands}}<rect class="band" x="{{.X}}" y="10" width="{{.W}}" height="260"/><text x="{{.X}}" y="24">{{.Label}}</text>{{end}}
<polyline class="raw" points="{{.Raw}}"/><polyline class="wire" points="{{.Wire}}"/>
{{range .Gaps}}<rect class="gap" x="{{.X}}" y="{{.Y}}" width="{{.W}}" height="10"><title>{{.Label}}</title></rect>{{end}}
{{range .Ticks}}<text x="{{.X}}" y="{{.Y}}">{{.Label}}</text>{{end}}
</svg>
<p>Mbit/s over time. <b class="raw" style="color:#2b6cb0">Blue</b>: what the hosts handed to the streams. <b style="color:#d9480f">Orange</b>: what crossed the WAN. Yellow: moves. Red, below: waits of connections over 250 ms.</p>
<table><tr><th>Move<th>Total<th>Downtime<th>Offered<th>On the WAN</tr>
{{range .Moves}}<tr><td>stitch, {{.Direction}}<td>{{printf "%.1f s" (seconds .TotalMillis)}}<td>{{.DowntimeMillis}} ms<td>{{mib .OfferedBytes}}<td>{{mib .WANBytes}}</tr>{{end}}
{{with .Plain}}{{if .TotalMillis}}<tr><td>plain WireGuard, {{.Direction}}<td>{{printf "%.1f s" (seconds .TotalMillis)}}<td>{{.DowntimeMillis}} ms<td>{{mib .OfferedBytes}}<td>{{mib .WANBytes}}</tr>{{end}}{{end}}
</table>
<ul>{{range .Checks}}<li class="{{if .OK}}ok{{else}}bad{{end}}">{{if not .OK}}FAILED: {{end}}{{.What}}</li>{{end}}</ul>
<table><tr><th>Connection<th>Survived<th>Requests<th>Bytes in<th>Bytes out<th>Longest gap</tr>
{{range .Connections.Each}}<tr><td>{{.Name}}<td>{{.Survived}}<td>{{.Requests}}<td>{{.BytesIn}}<td>{{.BytesOut}}<td>{{.Longest.Milliseconds}} ms</tr>{{end}}
</table></html>
`))
