package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stitch/scripts/traffic"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// sampleReport is a small run that kept all its promises.
func sampleReport() *Report {
	r := &Report{
		Started: time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC), Seconds: 61, RateBit: 100_000_000, RTTMS: 40,
		QEMU: "7.2.22", GuestKernel: "6.1.0-56-cloud-amd64", GuestUptime: 60,
		Moves: []Move{
			{Direction: "dc1->dc2", Through: "stitch", TotalMS: 4000, DowntimeMS: 200, OfferedBytes: 60_000_000,
				NonzeroPageBytes: 50_000_000, WANBytes: 30_000_000, Rounds: 3, Start: 1, Stop: 4.8, Resume: 5, DNSMS: 30},
			{Direction: "dc2->dc1", Through: "stitch", TotalMS: 1000, DowntimeMS: 150, OfferedBytes: 55_000_000,
				NonzeroPageBytes: 50_000_000, WANBytes: 1_000_000, Rounds: 2, Start: 7, Stop: 7.85, Resume: 8, DNSMS: 25},
		},
		Plain: &Move{Direction: "dc1->dc2", Through: "wireguard-go", TotalMS: 8000, DowntimeMS: 300, OfferedBytes: 70_000_000,
			NonzeroPageBytes: 50_000_000, WANBytes: 78_000_000, Rounds: 4, Start: 1, Stop: 8.7, Resume: 9},
		NewConnections: Group{4, "dc2"}, OldConnections: Group{22, "dc1"},
		Paths: []Paths{{"only connections opened before the move", 700_000, 0, 900_000}},
		WAN:   Scan{Packets: 1000, Bytes: 1 << 20}, LAN: Scan{Packets: 900, Bytes: 1 << 19, Hits: 120, MigrationHits: 100},
	}
	for i := range 50 {
		s := Sample{T: float64(i+1) / 5, Wire: 200_000, Answers: 40}
		if i >= 5 && i < 25 {
			s.Offered, s.Wire = 3_000_000, 1_500_000
		}
		r.Timeline = append(r.Timeline, s)
		r.PlainTimeline = append(r.PlainTimeline, Sample{T: s.T, Offered: 1_400_000, Wire: 1_560_000})
	}
	tl := &timeline{start: r.Started}
	good := traffic.NewMeter("client 01", gapFloor)
	good.Dialled("203.0.113.10:8080")
	good.Moved(5000, 900)
	good.Answered(r.Started.Add(4800*time.Millisecond), 420*time.Millisecond)
	r.addConnection(&connection{name: "client 01", kind: "request/answer", meter: good}, tl, nil)
	own := traffic.NewMeter("guest to d1", gapFloor)
	own.Dialled("10.1.0.50:40000")
	own.Moved(700, 3000)
	state := own.Snapshot()
	r.addConnection(&connection{name: "guest to d1", kind: guestOpened, meter: own}, tl, &state)
	r.judge(2, true)
	return r
}

func TestReportFieldsByName(t *testing.T) {
	dir := t.TempDir()
	r := sampleReport()
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Moves []map[string]any
		Plain map[string]any
		Conns map[string]any `json:"connections"`
		New   map[string]any `json:"new_connections"`
		Old   map[string]any `json:"old_connections"`
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	has := func(what string, m map[string]any, names ...string) {
		for _, n := range names {
			if m[n] == nil {
				t.Errorf("%s has no %s", what, n)
			}
		}
	}
	for _, m := range got.Moves {
		has("move", m, "direction", "total_ms", "downtime_ms", "offered_bytes", "nonzero_page_bytes", "wan_bytes")
	}
	has("plain", got.Plain, "total_ms", "downtime_ms", "wan_bytes")
	has("connections", got.Conns, "total", "survived", "longest_gap_ms")
	has("new_connections", got.New, "via")
	has("old_connections", got.Old, "via")
	if len(got.Moves) != 2 {
		t.Errorf("%d moves", len(got.Moves))
	}
}

