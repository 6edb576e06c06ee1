package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// good is a report of a run in which all went well.
func good() *Report {
	start := time.Unix(1000, 0)
	r := &Report{
		Moves: []Move{
			{Direction: "h1 to h2", TotalMillis: 29000, DowntimeMillis: 200, OfferedBytes: 600 << 20, NonzeroPageBytes: 480 << 20, WANBytes: 290 << 20, Start: start, End: start.Add(29 * time.Second)},
			{Direction: "h2 to h1", TotalMillis: 4600, DowntimeMillis: 400, OfferedBytes: 520 << 20, NonzeroPageBytes: 480 << 20, WANBytes: 6 << 20, Start: start.Add(40 * time.Second), End: start.Add(45 * time.Second)},
		},
		Plain:          Move{Direction: "h1 to h2", TotalMillis: 67000, WANBytes: 800 << 20},
		NewConnections: Via{Via: "e2"}, OldConnections: Via{Via: "e1"},
		Canary: Canary{Control: 3},
	}
	for i := range 50 {
		r.Samples = append(r.Samples, Sample{At: start.Add(time.Duration(i) * time.Second), WAN: int64(i) * 12e6, Raw: int64(i) * 30e6})
	}
	r.add(snapshot{Name: "service 1", Dials: 1, BytesIn: 10, Longest: 700 * time.Millisecond}, nil)
	return r
}

// TestJudge: every promise that is broken makes exactly one check fail.
func TestJudge(t *testing.T) {
	cases := map[string]func(*Report){
		"a reset":             func(r *Report) { r.add(snapshot{Name: "service 2", Dials: 1, Resets: 1, BytesIn: 1}, nil) },
		"a reconnect":         func(r *Report) { r.add(snapshot{Name: "guest to d1", Dials: 2, BytesIn: 1}, nil) },
		"a wrong byte":        func(r *Report) { r.add(snapshot{Name: "download", Dials: 1, Wrong: 1, BytesIn: 1}, nil) },
		"nothing received":    func(r *Report) { r.add(snapshot{Name: "TLS session", Dials: 1}, nil) },
		"old ones moved":      func(r *Report) { r.OldConnections.Via = "nowhere" },
		"new ones elsewhere":  func(r *Report) { r.NewConnections.Via = "e1" },
		"a dear way back":     func(r *Report) { r.Moves[1].WANBytes = 17 << 20 },
		"clear text":          func(r *Report) { r.Canary.WAN = 1 },
		"a blind capture":     func(r *Report) { r.Canary.Control = 0 },
		"slower than plain":   func(r *Report) { r.Plain.TotalMillis = 28000 },
		"more bytes on plain": func(r *Report) { r.Plain.WANBytes = 200 << 20 },
	}
	r := good()
	if r.judge(); r.failures() != 0 {
		t.Fatalf("a good run: %+v", r.Checks)
	}
	for name, spoil := range cases {
		r := good()
		spoil(r)
		if r.judge(); r.failures() != 1 {
			t.Errorf("%s: %d checks fail, want 1", name, r.failures())
		}
	}
}

// TestFields: the names that programs read.
func TestFields(t *testing.T) {
	r := good()
	r.judge()
	dir := t.TempDir()
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	var moves []map[string]any
	if err := json.Unmarshal(doc["moves"], &moves); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"direction", "total_ms", "downtime_ms", "offered_bytes", "nonzero_page_bytes", "wan_bytes"} {
		if _, ok := moves[0][key]; !ok {
			t.Errorf("moves[0] has no %s", key)
		}
	}
	for _, key := range []string{`"survived"`, `"longest_gap_ms"`, `"via"`, `"plain"`} {
		if !bytes.Contains(data, []byte(key)) {
			t.Errorf("no %s", key)
		}
	}
	page, err := os.ReadFile(filepath.Join(dir, "report.html"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(page), "<polyline"); n != 2 || strings.Contains(string(page), "http://") || strings.Contains(string(page), "NaN") {
		t.Errorf("the page has %d lines, or needs something from elsewhere", n)
	}
}

func TestNonzero(t *testing.T) {
	ram := make([]byte, 300*pageSize)
	ram[0], ram[5*pageSize+17], ram[299*pageSize+4095], ram[256*pageSize] = 1, 1, 1, 1
	file := filepath.Join(t.TempDir(), "ram")
	if err := os.WriteFile(file, ram, 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := nonzero(file); err != nil || n != 4*pageSize {
		t.Errorf("%d, %v, want %d", n, err, 4*pageSize)
	}
}

// TestCountIn: also what lies across the pieces the file is read in.
func TestCountIn(t *testing.T) {
	const word = "canary"
	data := bytes.Repeat([]byte{'.'}, 3<<20)
	for _, at := range []int{0, 1<<20 - 3, 1<<20 + 500, 2<<20 - 1, len(data) - len(word)} {
		copy(data[at:], word)
	}
	file := filepath.Join(t.TempDir(), "pcap")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := countIn(file, word); err != nil || n != 5 {
		t.Errorf("%d, %v, want 5", n, err)
	}
}
