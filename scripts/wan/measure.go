package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"stitch/scripts/machine"
	"stitch/scripts/program"
	"stitch/tunnel/lab"
)

const (
	cleanUp = time.Minute
	// settle is what a tunnel has before it is measured, and what is under way
	// after a transfer.
	settle = 2 * time.Second
	// history holds what one lab sends of migrations.
	history = "3GiB"
	// enough is the time from which on a transfer tells plain WireGuard's rate.
	enough = 20 * time.Second
)

// measurement is one run of the program.
type measurement struct {
	program.Progress
	options
	name              string // of the labs
	stitch, wireguard string // programs
	report            *Report
}

// measure does everything. What it returns with an error is what was measured
// before it.
func measure(ctx context.Context, o options) (r *Report, err error) {
	m := &measurement{options: o, Progress: program.Begin(), report: &Report{
		Machine: fmt.Sprintf("%d processors, Linux %s", runtime.NumCPU(), release()), Limit: o.limit.Seconds(), Sizes: map[string]int64{}, Patches: map[string]int64{},
	}}
	for kind, file := range files {
		fi, err := os.Stat(filepath.Join(o.corpus, file))
		if err != nil {
			return nil, fmt.Errorf("%w: run `sudo make corpus`", err)
		}
		m.report.Sizes[kind] = fi.Size()
	}
	if m.name, err = lab.Claim("wanbench"); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp("", "stitch-wan.")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	m.Say("building the programs")
	m.stitch, m.wireguard = filepath.Join(work, "stitch"), filepath.Join(work, "wireguard-go")
	for file, pkg := range map[string]string{m.stitch: "./cmd/stitch", m.wireguard: "golang.zx2c4.com/wireguard"} {
		if err := machine.Run(exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", file, pkg)); err != nil {
			return nil, err
		}
	}
	if t3 := links[0]; m.wants(t3, stitch, "migrations") {
		for kind := range earlier {
			if err := m.patch(ctx, kind); err != nil {
				return nil, err
			}
		}
	}
	for _, l := range links {
		if err := m.link(ctx, l); err != nil {
			return m.report, fmt.Errorf("%s: %w", l.name, err)
		}
	}
	return m.report, nil
}

// wants reports whether a part is to be measured.
func (m *measurement) wants(l link, carrier, part string) bool {
	return m.only.MatchString(l.name + ", " + carrier + ", " + part)
}

// link measures one WAN.
func (m *measurement) link(ctx context.Context, l link) error {
	for _, carrier := range []string{cubic, bbr} {
		var kinds []string
		if m.wants(l, carrier, "migrations") {
			kinds = append(kinds, first)
		}
		if m.wants(l, carrier, incompressible) && float64(m.report.Sizes[first]) < l.ceiling()*enough.Seconds() {
			kinds = append(kinds, incompressible)
		}
		if err := m.in(ctx, l, carrier, kinds); err != nil {
			return err
		}
	}
	if m.wants(l, stitch, "seeded") {
		if err := m.in(ctx, l, stitch, []string{seeded}); err != nil {
			return err
		}
	}
	var kinds []string
	if m.wants(l, stitch, "migrations") {
		kinds = append(kinds, first, back, between, gentle, sibling, again)
	}
	if m.wants(l, stitch, incompressible) {
		kinds = append(kinds, incompressible)
	}
	return m.in(ctx, l, stitch, kinds)
}

// in sends data of the kinds through a carrier, in a lab of its own.
func (m *measurement) in(ctx context.Context, w link, carrier string, kinds []string) (err error) {
	if len(kinds) == 0 {
		return nil
	}
	o := lab.Options{Name: m.name, Rate: w.rate, RTT: w.rtt, Loss: w.loss, Stitch: m.stitch, History: history}
	if carrier == stitch {
		o.Streams = true
	} else {
		o.Plain, o.WireGuard = true, m.wireguard
	}
	l, err := lab.Up(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUp)
		defer cancel()
		err = errors.Join(err, l.Down(late))
	}()
	if err := l.WAN().Change(ctx, w.change); err != nil {
		return err
	}
	if err := program.Sleep(ctx, settle); err != nil {
		return err
	}
	for _, kind := range kinds {
		if kind == seeded {
			if err := m.seed(ctx, l); err != nil {
				return err
			}
		}
		if err := m.transfer(ctx, l, w, carrier, kind); err != nil {
			return fmt.Errorf("%s, %s: %w", carrier, kind, err)
		}
	}
	return nil
}