func TestPageAndSummaryGolden(t *testing.T) {
	r := sampleReport()
	var page, summary bytes.Buffer
	if err := r.html(&page); err != nil {
		t.Fatal(err)
	}
	r.print(&summary)
	for name, got := range map[string][]byte{"report.html": page.Bytes(), "summary.txt": summary.Bytes()} {
		file := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not as it was (%v): go test ./scripts/demo -update, and read the diff", file, err)
		}
	}
	for _, outside := range []string{"http://", "https://", "src=", "@import", "url("} {
		if strings.Contains(page.String(), outside) {
			t.Errorf("the page refers to something outside: %q", outside)
		}
	}
}

// TestEveryPromiseCanFail breaks one promise at a time.
func TestEveryPromiseCanFail(t *testing.T) {
	if !sampleReport().passed() {
		t.Fatal("the sample does not pass")
	}
	for name, spoil := range map[string]func(*Report){
		"lost connection":   func(r *Report) { r.Connections.Survived-- },
		"no connections":    func(r *Report) { r.Connections = Connections{} },
		"reset":             func(r *Report) { r.Connections.Resets++ },
		"one move":          func(r *Report) { r.Moves = r.Moves[:1] },
		"costly return":     func(r *Report) { r.Moves[1].WANBytes = r.Moves[1].NonzeroPageBytes/30 + 1 },
		"slower than plain": func(r *Report) { r.Moves[0].TotalMS = r.Plain.TotalMS },
		"bigger than plain": func(r *Report) { r.Moves[0].WANBytes = r.Plain.WANBytes },
		"no plain":          func(r *Report) { r.Plain = nil },
		"old strays":        func(r *Report) { r.OldConnections.Via = "dc1+?" },
		"new through dc1":   func(r *Report) { r.NewConnections.Via = "dc1" },
		"canary":            func(r *Report) { r.WAN.Hits = 1 },
		"empty capture":     func(r *Report) { r.WAN = Scan{} },
		"blind search":      func(r *Report) { r.LAN = Scan{Packets: 5} },
		"half blind search": func(r *Report) { r.LAN.MigrationHits = r.LAN.Hits },
	} {
		r := sampleReport()
		r.Checks = nil
		spoil(r)
		if r.judge(2, true); r.passed() {
			t.Errorf("%s: passes all the same", name)
		}
	}
	if (&Report{}).passed() {
		t.Error("a report without checks passes")
	}
}

func TestConnectionsThatDidNotSurvive(t *testing.T) {
	meter := func(edit func(*traffic.Meter)) *traffic.Meter {
		m := traffic.NewMeter("x", gapFloor)
		m.Dialled("peer")
		m.Moved(10, 10)
		edit(m)
		return m
	}
	fine := meter(func(*traffic.Meter) {}).Snapshot()
	again := fine
	again.Dials = 2
	for name, c := range map[string]struct {
		conn *connection
		own  *traffic.Snapshot
	}{
		"reset":               {&connection{meter: meter(func(m *traffic.Meter) { m.Ended(os.ErrClosed) })}, nil},
		"nothing came":        {&connection{meter: traffic.NewMeter("x", gapFloor)}, nil},
		"reconnected":         {&connection{meter: meter(func(m *traffic.Meter) { m.Dialled("peer") })}, nil},
		"incomplete":          {&connection{meter: meter(func(*traffic.Meter) {}), whole: func() error { return os.ErrDeadlineExceeded }}, nil},
		"guest says nothing":  {&connection{kind: guestOpened, meter: meter(func(*traffic.Meter) {})}, nil},
		"guest reconnected":   {&connection{kind: guestOpened, meter: meter(func(*traffic.Meter) {})}, &again},
		"guest closed it":     {&connection{kind: guestOpened, meter: meter(func(m *traffic.Meter) { m.Ended(nil) })}, &fine},
		"wrong bytes arrived": {&connection{meter: meter(func(m *traffic.Meter) { m.Ended(traffic.ErrWrong) })}, nil},
	} {
		r := &Report{}
		if r.addConnection(c.conn, &timeline{}, c.own); r.Connections.Survived != 0 || r.Connections.Total != 1 {
			t.Errorf("%s: %+v", name, r.Connections)
		}
	}
}

func TestNiceSteps(t *testing.T) {
	for v, want := range map[float64]float64{1: 1, 1.1: 2, 3: 5, 7: 10, 0.03: 0.05, 249: 500} {
		if got := niceStep(v); got < want*0.999 || got > want*1.001 {
			t.Errorf("niceStep(%v) = %v, want %v", v, got, want)
		}
	}
}
