package bench

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"
)

//go:embed report.html.tmpl
var pageText string

var page = template.Must(template.New("bench").Funcs(template.FuncMap{
	"ms":    func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) },
	"mbit":  func(v float64) string { return fmt.Sprintf("%.1f Mbit/s", v/1e6) },
	"mb":    func(v float64) string { return fmt.Sprintf("%.2f MB", v/1e6) },
	"float": func(v any) float64 { return toFloat(v) },
	"pct":   func(v float64) string { return fmt.Sprintf("%.2f %%", v*100) },
	"count": func(v float64) string { return fmt.Sprintf("%.0f", v) },
}).Parse(pageText))

func toFloat(v any) float64 {
	switch v := v.(type) {
	case int64:
		return float64(v)
	case uint64:
		return float64(v)
	}
	return 0
}

// Geometry of the plots, in SVG units.
const (
	plotLeft   = 60.0
	plotWidth  = 840.0
	plotHeight = 240.0
)

// plot is one diagram, ready to be drawn.
type plot struct {
	Title, Unit                   string
	Left, Width, Height           float64
	Lines                         []line
	XTicks, YTicks                []tick
	ViewWidth, ViewHeight, Bottom float64
}

// line is a curve and its place in the legend.
type line struct {
	Name, Path, Color string
	LegendY           float64
}

type tick struct {
	At   float64
	Text string
}

// curve is what a line is made of.
type curve struct {
	name   string
	points []Point
}

var colors = []string{"#1f6f8b", "#c1553b", "#6a8f3c", "#7b5ea7", "#b8860b", "#444444", "#d06fa0"}

// newPlot lays curves out, from 0 on both axes.
func newPlot(title, unit string, curves []curve) plot {
	p := plot{Title: title, Unit: unit, Left: plotLeft, Width: plotWidth, Height: plotHeight, Bottom: plotHeight + 18}
	p.ViewWidth, p.ViewHeight = plotLeft+plotWidth+10, plotHeight+30+16*float64(len(curves))
	xMax, yMax := 1e-9, 1e-9
	for _, c := range curves {
		for _, pt := range c.points {
			xMax, yMax = max(xMax, pt.At), max(yMax, pt.Value)
		}
	}
	yMax *= 1.05
	x := func(v float64) float64 { return plotLeft + v/xMax*plotWidth }
	y := func(v float64) float64 { return plotHeight * (1 - v/yMax) }
	for i, c := range curves {
		var b strings.Builder
		for j, pt := range c.points {
			fmt.Fprintf(&b, "%c%.1f %.1f", "ML"[min(j, 1)], x(pt.At), y(pt.Value))
		}
		p.Lines = append(p.Lines, line{c.name, b.String(), colors[i%len(colors)], plotHeight + 40 + 16*float64(i)})
	}
	for i := range 6 {
		f := float64(i) / 5
		p.XTicks = append(p.XTicks, tick{x(f * xMax), fmt.Sprintf("%.3g s", f*xMax)})
		p.YTicks = append(p.YTicks, tick{y(f * yMax), fmt.Sprintf("%.3g", f*yMax)})
	}
	return p
}

// plots are the report's.
func (r *Report) plots() []plot {
	var arrived, trips []curve
	for _, t := range r.Transfers {
		c := curve{name: t.Data + ", " + t.Carrier}
		for _, pt := range t.Points {
			c.points = append(c.points, Point{pt.At, pt.Value / 1e6})
		}
		arrived = append(arrived, c)
	}
	for _, l := range r.Latencies {
		when := "idle"
		if l.Busy {
			when = "beside incompressible data"
		}
		trips = append(trips, curve{l.Carrier + ", " + when, l.Points})
	}
	var out []plot
	if len(arrived) > 0 {
		out = append(out, newPlot("What has arrived", "MB", arrived))
	}
	if len(trips) > 0 {
		out = append(out, newPlot("Round trips of a small message", "ms", trips))
	}
	if r.Path != nil {
		var sent, got curve
		sent.name, got.name = "sent", "arrived"
		for i, s := range r.Path.Steps {
			at := float64(i+1) * stepLength.Seconds()
			sent.points = append(sent.points, Point{at, s.Sent / 1e6})
			got.points = append(got.points, Point{at, s.Got / 1e6})
		}
		out = append(out, newPlot("The search for the path's rate", "Mbit/s", []curve{sent, got}))
	}
	return out
}

// HTML writes the report as one page that needs nothing else: its plots are
// drawings inside of it, and it has no scripts.
func (r *Report) HTML(w io.Writer) error {
	return page.Execute(w, struct {
		*Report
		Plots []plot
	}{r, r.plots()})
}
