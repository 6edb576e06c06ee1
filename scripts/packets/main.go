// Packets measures what a packet costs on its way through a tunnel: stitch's
// layer 3 and layer 2 (interception off) next to wireguard-go's own program,
// to kernel VXLAN over that, which is the stretch one builds by hand, and to
// OpenVPN with a TAP. All tunnels are up at the same time, each between two
// sites of its own in network namespaces that are joined by a plain veth, and
// each round measures one after the other; the table has medians.
//
// The figures belong to the machine and to what else it does: tunnels, senders
// and receivers share its processors. Compare them by ratio, within one run.
//
// It needs root, and is run from the repository's root: `sudo make packets`.
// OpenVPN is left out, and that is said, if it is not installed.
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
	rounds int
	length time.Duration // of one measurement
	json   string
	only   *regexp.Regexp
	among  *regexp.Regexp // tunnels
	pack   bool
}

func main() { program.Main("packets", run) }

// run measures and prints. Aims that are missed are in the report, and no
// error. Whatever it started is gone when it returns.
func run(ctx context.Context, args []string) error {
	var o options
	f := flag.NewFlagSet("stitch-packets", flag.ContinueOnError)
	f.IntVar(&o.rounds, "rounds", 5, "how often each tunnel is measured")
	f.DurationVar(&o.length, "length", 2*time.Second, "how long one TCP or UDP measurement takes")
	f.StringVar(&o.json, "json", "", "write the report to this file too; - is standard output, and no table")
	only := f.String("only", "", "measure only what matches, of: "+fmt.Sprint(loads)+"; with -pack of the paths")
	among := f.String("tunnels", "", "measure only the tunnels whose names match, such as '^stitch' for layer 3 against layer 2")
	f.BoolVar(&o.pack, "pack", false, "compare stitch with and without compressed packets instead, over a WAN and without one")
	if err := f.Parse(args); err != nil {
		return err
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if o.among, err = regexp.Compile(*among); err != nil {
		return fmt.Errorf("-tunnels: %w", err)
	}
	if f.NArg() > 0 || o.rounds < 1 || o.rounds > 1000 || o.length < 100*time.Millisecond || o.length > time.Minute {
		return errors.New("out of range: -rounds 1 to 1000, -length 100ms to 1m, and no arguments: see -help")
	}
	if os.Getuid() != 0 {
		return errors.New("needs root for network namespaces: run `sudo make packets`")
	}
	if o.pack {
		return measurePack(ctx, o, os.Stdout)
	}
	report, err := measure(ctx, o)
	if ctx.Err() != nil {
		return errors.New("interrupted; what it started is removed")
	}
	if err != nil {
		return err
	}
	return o.write(report)
}

// write prints the report.
func (o options) write(r *Report) error {
	if o.json != "-" {
		r.print(os.Stdout)
	}
	return program.WriteReport(o.json, r)
}
