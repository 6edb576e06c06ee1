package tunnel

import (
	"os"
	"strings"
	"testing"

	"stitch/tunnel/redirect"
	"stitch/tunnel/stream"
)

// TestStreamAlarms: what keeps new connections from being streams is an alarm that says
// what to do; without it there is none.
func TestStreamAlarms(t *testing.T) {
	for _, c := range []struct {
		change func(*stream.Stats)
		want   string
	}{
		{func(*stream.Stats) {}, ""},
		{func(s *stream.Stats) { s.Admitted = 100 }, "100 streams are open"},
		{func(s *stream.Stats) { s.Memory.Short = true }, "memory is short (host): 50 of 1024 MiB are free, 64 are kept"},
		{func(s *stream.Stats) { s.Memory.Lately, s.Memory.Turned = true, 9 }, "(9 so far)"},
		{func(s *stream.Stats) { s.Lack, s.Lacked = "raise its limit", 7 }, "raise its limit; new connections passed without optimisation (7 times so far)"},
	} {
		st := stream.Stats{Max: 100, Memory: stream.MemoryStats{Place: "host", Free: 50 << 20, Total: 1 << 30, Mark: 64 << 20}}
		c.change(&st)
		alarms := streamStatus(st).Alarms
		if len(alarms) > 1 || !strings.Contains(strings.Join(alarms, "\n"), c.want) || (len(alarms) == 0) != (c.want == "") {
			t.Errorf("%q, want %q", alarms, c.want)
		}
	}
}

// TestTrackingAlarm: a table of connections that is nearly full is an alarm, one that
// cannot be read is none.
func TestTrackingAlarm(t *testing.T) {
	for _, c := range []struct {
		n, most int
		alarm   bool
	}{{0, 0, false}, {0, 1000, false}, {899, 1000, false}, {900, 1000, true}, {1001, 1000, true}} {
		if got := trackingAlarm(c.n, c.most); (got != "") != c.alarm {
			t.Errorf("%d of %d: %q", c.n, c.most, got)
		}
	}
	if _, err := os.Stat("/proc/sys/net/netfilter/nf_conntrack_max"); err == nil {
		if n, most := redirect.Tracked(); most <= 0 || n < 0 {
			t.Errorf("this kernel tracks %d of %d", n, most)
		}
	}
}
