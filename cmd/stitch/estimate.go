package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"stitch/tunnel/config"
	"stitch/tunnel/estimate"
	"stitch/tunnel/wan"
)

func estimateCommand() *cli.Command {
	return &cli.Command{
		Name:      "estimate",
		Usage:     "show what stitch would make of files, before anything is installed",
		ArgsUsage: "FILE...",
		Description: "Runs each FILE (- is standard input) through the codec of a sending and of a\n" +
			"receiving site on this machine, one connection after the other, and checks every\n" +
			"byte. All files share one history, so give a file twice, or what was sent last\n" +
			"week and what is sent today, to see what repeats. With --history the history\n" +
			"stays in DIR for the next run. Needs no rights and no network.\n\n" +
			"Speeds are input bytes for each second of one processor (10^6 bytes); OUT is all\n" +
			"that the two sites would hand to TCP. With --link the codec works as hard as that\n" +
			"rate leaves time for; without, as hard as it can at 100 MB/s of input.\n\n" +
			"Examples:\n" +
			"  stitch estimate monday.dump tuesday.dump\n" +
			"  stitch estimate --link 100mbit --seed golden-image.raw vm.raw\n" +
			"  tar c /srv | stitch estimate --json -\n" +
			"  stitch estimate --history /var/tmp/estimate monday.dump   # and on Tuesday again",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "link", Usage: "`RATE` of the link between the sites (45mbit, 1gbit)"},
			&cli.StringSliceFlag{Name: "seed", Usage: "`FILE` that both sites have in their history already, not counted; may be repeated"},
			&cli.StringFlag{Name: "history", Usage: "keep the history of both sites in `DIR` between runs, readable by you only"},
			&cli.StringFlag{Name: "history-size", Usage: "`SIZE` of the history, such as 1GiB (default: twice the files, at most a quarter of the free memory; with --history at least 4GiB)"},
			&cli.BoolFlag{Name: "json", Usage: "print the result as JSON"},
		},
		Action: runEstimate,
	}
}

// runEstimate is the command.
func runEstimate(c *cli.Context) error {
	names := c.Args().Slice()
	if len(names) == 0 {
		return hint{refuse("no FILE given"), "write `stitch estimate FILE...`, or - for standard input"}
	}
	link, err := parseLink(c.String("link"))
	if err != nil {
		return err
	}
	in, err := findInputs(c.StringSlice("seed"), names)
	if err != nil {
		return err
	}
	cfg, err := estimateConfig(c.String("history"), c.String("history-size"), in.size)
	if err != nil {
		return err
	}
	cfg.Link = float64(link) / 8
	s, err := estimate.New(cfg)
	if errors.Is(err, estimate.ErrStore) {
		return hint{refusal{err}, "give another directory with --history, or none"}
	}
	if err != nil {
		return err
	}
	rep, err := in.run(s, link, newProgress(c.App.ErrWriter, in.size))
	for _, alarm := range s.Alarms() {
		fmt.Fprintf(c.App.ErrWriter, "stitch: history: %s\n", alarm)
	}
	if err = errors.Join(err, s.Close()); err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, rep)
	}
	return rep.Print(c.App.Writer)
}

// parseLink reads --link as bits per second; 0 if it is not given.
func parseLink(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	rate, err := wan.ParseRate(s)
	if err == nil && rate == 0 {
		err = errors.New("--link 0 carries nothing: leave the flag out if the rate is unknown")
	}
	if err != nil {
		return 0, refusal{err}
	}
	return rate, nil
}

// Bounds of the history by default: what an agent has by default, what it may
// grow to on disk, and a part of the free memory, because both sites have one
// here.
const (
	leastHistory = 256 << 20
	diskHistory  = 4 << 30
	memoryPart   = 4

	minHistory, maxHistory = 1 << 20, 64 << 30 // what a history can be
)

// estimateConfig sizes the history, in dir if that is not "": as size says, or
// so that no part of the input (bytes; -1 if unknown) is about to be forgotten,
// if the memory allows.
func estimateConfig(dir, size string, input int64) (estimate.Config, error) {
	cfg := estimate.Config{Dir: dir, Expect: input, CPU: estimate.ProcessCPU}
	free, err := freeMemory()
	if err != nil {
		return cfg, err
	}
	most := max(free/memoryPart, leastHistory)
	cfg.History = most
	if input >= 0 && input < most/2 {
		cfg.History = max(2*input, leastHistory)
	}
	if dir != "" {
		cfg.Memory = most
		cfg.History = max(cfg.History, min(input, maxHistory/4)*4, diskHistory)
	}
	if size != "" {
		cfg.History, err = config.ParseSize(size)
		switch {
		case err != nil:
			return cfg, refuse("--history-size: %w", err)
		case cfg.History < minHistory || cfg.History > maxHistory:
			return cfg, refuse("--history-size %s is out of range: use 1MiB to 64GiB", size)
		}
	}
	return cfg, nil
}

// freeMemory is the bytes that the kernel would give to programs now.
func freeMemory() (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); err == nil {
			return kib << 10, nil
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable: give --history-size")
}
