package main

import (
	"encoding/json"
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
			"week and what is sent today, to see what repeats. Needs no rights and no network.\n\n" +
			"Speeds are input bytes for each second of one processor (10^6 bytes); OUT is all\n" +
			"that the two sites would hand to TCP. With --link the codec works as hard as that\n" +
			"rate leaves time for; without, as hard as it can at 100 MB/s of input.\n\n" +
			"Examples:\n" +
			"  stitch estimate monday.dump tuesday.dump\n" +
			"  stitch estimate --link 100mbit --seed golden-image.raw vm.raw\n" +
			"  tar c /srv | stitch estimate --json -",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "link", Usage: "`RATE` of the link between the sites (45mbit, 1gbit)"},
			&cli.StringSliceFlag{Name: "seed", Usage: "`FILE` that both sites have in their history already, not counted; may be repeated"},
			&cli.StringFlag{Name: "history-size", Usage: "`SIZE` of the history, such as 1GiB (default: twice the files, at most a quarter of the free memory)"},
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
	history, err := historySize(c.String("history-size"), in.size)
	if err != nil {
		return err
	}
	s, err := estimate.New(estimate.Config{History: history, Expect: in.size, Link: float64(link) / 8, CPU: estimate.ProcessCPU})
	if err != nil {
		return err
	}
	rep, err := in.run(s, link, newProgress(c.App.ErrWriter, in.size))
	if err = errors.Join(err, s.Close()); err != nil {
		return err
	}
	if c.Bool("json") {
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		return enc.Encode(rep)
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

// Bounds of the history by default: what an agent has by default, and a part
// of the free memory, because both sites have one here.
const (
	leastHistory = 256 << 20
	memoryPart   = 4
)

// historySize reads --history-size, or chooses: so much that no part of the
// input (bytes; -1 if unknown) is about to be forgotten, if the memory allows.
func historySize(s string, input int64) (int64, error) {
	if s != "" {
		n, err := config.ParseSize(s)
		switch {
		case err != nil:
			return 0, refuse("--history-size: %w", err)
		case n < 1<<20 || n > 1<<40:
			return 0, refuse("--history-size %s is out of range: use 1MiB to 1TiB", s)
		}
		return n, nil
	}
	free, err := freeMemory()
	if err != nil {
		return 0, err
	}
	most := free / memoryPart
	if input < 0 || input > most/2 {
		return max(most, leastHistory), nil
	}
	return max(2*input, leastHistory), nil
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
