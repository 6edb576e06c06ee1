package main

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"
)

//go:embed report.html.tmpl
var pageText string

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"mb":      megabytes,
	"seconds": func(ms float64) string { return fmt.Sprintf("%.1f s", ms/1e3) },
	"ms":      func(ms float64) string { return fmt.Sprintf("%.0f ms", ms) },
	"one":     func(v float64) string { return fmt.Sprintf("%.1f", v) },
}).Parse(pageText))

// Geometry of the plots, in SVG units.
const (
	plotLeft   = 64.0
	plotWidth  = 920.0
	plotHeight = 220.0
	rateHeight = 48.0
	laneHeight = 9.0
)

// plot is one timeline, ready to be drawn. Coordinates are SVG units.
type plot struct {
	Title                     string
	Offered, Wire, Answers    string // path data
	Bands                     []band
	XTicks, YTicks            []tick
	Lanes                     []lane
	Limit                     float64 // y of the WAN's rate
	LimitText                 string
	PeakAnswers               string
	Left, Width, Height       float64
	RateTop, LaneTop, Total   float64
	RateHeight, LaneHeight    float64
	ViewWidth, Baseline, Axis float64
}

type band struct {
	X, W, StopX, StopW float64
	Text, Hint         string
}

type tick struct {
	At   float64
	Text string
}

type lane struct {
	Y    float64
	Name string
	Gaps []band
}

// html writes the report as one page that needs nothing else.
func (r *Report) html(w io.Writer) error {
	seconds, peak := 10.0, float64(r.RateBit)/1e6
	for _, samples := range [][]Sample{r.Timeline, r.PlainTimeline} {
		for _, s := range samples {
			seconds = math.Max(seconds, s.T)
			peak = math.Max(peak, mbits(max(s.Offered, s.Wire)))
		}
	}
	data := struct {
		*Report
		All    []Move
		Plots  []plot
		Passed bool
		Memory int64
		MBit   int64
	}{r, r.moves(), nil, r.passed(), r.memory(), r.RateBit / 1_000_000}
	data.Plots = append(data.Plots, r.plot("Through stitch: there and back", r.Timeline, r.Moves, r.Connections.Each, seconds, peak))
	if r.Plain != nil {
		data.Plots = append(data.Plots, r.plot("Through plain wireguard-go: there", r.PlainTimeline, []Move{*r.Plain}, nil, seconds, peak))
	}
	return pageTemplate.Execute(w, data)
}

// mbits turns the bytes of one sample into Mbit/s.
func mbits(bytes int64) float64 { return float64(bytes) * 8 / 1e6 / sampleEvery.Seconds() }

// plot lays one timeline out. seconds and peak scale the axes, the same for all.
func (r *Report) plot(title string, samples []Sample, moves []Move, conns []Connection, seconds, peak float64) plot {
	top := niceCeiling(peak)
	x := func(t float64) float64 { return plotLeft + t/seconds*plotWidth }
	// A root, so that the WAN's rate is well seen beside what is offered.
	y := func(v float64) float64 { return plotHeight * (1 - math.Sqrt(v/top)) }
	p := plot{
		Title: title, Left: plotLeft, Width: plotWidth, Height: plotHeight,
		RateTop: plotHeight + 40, RateHeight: rateHeight, LaneHeight: laneHeight, ViewWidth: plotLeft + plotWidth + 12,
		Limit: y(float64(r.RateBit) / 1e6), LimitText: fmt.Sprintf("WAN %d", r.RateBit/1_000_000),
	}
	p.Baseline = p.RateTop + rateHeight
	p.LaneTop, p.Axis = p.Baseline+20, plotHeight+16
	p.Total = p.Axis + 20
	p.Offered = curve(samples, x, y, func(s Sample) float64 { return mbits(s.Offered) })
	p.Wire = curve(samples, x, y, func(s Sample) float64 { return mbits(s.Wire) })
	most := 1.0
	for _, s := range samples {
		most = math.Max(most, float64(s.Answers))
	}
	p.Answers = curve(samples, x, func(v float64) float64 { return p.Baseline - v/most*rateHeight },
		func(s Sample) float64 { return float64(s.Answers) })
	p.PeakAnswers = fmt.Sprintf("%.0f/s", most/sampleEvery.Seconds())
	for _, m := range moves {
		p.Bands = append(p.Bands, band{
			X: x(m.Start), W: x(m.Resume) - x(m.Start), StopX: x(m.Stop), StopW: math.Max(1.5, x(m.Resume)-x(m.Stop)),
			Text: fmt.Sprintf("%s  %.1f s", strings.Replace(m.Direction, "->", "→", 1), m.TotalMS/1e3),
			Hint: fmt.Sprintf("%s: %.1f s, guest stopped for %.0f ms, %s offered, %s on the WAN", m.Direction, m.TotalMS/1e3,
				m.DowntimeMS, megabytes(m.OfferedBytes), megabytes(m.WANBytes)),
		})
	}
	for t := 0.0; t <= seconds; t += niceStep(seconds / 10) {
		p.XTicks = append(p.XTicks, tick{x(t), fmt.Sprintf("%.0f s", t)})
	}
	for i := range 5 {
		v := top * float64(i*i) / 16
		p.YTicks = append(p.YTicks, tick{y(v), fmt.Sprintf("%.0f", v)})
	}
	p.lanes(conns, x)
	return p
}

// lanes adds a line for each connection, with its gaps.
func (p *plot) lanes(conns []Connection, x func(float64) float64) {
	for i, c := range conns {
		l := lane{Y: p.LaneTop + float64(i)*laneHeight, Name: c.Name}
		for _, g := range c.Gaps {
			l.Gaps = append(l.Gaps, band{
				X: x(g.At), W: math.Max(1, x(g.At+g.MS/1e3)-x(g.At)), Hint: fmt.Sprintf("%s: no answer for %.0f ms", c.Name, g.MS),
			})
		}
		p.Lanes = append(p.Lanes, l)
		p.Total = l.Y + laneHeight + 16
	}
}

// curve is the SVG path of one value over the samples.
func curve(samples []Sample, x, y func(float64) float64, value func(Sample) float64) string {
	var b strings.Builder
	for i, s := range samples {
		verb := byte('L')
		if i == 0 {
			verb = 'M'
		}
		fmt.Fprintf(&b, "%c%.1f %.1f", verb, x(s.T), y(value(s)))
	}
	return b.String()
}

// niceStep rounds v up to 1, 2 or 5 times a power of ten.
func niceStep(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, f := range []float64{1, 2, 5} {
		if f*power >= v {
			return f * power
		}
	}
	return 10 * power
}

// niceCeiling is the top of a root axis for values up to v: 16 nice steps, so
// that its four equal parts end at 1, 4, 9 and 16 of them.
func niceCeiling(v float64) float64 { return 16 * niceStep(v/16) }
