// Codec measures the codec against zstd, on the migration streams and other data
// of a corpus, and prints one row for each case with both sides of it measured
// in this run, and whether each aim was met.
//
// What is compared is bytes and processor time. Ours are all bytes both sites
// hand to the transport (package estimate); zstd's are its file. Ours is the
// processor time of encoding or decoding; zstd's is that of its single thread,
// in user mode and in the kernel, less what reading the same files costs `cat`.
// Both sides run -n times in turn, and the run with the median time counts; bytes are
// the same in every run.
// Every output is decoded and compared.
//
// It needs zstd (scripts/setup codec) and a corpus (`make corpus`); cases whose
// files are missing are said and left out. Run it from the repository's root:
// `make codec-bench`.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"

	"stitch/scripts/program"
)

// options of one run, from the command line.
type options struct {
	corpus string
	work   string
	json   string
	only   *regexp.Regexp
	runs   int
}

func main() {
	if err := run(os.Args[1:]); errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "codec:", err)
		os.Exit(1)
	}
}

// run measures and prints. Aims that are missed are in the report, and no error.
func run(args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.work, 0o755); err != nil {
		return err
	}
	b := &bench{options: o, report: &Report{}, Progress: program.Begin()}
	if err := b.describe(); err != nil {
		return err
	}
	if err := b.all(); err != nil {
		return err
	}
	if err := program.WriteReport(o.json, b.report); err != nil {
		return err
	}
	return b.report.print(os.Stdout)
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("codec", flag.ContinueOnError)
	f.StringVar(&o.corpus, "corpus", "build/corpus", "directory of the streams and files")
	f.StringVar(&o.work, "work", "build/codec", "directory for scratch files")
	f.StringVar(&o.json, "json", "", "write the report as JSON to this file, too")
	f.IntVar(&o.runs, "n", 1, "runs of each side of each case; of 3 or more a busy machine spoils less")
	only := f.String("only", "", "measure only the cases that match this regular expression")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q: see -help", f.Arg(0))
	}
	if o.runs < 1 || o.runs > 100 {
		return o, errors.New("-n is the number of runs: 1 to 100")
	}
	var err error
	o.only, err = regexp.Compile(*only)
	return o, err
}
