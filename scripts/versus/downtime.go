package main

import (
	"context"
	"fmt"
	"time"

	"stitch/tunnel/hypervisor"
	"stitch/tunnel/lab"
)

// loads are what guests do whose downtime is compared.
var loads = []struct {
	name  string
	pages int // edited in a second, beside 60 writes to a database
}{
	{"60 writes/s", 0},
	{"and 1,000 pages/s", 1000},
}

// The carriers whose downtime is compared with stitch's: none, with hosts on BBR
// and on CUBIC.
var direct = []carrier{
	{name: "direct, BBR", options: lab.Options{NoAgents: true, Congestion: "bbr"}, from: stitch.from, to: stitch.to, via: "198.51.100.20"},
	{name: "direct, CUBIC", options: lab.Options{NoAgents: true}, from: stitch.from, to: stitch.to, via: "198.51.100.20"},
}

// downtimes moves guests through stitch over a T3 line, and over a line without a
// tunnel that is as fast as that was: how long they are stopped must not differ by
// more than a round trip, else stitch hides from the hypervisor what it buffers.
func (v *versus) downtimes(ctx context.Context) error {
	for range v.repeat {
		for _, load := range loads {
			var ways []way
			for _, c := range append([]carrier{stitch}, direct...) {
				ways = append(ways, v.wanted("downtime", way{carrier: c, by: load.name})...)
			}
			if len(ways) == 0 || ways[0].carrier.name != stitch.name {
				continue // it tells how fast the direct lines are
			}
			if err := v.soothe(ctx); err != nil {
				return err
			}
			ours, err := v.stop(ctx, stitch, t3, load.name, load.pages)
			if err != nil {
				return err
			}
			if ours.GivenUp {
				continue
			}
			as := line{int64(ours.Mean * 8 * 1500 / 1448), t3.RTT}
			for _, w := range ways[1:] {
				if _, err := v.stop(ctx, w.carrier, as, load.name, load.pages); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// stop moves a guest with a load over a carrier, and adds how it was stopped.
func (v *versus) stop(ctx context.Context, c carrier, wan line, load string, pages int) (s Stop, err error) {
	s = Stop{Load: load, Carrier: c.name, Rate: wan.Rate}
	err = v.within(ctx, c, wan, func(l *lab.Lab) error { return v.stopIn(ctx, l, c, pages, &s) })
	if err != nil {
		return s, fmt.Errorf("%s, %s: %w", load, c.name, err)
	}
	v.report.Stops = append(v.report.Stops, s)
	v.Say("%s", s)
	return s, nil
}

// stopIn is stop in a lab.
func (v *versus) stopIn(ctx context.Context, l *lab.Lab, c carrier, pages int, s *Stop) error {
	g, err := v.restore(ctx, l, c.from.host, v.calm)
	if err != nil {
		return err
	}
	defer g.Stop()
	if pages > 0 {
		if err := g.churn(ctx, pages); err != nil {
			return err
		}
	}
	arrived, there, err := v.meet(ctx, l, g, c, c.to, asItIs)
	if err != nil {
		return err
	}
	defer arrived.Stop()
	sockets := watch(l, c.from.host, "e1", "e2", c.to.host)
	type said struct {
		at time.Time
		hypervisor.Progress
	}
	var heard []said
	moved, given, err := v.goes(ctx, g, arrived, there, hotLimit, func(p hypervisor.Progress) { heard = append(heard, said{time.Now(), p}) })
	seen, failed := sockets.end()
	if err != nil || failed != nil {
		return fmt.Errorf("%w; sockets: %v", err, failed)
	}
	s.Rounds = moved.RAM.Rounds
	if s.Seconds, s.GivenUp = given.Seconds(), given > 0; s.GivenUp {
		return nil
	}
	s.Seconds, s.DowntimeMS = moved.Total().Seconds(), milliseconds(moved.Downtime())
	for _, p := range heard {
		if p.at.Before(moved.Stopped) && p.RAM.Mbps > 0 {
			s.ExpectedMS, s.Believed, s.Remaining, s.DirtyRate = p.ExpectedMillis, p.RAM.Mbps*1e6/8, p.RAM.Remaining, p.RAM.DirtyRate
			s.Mean = float64(p.RAM.Transferred) / p.at.Sub(moved.Started).Seconds()
		}
	}
	s.fill(seen, c.from.host, c.to.host, moved.Stopped, moved.Resumed)
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// String is a stop in words.
func (s Stop) String() string {
	if s.GivenUp {
		return fmt.Sprintf("%s, %s: given up after %.0f s", s.Load, s.Carrier, s.Seconds)
	}
	return fmt.Sprintf("%s, %s: %.1f s, stopped for %.0f ms (%d expected), %s believed and %s drained a second, %s left, %s of it waiting in %v",
		s.Load, s.Carrier, s.Seconds, s.DowntimeMS, s.ExpectedMS, megabytes(int64(s.Believed)), megabytes(int64(s.Drained)),
		megabytes(s.Left), megabytes(s.Waiting), s.Places)
}
