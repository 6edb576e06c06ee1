package main

import (
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"

	"stitch/scripts/program"
	"stitch/tunnel/estimate"
)

// bench is one run of the program.
type bench struct {
	program.Progress
	options
	report *Report
}

// describe notes what the figures were measured with.
func (b *bench) describe() error {
	out, err := exec.Command("zstd", "--version").Output()
	if err != nil {
		return fmt.Errorf("zstd is needed (scripts/setup codec): %w", err)
	}
	b.report.Zstd = zstdVersion(string(out))
	b.report.Go = runtime.Version()
	b.report.Runs = b.runs
	return nil
}

// all measures every case.
func (b *bench) all() error {
	all := slices.DeleteFunc(cases(b.corpus), func(c comparison) bool { return !b.only.MatchString(c.name) })
	for i, c := range all {
		b.Say("%d of %d: %s", i+1, len(all), c.name)
		if err := b.compare(&c); err != nil {
			return err
		}
	}
	if err := b.matching(); err != nil {
		return err
	}
	return b.links()
}

// skip says that a case is left out.
func (b *bench) skip(name string, why error) {
	note := fmt.Sprintf("%s left out: %v", name, why)
	b.report.Skipped = append(b.report.Skipped, note)
	b.Say("%s", note)
}

// compare measures a case on both sides and judges it.
func (b *bench) compare(c *comparison) error {
	if err := c.missing(); err != nil {
		b.skip(c.name, err)
		return nil
	}
	in, err := sizes(c.files)
	if err != nil {
		return err
	}
	var us, peer []Side
	results := map[Side]estimate.Result{}
	for range b.runs {
		u, r, err := ours(c)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		results[u] = r
		p, err := zstd(b.work, c)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		us, peer = append(us, u), append(peer, p)
		runtime.GC() // lets the histories go
	}
	row := Row{Case: c.name, Bytes: in, Ours: median(us), Zstd: median(peer), Patch: c.patch != ""}
	r := results[row.Ours]
	row.Matched, row.Zero, row.Codecs = r.Matched, r.Zero, r.Mix
	b.report.Rows = append(b.report.Rows, row)
	b.Say("   %.2f of zstd's bytes at %.1f times its speed", float64(row.Ours.Bytes)/float64(row.Zstd.Bytes), row.speed(row.Ours)/row.speed(row.Zstd))
	for _, a := range c.aims {
		b.report.Aims = append(b.report.Aims, a.judge(&row))
	}
	return nil
}

// median returns the side with the median encoding time.
func median(s []Side) Side {
	s = slices.Clone(s)
	slices.SortFunc(s, func(a, b Side) int {
		switch {
		case a.Encode < b.Encode:
			return -1
		case a.Encode > b.Encode:
			return 1
		}
		return 0
	})
	return s[len(s)/2]
}

// zstdVersion finds the version in what `zstd --version` says.
func zstdVersion(says string) string {
	for word := range strings.FieldsSeq(says) {
		if strings.HasPrefix(word, "v") {
			return "zstd " + strings.Trim(word, "v,")
		}
	}
	return "zstd"
}
