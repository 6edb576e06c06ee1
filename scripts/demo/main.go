// Demo shows the mission of stitch on one machine: a real virtual machine moves
// from one site to the other and back while its clients stay connected, first
// through stitch, then once through plain WireGuard for comparison. It prints
// what happened, writes build/demo/report.json and build/demo/report.html, and
// exits with 1 if anything was not as promised.
//
// It needs root and what scripts/setup installs, and is run from the
// repository's root: `sudo make demo`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"stitch/scripts/program"
)

// options of one run, from the command line.
type options struct {
	rate      int64 // bit/s
	rtt       time.Duration
	clients   int
	skipPlain bool
	lab       string // its name
	out       string
}

func main() { program.Main("demo", run) }

// run does the whole demo. Whatever it started is gone when it returns.
func run(ctx context.Context, args []string) error {
	var o options
	f := flag.NewFlagSet("stitch-demo", flag.ContinueOnError)
	mbit := f.Int64("mbit", 100, "rate of the WAN in Mbit/s")
	f.DurationVar(&o.rtt, "rtt", 40*time.Millisecond, "round-trip time of the WAN")
	f.IntVar(&o.clients, "clients", 20, "long-lived client connections")
	f.BoolVar(&o.skipPlain, "skip-plain", false, "leave out the comparison with plain WireGuard")
	f.StringVar(&o.lab, "lab", "stitch", "name of the lab, for a second one on the machine")
	f.StringVar(&o.out, "out", "build/demo", "directory of the reports")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("unknown argument %q: see -help", f.Arg(0))
	}
	if *mbit < 1 || *mbit > 10_000 || o.clients < 1 || o.clients > 1000 || o.rtt < 0 || o.rtt > time.Second {
		return errors.New("out of range: -mbit 1 to 10000, -clients 1 to 1000, -rtt 0 to 1s")
	}
	o.rate = *mbit * 1_000_000
	if os.Getuid() != 0 {
		return errors.New("needs root for network namespaces: run `sudo make demo`")
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	con := newConsole(os.Stderr)
	report, err := newDemo(o, con).play(ctx)
	con.end()
	if ctx.Err() != nil {
		return errors.Join(errors.New("interrupted; what it started is removed"), err)
	}
	if report != nil && len(report.Moves) > 0 {
		err = errors.Join(err, report.write(o.out))
		report.print(os.Stdout)
		fmt.Printf("\nreports: %s/report.json, %s/report.html\n", o.out, o.out)
	}
	if err == nil && !report.passed() {
		err = errors.New("not all checks passed")
	}
	return err
}
