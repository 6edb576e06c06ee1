package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"stitch/scripts/machine"
	"stitch/scripts/program"
	"stitch/tunnel/lab"
)

const (
	workDir = "build/versus"
	labName = "versus"
	cleanUp = time.Minute
	// settle is the time a guest or a tunnel has before it is measured.
	settle = 2 * time.Second
	// history holds all that one part of the comparison sends.
	history = "2GiB"
)

// versus is one run.
type versus struct {
	program.Progress
	options
	work, sockets     string // removed at the end; sockets is a short name
	stitch, wireguard string // programs
	first, sibling    snapshot
	calm              snapshot // the first with little to do
	report            *Report
}

// measure does everything. What it returns with an error is what was measured
// before it.
func measure(ctx context.Context, o options) (r *Report, err error) {
	v := &versus{options: o, Progress: program.Begin(), report: &Report{
		Machine: fmt.Sprintf("%d processors, Linux %s", runtime.NumCPU(), release()), WAN: o.wan, T3: t3, Dwell: o.dwell,
	}}
	defer func() { err = errors.Join(err, os.RemoveAll(v.work), os.RemoveAll(v.sockets)) }()
	if err := v.prepare(ctx); err != nil {
		return nil, err
	}
	parts := []struct {
		name string
		run  func(context.Context) error
	}{
		{"moves", v.moves}, {"disk", v.disk}, {"rsync", v.trees}, {"backup", v.backups}, {"T3", v.slow}, {"busy", v.busy}, {"downtime", v.downtimes},
	}
	for i, p := range parts {
		v.Say("part %d of %d: %s", i+1, len(parts), p.name)
		if err := p.run(ctx); err != nil {
			return v.report, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	v.report.judge()
	return v.report, nil
}

// prepare makes directories and programs.
func (v *versus) prepare(ctx context.Context) error {
	work, err := filepath.Abs(workDir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	if v.work, err = os.MkdirTemp(work, "work."); err != nil {
		return err
	}
	if v.sockets, err = os.MkdirTemp("", "versus."); err != nil {
		return err
	}
	if err := os.Chmod(v.work, 0o755); err != nil { // PostgreSQL does not run as root
		return err
	}
	v.Say("building the programs")
	v.stitch, v.wireguard = filepath.Join(v.work, "stitch"), filepath.Join(v.work, "wireguard-go")
	for file, pkg := range map[string]string{v.stitch: "./cmd/stitch", v.wireguard: "golang.zx2c4.com/wireguard"} {
		if err := machine.Run(exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", file, pkg)); err != nil {
			return err
		}
	}
	return nil
}

// wanted are the ways to measure in a part of the comparison.
func (v *versus) wanted(part string, ways ...way) (some []way) {
	for _, w := range ways {
		if v.only.MatchString(part + ", " + w.carrier.name + ", " + w.by) {
			some = append(some, w)
		}
	}
	return some
}

// way is a carrier, and a program with what it is told about reducing data.
type way struct {
	carrier
	by    string
	flags []string
}

// end is a host with its address.
type end struct{ host, addr string }

// carrier is one of the tunnels compared, with the hosts that use it.
type carrier struct {
	name     string
	options  lab.Options
	stretch  bool // VXLAN over it
	from, to end
	via      string // the address of the far edge, if that is where from reaches to
}

// The carriers. Through stitch and through plain WireGuard hosts of two subnets
// talk; the stretch joins two hosts of one.
var (
	stitch = carrier{name: "stitch", options: lab.Options{Streams: true, History: history}, from: end{"h1", "10.1.0.10"}, to: end{"h2", "10.2.0.10"}}
	vxlan  = carrier{name: "VXLAN, BBR", options: lab.Options{Plain: true, Congestion: "bbr"}, stretch: true,
		from: end{"s1", "10.1.0.11"}, to: end{"s2", "10.1.0.12"}}
	plain = carrier{name: "WireGuard, CUBIC", options: lab.Options{Plain: true}, from: stitch.from, to: stitch.to}
)

// within runs f in a lab with the carrier, and removes the lab.
func (v *versus) within(ctx context.Context, c carrier, wan line, f func(*lab.Lab) error) error {
	o := c.options
	o.Name, o.Rate, o.RTT, o.Stitch, o.WireGuard = labName, wan.Rate, wan.RTT, v.stitch, v.wireguard
	l, err := lab.Up(ctx, o)
	if err != nil {
		return err
	}
	err = func() error {
		if c.stretch {
			if err := l.Stretch(ctx); err != nil {
				return err
			}
		}
		if c.via != "" {
			if err := l.Publish(ctx, migrationPort); err != nil {
				return err
			}
		}
		if err := program.Sleep(ctx, settle); err != nil { // streams are ready a moment after the link
			return err
		}
		if err := machine.Run(l.CommandContext(ctx, c.from.host, "ping", "-c", "2", "-i", "0.2", "-W", "5", cmp.Or(c.via, c.to.addr))); err != nil {
			return err
		}
		return f(l)
	}()
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUp)
	defer cancel()
	return errors.Join(err, l.Down(late))
}

// meter reads what a tunnel has used so far.
type meter struct {
	wan          uint64
	tunnel, ends time.Duration
}

func read(ctx context.Context, l *lab.Lab, c carrier) (meter, error) {
	t, err := l.WAN().Counters(ctx)
	return meter{t.Bytes(), l.Processor("e1", "e2"), l.Processor(c.from.host, c.to.host)}, err
}

// row makes a row of what passed since m.
func (m meter) row(ctx context.Context, l *lab.Lab, c carrier, name, by string) (Row, error) {
	now, err := read(ctx, l, c)
	return Row{Name: name, Carrier: c.name, By: by, WAN: int64(now.wan - m.wan),
		TunnelCPU: (now.tunnel - m.tunnel).Seconds(), EndsCPU: max(0, (now.ends - m.ends).Seconds())}, err
}

// timed measures one piece of work between the two ends.
func (v *versus) timed(ctx context.Context, l *lab.Lab, c carrier, name, by string, work func() error) error {
	before, err := read(ctx, l, c)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := work(); err != nil {
		return fmt.Errorf("%s, %s, %s: %w", name, c.name, by, err)
	}
	took := time.Since(start)
	r, err := before.row(ctx, l, c, name, by)
	if err != nil {
		return err
	}
	r.Seconds, r.EndsCPU = took.Seconds(), 0 // programs that have ended are not seen
	v.add(r)
	return nil
}

// add keeps a row and tells of it.
func (v *versus) add(r Row) {
	v.report.Rows = append(v.report.Rows, r)
	v.Say("%s", r)
}
