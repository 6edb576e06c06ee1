package main

import (
	"encoding/json"
	"strings"
	"testing"

	"stitch/tunnel/control"
)

// TestPrintStreams prints a stream.Stats as the stream process gives it.
func TestPrintStreams(t *testing.T) {
	st := &control.Status{Streams: json.RawMessage(`{"peers":[{"peer":"dc2","domains":[
		{"domain":"migration","ready":4,"alive":true,"open":2,"total":31,"passed":1,"bytes_out":634000000,"wire_out":305000000,
		 "matched":317000000,"zero":6340000,"mix":{"raw":{"in":1},"s2":{"in":10},"zstd":{"in":9},"zstd_carried":{"in":80}},"in_step":true,
		 "history":{"size":68719476736,"memory":1073741824,"index":100000000,"store":{"state":"loading","disk":5000000000,"loading":6000000000,"loaded":2000000000,"found":8000000000,"load_seconds":13.4,"load_left":39.2}}},
		{"domain":"","alive":false,"last_error":"no route","history":{"size":1000}}]}]}`)}
	var b strings.Builder
	if err := printStatus(&b, st); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(b.String()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	text := strings.Join(got, "\n")
	for _, want := range []string{
		"dc2 migration ready 2 31 1 0 634 MB 305 MB 2.1x",
		"dc2 (none) no route 0 0 0 0 0 B 0 B -",
		"dc2 migration 2 x 68.7 GB at most 2.2 GB 5.0 GB loading, 2.0 GB of 8.0 GB in 13s, 39s left, 100% searchable 50% 1% zstd 89%, s2 10%, raw 1%",
		"all at most 2.2 GB",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, c := range []string{"null", "{", `{"peers":3}`} {
		b.Reset()
		if err := printStatus(&b, &control.Status{Streams: json.RawMessage(c)}); err != nil {
			t.Errorf("%s: %v", c, err)
		}
	}
}

func TestSizeText(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 99_949: "99.9 kB", 99_950: "100 kB", 999_499: "999 kB", 999_500: "1.0 MB",
		64 << 30: "68.7 GB", 1<<63 - 1: "9.2 EB",
	} {
		if got := size(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