// seed tells both agents of the image that the guests began with.
func (m *measurement) seed(ctx context.Context, l *lab.Lab) error {
	m.Say("seeding %s", image)
	file := filepath.Join(m.corpus, image)
	for _, edge := range []string{"e1", "e2"} {
		cmd := exec.CommandContext(ctx, m.stitch, "seed", "--run-dir", filepath.Join(l.Options().Dir, edge), file)
		if err := machine.Run(cmd); err != nil {
			return err
		}
	}
	return nil
}

// transfer sends data of one kind and adds a run.
func (m *measurement) transfer(ctx context.Context, l *lab.Lab, w link, carrier, kind string) error {
	open := func() (io.ReadCloser, error) { return io.NopCloser(random(1)), nil }
	during := windowEnd + sendLonger
	if kind != incompressible {
		open = func() (io.ReadCloser, error) { return os.Open(filepath.Join(m.corpus, files[kind])) }
		during = 0
	}
	data, err := open()
	if err != nil {
		return err
	}
	defer data.Close()
	congestion := "cubic"
	if carrier == bbr {
		congestion = "bbr"
	}
	before, err := m.read(ctx, l)
	if err != nil {
		return err
	}
	var source io.Reader = data
	t, err := send(ctx, l, congestion, source, during, m.limit)
	if err != nil {
		return err
	}
	busy := m.processors()
	if err := program.Sleep(ctx, settle/4); err != nil {
		return err
	}
	after, err := m.read(ctx, l)
	if err != nil {
		return err
	}
	same, err := open()
	if err != nil {
		return err
	}
	defer same.Close()
	if err := t.verify(same); err != nil {
		return err
	}
	r := Run{Link: w.name, Carrier: carrier, Data: kind, Bytes: t.bytes, Seconds: t.took.Seconds(), Cut: t.cut, Window: t.window,
		WAN: int64(after.wan - before.wan), Tunnel: (after.tunnel - before.tunnel).Seconds(), Emulator: (after.emulator - before.emulator).Seconds(),
		Busy: busy.share(before.machine), Dropped: after.dropped - before.dropped}
	m.report.Runs = append(m.report.Runs, r)
	m.Say("%s", r)
	return nil
}

// meter is what has been used so far.
type meter struct {
	wan, dropped     uint64
	tunnel, emulator time.Duration
	machine          ticks
}

func (m *measurement) read(ctx context.Context, l *lab.Lab) (meter, error) {
	t, err := l.WAN().Counters(ctx)
	return meter{t.Bytes(), t.E1toE2.HostDrops + t.E2toE1.HostDrops, l.Processor("e1", "e2"), l.Processor("wan"), m.processors()}, err
}

// ticks of all processors since boot.
type ticks struct{ busy, all uint64 }

// processors reads them: the fields of the first line of /proc/stat, of which the
// fourth and fifth are idle time.
func (*measurement) processors() (t ticks) {
	data, _ := os.ReadFile("/proc/stat")
	line, _, _ := bytes.Cut(data, []byte("\n"))
	for i, f := range bytes.Fields(line)[1:] {
		n, _ := strconv.ParseUint(string(f), 10, 64)
		if i < 8 { // what guests use is in user time already
			t.all += n
			if i != 3 && i != 4 {
				t.busy += n
			}
		}
	}
	return t
}

// share is how busy the processors were since before.
func (t ticks) share(before ticks) float64 {
	return float64(t.busy-before.busy) / float64(max(1, t.all-before.all))
}

// release is the kernel's.
func release() string {
	data, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(data))
}
