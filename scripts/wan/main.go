// Wan compares stitch with plain WireGuard over long ways: the same captured
// migration streams, and data that no codec makes smaller, from one unmodified
// host to another over emulated WANs in network namespaces; through wireguard-go
// with hosts on CUBIC and on BBR, and through stitch with hosts on CUBIC. What
// arrives is held against what was sent by its SHA-256.
//
// The table has a row for each link and kind of data. Plain WireGuard does not look
// at the data: it carries the first migration, and incompressible data where that is
// too soon over for a rate; other cells are computed from these by the number of
// bytes, and have a "~". stitch carries everything, in the table's order but
// incompressible data last, over agents that have just started; "seeded" is in a lab
// of its own, after `stitch seed` of the guests' image. The aims are evaluated, and
// those that are missed are printed as missed. Of the two returns, of a guest that had
// much to do meanwhile and of one that had little, it is also said what zstd
// --patch-from makes of them, and how fast that would be if it took no time.
//
// Sites, hosts and emulator share the machine's processors. How busy these were is
// in the table: a figure near 100 % is the machine's and not the WAN's.
//
// It needs root and what `make corpus` captured, and is run from the repository's
// root: `sudo make wan`. It takes about 50 minutes; with -only a part of it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"time"

	"stitch/scripts/program"
)

// options of one run, from the command line.
type options struct {
	only   *regexp.Regexp
	corpus string
	limit  time.Duration
	json   string
}

func main() { program.Main("wan", run) }

// run measures and prints. Aims that are missed are in the report, and no
// error. Whatever it started is gone when it returns.
func run(ctx context.Context, args []string) error {
	var o options
	f := flag.NewFlagSet("stitch-wan", flag.ContinueOnError)
	only := f.String("only", "", "measure only what matches, such as \"T3, stitch, seeded\": "+
		"a link's name; plain CUBIC, plain BBR or stitch; migrations, seeded or incompressible")
	f.StringVar(&o.corpus, "corpus", "build/corpus", "directory with what `make corpus` captured")
	f.DurationVar(&o.limit, "limit", 100*time.Second, "cut a transfer off after so long")
	f.StringVar(&o.json, "json", "", "write the report to this file too; - is standard output, and no table")
	if err := f.Parse(args); err != nil {
		return err
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if f.NArg() > 0 || o.limit < windowEnd || o.limit > time.Hour {
		return fmt.Errorf("out of range: -limit %v to 1h, and no arguments: see -help", windowEnd)
	}
	if os.Getuid() != 0 {
		return errors.New("needs root for network namespaces: run `sudo make wan`")
	}
	report, err := measure(ctx, o)
	if ctx.Err() != nil {
		return errors.New("interrupted; what it started is removed")
	}
	if report != nil && len(report.Runs) > 0 {
		report.compare()
		err = errors.Join(err, o.write(report))
	}
	return err
}

// write prints the report.
func (o options) write(r *Report) error {
	if o.json != "-" {
		r.print(os.Stdout)
	}
	return program.WriteReport(o.json, r)
}
