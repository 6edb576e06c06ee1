package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// estimateFiles makes files to estimate: words, and the same words with a
// piece in front.
func estimateFiles(t *testing.T) (one, two string) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 1))
	var text []byte
	for len(text) < 1_000_000 {
		text = fmt.Appendf(text, "record %d belongs to %d\n", r.Uint64(), r.IntN(100))
	}
	dir := t.TempDir()
	one, two = filepath.Join(dir, "one"), filepath.Join(dir, "two")
	err := errors.Join(os.WriteFile(one, text, 0o600), os.WriteFile(two, append([]byte("a new line\n"), text...), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return one, two
}

// TestEstimateText holds the form of the table: numbers that depend on the
// codec or the machine are masked.
func TestEstimateText(t *testing.T) {
	one, two := estimateFiles(t)
	code, stdout, stderr := stitch("estimate", "--link", "100mbit", one, two)
	if code != 0 || stderr != "" {
		t.Fatal(code, stderr)
	}
	masked := strings.ReplaceAll(stdout, filepath.Dir(one), "DIR")
	masked = regexp.MustCompile(`(zstd|s2|raw) .*%`).ReplaceAllString(masked, "CODECS")
	masked = regexp.MustCompile(`[0-9.]+`).ReplaceAllString(masked, "#")
	masked = regexp.MustCompile(`# [kM]?B `).ReplaceAllString(masked, "#B ")
	masked = regexp.MustCompile(` +`).ReplaceAllString(masked, " ")
	want := ` IN OUT RATIO MATCHED ZERO LITERAL ENCODE DECODE CPU CODECS FILE
 #B #B #x #% #% #% # MB/s # MB/s # s CODECS DIR/one
 #B #B #x #% #% #% # MB/s # MB/s # s CODECS DIR/two
 #B #B #x #% #% #% # MB/s # MB/s # s CODECS total

Every byte came out of the decoder as it went in# MB/s: input for each second of one processor#
History: # MiB for each direction; peak memory of both sites together: # MB#
At # Mbit/s: # s as it is, # s through stitch#
`
	if masked != want {
		t.Errorf("got\n%s\nwant\n%s", masked, want)
	}
}

// estimateJSON runs stitch estimate --json and reads its answer twice: loosely,
// for the names of its fields, and into what a user's program would have.
func estimateJSON(t *testing.T, args ...string) (fields map[string]any, files []estimatedFile) {
	t.Helper()
	code, stdout, stderr := stitch(append([]string{"estimate", "--json"}, args...)...)
	if code != 0 || stderr != "" {
		t.Fatal(code, stderr)
	}
	var typed struct{ Files []estimatedFile }
	if err := errors.Join(json.Unmarshal([]byte(stdout), &fields), json.Unmarshal([]byte(stdout), &typed)); err != nil {
		t.Fatalf("%v in %s", err, stdout)
	}
	return fields, typed.Files
}

type estimatedFile struct {
	Name    string `json:"name"`
	In      int64  `json:"bytes_in"`
	Out     int64  `json:"bytes_out"`
	Matched int64  `json:"matched_bytes"`
	Zero    int64  `json:"zero_bytes"`
	Literal int64  `json:"literal_bytes"`
}

func TestEstimateJSON(t *testing.T) {
	one, two := estimateFiles(t)
	fields, files := estimateJSON(t, "--history-size", "16MiB", one, two)
	for _, path := range []string{"files", "total", "peak_rss_bytes", "history_bytes"} {
		if fields[path] == nil {
			t.Errorf("no field %q", path)
		}
	}
	total, _ := fields["total"].(map[string]any)
	for _, field := range []string{
		"name", "bytes_in", "bytes_out", "ratio", "encode_mb_s", "decode_mb_s", "encode_cpu_seconds", "decode_cpu_seconds",
		"matched_bytes", "literal_bytes", "zero_bytes", "codecs",
	} {
		if total[field] == nil {
			t.Errorf("no field %q in total", field)
		}
	}
	if fields["history_bytes"] != float64(16<<20) || len(files) != 2 || files[0].Name != one || files[1].Name != two {
		t.Fatalf("got %v", fields)
	}
	a, b := files[0], files[1]
	if a.In < 1_000_000 || b.In != a.In+11 || a.Out > a.In/2 || b.Out > a.Out/50 || b.Matched+b.Zero+b.Literal != b.In || total["bytes_in"] != float64(a.In+b.In) {
		t.Errorf("got %+v", files)
	}
}

// TestEstimateSeed: a seed is not counted, and makes its file small.
func TestEstimateSeed(t *testing.T) {
	one, two := estimateFiles(t)
	_, cold := estimateJSON(t, two)
	fields, seeded := estimateJSON(t, "--seed", one, two)
	if len(seeded) != 1 || seeded[0].Out > cold[0].Out/50 || fields["seed_bytes"] == nil {
		t.Errorf("seeded %+v, cold %+v", seeded, cold)
	}
}

func TestEstimateStdin(t *testing.T) {
	one, _ := estimateFiles(t)
	f, err := os.Open(one)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	old := os.Stdin
	os.Stdin = f
	defer func() { os.Stdin = old }()
	_, files := estimateJSON(t, "--history-size", "16MiB", "-", one)
	if len(files) != 2 || files[0].Name != "-" || files[0].In != files[1].In || files[1].Out > files[0].Out/50 {
		t.Errorf("got %+v", files)
	}
}

func TestEstimateRefuses(t *testing.T) {
	one, _ := estimateFiles(t)
	dir := filepath.Dir(one)
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "stitch: no FILE given\nstitch: write `stitch estimate FILE...`, or - for standard input\n"},
		{[]string{one, dir + "/none"}, "stitch: stat " + dir + "/none: no such file or directory\n"},
		{[]string{dir}, "stitch: " + dir + " is a directory\nstitch: name files, or write `tar c " + dir + " | stitch estimate -`\n"},
		{[]string{"--seed", dir, one}, "stitch: " + dir + " is a directory\n"},
		{[]string{"--seed", "-", "-"}, "stitch: standard input (-) can be read only once, not 2 times\n"},
		{[]string{"--link", "fast", one}, "stitch: rate \"fast\": write it like 100mbit"},
		{[]string{"--link", "0", one}, "stitch: --link 0 carries nothing"},
		{[]string{"--history-size", "1G", one}, "stitch: --history-size: \"1G\" is not a size"},
		{[]string{"--history-size", "1KiB", one}, "stitch: --history-size 1KiB is out of range"},
		{[]string{one, "--json"}, "stitch: flag --json stands behind an argument"},
	} {
		code, stdout, stderr := stitch(append([]string{"estimate"}, c.args...)...)
		if code != 2 || stdout != "" || !strings.HasPrefix(stderr, c.want) {
			t.Errorf("%q: code %d, %q%q, want %q", c.args, code, stdout, stderr, c.want)
		}
	}
}

