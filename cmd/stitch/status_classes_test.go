package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"stitch/tunnel/control"
)

func TestPrintClasses(t *testing.T) {
	detail := `{"rate": 100000000, "classes": [{"name": "", "percent": 15, "rate": 250000, "bytes": 1500},
		{"name": "migration", "percent": 60, "limit": 80000000, "rate": 60123456, "bytes": 1234567890, "dropped": 7, "waiting": 90000}]}`
	st := &control.Status{Links: []control.LinkStatus{{Peer: "plain"}, {Peer: "dc2", Detail: json.RawMessage(detail)}}}
	var out bytes.Buffer
	if err := printStatus(&out, st); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(out.String()) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	text := strings.Join(lines, "\n")
	for _, want := range []string{
		"CLASS LINK PERCENT LIMIT SENDS SENT WAITING DROPPED",
		"(none) dc2 15 - 250.0 kbit/s 1.5 kB 0 B 0",
		"migration dc2 60 80.0 Mbit/s 60.1 Mbit/s 1.2 GB 90.0 kB 7",
		"all dc2 100 100.0 Mbit/s",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Count(text, "CLASS") != 1 {
		t.Errorf("more than one head in\n%s", text)
	}
}
