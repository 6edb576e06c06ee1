package main

import (
	"strings"
	"testing"
	"time"

	"stitch/tunnel/bench"
)

// TestBenchRefused: what cannot be measured is refused before anything is built.
func TestBenchRefused(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"", "name a PEER"},
		{"dc2 dc3", "one PEER"},
		{"--lab 100mbit,80ms,0 dc2", "exclude each other"},
		{"--lab 100mbit,80ms,1%,0.5", "bursts"},
		{"--length 1h dc2", "--length"},
		{"--lab 100mbit,80ms", "write rate, round-trip time and loss"},
		{"--lab fast,80ms,0", "fast"},
		{"--lab 100mbit,eighty,0", "eighty"},
		{"--lab 100mbit,80ms,200%", "200%"},
		{"--lab 0,80ms,0", "needs a rate"},
		{"--lab 100mbit,80ms,0 --length 1h", "--length"},
		{"--lab 100mbit,80ms,0 --memory much", "much"},
		{"--lab 100mbit,80ms,0 --file /dev/null", "not a regular file"},
	} {
		if code, _, stderr := stitch(append([]string{"bench"}, strings.Fields(c.args)...)...); code != 2 || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: %d %q, want %q", c.args, code, stderr, c.want)
		}
	}
}

func TestPrintBench(t *testing.T) {
	var b strings.Builder
	vm := bench.VM{Memory: 1 << 30, Dirty: 1 << 20, Downtime: 300 * time.Millisecond}
	r := &bench.Report{
		Rate: 100e6, RTT: 80 * time.Millisecond, Loss: 0.001, VM: vm,
		Transfers: []bench.Transfer{
			{Carrier: bench.PlainCubic, Data: bench.Typical, Bytes: 10e6, Seconds: 10, WAN: 11e6},
			{Carrier: bench.Stitch, Data: bench.Typical, Bytes: 125e6, Seconds: 5, Finished: true, WAN: 50e6},
			{Carrier: bench.Stitch, Data: bench.Repeated, Bytes: 125e6, Seconds: 2, Finished: true, WAN: 5e5},
		},
		Latencies: []bench.Latency{{Carrier: bench.Stitch, Busy: true, Delay: bench.Delay{N: 9, P50: 81 * time.Millisecond, P99: 90 * time.Millisecond, Max: 95 * time.Millisecond, Jitter: time.Millisecond}}},
		Forecasts: []bench.CarrierForecast{
			{Carrier: bench.PlainCubic, Data: bench.Typical, Forecast: vm.Forecast(1e6)},
			{Carrier: bench.Stitch, Data: bench.Typical, Forecast: vm.Forecast(25e6)},
		},
		Left: map[string]string{bench.PlainBBR: "no wireguard-go"},
	}
	if err := printBench(&b, r); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(b.String()), " ")
	for _, want := range []string{
		"100 Mbit/s, 80ms, 0.1 % lost each way",
		"typical plain, hosts on CUBIC 1.00 8 % 10.0 s 11.0 MB (cut off)",
		"typical stitch 25.00 200 % 5.0 s 50.0 MB 25.0x plain CUBIC",
		"sent again stitch 62.50 500 % 2.0 s 500 kB 62.5x plain CUBIC",
		"full stitch 81.0 ms 90.0 ms 95.0 ms 1.0 ms 9",
		"CUBIC never ends", "stitch 45s in",
		"left out: plain, hosts on BBR: no wireguard-go",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
}
