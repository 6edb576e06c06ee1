package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"stitch/tunnel/stream/block"
)

// Report is the outcome of one run.
type Report struct {
	Zstd     string     `json:"zstd"`
	Go       string     `json:"go"`
	Runs     int        `json:"runs"`
	Rows     []Row      `json:"rows"`
	Matching []Matching `json:"matching"`
	Links    []Link     `json:"links"`
	Aims     []Aim      `json:"aims"`
	Skipped  []string   `json:"skipped,omitempty"`
}

// Row is one case, measured on both sides.
type Row struct {
	Case    string    `json:"case"`
	Bytes   int64     `json:"bytes"` // of the input
	Ours    Side      `json:"ours"`
	Zstd    Side      `json:"zstd"`
	Patch   bool      `json:"patch_from"` // zstd was given what was sent before
	Matched int64     `json:"matched_bytes"`
	Zero    int64     `json:"zero_bytes"`
	Codecs  block.Mix `json:"codecs"`
}

// speed is a side's encoding speed in MB/s.
func (r *Row) speed(s Side) float64 { return mbs(r.Bytes, s.Encode) }

func mbs(n int64, seconds float64) float64 {
	if seconds <= 0 {
		return 0
	}
	return float64(n) / 1e6 / seconds
}

// Aim is a bound and whether it was met.
type Aim struct {
	What string  `json:"what"`
	Want float64 `json:"want"`
	Got  float64 `json:"got"`
	Most bool    `json:"at_most"` // else at least
	Met  bool    `json:"met"`
}

func atMost(what string, got, want float64) Aim { return Aim{what, want, got, true, got <= want} }

func atLeast(what string, got, want float64) Aim { return Aim{what, want, got, false, got >= want} }

// judge holds an aim against a row.
func (a aim) judge(r *Row) Aim {
	in, out := float64(r.Bytes), float64(r.Ours.Bytes)
	peer := "zstd"
	if r.Patch {
		peer = "zstd --patch-from"
	}
	switch {
	case a.bytes > 0:
		return atMost(r.Case+": bytes, of "+peer, out/float64(r.Zstd.Bytes), a.bytes)
	case a.speed > 0:
		return atLeast(r.Case+": encoding speed, of "+peer, r.speed(r.Ours)/r.speed(r.Zstd), a.speed)
	case a.ratio > 0:
		return atLeast(r.Case+": bytes in for each byte out", in/out, a.ratio)
	}
	return atMost(r.Case+": bytes out, of bytes in", out/in, 1+a.extra)
}

// String is the aim's line.
func (a Aim) String() string {
	word, bound := "miss", "at least"
	if a.Met {
		word = "pass"
	}
	if a.Most {
		bound = "at most"
	}
	return fmt.Sprintf("%s  %s: %.4g (%s %.4g)", word, a.What, a.Got, bound, a.Want)
}

// print writes the report for people.
func (rep *Report) print(w io.Writer) error {
	fmt.Fprintf(w, "bytes and processor time against %s, -3 --long=31 --single-thread (+: --patch-from); median of %d\n\n", rep.Zstd, rep.Runs)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")) }
	line("IN kB", "OUT kB", "ZSTD kB", "OF ZSTD", "RATIO", "ENC MB/s", "ZSTD", "TIMES", "DEC MB/s", "ZSTD", "  CASE")
	for i := range rep.Rows {
		line(rep.Rows[i].cells()...)
	}
	if len(rep.Matching) > 0 {
		line("\nMATCHING ALONE", "FRESH MB/s", "AGAIN MB/s", "INDEX", "  DATA")
	}
	for _, m := range rep.Matching {
		line(kB(m.Bytes), fmt.Sprintf("%.0f", m.Fresh), fmt.Sprintf("%.0f", m.Repeated), fmt.Sprintf("%.1f%%", 100*m.Index), "  "+m.Data)
	}
	if len(rep.Links) > 0 {
		line("\nCOLD OVER A LINK, kB", "OUT kB", "ENC MB/s", "DEC MB/s", "PLAIN", "STITCH", "  LINK")
	}
	for _, l := range rep.Links {
		line(kB(l.Bytes), kB(l.Ours.Bytes), fmt.Sprintf("%.0f", mbs(l.Bytes, l.Ours.Encode)), fmt.Sprintf("%.0f", mbs(l.Bytes, l.Ours.Decode)),
			fmt.Sprintf("%.2f s", l.Plain), fmt.Sprintf("%.2f s", l.Stitch), fmt.Sprintf("  %.0f Mbit/s", l.Mbit))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, a := range rep.Aims {
		fmt.Fprintln(w, a)
	}
	for _, s := range rep.Skipped {
		fmt.Fprintln(w, s)
	}
	return nil
}

// cells are r's row.
func (r *Row) cells() []string {
	name := "  " + r.Case
	if r.Patch {
		name += " +"
	}
	times := func(a, b float64) string { return fmt.Sprintf("%.2fx", a/b) }
	whole := func(v float64) string { return fmt.Sprintf("%.0f", v) }
	return []string{
		kB(r.Bytes), kB(r.Ours.Bytes), kB(r.Zstd.Bytes), times(float64(r.Ours.Bytes), float64(r.Zstd.Bytes)),
		times(float64(r.Bytes), float64(r.Ours.Bytes)),
		whole(r.speed(r.Ours)), whole(r.speed(r.Zstd)), times(r.speed(r.Ours), r.speed(r.Zstd)),
		whole(mbs(r.Bytes, r.Ours.Decode)), whole(mbs(r.Bytes, r.Zstd.Decode)), name,
	}
}

// kB writes bytes in thousands.
func kB(n int64) string { return fmt.Sprintf("%.1f", float64(n)/1000) }
