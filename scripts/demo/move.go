package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"stitch/scripts/machine"
	"stitch/tunnel/hypervisor"
	"stitch/tunnel/lab"
)

const (
	migrationPort = 4444
	moveWait      = 5 * time.Minute
)

// Move is one measured live migration.
type Move struct {
	// Direction is "dc1->dc2" or back.
	Direction string `json:"direction"`
	// Through names the tunnel.
	Through string `json:"through"`
	// TotalMS is from the command to the guest running at the target.
	TotalMS float64 `json:"total_ms"`
	// DowntimeMS is from STOP at the source to RESUME at the target, by the
	// hypervisors' events.
	DowntimeMS float64 `json:"downtime_ms"`
	// OfferedBytes is what the source's hypervisor put into the stream.
	OfferedBytes int64 `json:"offered_bytes"`
	// NonzeroPageBytes is the guest's memory in 4 KiB pages that are not zero,
	// just before the move.
	NonzeroPageBytes int64 `json:"nonzero_page_bytes"`
	// WANBytes is all that crossed between the edges meanwhile, both ways, as IP
	// packets: also what the guest's connections sent.
	WANBytes int64 `json:"wan_bytes"`
	// Rounds is how often dirty pages were collected.
	Rounds int64 `json:"rounds"`
	// Start, Stop and Resume are seconds since the timeline began.
	Start  float64 `json:"start_s"`
	Stop   float64 `json:"stop_s"`
	Resume float64 `json:"resume_s"`
	// DNSMS is from RESUME until both edges' DNS gave the new address; 0 if not
	// asked.
	DNSMS float64 `json:"dns_ms,omitempty"`
	// resumed is when the guest ran again.
	resumed time.Time
}

// Ratio is offered bytes per byte on the WAN.
func (m Move) Ratio() float64 { return float64(m.OfferedBytes) / float64(max(1, m.WANBytes)) }

// MBitPerSecond is the offered bytes over the whole time.
func (m Move) MBitPerSecond() float64 { return float64(m.OfferedBytes) * 8 / 1e3 / max(1, m.TotalMS) }

// target is where a guest moves to: a hypervisor host, its address on the
// migration network and its site.
type target struct{ host, address, site string }

var (
	siteOne = target{"h1", "10.1.0.10", "dc1"}
	siteTwo = target{"h2", "10.2.0.10", "dc2"}
)

// uri is what QEMU at the target listens on and QEMU at the source connects to.
func (t target) uri() string { return fmt.Sprintf("tcp:%s:%d", t.address, migrationPort) }

// move migrates the guest from source to t, which gets a QEMU of its own, and
// measures. On success the source has ended and the machine at the target is
// returned. offered is kept up to date for the sampler.
func move(ctx context.Context, l *lab.Lab, tl *timeline, files tools, source *guest, from, to target, con *console) (*guest, Move, error) {
	mv := Move{Direction: from.site + "->" + to.site}
	pages, err := source.nonzero()
	if err != nil {
		return nil, mv, err
	}
	mv.NonzeroPageBytes = pages * pageSize
	arrived, err := startMachine(ctx, l, files, to.host, to.uri())
	if err != nil {
		return nil, mv, err
	}
	ctx, cancel := context.WithTimeout(ctx, moveWait)
	defer cancel()
	if err := mv.measure(ctx, l, tl, source, arrived, to.uri(), con); err != nil {
		arrived.stop()
		return nil, mv, fmt.Errorf("move %s: %w", mv.Direction, err)
	}
	source.stop()
	return arrived, mv, nil
}

// measure carries the migration out.
func (mv *Move) measure(ctx context.Context, l *lab.Lab, tl *timeline, source, arrived *guest, uri string, con *console) error {
	if err := source.Set(ctx, machine.Method{}); err != nil {
		return err
	}
	before, err := l.WAN().Counters(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	moved, err := source.Move(ctx, arrived.Machine, uri, func(p hypervisor.Progress) {
		tl.offered.Store(p.RAM.Transferred)
		if p.RAM.Total > 0 {
			con.progress("%s: round %d, %.0f of %.0f MB left, %.0f MB sent, %.1f s", mv.Direction, p.RAM.Rounds,
				float64(p.RAM.Remaining)/1e6, float64(p.RAM.Total)/1e6, float64(p.RAM.Transferred)/1e6, time.Since(start).Seconds())
		}
	})
	if err != nil {
		return err
	}
	after, err := l.WAN().Counters(ctx)
	if err != nil {
		return err
	}
	tl.offered.Store(0)
	mv.TotalMS, mv.DowntimeMS, mv.resumed = millis(moved.Total()), millis(moved.Downtime()), moved.Resumed
	mv.OfferedBytes, mv.Rounds = moved.RAM.Transferred, moved.RAM.Rounds
	mv.WANBytes = int64(after.Bytes() - before.Bytes())
	mv.Start, mv.Stop, mv.Resume = tl.at(moved.Started), tl.at(moved.Stopped), tl.at(moved.Resumed)
	return nil
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// sampleEvery is the timeline's step.
const sampleEvery = 200 * time.Millisecond

// Sample is one step of the timeline; counts are of the time since the last.
type Sample struct {
	// T is seconds since the timeline began.
	T       float64 `json:"t_s"`
	Offered int64   `json:"offered_bytes"`
	Wire    int64   `json:"wire_bytes"`
	Answers int64   `json:"answers"`
}

// timeline samples what goes on, until its context ends.
type timeline struct {
	start time.Time
	// offered is the running migration's count of bytes, 0 when there is none.
	offered atomic.Int64
	done    chan struct{}
	samples []Sample // to be read after done
}

// startTimeline begins to sample. answers may be nil.
func startTimeline(ctx context.Context, l *lab.Lab, answers func() uint64) *timeline {
	t := &timeline{start: time.Now(), done: make(chan struct{})}
	go t.run(ctx, l, answers)
	return t
}

func (t *timeline) at(when time.Time) float64 { return when.Sub(t.start).Seconds() }

func (t *timeline) run(ctx context.Context, l *lab.Lab, answers func() uint64) {
	defer close(t.done)
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	var offered, wire, answered int64
	if c, err := l.WAN().Counters(ctx); err == nil {
		wire = int64(c.Bytes())
	}
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			s := Sample{T: t.at(now)}
			o := t.offered.Load()
			s.Offered, offered = max(0, o-offered), o
			if c, err := l.WAN().Counters(ctx); err == nil {
				s.Wire, wire = int64(c.Bytes())-wire, int64(c.Bytes())
			}
			if answers != nil {
				a := int64(answers())
				s.Answers, answered = a-answered, a
			}
			t.samples = append(t.samples, s)
		}
	}
}
