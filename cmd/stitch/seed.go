package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"stitch/tunnel/control"
)

func seedCommand() *cli.Command {
	return &cli.Command{
		Name:      "seed",
		Usage:     "tell the agent of files that both sites have, so that they need not cross",
		ArgsUsage: "FILE...",
		Description: "Run it at both sites with the same golden images, disks or backups. Only digests\n" +
			"of pieces of 1 MiB cross; what both sites have is put into the history they share,\n" +
			"and a migration, mirror or restore that contains it costs next to nothing. The\n" +
			"second site to run it finds what is common. Names may differ, and pieces are\n" +
			"found at multiples of 1 MiB, as in disk images of the same origin.\n\n" +
			"The history must be larger than the files. It, and which files there were, is\n" +
			"lost on a restart unless [history] has a dir.\n\n" +
			"Examples:\n" +
			"  sudo stitch seed /var/lib/images/debian-12.raw\n" +
			"  sudo stitch seed --domain migration --peer dc2 *.img",
		Flags: append(whichAgent(),
			&cli.StringFlag{Name: "domain", Usage: "seed the history of `DOMAIN`; needed if there are several"},
			&cli.StringFlag{Name: "peer", Usage: "that is shared with `PEER`; needed if there are several"},
		),
		Action: seed,
	}
}

// seed has the agent seed and shows how far it is.
func seed(c *cli.Context) error {
	if c.NArg() == 0 {
		return hint{refuse("FILE is missing"), "write `stitch seed FILE...`"}
	}
	req := control.SeedRequest{Peer: c.String("peer"), Domain: c.String("domain")}
	for _, name := range c.Args().Slice() {
		path, err := filepath.Abs(name)
		if err != nil {
			return err
		}
		if fi, err := os.Stat(path); err != nil {
			return refusal{err}
		} else if !fi.Mode().IsRegular() {
			return refuse("%s is not a regular file", name)
		}
		req.Files = append(req.Files, path)
	}
	dir, err := agentDir(c.String("site"), c.String("run-dir"))
	if err != nil {
		return err
	}
	bar := newProgress(c.App.ErrWriter, 0)
	p, err := control.NewClient(filepath.Join(dir, control.StreamSocket)).Seed(c.Context, req, func(p control.SeedProgress) {
		bar.total, bar.done, bar.name = p.Total, p.Hashed, seedStep(p)
		bar.show()
	})
	bar.end()
	if errors.Is(err, control.ErrNotRunning) {
		return hint{err, "start it with `stitch up CONFIG`; it needs a [[stream]] or [[dial]] rule"}
	}
	if err != nil {
		return err
	}
	return printSeed(c.App.Writer, p)
}

// seedStep says what is going on.
func seedStep(p control.SeedProgress) string {
	if p.Offered == 0 {
		return "hashed"
	}
	return fmt.Sprintf("asked for %d of %d pieces, %d at both sites, %d planted", p.Offered, p.Pieces, p.Common, p.Planted)
}

// printSeed writes what a seed came to, and what to do next.
func printSeed(w io.Writer, p control.SeedProgress) error {
	text := fmt.Sprintf("domain %s with %s: %d pieces of 1 MiB, %d of them at both sites, %d in the history\n",
		p.Domain, p.Peer, p.Pieces, p.Common, p.Planted)
	switch {
	case p.Common < p.Pieces:
		text += fmt.Sprintf("%d pieces are not known at %s: run `stitch seed` there with the same files\n", p.Pieces-p.Common, p.Peer)
	case p.Planted < p.Common:
		text += fmt.Sprintf("%d pieces could not be planted: did the files change at %s?\n", p.Common-p.Planted, p.Peer)
	}
	if p.Unsaved != "" {
		text += fmt.Sprintf("the files will be forgotten when the agent stops: %s\n", p.Unsaved)
	}
	if planted := int64(p.Planted) << 20; planted > p.History {
		text += fmt.Sprintf("the history holds %d MiB, the oldest pieces are gone again: raise [history] size\n", p.History>>20)
	}
	_, err := io.WriteString(w, text)
	return err
}
