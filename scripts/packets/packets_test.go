package main

import (
	"strings"
	"testing"
	"time"
)

func TestPingTimes(t *testing.T) {
	out := "PING 10.2.0.10 56(84) bytes of data.\n64 bytes from 10.2.0.10: icmp_seq=1 ttl=62 time=0.250 ms\n64 bytes from 10.2.0.10: icmp_seq=2 ttl=62 time=1.5 ms\n"
	got := pingTimes(out)
	if len(got) != 2 || got[0] != 250*time.Microsecond || got[1] != 1500*time.Microsecond {
		t.Errorf("%v", got)
	}
	if p := percentile(got, 50); p != 250*time.Microsecond {
		t.Errorf("p50 %v", p)
	}
	if p := percentile(got, 99); p != 1500*time.Microsecond {
		t.Errorf("p99 %v", p)
	}
	if percentile(nil, 50) != 0 {
		t.Error("a percentile of nothing")
	}
}

func TestSentBytes(t *testing.T) {
	text := "Inter-|   Receive                                                |  Transmit\n face |bytes\n" +
		"    lo: 1 2 3 4 5 6 7 8 9 10\n  wan0: 10 20 0 0 0 0 0 0 4711 40 0 0 0 0 0 0\n"
	if n := sentBytes(text, "wan0"); n != 4711 {
		t.Errorf("%d bytes", n)
	}
	if n := sentBytes(text, "wan1"); n != 0 {
		t.Errorf("%d bytes of no device", n)
	}
}

func TestSplit(t *testing.T) {
	for load, want := range map[string]int{"tcp8": 8, "udp1400": 1400, "ping": 0} {
		if kind, n := split(load); n != want || kind+strings.TrimPrefix(load, kind) != load {
			t.Errorf("%s: %q %d", load, kind, n)
		}
	}
}

// The table has what was measured, and says what was missed and left out.
func TestReport(t *testing.T) {
	r := &Report{Machine: "a machine", Rounds: 3, Length: 1, Skipped: map[string]string{openvpnL2: "not there"}}
	for name, mbit := range map[string]int64{wireguardL3: 100, stitchL3: 150, stitchL2: 120, vxlanL2: 20} {
		row := Row{Tunnel: name, Figures: map[string]float64{}, Samples: map[string][]float64{}}
		for i := range int64(3) {
			row.add("tcp1", sample{bytes: mbit * 125000 * (i + 1), took: time.Second * time.Duration(i+1), tunnel: time.Second, total: 2 * time.Second})
			row.add("ping", sample{pings: []time.Duration{time.Duration(mbit) * time.Microsecond}})
		}
		row.finish()
		r.Rows = append(r.Rows, row)
	}
	r.judge()
	var b strings.Builder
	r.print(&b)
	for _, want := range []string{"  150  ", "met     1.50  stitch (L3) TCP 1", "MISSED  0.80  stitch (L2) TCP 1 / stitch (L3)", "met     6.00", "left out: OpenVPN TAP (L2): not there", "met     50.00  stitch (L3) ping", "met     20.00  stitch (L2) ping"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
	if median(nil) != 0 || median([]float64{3, 1}) != 2 {
		t.Error("median")
	}
}
