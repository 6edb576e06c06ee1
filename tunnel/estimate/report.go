package estimate

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"stitch/tunnel/stream/block"
)

// File is what carrying one file, or all of them, took.
type File struct {
	Name     string  `json:"name"`
	BytesIn  int64   `json:"bytes_in"`
	BytesOut int64   `json:"bytes_out"` // everything handed to the transport
	Ratio    float64 `json:"ratio"`     // in for each byte out
	// Bytes of the input that were found in the history, are runs of zeros,
	// and are carried themselves.
	MatchedBytes int64 `json:"matched_bytes"`
	ZeroBytes    int64 `json:"zero_bytes"`
	LiteralBytes int64 `json:"literal_bytes"`
	// Millions of input bytes for each second of processor time.
	EncodeMBs float64 `json:"encode_mb_s"`
	DecodeMBs float64 `json:"decode_mb_s"`
	EncodeCPU float64 `json:"encode_cpu_seconds"`
	DecodeCPU float64 `json:"decode_cpu_seconds"`
	// How the literals and tokens were carried: bytes into and out of each codec.
	Codecs block.Mix `json:"codecs"`
	// Resent counts blocks that had to be sent again.
	Resent int64 `json:"resent_blocks"`
	// Seconds over the link as it is and through stitch; only with a link.
	PlainSeconds float64 `json:"plain_seconds,omitempty"`
	LinkSeconds  float64 `json:"link_seconds,omitempty"`
}

// Report is the answer of `stitch estimate`; as JSON it is stable.
type Report struct {
	Files        []File `json:"files"`
	Total        File   `json:"total"`
	SeedBytes    int64  `json:"seed_bytes,omitempty"` // put in the history first
	KeptBytes    int64  `json:"kept_bytes,omitempty"` // were there from an earlier run
	HistoryBytes int64  `json:"history_bytes"`        // of each agent, each direction
	Link         int64  `json:"link_bits,omitempty"`  // bits per second; 0: none given
	PeakRSS      int64  `json:"peak_rss_bytes"`       // of both agents together
}

// NewReport describes the results of files with these names, in order. link is
// in bits per second, 0 if there is none.
func NewReport(names []string, results []Result, history, link int64) *Report {
	rep := &Report{Files: []File{}, HistoryBytes: history, Link: link}
	var total Result
	for i, r := range results {
		total.Add(r)
		rep.Files = append(rep.Files, newFile(names[i], r, link))
	}
	rep.Total = newFile("total", total, link)
	return rep
}

func newFile(name string, r Result, link int64) File {
	f := File{
		Name: name, BytesIn: r.In, BytesOut: r.Out,
		MatchedBytes: r.Matched, ZeroBytes: r.Zero, LiteralBytes: r.Literal,
		EncodeMBs: rate(r.In, r.Encode), EncodeCPU: r.Encode.Seconds(),
		DecodeMBs: rate(r.In, r.Decode), DecodeCPU: r.Decode.Seconds(),
		Codecs: r.Mix, Resent: r.Resent,
	}
	if r.Out > 0 {
		f.Ratio = float64(r.In) / float64(r.Out)
	}
	if link > 0 {
		f.PlainSeconds = float64(8*r.In) / float64(link)
		f.LinkSeconds = max(float64(8*r.Out)/float64(link), f.EncodeCPU, f.DecodeCPU)
	}
	return f
}

// rate is n bytes in d as MB/s; 0 if the time was not measured.
func rate(n int64, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(n) / 1e6 / d.Seconds()
}

// Print writes the report for people.
func (rep *Report) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, strings.Join([]string{"IN", "OUT", "RATIO", "MATCHED", "ZERO", "LITERAL", "ENCODE", "DECODE", "CPU", "CODECS", "  FILE"}, "\t"))
	rows := rep.Files
	if len(rows) != 1 {
		rows = append(rows[:len(rows):len(rows)], rep.Total)
	}
	for i := range rows {
		fmt.Fprintln(t, strings.Join(rows[i].cells(), "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(w, rep.notes())
	return err
}

// cells are f's row.
func (f *File) cells() []string {
	share := func(n int64) string { return percent(n, f.BytesIn) }
	return []string{
		bytesText(f.BytesIn), bytesText(f.BytesOut), ratioText(f.Ratio),
		share(f.MatchedBytes), share(f.ZeroBytes), share(f.LiteralBytes),
		speedText(f.EncodeMBs), speedText(f.DecodeMBs), fmt.Sprintf("%.2f s", f.EncodeCPU+f.DecodeCPU),
		codecsText(f.Codecs), "  " + nameText(f.Name),
	}
}

// notes is what is to be known about the table.
func (rep *Report) notes() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nEvery byte came out of the decoder as it went in. MB/s: input for each second of one processor.\n")
	fmt.Fprintf(&b, "History: %d MiB for each direction; peak memory of both sites together: %s.\n", rep.HistoryBytes>>20, bytesText(rep.PeakRSS))
	if rep.KeptBytes > 0 {
		fmt.Fprintf(&b, "%s of it were there from earlier runs.\n", bytesText(rep.KeptBytes))
	}
	if rep.SeedBytes+rep.Total.BytesIn > rep.HistoryBytes/8*7 {
		fmt.Fprintf(&b, "The files are larger than the history: what was sent first was forgotten. A larger --history-size may find more.\n")
	}
	if rep.Link > 0 {
		fmt.Fprintf(&b, "At %g Mbit/s: %.1f s as it is, %.1f s through stitch.\n", float64(rep.Link)/1e6, rep.Total.PlainSeconds, rep.Total.LinkSeconds)
	}
	return b.String()
}

// bytesText writes a number of bytes with a decimal unit, as the speeds have.
func bytesText(n int64) string {
	units := [...]string{"kB", "MB", "GB", "TB"}
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, u := float64(n)/1000, 0
	for v >= 999.95 && u < len(units)-1 {
		v, u = v/1000, u+1
	}
	return fmt.Sprintf("%.1f %s", v, units[u])
}

func ratioText(r float64) string {
	switch {
	case r == 0:
		return "-"
	case r < 100:
		return fmt.Sprintf("%.2fx", r)
	}
	return fmt.Sprintf("%.0fx", r)
}

func percent(n, of int64) string {
	if of == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(n)/float64(of))
}

func speedText(mbs float64) string {
	if mbs == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f MB/s", mbs)
}

// codecsText writes the share of each codec that was used.
func codecsText(m block.Mix) string {
	zstd := m.Zstd.In + m.Carried.In
	total := m.Raw.In + m.S2.In + zstd
	var used []string
	for _, c := range []struct {
		name string
		in   int64
	}{{"zstd", zstd}, {"s2", m.S2.In}, {"raw", m.Raw.In}} {
		if c.in > 0 {
			used = append(used, fmt.Sprintf("%s %.0f%%", c.name, 100*float64(c.in)/float64(total)))
		}
	}
	if len(used) == 0 {
		return "-"
	}
	return strings.Join(used, " ")
}

// nameText writes a file's name so that it cannot disturb a terminal.
func nameText(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return strconv.Quote(name)
	}
	return name
}
