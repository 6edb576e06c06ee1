// Package bench measures what a WAN gives to hosts that know nothing of it: the
// same transfers through stitch and through plain userspace WireGuard, in the
// lab's namespaces on one machine, one after the other over the same emulated
// path, and what that means for the migration of a virtual machine.
//
// Agents, hosts and the emulator share the machine's processors: on a fast path
// the figures are the machine's. Compare them within one run.
package bench

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"stitch/tunnel/lab"
)

// Config says what to measure.
type Config struct {
	// Rate (bit/s), RTT and Loss are the WAN's, as in lab.Options.
	Rate int64
	RTT  time.Duration
	Loss float64
	// Length is how long a transfer takes at the rate of the WAN; what is
	// slower is cut off after three times that.
	Length time.Duration
	// Limit is the rate of stitch's links, as in their configuration; "": none.
	Limit string
	// File is sent in place of the made data; "": none.
	File string
	// VM is the machine whose migration is forecast.
	VM VM
	// Stitch is the path of the stitch program.
	Stitch string
	// Progress hears what is done now; never nil.
	Progress func(string)
}

// The carriers.
const (
	PlainCubic = "plain, hosts on CUBIC"
	PlainBBR   = "plain, hosts on BBR"
	Stitch     = "stitch"
	// Packets is stitch, for a connection that no rule covers: only round trips.
	Packets = "stitch, as packets"
)

// The kinds of data.
const (
	Random   = "incompressible"
	Typical  = "typical"
	Repeated = "sent again"
)

// Transfer is one connection's result.
type Transfer struct {
	Carrier string `json:"carrier"`
	Data    string `json:"data"`
	// Bytes arrived in Seconds; Finished is false if it was cut off.
	Bytes    int64   `json:"bytes"`
	Seconds  float64 `json:"seconds"`
	Finished bool    `json:"finished"`
	// WAN is what both edges put on the wire meanwhile, in bytes of IP packets.
	WAN uint64 `json:"wan_bytes"`
}

// Rate is bytes a second.
func (t Transfer) Rate() float64 { return float64(t.Bytes) / t.Seconds }

// Latency is how long a small connection waits for its answer.
type Latency struct {
	Carrier string `json:"carrier"`
	// Busy: while another connection sends incompressible data.
	Busy bool          `json:"busy"`
	N    int           `json:"n"`
	P50  time.Duration `json:"p50_ns"`
	P99  time.Duration `json:"p99_ns"`
	Max  time.Duration `json:"max_ns"`
}

// Report is all that was measured.
type Report struct {
	Rate      int64             `json:"rate"`
	RTT       time.Duration     `json:"rtt_ns"`
	Loss      float64           `json:"loss"`
	Transfers []Transfer        `json:"transfers"`
	Latencies []Latency         `json:"latencies"`
	Forecasts []CarrierForecast `json:"forecasts"`
	Left      map[string]string `json:"left_out,omitempty"` // carrier: why
}

// CarrierForecast is a forecast for what a carrier makes of a kind of data.
type CarrierForecast struct {
	Carrier string `json:"carrier"`
	Data    string `json:"data"`
	Forecast
}

// Run measures. It needs root; all it made is gone when it returns.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	r := &Report{Rate: cfg.Rate, RTT: cfg.RTT, Loss: cfg.Loss, Left: map[string]string{}}
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
			r.Left[c.name] = "wireguard-go is not installed (apt install wireguard-go)"
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
	for _, t := range r.Transfers {
		if t.Data != Random {
			r.Forecasts = append(r.Forecasts, CarrierForecast{t.Carrier, t.Data, cfg.VM.Forecast(t.Rate())})
		}
	}
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
	for _, c := range carriers {
		if err := r.carry(ctx, cfg, h, s, c); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// carry measures one carrier.
func (r *Report) carry(ctx context.Context, cfg Config, h *hosts, s *sources, c carrier) error {
	cfg.Progress(c.name + ": round trips of an idle path")
	if err := r.roundTrips(ctx, h, c, false, cfg.Length/3); err != nil {
		return err
	}
	for _, data := range c.data {
		cfg.Progress(c.name + ": " + data + " data")
		before, err := h.l.WAN().Counters(ctx)
		if err != nil {
			return err
		}
		var probe errgroup.Group
		if data == Random {
			probe.Go(func() error { return r.roundTrips(ctx, h, c, true, cfg.Length) })
		}
		t, err := h.transfer(ctx, c.congestion, s.open(data), 3*cfg.Length)
		if errProbe := probe.Wait(); errProbe != nil && err == nil {
			err = fmt.Errorf("round trips beside %s data: %w", data, errProbe)
		}
		if err != nil {
			return err
		}
		after, err := h.l.WAN().Counters(ctx)
		if err != nil {
			return err
		}
		t.Carrier, t.Data, t.WAN = c.name, data, after.Bytes()-before.Bytes()
		r.Transfers = append(r.Transfers, t)
	}
	return nil
}

// roundTrips times small messages, through stitch on two connections: one that is
// optimised and one that is not.
func (r *Report) roundTrips(ctx context.Context, h *hosts, c carrier, busy bool, length time.Duration) error {
	var stream, packets delays
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		stream, err = h.latency(ctx, echoPort, c.congestion, length)
		return err
	})
	if c.name == Stitch {
		g.Go(func() (err error) {
			packets, err = h.latency(ctx, packetPort, c.congestion, length)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	r.Latencies = append(r.Latencies, stream.of(c.name, busy))
	if c.name == Stitch {
		r.Latencies = append(r.Latencies, packets.of(Packets, busy))
	}
	return nil
}
