package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"stitch/tunnel/bench"
	"stitch/tunnel/config"
	"stitch/tunnel/wan"
)

func benchCommand() *cli.Command {
	return &cli.Command{
		Name:  "bench",
		Usage: "measure what a WAN gives through stitch and through plain WireGuard",
		Description: "Builds the lab of `stitch lab` on this machine with a WAN of the given rate,\n" +
			"round-trip time and loss each way, and sends the same data over it: through plain\n" +
			"userspace WireGuard between hosts on CUBIC and on BBR, then through stitch, whose\n" +
			"hosts know nothing of it. Round trips of a small connection are timed while the\n" +
			"path is idle and while it is full. At the end it says how the migration of a\n" +
			"virtual machine would go. It needs root, and some 8 times\n" +
			"--length; at most 22 times.\n\n" +
			"Both sites, hosts and WAN share this machine: above some 500 Mbit/s the figures\n" +
			"are the machine's. Data is made unless --file names some, such as a memory image.\n\n" +
			"Examples:\n" +
			"  sudo stitch bench --lab 100mbit,80ms,0.1%\n" +
			"  sudo stitch bench --lab 45mbit,100ms,0 --file vm.raw --memory 16GiB --dirty 10MiB",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "lab", Usage: "the WAN: `RATE,RTT,LOSS`"},
			&cli.DurationFlag{Name: "length", Value: 10 * time.Second, Usage: "`TIME` a transfer takes at the rate of the WAN; it is cut off after three times that"},
			&cli.StringFlag{Name: "limit", Usage: "`RATE` of stitch's links, as rate in [[peer]]: a little less than the WAN's, such as 98mbit"},
			&cli.StringFlag{Name: "file", Usage: "send `FILE` (up to 1 GiB) in place of made data"},
			&cli.StringFlag{Name: "memory", Value: "4GiB", Usage: "`SIZE` of the machine whose migration is forecast"},
			&cli.StringFlag{Name: "dirty", Value: "5MiB", Usage: "`SIZE` of the memory that it writes each second"},
			&cli.BoolFlag{Name: "json", Usage: "print the result as JSON"},
		},
		Action: runBench,
	}
}

// maxBenchLength bounds --length, and with it the memory and the time needed.
const maxBenchLength = 2 * time.Minute

// runBench is the command.
func runBench(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	cfg, err := benchConfig(c)
	if err != nil {
		return refusal{err}
	}
	if err := needRoot(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(c.App.ErrWriter, nil))
	cfg.Progress = func(what string) { log.Info(what) }
	r, err := bench.Run(ctx, cfg)
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted; what was built is removed")
	case err != nil:
		return err
	case c.Bool("json"):
		return printJSON(c.App.Writer, r)
	}
	return printBench(c.App.Writer, r, cfg.VM)
}

// benchConfig reads the flags.
func benchConfig(c *cli.Context) (bench.Config, error) {
	parts := strings.Split(c.String("lab"), ",")
	if len(parts) != 3 {
		return bench.Config{}, fmt.Errorf("--lab %q: write rate, round-trip time and loss, such as 100mbit,80ms,0.1%%", c.String("lab"))
	}
	rate, errRate := wan.ParseRate(strings.TrimSpace(parts[0]))
	rtt, errRTT := time.ParseDuration(strings.TrimSpace(parts[1]))
	loss, errLoss := wan.ParseLoss(strings.TrimSpace(parts[2]))
	memory, errMemory := config.ParseSize(c.String("memory"))
	dirty, errDirty := config.ParseSize(c.String("dirty"))
	exe, errExe := os.Executable()
	if limit := c.String("limit"); limit != "" {
		_, errLimit := wan.ParseRate(limit)
		errExe = errors.Join(errExe, errLimit)
	}
	if err := errors.Join(errRate, errRTT, errLoss, errMemory, errDirty, errExe); err != nil {
		return bench.Config{}, err
	}
	length := c.Duration("length")
	switch {
	case rate == 0:
		return bench.Config{}, errors.New("--lab needs a rate, such as 100mbit")
	case length < time.Second || length > maxBenchLength:
		return bench.Config{}, fmt.Errorf("--length %v: choose 1s to %v", length, maxBenchLength)
	}
	if name := c.String("file"); name != "" {
		if fi, err := os.Stat(name); err != nil {
			return bench.Config{}, err
		} else if !fi.Mode().IsRegular() || fi.Size() == 0 {
			return bench.Config{}, fmt.Errorf("--file %s: not a regular file with something in it", name)
		}
	}
	return bench.Config{
		Rate: rate, RTT: rtt, Loss: loss, Length: length, Limit: c.String("limit"), File: c.String("file"), Stitch: exe,
		VM: bench.VM{Memory: memory, Dirty: dirty, Downtime: 300 * time.Millisecond},
	}, nil
}

// printBench writes a report for people.
func printBench(w io.Writer, r *bench.Report, vm bench.VM) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")) }
	fmt.Fprintf(t, "%.0f Mbit/s, %v, %.2g %% lost each way; all on one machine\n\n", float64(r.Rate)/1e6, r.RTT, r.Loss*100)
	row("DATA", "THROUGH", "MB/S", "OF THE LINE", "TIME", "ON THE WAN", "")
	base := map[string]float64{}
	for _, x := range r.Transfers {
		if x.Carrier == bench.PlainCubic {
			base[x.Data] = x.Rate()
		}
		if x.Data == bench.Repeated {
			base[x.Data] = base[bench.Typical]
		}
		note := ""
		if b := base[x.Data]; b > 0 && x.Carrier != bench.PlainCubic {
			note = fmt.Sprintf("%.1fx plain CUBIC", x.Rate()/b)
		}
		if !x.Finished {
			note = strings.TrimSpace(note + " (cut off)")
		}
		row(x.Data, x.Carrier, fmt.Sprintf("%.2f", x.Rate()/1e6), fmt.Sprintf("%.0f %%", x.Rate()*800/float64(r.Rate)),
			fmt.Sprintf("%.1f s", x.Seconds), size(int64(x.WAN)), note)
	}
	row("\nROUND TRIPS", "THROUGH", "P50", "P99", "MAX", "OF")
	for _, l := range r.Latencies {
		row(map[bool]string{false: "idle", true: "full"}[l.Busy], l.Carrier, ms(l.P50), ms(l.P99), ms(l.Max), fmt.Sprint(l.N))
	}
	fmt.Fprintf(t, "\nMigration of a machine with %s that writes %s a second, if its memory is like the data:\n", size(vm.Memory), size(vm.Dirty))
	for _, f := range r.Forecasts {
		text := "never ends: it writes faster than the path takes"
		if f.Converges {
			text = fmt.Sprintf("%v in %d rounds", f.Total.Round(time.Second), f.Rounds)
		}
		row(f.Data, f.Carrier, text)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for carrier, why := range r.Left {
		fmt.Fprintf(w, "left out: %s: %s\n", carrier, why)
	}
	return nil
}

// ms writes a short time in milliseconds.
func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }
