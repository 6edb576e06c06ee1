package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"stitch/tunnel"
	"stitch/tunnel/config"
)

// agentFlags are those of `up`, passed on to the processes it starts.
func agentFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "streams", Value: true, Usage: "optimise TCP; --streams=false carries everything as packets"},
		&cli.StringFlag{Name: "log-level", Value: "info", Usage: "least important lines to log: debug, info, warn, error"},
	}
}

func upCommand() *cli.Command {
	return &cli.Command{
		Name:      "up",
		Usage:     "run the agent of this site in the foreground",
		ArgsUsage: "CONFIG",
		Description: "Starts the link and the stream process, keeps them running, and stops them on\n" +
			"Ctrl-C or SIGTERM. What the machine lacks is said before anything is changed.\n\n" +
			"Routes that keep the peers' traffic from leaving in clear stay when the agent\n" +
			"stops; `stitch down CONFIG` removes them.\n\n" +
			"Examples:\n" +
			"  sudo stitch up /etc/stitch/dc1.toml\n" +
			"  sudo stitch up --streams=false /etc/stitch/dc1.toml",
		Flags:  agentFlags(),
		Action: up,
	}
}

// up checks everything, then runs the agent.
func up(c *cli.Context) error {
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	log, err := newLog(c, "supervisor")
	if err != nil {
		return err
	}
	unlock, err := claimMachine(cfg)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := newSupervisor(c, cfg, log)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	failed := s.run(ctx)
	notify("STOPPING=1")
	if err := tunnel.Clean(cfg, true); err != nil {
		return errors.Join(failed, fmt.Errorf("clean up: %w", err))
	}
	fmt.Fprintf(c.App.ErrWriter, "stitch: stopped; the routes that keep the peers' traffic from leaving in clear stay, `stitch down %s` removes them\n", c.Args().First())
	return failed
}

// newSupervisor plans the processes of an agent.
func newSupervisor(c *cli.Context, cfg *config.Config, log *slog.Logger) (*supervisor, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	streams := c.Bool("streams")
	names := []string{"link"}
	if streams && len(cfg.Streams)+len(cfg.Dials) > 0 {
		names = append(names, "stream")
	}
	s := &supervisor{site: cfg.Site, sockets: cfg.RunDir, began: time.Now(), log: log}
	s.ready = func() {
		log.Info("all processes answer", "site", cfg.Site)
		notify("READY=1")
	}
	out := &lockedWriter{w: c.App.ErrWriter}
	for _, name := range names {
		args := []string{"child", name, fmt.Sprintf("--streams=%v", streams), "--beat", "--log-level=" + c.String("log-level"), c.Args().First()}
		s.keepers = append(s.keepers, &keeper{name: name, exe: exe, args: args, out: out, log: log, patience: stopPatience})
	}
	return s, nil
}

// loadConfig reads the file that is the command's argument.
func loadConfig(c *cli.Context) (*config.Config, error) {
	file, err := oneArg(c, "CONFIG")
	if err != nil {
		return nil, err
	}
	cfg, err := config.LoadFile(file)
	if err != nil {
		return nil, refusal{err}
	}
	return cfg, nil
}

// newLog returns the logger of one process.
func newLog(c *cli.Context, process string) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.String("log-level"))); err != nil {
		return nil, refuse("--log-level %q: write debug, info, warn or error", c.String("log-level"))
	}
	h := slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: level})
	return slog.New(h).With("process", process), nil
}

// notify tells the service manager, if there is one, how we are
// (sd_notify(3)). Nobody listening is no error.
func notify(state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if strings.HasPrefix(name, "@") {
		name = "\x00" + name[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte(state))
}
