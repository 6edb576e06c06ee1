package main

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"stitch/tunnel/control"
)

// TestFlows prints a stream.FlowList as the stream process gives it.
func TestFlows(t *testing.T) {
	dir := t.TempDir()
	s, err := control.Listen(control.Config{
		Path: filepath.Join(dir, control.StreamSocket), Status: func(context.Context) control.Status { return control.Status{} },
		Flows: func() json.RawMessage {
			return json.RawMessage(`{"flows":[
				{"peer":"dc2","proto":6,"src":"10.1.0.10:5","dst":"10.2.0.10:4000","side":"near","carried":"full","bytes_out":2097152,"wire_out":1048576},
				{"peer":"dc2","proto":17,"src":"10.2.0.10:5","dst":"10.1.0.10:53","side":"far","carried":"packets","reason":1},
				{"peer":"dc2","segment":100,"proto":6,"src":"10.1.0.11:5","dst":"10.1.0.12:4000","side":"near","carried":"full"}],
				"omitted":3,"incomplete":"no such module\u001b[2J","reasons":[{"reason":1,"why":"not TCP","advice":"nothing"},{"reason":2,"why":"unused","advice":""}]}`)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	code, stdout, stderr := stitch("flows", "--run-dir", dir)
	if code != 0 {
		t.Fatal(stderr)
	}
	text := strings.Join(strings.Fields(stdout), " ")
	for _, want := range []string{
		"dc2 tcp 10.1.0.10:5 10.2.0.10:4000 here full 2.1 MB 1.0 MB -",
		"dc2 udp 10.2.0.10:5 10.1.0.10:53 there packets - - 1",
		"dc2 segment 100 tcp 10.1.0.11:5 10.1.0.12:4000 here full",
		"2 connections as streams, 1 as packets, 3 not shown",
		"may be missing: no such module",
		"reason 1 (1): not TCP. To do: nothing",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	if strings.Contains(stdout, "\x1b") || strings.Contains(stdout, "unused") {
		t.Errorf("it prints control characters, or a reason nobody has:\n%q", stdout)
	}
	if code, stdout, _ := stitch("flows", "--run-dir", dir, "--json"); code != 0 || !json.Valid([]byte(stdout)) || !strings.Contains(stdout, `"omitted": 3`) {
		t.Errorf("%d: %s", code, stdout)
	}
	if code, _, stderr := stitch("flows", "--run-dir", t.TempDir()); code == 0 || !strings.Contains(stderr, "stitch up") {
		t.Errorf("without an agent: %d %q", code, stderr)
	}
}
