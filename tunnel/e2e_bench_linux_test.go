package tunnel_test

import (
	"os"
	"testing"
	"time"

	"stitch/tunnel/bench"
)

// TestE2EBench runs the benchmark on a short path that takes what it is given.
func TestE2EBench(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	r, err := bench.RunLab(t.Context(), bench.Config{
		Rate: 50e6, RTT: 10 * time.Millisecond, Length: time.Second, Limit: "48mbit",
		VM: bench.VM{Memory: 1 << 20, Downtime: time.Second}, Stitch: programPath(t), Progress: func(what string) { t.Log(what) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Left) > 0 {
		t.Error("left out:", r.Left)
	}
	wan := map[string]uint64{}
	for _, x := range r.Transfers {
		if x.Bytes != 50e6/8 || !x.Finished || x.Seconds <= 0 {
			t.Errorf("%+v", x)
		}
		wan[x.Carrier+", "+x.Data] = x.WAN
	}
	for _, c := range []string{bench.PlainCubic, bench.PlainBBR} {
		for _, d := range []string{bench.Random, bench.Typical} {
			if n := wan[c+", "+d]; n < 50e6/8 {
				t.Errorf("%s, %s: %d bytes on the WAN are fewer than were sent", c, d, n)
			}
		}
	}
	if random, typical, again := wan[bench.Stitch+", "+bench.Random], wan[bench.Stitch+", "+bench.Typical], wan[bench.Stitch+", "+bench.Repeated]; random < 50e6/8 || typical > random/2 || again > typical/5 {
		t.Errorf("stitch: %d bytes on the WAN for incompressible data, %d for typical, %d for the same again", random, typical, again)
	}
	if len(r.Packets) != 3 { // plain layer 3, and both layers of stitch
		t.Errorf("packet rates: %+v", r.Packets)
	}
	for _, p := range r.Packets {
		if p.Rate <= 0 || p.Rate > 50e6*1.05/8/512 {
			t.Errorf("more packets than the WAN takes, or none: %+v", p)
		}
	}
	if p := r.Path; p == nil || p.Rate <= 0 || p.Rate > 50e6*1.05 || p.Received > p.Sent || p.WAN < p.Sent*1000 {
		t.Errorf("path: %+v", p)
	}
	if len(r.Latencies) != 8 {
		t.Errorf("%d latencies", len(r.Latencies))
	}
	for _, l := range r.Latencies {
		if l.N == 0 || l.P50 < 10*time.Millisecond || l.P99 < l.P50 || l.Max < l.P99 {
			t.Errorf("%+v", l)
		}
	}
	if len(r.Forecasts) != 4 {
		t.Errorf("forecasts: %+v", r.Forecasts)
	}
	for _, f := range r.Forecasts {
		if !f.Converges || f.Rounds < 1 {
			t.Errorf("%+v", f)
		}
	}
}