// TestEstimateReadFails: an input that breaks off is the program's failure, not
// the user's, and names the file.
func TestEstimateReadFails(t *testing.T) {
	const mem = "/proc/self/mem" // its first page cannot be read
	code, stdout, stderr := stitch("estimate", "--history-size", "16MiB", mem)
	if code != 1 || stdout != "" || !strings.HasPrefix(stderr, "stitch: read /proc/self/mem: input/output error\n") {
		t.Errorf("code %d, %q%q", code, stdout, stderr)
	}
}

func TestEstimateConfig(t *testing.T) {
	free, err := freeMemory()
	if err != nil || free < 1<<20 {
		t.Fatal(free, err)
	}
	part := max(leastHistory, free/2)
	for _, c := range []struct {
		dir, size string
		input     int64
		lo, hi    int64
	}{
		{"", "2GiB", 1, 2 << 30, 2 << 30},
		{"", "", 1, leastHistory, leastHistory},
		{"", "", 1 << 60, leastHistory, part},
		{"", "", -1, leastHistory, part},
		{"d", "", 1, diskHistory, diskHistory},
		{"d", "", 2 << 30, 8 << 30, 8 << 30},
		{"d", "", 1 << 60, maxHistory, maxHistory},
		{"d", "", -1, diskHistory, max(diskHistory, part)},
		{"d", "1MiB", 1, 1 << 20, 1 << 20},
	} {
		cfg, err := estimateConfig(c.dir, c.size, c.input)
		if n := cfg.History; err != nil || n < c.lo || n > c.hi || cfg.Dir != c.dir || cfg.Expect != c.input || (cfg.Memory > 0) != (c.dir != "") {
			t.Errorf("%+v: %+v, %v", c, cfg, err)
		}
	}
}

// TestEstimateKeeps: what one run sent is there in the next, and only there.
func TestEstimateKeeps(t *testing.T) {
	one, two := estimateFiles(t)
	dir := filepath.Join(t.TempDir(), "history")
	_, cold := estimateJSON(t, "--history", dir, "--history-size", "16MiB", one)
	fields, warm := estimateJSON(t, "--history", dir, "--history-size", "16MiB", two)
	if warm[0].Out > cold[0].Out/50 || fields["kept_bytes"] == nil {
		t.Errorf("the second run: %+v of %v, the first %+v", warm, fields["kept_bytes"], cold)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	_, other := estimateJSON(t, "--history", dir+"2", "--history-size", "16MiB", two)
	if other[0].Out < cold[0].Out/2 {
		t.Errorf("another directory: %+v", other)
	}
}

// TestEstimateNoStore: a history that cannot be kept is refused, not forgotten.
func TestEstimateNoStore(t *testing.T) {
	one, _ := estimateFiles(t)
	code, stdout, stderr := stitch("estimate", "--history", one, "--history-size", "16MiB", one)
	if code != 2 || stdout != "" || !strings.HasPrefix(stderr, "stitch: estimate: the history cannot be kept: ") || !strings.HasSuffix(stderr, "stitch: give another directory with --history, or none\n") {
		t.Errorf("a file as directory: %d %q%q", code, stdout, stderr)
	}
}

// TestProgress looks at the line on a terminal, and for none elsewhere.
func TestProgress(t *testing.T) {
	var b bytes.Buffer
	if p := newProgress(&b, 100); p.w != nil {
		t.Error("a buffer is taken for a terminal")
	}
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo-terminal here: ", err)
	}
	defer pty.Close()
	if p := newProgress(pty, 100); p.w == nil {
		t.Error("a terminal is not noticed")
	}
	p := &progress{w: &b, name: "a\nb", total: 4_000_000}
	r := watched{bytes.NewReader(make([]byte, 3_000_000)), p}
	if n, err := r.Read(make([]byte, 3_000_000)); n != 3_000_000 || err != nil {
		t.Fatal(n, err)
	}
	p.end()
	if want := "\r\x1b[K[======================        ]  75%  3 MB  a?b\r\x1b[K"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
	p.total = -1
	if got, want := p.line(), "3 MB  a?b"; got != want {
		t.Errorf("without a size: %q, want %q", got, want)
	}
}
