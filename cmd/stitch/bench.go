package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"stitch/tunnel/bench"
	"stitch/tunnel/config"
	"stitch/tunnel/control"
	"stitch/tunnel/wan"
)

func benchCommand() *cli.Command {
	return &cli.Command{
		Name:      "bench",
		Usage:     "measure the path to a peer, or what a WAN gives through stitch and through plain WireGuard",
		ArgsUsage: "[PEER]",
		Description: "With PEER it measures the path between two agents that run, from the edge host of\n" +
			"one of them, and asks the other one for its part: rate, loss, jitter and round trips\n" +
			"of the path, how many packets a second cross, what a stream brings across of\n" +
			"incompressible data, of typical data and of the same again, and round trips beside\n" +
			"that. It fills the path for some 4 times --length and half a minute: other traffic is\n" +
			"slower meanwhile. Nothing of it stays in the histories, and Ctrl-C ends it at both\n" +
			"sites. Streams need a [[stream]] or [[dial]] rule for the peer at both.\n\n" +
			"With --lab it builds the lab of `stitch lab` on this machine with a WAN of the given\n" +
			"rate, round-trip time and loss each way, and sends the same data over it: through\n" +
			"plain userspace WireGuard between hosts on CUBIC and on BBR, then through stitch,\n" +
			"whose hosts know nothing of it. A fourth number makes the WAN lose so many packets\n" +
			"at a time, on average. It takes some 8 times --length and a minute, at most 22\n" +
			"times. All share this machine: above some 500 Mbit/s the figures are the machine's.\n\n" +
			"At the end it says how the migration of a virtual machine would go. It needs root.\n" +
			"Data is made unless --file names some, such as a memory image.\n\n" +
			"Examples:\n" +
			"  sudo stitch bench dc2\n" +
			"  sudo stitch bench --length 5s --html dc2.html --memory 16GiB --dirty 10MiB dc2\n" +
			"  sudo stitch bench --lab 100mbit,80ms,0.1%\n" +
			"  sudo stitch bench --lab 100mbit,80ms,1%,5 --file vm.raw --json",
		Flags: append(whichAgent(),
			&cli.StringFlag{Name: "lab", Usage: "the WAN: `RATE,RTT,LOSS[,BURST]`"},
			&cli.DurationFlag{Name: "length", Value: 10 * time.Second, Usage: "`TIME` a transfer takes at the rate of the path, 1s to 2m; it is cut off after three times that"},
			&cli.StringFlag{Name: "limit", Usage: "with --lab, `RATE` of stitch's links, as rate in [[peer]]: a little less than the WAN's, such as 98mbit, or \"off\"; without it they find one out"},
			&cli.StringFlag{Name: "file", Usage: "send `FILE` (up to 1 GiB, to a PEER 96 MiB) in place of made data"},
			&cli.StringFlag{Name: "memory", Value: "4GiB", Usage: "`SIZE` of the machine whose migration is forecast"},
			&cli.StringFlag{Name: "dirty", Value: "5MiB", Usage: "`SIZE` of the memory that it writes each second"},
			&cli.BoolFlag{Name: "json", Usage: "print the result as JSON"},
			&cli.StringFlag{Name: "html", Usage: "write a page with plots to `FILE` too"},
		),
		Action: runBench,
	}
}

// maxBenchLength bounds --length, and with it the memory and the time needed.
const maxBenchLength = 2 * time.Minute

// runBench is the command.
func runBench(c *cli.Context) error {
	o, err := benchFlags(c)
	if err != nil {
		return refusal{err}
	}
	measure := o.lab
	if c.NArg() > 0 {
		measure = o.live
	}
	if err := needRoot(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := measure(ctx, c)
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted; nothing of it goes on")
	case err != nil:
		return err
	}
	if name := c.String("html"); name != "" {
		if err := writeBenchPage(name, r); err != nil {
			return err
		}
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, r)
	}
	return printBench(c.App.Writer, r)
}

// benchOptions are the flags.
type benchOptions struct {
	labOf  bench.Config // without --lab: only what both need
	length time.Duration
	file   string
	vm     bench.VM
}

