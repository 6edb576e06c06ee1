package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"

	"stitch/tunnel"
	"stitch/tunnel/config"
)

// runner is one process of the agent: it runs until ctx is done, and calls beat
// about every second while it does not hang.
type runner func(ctx context.Context, cfg *config.Config, log *slog.Logger, beat func()) error

// childCommand holds the processes that `stitch up` starts. They are hidden:
// alone they make no agent.
func childCommand() *cli.Command {
	sub := func(name, usage string, run runner) *cli.Command {
		return &cli.Command{
			Name:      name,
			Usage:     usage,
			ArgsUsage: "CONFIG",
			Flags:     append(agentFlags(), &cli.BoolFlag{Name: "beat", Usage: "say on descriptor 3, every second, that the process does not hang"}),
			Action:    func(c *cli.Context) error { return runChild(c, name, run) },
		}
	}
	return &cli.Command{
		Name:   "child",
		Usage:  "run one process of an agent (started by stitch up)",
		Hidden: true,
		Subcommands: []*cli.Command{
			sub("link", "tunnels, segments, redirection, names", tunnel.RunLink),
			sub("stream", "interception and relay of TCP", tunnel.RunStream),
		},
	}
}

// runChild runs one process until it is told to stop.
func runChild(c *cli.Context, name string, run runner) error {
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	log, err := newLog(c, name)
	if err != nil {
		return err
	}
	if !c.Bool("streams") {
		without := *cfg
		without.Streams, without.Dials = nil, nil
		cfg = &without
	}
	ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	var beat func()
	if c.Bool("beat") {
		beat = beater()
	}
	if err := run(ctx, cfg, log, beat); err != nil && ctx.Err() == nil {
		if permanent(err) {
			return refusal{err}
		}
		return err
	}
	return nil
}

// beatFD is where a child finds the pipe to its keeper.
const beatFD = 3

// beater returns what tells the keeper that this process lives. It may be
// called once.
func beater() func() {
	syscall.CloseOnExec(beatFD)
	pipe := os.NewFile(beatFD, "beat")
	// A keeper that is gone takes us with it: no need to hear of it here.
	return func() { _, _ = pipe.Write([]byte{1}) }
}

// permanent reports errors that another start will not mend: what the machine
// or its administrator refuses, and what says so of itself.
func permanent(err error) bool {
	if p, ok := errors.AsType[interface {
		error
		Permanent() bool
	}](err); ok {
		return p.Permanent()
	}
	return errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EADDRINUSE)
}
