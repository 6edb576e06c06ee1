// Package bench measures what a WAN gives, and what that means for the migration
// of a virtual machine. RunLab sends the same data through stitch and through
// plain userspace WireGuard, in the lab's namespaces on one machine, one after the
// other over the same emulated path, between hosts that know nothing of it.
// RunPeer measures the path between two agents that run.
//
// In the lab agents, hosts and the emulator share the machine's processors: on a
// fast path the figures are the machine's. Compare them within one run.
//
// # What is measured
//
//   - Path: trains of datagrams of the link's own UDP flow between its two
//     endpoints (wg.Link.Measure), one way. They are paced and know no congestion
//     control, so they show the path and not a transport. The rate is found by
//     trains of a quarter of a second, each twice as fast as the one before, until
//     one no longer arrives; loss and jitter are those of a longer one at nine
//     tenths of it. Round trips are of questions that the peer's agent answers.
//   - Packets: what arrives of datagrams of 512 bytes, searched for in the same way.
//     Between agents those of layer 2 are frames that begin and end in the link
//     processes, those of layer 3 packets that pass the kernel and the links' TUN
//     devices; in the lab both are sent by hosts.
//   - Transfers: one connection and what of it has arrived at the far end, from the
//     first byte until the sender has heard of the last. Between agents it begins
//     at the near agent and ends at the far one, where all bytes are counted and
//     summed; else it is carried as those of hosts are. Its history is its own, so
//     data that is sent again goes over the same connection.
//   - Latencies: a message of 64 bytes and its answer on another connection.
//
// WAN bytes are those of both edges, both ways: of a live path as the link counts
// them, with all other traffic there was.
package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"stitch/tunnel/bench/far"
)

// Config says what RunLab measures.
type Config struct {
	// Rate (bit/s), RTT and Loss are the WAN's, as in lab.Options.
	Rate int64
	RTT  time.Duration
	Loss float64
	// Burst is how many packets the WAN loses at a time, on average; 0 or 1: each
	// by itself.
	Burst float64
	// Length is how long a transfer takes at the rate of the WAN; what is
	// slower is cut off after three times that.
	Length time.Duration
	// Limit is the rate of stitch's links, as in their configuration; "": what they
	// find out.
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
	// AsPackets is stitch, for a connection that no rule covers: only round trips.
	AsPackets = "stitch, as packets"
)

// The kinds of data.
const (
	Random   = "incompressible"
	Typical  = "typical"
	Repeated = "sent again"
)

// Point is one of a plot: At in seconds since the beginning.
type Point struct {
	At    float64 `json:"at"`
	Value float64 `json:"value"`
}

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
	// Points are the bytes that had arrived.
	Points []Point `json:"points"`
}

// Rate is bytes a second.
func (t Transfer) Rate() float64 { return float64(t.Bytes) / t.Seconds }

// Delay are N round trips; Jitter is the mean difference of two that follow each
// other.
type Delay struct {
	N      int           `json:"n"`
	Min    time.Duration `json:"min_ns"`
	P50    time.Duration `json:"p50_ns"`
	P99    time.Duration `json:"p99_ns"`
	Max    time.Duration `json:"max_ns"`
	Jitter time.Duration `json:"jitter_ns"`
}

// Latency is how long a small connection waits for its answer.
type Latency struct {
	Carrier string `json:"carrier"`
	// Busy: while another connection sends incompressible data.
	Busy bool `json:"busy"`
	Delay
	// Points are the round trips in milliseconds.
	Points []Point `json:"points"`
}

// Report is all that was measured.
type Report struct {
	// Rate (bit/s), RTT and Loss are the lab's; of a live path Rate is what was
	// found, and Peer its other end.
	Rate      int64             `json:"rate"`
	RTT       time.Duration     `json:"rtt_ns"`
	Loss      float64           `json:"loss"`
	Peer      string            `json:"peer,omitempty"`
	VM        VM                `json:"vm"`
	Path      *Path             `json:"path,omitempty"` // as stitch's link sees it
	Packets   []PacketRate      `json:"packets"`
	Transfers []Transfer        `json:"transfers"`
	Latencies []Latency         `json:"latencies"`
	Forecasts []CarrierForecast `json:"forecasts"`
	Left      map[string]string `json:"left_out,omitempty"` // what: why
}

// CarrierForecast is a forecast for what a carrier makes of a kind of data.
type CarrierForecast struct {
	Carrier string `json:"carrier"`
	Data    string `json:"data"`
	Forecast
}

// forecast adds what the transfers mean for the machine.
func (r *Report) forecast() {
	for _, t := range r.Transfers {
		if t.Data != Random {
			r.Forecasts = append(r.Forecasts, CarrierForecast{t.Carrier, t.Data, r.VM.Forecast(t.Rate())})
		}
	}
}

// measure times round trips over ends while they are idle, then sends data of
// each kind, the first kind besides round trips. Of each transfer twice the
// length is the limit beyond its own.
func (r *Report) measure(ctx context.Context, name string, length time.Duration, e ends, s *sources, data []string, progress func(string)) error {
	progress(name + ": round trips of an idle path")
	if err := r.roundTrips(ctx, name, e, false, length/3); err != nil {
		return fmt.Errorf("round trips: %w", err)
	}
	var kept *upload
	defer func() {
		if kept != nil {
			kept.close()
		}
	}()
	for _, kind := range data {
		progress(name + ": " + kind + " data")
		before, err := e.wan(ctx)
		if err != nil {
			return err
		}
		var probe errgroup.Group
		if kind == Random {
			probe.Go(func() error { return r.roundTrips(ctx, name, e, true, length) })
		}
		u := kept
		if u == nil {
			c, err := e.open(ctx, far.Sink)
			if err != nil {
				return errors.Join(err, probe.Wait())
			}
			u = newUpload(c)
		}
		// What is sent again may have to go where it has been.
		last := !e.once() || kind != Typical
		t, err := u.send(ctx, s.open(kind), 3*length, last)
		if kept = u; last || !t.Finished {
			u.close()
			kept = nil
		}
		if errProbe := probe.Wait(); errProbe != nil && err == nil {
			err = fmt.Errorf("round trips beside %s data: %w", kind, errProbe)
		}
		if err != nil {
			return err
		}
		after, err := e.wan(ctx)
		if err != nil {
			return err
		}
		t.Carrier, t.Data, t.WAN = name, kind, after-before
		r.Transfers = append(r.Transfers, t)
		if kind == Typical && kept == nil && e.once() { // cut off: there is nothing to repeat
			r.leave(Repeated, "the typical data took too long")
			break
		}
	}
	return nil
}

// roundTrips times small messages: on a connection that is carried as those of
// data are and, where there can be one, on one that is carried as packets.
func (r *Report) roundTrips(ctx context.Context, name string, e ends, busy bool, length time.Duration) error {
	var stream, packets delays
	plain := e.packets()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		stream, err = latency(ctx, e, length)
		return err
	})
	if plain != nil {
		g.Go(func() (err error) {
			packets, err = latency(ctx, plain, length)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	r.Latencies = append(r.Latencies, stream.of(name, busy))
	if plain != nil {
		r.Latencies = append(r.Latencies, packets.of(AsPackets, busy))
	}
	return nil
}

// leave notes what is not in the report.
func (r *Report) leave(what, why string) {
	if r.Left == nil {
		r.Left = map[string]string{}
	}
	r.Left[what] = why
}
