package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"stitch/tunnel/control"
	"stitch/tunnel/lab"
	"stitch/tunnel/wan"
)

func labCommand() *cli.Command {
	return &cli.Command{
		Name:        "lab",
		Usage:       "two sites, a client and the WAN between them on this machine",
		Description: "Example:\n  sudo stitch lab up --rate 100mbit --rtt 40ms\n  sudo stitch lab exec c1 -- curl http://203.0.113.10:8080/\n  sudo stitch lab down",
		Subcommands: []*cli.Command{labUpCommand(), labDownCommand(), labExecCommand(), labStatusCommand(), labWANCommand()},
	}
}

// labName is the flag that every lab command has.
func labName() cli.Flag {
	return &cli.StringFlag{Name: "name", Usage: "`NAME` of the lab, for more than one on a machine", Value: "stitch"}
}

func labUpCommand() *cli.Command {
	return &cli.Command{
		Name:  "up",
		Usage: "build the lab and start its agents",
		Description: "Hosts: c1 (client on the WAN), e1 e2 (edges), h1 h2 (hypervisor hosts), s1 s2\n" +
			"(on the stretched segment, one at each site), d1 (database at site 1), wan.\n" +
			"An earlier lab of the same name is taken down first.\n\n" +
			"Examples:\n" +
			"  sudo stitch lab up --rate 100mbit --rtt 40ms --loss 0.1%\n" +
			"  sudo stitch lab up --rate 0 --streams=false   # a plain wire, packets only",
		Flags: []cli.Flag{
			labName(),
			&cli.StringFlag{Name: "rate", Value: "100mbit", Usage: "`RATE` of the WAN each way (45mbit, 1gbit); 0: no emulator"},
			&cli.DurationFlag{Name: "rtt", Value: 40 * time.Millisecond, Usage: "round-trip `TIME` of the WAN"},
			&cli.StringFlag{Name: "loss", Value: "0", Usage: "`SHARE` of packets lost each way, such as 0.1%"},
			&cli.Int64Flag{Name: "queue", Usage: "`BYTES` of the WAN's buffer; 0: by rate and time"},
			&cli.BoolFlag{Name: "streams", Value: true, Usage: "optimise TCP; --streams=false carries everything as packets"},
			&cli.StringFlag{Name: "history", Usage: "`SIZE` of the agents' history, such as 512MiB"},
			&cli.BoolFlag{Name: "plain", Usage: "run plain userspace WireGuard instead of agents"},
			&cli.BoolFlag{Name: "no-agents", Usage: "build the network only"},
		},
		Action: labUp,
	}
}

