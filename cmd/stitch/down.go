package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"stitch/tunnel"
	"stitch/tunnel/config"
	"stitch/tunnel/control"
)

func downCommand() *cli.Command {
	return &cli.Command{
		Name:      "down",
		Usage:     "remove everything a stopped agent left in the kernel",
		ArgsUsage: "CONFIG",
		Description: "Removes the devices, addresses, rules, tables and filters of the agent and the\n" +
			"routes that keep the peers' traffic from leaving in clear. Stop the agent first.\n" +
			"It is no error if there is nothing.\n\n" +
			"Example:\n" +
			"  sudo stitch down /etc/stitch/dc1.toml",
		Action: func(c *cli.Context) error {
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			if err := errors.Join(checkCapability(), checkNft()); err != nil {
				return refusal{err}
			}
			return down(cfg)
		},
	}
}

// down removes what an agent left, unless it runs.
func down(cfg *config.Config) error {
	unlock, err := lockRunDir(cfg.RunDir)
	if err != nil {
		return refusal{err}
	}
	defer unlock()
	if err := tunnel.Clean(cfg, false); err != nil {
		return fmt.Errorf("not everything could be removed, try again: %w", err)
	}
	var errs []error
	for _, name := range []string{control.Socket, control.LinkSocket, control.StreamSocket} {
		if err := os.Remove(filepath.Join(cfg.RunDir, name)); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
