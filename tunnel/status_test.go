package tunnel

import (
	"strings"
	"testing"

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
		{func(s *stream.Stats) { s.Memory.Short = true }, "memory is short: 50 of 1024 MiB are free (host): new connections pass without optimisation until 128 are"},
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