// labUp builds a lab.
func labUp(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	rate, errRate := wan.ParseRate(c.String("rate"))
	loss, errLoss := wan.ParseLoss(c.String("loss"))
	exe, errExe := os.Executable()
	if err := errors.Join(errRate, errLoss, errExe); err != nil {
		return refusal{err}
	}
	if err := needRoot(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	_, err := lab.Up(ctx, lab.Options{
		Name: c.String("name"), Rate: rate, RTT: c.Duration("rtt"), Loss: loss, Queue: c.Int64("queue"), History: c.String("history"),
		Streams: c.Bool("streams"), Plain: c.Bool("plain"), NoAgents: c.Bool("no-agents"), Stitch: exe,
		Log: slog.New(slog.NewTextHandler(c.App.ErrWriter, nil)),
	})
	if err == nil {
		fmt.Fprintln(c.App.ErrWriter, "stitch: the lab is up: try `stitch lab exec h1 -- ping -c3 10.2.0.10`, end it with `stitch lab down`")
	}
	return err
}

// needRoot refuses users that cannot make namespaces.
func needRoot() error {
	if os.Geteuid() != 0 {
		return refuse("a lab needs root: run sudo stitch lab ...")
	}
	return nil
}

func labDownCommand() *cli.Command {
	return &cli.Command{
		Name:        "down",
		Usage:       "remove the lab, whatever is left of it",
		Description: "Example:\n  sudo stitch lab down",
		Flags:       []cli.Flag{labName()},
		Action: func(c *cli.Context) error {
			if err := errors.Join(noArgs(c)); err != nil {
				return err
			}
			if err := needRoot(); err != nil {
				return err
			}
			return lab.Down(c.Context, c.String("name"), "")
		},
	}
}

func labExecCommand() *cli.Command {
	return &cli.Command{
		Name:      "exec",
		Usage:     "run a command on a host of the lab, with its exit code",
		ArgsUsage: "HOST -- COMMAND...",
		Description: "Examples:\n" +
			"  sudo stitch lab exec s1 -- ping -c3 10.1.0.12\n" +
			"  sudo stitch lab exec e1 -- nft list table inet stitch",
		Flags: []cli.Flag{labName()},
		Action: func(c *cli.Context) error {
			args := c.Args().Slice()
			if i := slices.Index(args, "--"); i == 1 {
				args = slices.Delete(args, 1, 2)
			}
			if len(args) < 2 {
				return hint{refuse("a host and a command are needed"), "write `stitch lab exec HOST -- COMMAND...`"}
			}
			if err := needRoot(); err != nil {
				return err
			}
			l, err := lab.Attach(c.String("name"), "")
			if err != nil {
				return refusal{err}
			}
			if _, err := l.Namespace(args[0]); err != nil {
				return refusal{err}
			}
			err = l.Exec(c.Context, args[0], args[1:])
			if e, ok := errors.AsType[*exec.ExitError](err); ok {
				return exitCode(max(e.ExitCode(), 1))
			}
			return err
		},
	}
}

func labStatusCommand() *cli.Command {
	return &cli.Command{
		Name:        "status",
		Usage:       "show the lab, its WAN and its agents",
		Description: "Examples:\n  sudo stitch lab status\n  sudo stitch lab status --json",
		Flags:       []cli.Flag{labName(), &cli.BoolFlag{Name: "json", Usage: "print everything as JSON"}},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			l, err := lab.Attach(c.String("name"), "")
			if err != nil {
				return err
			}
			st := l.Status(c.Context)
			if c.Bool("json") {
				return printJSON(c.App.Writer, st)
			}
			return printLab(c.App.Writer, st)
		},
	}
}

// printLab writes the state of a lab for people.
func printLab(w io.Writer, st lab.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "lab\t%s\tin %s\n\nPROCESS\tPID\tRUNNING\n", st.Options.Name, st.Options.Dir)
	for _, p := range st.Processes {
		fmt.Fprintf(t, "%s\t%d\t%v\n", p.Name, p.PID, p.Running)
	}
	if st.WAN != nil {
		fmt.Fprint(t, "\nPATH\tPACKETS\tBYTES\n")
		for _, p := range []struct{ from, to string }{{"e1", "e2"}, {"e2", "e1"}} {
			n := st.WAN.Find(p.from, p.to).Counters
			fmt.Fprintf(t, "%s -> %s\t%d\t%d\n", p.from, p.to, n.Packets, n.Bytes)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, host := range []string{"e1", "e2"} {
		var agent control.Status
		if err := json.Unmarshal(st.Agents[host], &agent); err != nil {
			continue
		}
		fmt.Fprintf(w, "\n--- %s\n", host)
		if err := printStatus(w, &agent); err != nil {
			return err
		}
	}
	for host, why := range st.Errors {
		fmt.Fprintf(w, "\n%s does not answer: %s\n", host, strings.TrimSpace(why))
	}
	return nil
}

func labWANCommand() *cli.Command {
	return &cli.Command{
		Name:      "wan-daemon",
		Usage:     "run the WAN emulator (started by stitch lab up)",
		ArgsUsage: "FILE",
		Hidden:    true,
		Action: func(c *cli.Context) error {
			file, err := oneArg(c, "FILE")
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
			defer stop()
			return lab.RunWAN(ctx, file)
		},
	}
}
