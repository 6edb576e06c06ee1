package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"stitch/scripts/program"
	"stitch/tunnel/stream/block"
)

var update = flag.Bool("update", false, "rewrite the golden files; look at the difference before committing it")

// sample is a report with a met and a missed aim of each kind.
func sample() *Report {
	good := Row{Case: "cold", Bytes: 214e6, Ours: Side{70e6, 1.4, 0.3}, Zstd: Side{75.9e6, 1.3, 0.3}, Codecs: block.Mix{Zstd: block.Share{In: 1, Out: 1}}}
	bad := Row{Case: "return", Bytes: 223e6, Ours: Side{1.7e6, 0.4, 0.1}, Zstd: Side{1.6e6, 1.2, 0.5}, Patch: true, Matched: 220e6}
	rep := &Report{
		Zstd: "zstd 1.5.4", Go: "go1.26", Runs: 3, Rows: []Row{good, bad},
		Matching: []Matching{{Data: "a1", Bytes: 214e6, Fresh: 1100, Repeated: 2900, Index: 0.031}},
		Links:    []Link{newLink(100, 214e6, good.Ours), newLink(10_000, 214e6, good.Ours)},
		Skipped:  []string{"log left out: no reason"},
	}
	for _, a := range []aim{{bytes: 1}, {speed: 5}, {ratio: 2000}, {ratio: 2}, {extra: 0.001}} {
		rep.Aims = append(rep.Aims, a.judge(&good), a.judge(&bad))
	}
	return rep
}

func TestReport(t *testing.T) {
	const golden = "testdata/report.txt"
	var got bytes.Buffer
	if err := sample().print(&got); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
	file := filepath.Join(t.TempDir(), "report.json")
	if err := program.WriteReport(file, sample()); err != nil {
		t.Fatal(err)
	}
	var back Report
	data, err := os.ReadFile(file)
	if err = errors.Join(err, json.Unmarshal(data, &back)); err != nil || len(back.Rows) != 2 || back.Rows[1] != sample().Rows[1] {
		t.Errorf("as JSON: %+v, %v", back, err)
	}
}

// TestAims: a bound itself is met, beyond it is a miss.
func TestAims(t *testing.T) {
	row := func(out int64, seconds float64) *Row {
		return &Row{Bytes: 1000, Ours: Side{Bytes: out, Encode: seconds}, Zstd: Side{Bytes: 100, Encode: 10}}
	}
	for _, c := range []struct {
		a       aim
		on, off *Row
	}{
		{aim{bytes: 1}, row(100, 1), row(101, 1)},
		{aim{speed: 5}, row(1, 2), row(1, 2.01)},
		{aim{ratio: 10}, row(100, 1), row(101, 1)},
		{aim{extra: 0.001}, row(1001, 1), row(1002, 1)},
	} {
		if on, off := c.a.judge(c.on), c.a.judge(c.off); !on.Met || off.Met {
			t.Errorf("%+v: %v, beyond it %v", c.a, on, off)
		}
	}
}

// TestMissing: a case whose files are not there is left out and said.
func TestMissing(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a1", "s", "multifd.0", "multifd.1"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, c := range cases(dir) {
		if c.missing() == nil {
			got = append(got, c.name)
		}
	}
	if want := []string{"cold", "sibling", "repeat", "multifd"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	b := &bench{options: options{only: regexp.MustCompile("")}, report: &Report{}}
	c := comparison{name: "none", files: []string{filepath.Join(dir, "none")}}
	if err := b.compare(&c); err != nil || len(b.report.Rows) != 0 || len(b.report.Skipped) != 1 {
		t.Errorf("%v, %+v", err, b.report)
	}
}

func TestMedian(t *testing.T) {
	sides := []Side{{1, 5, 0}, {2, 1, 0}, {3, 3, 0}}
	if got := median(sides); got.Bytes != 3 || sides[0].Bytes != 1 {
		t.Errorf("median %+v of %+v", got, sides)
	}
}

// TestComparer: anything but the input itself is refused.
func TestComparer(t *testing.T) {
	for out, good := range map[string]bool{"same": true, "sane": false, "sam": false, "same!": false, "": false} {
		c := &comparer{want: strings.NewReader("same")}
		_, err := c.Write([]byte(out))
		if err = errors.Join(err, c.end()); (err == nil) != good || !good && !errors.Is(err, errDiffers) {
			t.Errorf("%q: %v", out, err)
		}
	}
}

// TestBothSides runs a small case through both sides.
func TestBothSides(t *testing.T) {
	if _, err := exec.LookPath("zstd"); err != nil {
		t.Skip("zstd is missing: scripts/setup codec installs it")
	}
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	text := bytes.Repeat([]byte("some text that compresses\n"), 20_000)
	if err := errors.Join(os.WriteFile(first, chaff(1<<20), 0o600), os.WriteFile(second, append(chaff(1<<20), text...), 0o600)); err != nil {
		t.Fatal(err)
	}
	b := &bench{options: options{work: dir, runs: 1}, report: &Report{}}
	c := comparison{name: "test", files: []string{second, first}, prior: []string{first}, patch: first, aims: []aim{{ratio: 50}}}
	b.only = regexp.MustCompile("")
	if err := b.compare(&c); err != nil {
		t.Fatal(err)
	}
	row := b.report.Rows[0]
	if row.Bytes != 2<<20+int64(len(text)) || row.Ours.Bytes == 0 || row.Zstd.Bytes == 0 || row.Ours.Bytes > 20_000 || row.Zstd.Bytes > 20_000 || !b.report.Aims[0].Met {
		t.Errorf("%+v, %v", row, b.report.Aims)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "p*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}
