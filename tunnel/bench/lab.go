package bench

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"stitch/tunnel/control"
	"stitch/tunnel/lab"
	"stitch/tunnel/wan"
)

// RunLab measures. It needs root; all it made is gone when it returns.
func RunLab(ctx context.Context, cfg Config) (*Report, error) {
	r := &Report{Rate: cfg.Rate, RTT: cfg.RTT, Loss: cfg.Loss, VM: cfg.VM}
	s, err := newSources(cfg)
	if err != nil {
		return nil, err
	}
	name, err := lab.Claim("bench")
	if err != nil {
		return nil, err
	}
	o := lab.Options{Name: name, Rate: cfg.Rate, RTT: cfg.RTT, Loss: cfg.Loss, Stitch: cfg.Stitch, History: historySize}
	plain := []carrier{{PlainCubic, "cubic", []string{Random, Typical}}, {PlainBBR, "bbr", []string{Random, Typical}}}
	if _, err := exec.LookPath("wireguard-go"); err != nil {
		for _, c := range plain {
			r.leave(c.name, "wireguard-go is not installed (apt install wireguard-go)")
		}
	} else {
		o := o
		o.Plain = true
		if err := r.in(ctx, cfg, o, s, plain); err != nil {
			return nil, err
		}
	}
	o.Streams = true
	if cfg.Limit != "" {
		o.Edit = func(_, toml string) string {
			return strings.Replace(toml, "[[peer]]\n", fmt.Sprintf("[[peer]]\nrate = %q\n", cfg.Limit), 1)
		}
	}
	if err := r.in(ctx, cfg, o, s, []carrier{{Stitch, "cubic", []string{Random, Typical, Repeated}}}); err != nil {
		return nil, err
	}
	r.forecast()
	return r, nil
}

// historySize holds all that is sent in one run.
const historySize = "2GiB"

// carrier is one way to carry, the hosts' congestion control, and what to send.
type carrier struct {
	name, congestion string
	data             []string
}

// in measures carriers in a lab of their own.
func (r *Report) in(ctx context.Context, cfg Config, o lab.Options, s *sources, carriers []carrier) (err error) {
	cfg.Progress("building the lab")
	l, err := lab.Up(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if e := l.Down(late); err == nil {
			err = e
		}
	}()
	if err := setBurst(ctx, l, cfg); err != nil {
		return err
	}
	h, err := newHosts(l)
	if err != nil {
		return err
	}
	defer h.close()
	if o.Streams {
		if err := h.waitStreams(ctx); err != nil {
			return err
		}
	}
	for i, c := range carriers {
		e := via{h, c.congestion, port, o.Streams}
		if err := r.measure(ctx, c.name, cfg.Length, e, s, c.data, cfg.Progress); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		if i > 0 { // packets know no congestion control
			continue
		}
		if err := r.labPackets(ctx, cfg, h, c.name, o.Streams); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// setBurst makes the WAN lose packets in runs.
func setBurst(ctx context.Context, l *lab.Lab, cfg Config) error {
	if cfg.Burst <= 1 || cfg.Loss == 0 {
		return nil
	}
	return l.WAN().Change(ctx, func(p *wan.Params) { p.Loss, p.Burst = 0, wan.BurstLoss(cfg.Loss, cfg.Burst) })
}

// labPackets measures the path, if stitch carries, and how many packets cross.
func (r *Report) labPackets(ctx context.Context, cfg Config, h *hosts, name string, stitch bool) error {
	if stitch {
		cfg.Progress(name + ": the path")
		before, err := h.wan(ctx)
		if err != nil {
			return err
		}
		t := trains{control.NewClient(filepath.Join(h.l.Options().Dir, "e1", control.LinkSocket)), "dc2"}
		if r.Path, err = t.path(ctx, cfg.Length/3); err != nil {
			return fmt.Errorf("path: %w", err)
		}
		after, err := h.wan(ctx)
		if err != nil {
			return err
		}
		r.Path.WAN = after - before
		cfg.Progress(name + ": packets of layer 2")
		p, err := packets(ctx, name, 2, h.counted("s1", segmentAddr))
		if err != nil {
			return err
		}
		r.Packets = append(r.Packets, p)
	}
	cfg.Progress(name + ": packets of layer 3")
	p, err := packets(ctx, name, 3, h.counted(sender, receiverAddr))
	if err != nil {
		return err
	}
	r.Packets = append(r.Packets, p)
	return nil
}
