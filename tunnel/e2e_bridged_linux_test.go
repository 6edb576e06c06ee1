package tunnel_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"stitch/tunnel/divert"
	"stitch/tunnel/lab"
)

// bridged is the lab with rules for segment 100: s1 at one site, s2 at the other,
// fixed hosts of one subnet.
func bridged(o lab.Options) lab.Options {
	o.Streams = true
	o.Edit = func(edge, toml string) string {
		peer := map[string]string{"e1": "dc2", "e2": "dc1"}[edge]
		from := strings.Index(toml, "[[workload]]\nname = \"s2\"")
		to := strings.Index(toml[from:], "[[service]]") + from
		return toml[:from] + toml[to:] + fmt.Sprintf(`
[[stream]]
peer = %[1]q
segment = 100
to = ["10.1.0.0/24", "fd00:1::/64"]
ports = ["4000-5999"]
domain = "migration"

[[dial]]
peer = %[1]q
segment = 100
to = ["10.1.0.0/24", "fd00:1::/64"]
ports = ["4000-4999"]
domain = "migration"
`, peer)
	}
	return o
}

// divertStats are the counters of what an edge takes out of its segments.
func divertStats(t *testing.T, l *lab.Lab, edge string) (out divert.Stats) {
	t.Helper()
	if err := json.Unmarshal(status(t, l, edge).Divert, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// bridgedWorld starts it.
func bridgedWorld(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	l := world(t, bridged(o))
	for _, e := range []string{"e1", "e2"} {
		eventually(t, 10*time.Second, "segments of "+e+" are served", func() bool { return divertStats(t, l, e).Connected })
	}
	return l
}

// TestE2EBridged sends data between two hosts of one subnet.
func TestE2EBridged(t *testing.T) {
	l := bridgedWorld(t, wan100)
	for _, c := range []struct {
		from, to, addr string
	}{
		{"s1", "s2", "10.1.0.12:4000"}, {"s2", "s1", "10.1.0.11:4000"}, {"s1", "s2", "[fd00:1::12]:4000"},
	} {
		before := streamsTotal(t, l, "e1")
		echo(t, l, c.from, c.to, c.addr, mix(4<<20, 7))
		if n := streamsTotal(t, l, "e1"); n != before+1 {
			t.Errorf("%s: %d streams, want %d", c.addr, n, before+1)
		}
	}
	t.Logf("%+v", divertStats(t, l, "e1"))
}
