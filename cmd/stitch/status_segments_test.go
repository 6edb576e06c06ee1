package main

import (
	"encoding/json"
	"strings"
	"testing"

	"stitch/tunnel/control"
)

// TestPrintSegments prints ether.Stats as the link process gives them.
func TestPrintSegments(t *testing.T) {
	st := &control.Status{Segments: []json.RawMessage{
		json.RawMessage(`{"segment":100,"to_peers":12,"to_lan":34,"dropped_from_lan":{"vlan":1,"dhcp":9,"stp":9,"answered":3},
			"dropped_from_link":{},"macs":{"":4,"dc3":1,"dc2":2},"addresses":5}`),
		json.RawMessage(`{"segment":200,"loop":{"segment":200,"own":true},"macs":{"":0}}`),
		json.RawMessage(`{"segment":300,"frozen":2}`), json.RawMessage(`[]`),
	}}
	var b strings.Builder
	if err := printStatus(&b, st); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(b.String()), " ")
	for _, want := range []string{
		"100 carries 4 here, 2 dc2, 1 dc3 5 12 34 dhcp 9, stp 9, answered 3, ... -",
		"200 blocked: loop 0 here 0 0 0 - -",
		"300 2 frozen 0 here",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
}