// benchFlags reads the flags.
func benchFlags(c *cli.Context) (o benchOptions, err error) {
	lab := c.String("lab")
	switch {
	case c.NArg() > 1:
		return o, fmt.Errorf("one PEER, not %d: %s", c.NArg(), strings.Join(c.Args().Slice(), " "))
	case c.NArg() == 1 && lab != "":
		return o, fmt.Errorf("PEER %q and --lab exclude each other: choose one", c.Args().First())
	case c.NArg() == 0 && lab == "":
		return o, errors.New("name a PEER whose agent runs, or write --lab RATE,RTT,LOSS")
	}
	memory, errMemory := config.ParseSize(c.String("memory"))
	dirty, errDirty := config.ParseSize(c.String("dirty"))
	if err := errors.Join(errMemory, errDirty); err != nil {
		return o, err
	}
	o = benchOptions{length: c.Duration("length"), file: c.String("file"), vm: bench.VM{Memory: memory, Dirty: dirty, Downtime: 300 * time.Millisecond}}
	if o.length < time.Second || o.length > maxBenchLength {
		return o, fmt.Errorf("--length %v: choose 1s to %v", o.length, maxBenchLength)
	}
	if o.file != "" {
		if fi, err := os.Stat(o.file); err != nil {
			return o, err
		} else if !fi.Mode().IsRegular() || fi.Size() == 0 {
			return o, fmt.Errorf("--file %s: not a regular file with something in it", o.file)
		}
	}
	limit := c.String("limit")
	switch {
	case lab == "" && limit != "":
		return o, errors.New("--limit is for --lab: the rate of a link that runs is in its [[peer]]")
	case lab == "":
		return o, nil
	}
	if o.labOf, err = labFlag(lab); err != nil {
		return o, err
	}
	if o.labOf.Limit = limit; limit != "" && limit != "learn" && limit != "off" {
		_, err = wan.ParseRate(limit)
	}
	return o, err
}

// labFlag reads --lab.
func labFlag(text string) (cfg bench.Config, err error) {
	parts := strings.Split(text, ",")
	if len(parts) != 3 && len(parts) != 4 {
		return cfg, fmt.Errorf("--lab %q: write rate, round-trip time and loss, such as 100mbit,80ms,0.1%%", text)
	}
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	var errRate, errRTT, errLoss, errBurst error
	cfg.Rate, errRate = wan.ParseRate(parts[0])
	cfg.RTT, errRTT = time.ParseDuration(parts[1])
	cfg.Loss, errLoss = wan.ParseLoss(parts[2])
	if len(parts) == 4 {
		cfg.Burst, errBurst = strconv.ParseFloat(parts[3], 64)
		if errBurst == nil && !(cfg.Burst >= 1 && cfg.Burst <= 1000) {
			errBurst = fmt.Errorf("--lab: bursts of %s packets: use 1 to 1000", parts[3])
		}
	}
	if err := errors.Join(errRate, errRTT, errLoss, errBurst); err != nil {
		return cfg, err
	}
	if cfg.Rate == 0 {
		return cfg, errors.New("--lab needs a rate, such as 100mbit")
	}
	return cfg, nil
}

// lab measures in the lab.
func (o benchOptions) lab(ctx context.Context, c *cli.Context) (*bench.Report, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cfg := o.labOf
	cfg.Length, cfg.File, cfg.VM, cfg.Stitch = o.length, o.file, o.vm, exe
	line := newSteps(c.App.ErrWriter, 10*o.length+time.Minute)
	defer line.end()
	cfg.Progress = line.step
	return bench.RunLab(ctx, cfg)
}

// live measures the path to a peer.
func (o benchOptions) live(ctx context.Context, c *cli.Context) (*bench.Report, error) {
	dir, err := agentDir(c.String("site"), c.String("run-dir"))
	if err != nil {
		return nil, err
	}
	peer := c.Args().First()
	expected := 4*o.length + 30*time.Second
	fmt.Fprintf(c.App.ErrWriter, "measuring the path to %s for about %v: it is filled, and other traffic on it is slower meanwhile\n", printable(peer), expected.Round(time.Second))
	line := newSteps(c.App.ErrWriter, expected)
	defer line.end()
	r, err := bench.RunPeer(ctx, bench.PeerConfig{Dir: dir, Peer: peer, Length: o.length, File: o.file, VM: o.vm, Progress: line.step})
	if errors.Is(err, control.ErrNotRunning) {
		return nil, hint{err, "start it with `stitch up CONFIG`"}
	}
	return r, err
}
