// Versus compares stitch with what an operator can have without it: the layer-2
// stretch one builds by hand (VXLAN over wireguard-go), hosts on BBR, and QEMU,
// NBD, rsync and PostgreSQL with the data reduction they bring themselves. Both
// sides do the same work in the same run, one after the other, over the same
// emulated WAN in network namespaces: a virtual machine's first move, its return,
// a sibling's move, its disk, a source tree and its next version, and a database
// copied twice. On a T3 line plain WireGuard is there too, and a guest that
// changes its memory faster than the line can carry it. At last guests move through
// stitch over a T3, and over a line without a tunnel that is as fast as that was:
// how long each is stopped, and what its hypervisor believed of the path.
//
// Every guest is restored from a snapshot, so all move the same machine. The
// table has all rows, and says in which of them stitch loses. The figures belong
// to the machine: sites, guests and emulator share its processors.
//
// It needs root, and is run from the repository's root: `sudo make versus`.
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
	wan   line
	dwell time.Duration
	only  *regexp.Regexp
	// repeat is how often downtimes are measured.
	repeat int
	json   string
}

// line is a WAN.
type line struct {
	Rate int64         `json:"bit_per_s"`
	RTT  time.Duration `json:"rtt_ns"`
}

func (l line) String() string {
	return fmt.Sprintf("%d Mbit/s, %v", l.Rate/1_000_000, l.RTT)
}

// t3 is the line that F5 and VMware published figures for in 2010.
var t3 = line{45_000_000, 100 * time.Millisecond}

func main() { program.Main("versus", run) }

// run measures and prints. Aims that are missed are in the report, and no
// error. Whatever it started is gone when it returns.
func run(ctx context.Context, args []string) error {
	var o options
	f := flag.NewFlagSet("stitch-versus", flag.ContinueOnError)
	mbit := f.Int64("mbit", 100, "rate of the WAN in Mbit/s, but of the T3 rows")
	f.DurationVar(&o.wan.RTT, "rtt", 40*time.Millisecond, "round-trip time of the WAN, but of the T3 rows")
	f.DurationVar(&o.dwell, "dwell", 30*time.Second, "how long a guest writes between its way there and back")
	f.IntVar(&o.repeat, "repeat", 1, "how often downtimes are compared")
	only := f.String("only", "", "measure only what matches, such as \"moves, stitch, QEMU\" or \"downtime, .*60\"; parts are moves, disk, rsync, backup, T3, busy, downtime")
	f.StringVar(&o.json, "json", "", "write the report to this file too")
	if err := f.Parse(args); err != nil {
		return err
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if f.NArg() > 0 || *mbit < 1 || *mbit > 10_000 || o.wan.RTT < 0 || o.wan.RTT > time.Second || o.dwell < 0 || o.dwell > time.Hour {
		return errors.New("out of range: -mbit 1 to 10000, -rtt 0 to 1s, -dwell 0 to 1h, and no arguments: see -help")
	}
	o.wan.Rate = *mbit * 1_000_000
	if os.Getuid() != 0 {
		return errors.New("needs root for network namespaces: run `sudo make versus`")
	}
	report, err := measure(ctx, o)
	if ctx.Err() != nil {
		return errors.New("interrupted; what it started is removed")
	}
	if report != nil && len(report.Rows)+len(report.Stops) > 0 {
		err = errors.Join(err, program.WriteReport(o.json, report))
		report.print(os.Stdout)
	}
	return err
}
