package estimate

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"
	"time"

	"stitch/tunnel/stream/block"
)

var update = flag.Bool("update", false, "rewrite the golden files; look at the difference before committing it")

// sample is a report with every field set, and with the odd cases: an empty
// file, a name that would disturb a terminal, no time measured.
func sample() *Report {
	rep := NewReport([]string{"monday", "empty", "a\x1b[2J\nb"}, []Result{
		{
			In: 214_000_000, Out: 75_100_000, Matched: 64_000_000, Zero: 2_000_000, Literal: 148_000_000,
			Encode: 1400 * time.Millisecond, Decode: 300 * time.Millisecond,
			Mix: block.Mix{Raw: block.Share{In: 4e6, Out: 4e6}, S2: block.Share{In: 1e6, Out: 5e5}, Zstd: block.Share{In: 4e6, Out: 2e6}, Carried: block.Share{In: 140e6, Out: 68e6}},
		},
		{Out: 289},
		{In: 223_000_000, Out: 100_000, Matched: 223_000_000, Resent: 1},
	}, 256<<20, 100e6)
	rep.SeedBytes, rep.KeptBytes, rep.PeakRSS = 1_000_000, 2_000_000, 700_000_000
	return rep
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	file = "testdata/" + file
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s", file, got, want)
	}
}

func TestReport(t *testing.T) {
	var text bytes.Buffer
	if err := sample().Print(&text); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.txt", text.Bytes())
	data, err := json.MarshalIndent(sample(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "report.json", append(data, '\n'))
}

func TestTexts(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_949: "999.9 kB", 999_950: "1.0 MB", 5_300_000_000: "5.3 GB", 1 << 62: "4611686.0 TB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d bytes: %q, want %q", n, got, want)
		}
	}
	for r, want := range map[float64]string{0: "-", 2.849: "2.85x", 99.99: "99.99x", 2000.4: "2000x"} {
		if got := ratioText(r); got != want {
			t.Errorf("%v: %q, want %q", r, got, want)
		}
	}
}
