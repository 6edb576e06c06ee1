package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"stitch/tunnel/config"
	"stitch/tunnel/control"
)

// runRoot is where the run directories are by default.
const runRoot = "/run/stitch"

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:      "status",
		Usage:     "show how the agent of this machine is",
		ArgsUsage: "[CONFIG]",
		Description: "Without CONFIG or a flag it asks the only agent in " + runRoot + ".\n" +
			"Fails when no agent runs; a link that is down is shown, not a failure.\n\n" +
			"Examples:\n" +
			"  sudo stitch status\n" +
			"  sudo stitch status --json --site dc1",
		Flags: append(whichAgent(), &cli.BoolFlag{Name: "json", Usage: "print the whole status as JSON"}),
		Action: func(c *cli.Context) error {
			dir, err := statusDir(c)
			if err != nil {
				return err
			}
			st, err := control.NewClient(filepath.Join(dir, control.Socket)).Status(c.Context)
			if errors.Is(err, control.ErrNotRunning) {
				return hint{err, "start it with `stitch up CONFIG`"}
			}
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, st)
			}
			return printStatus(c.App.Writer, st)
		},
	}
}

// whichAgent are the flags that say which agent of this machine is meant; see agentDir.
func whichAgent() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "site", Usage: "ask the agent of `SITE` in " + runRoot},
		&cli.StringFlag{Name: "run-dir", Usage: "ask the agent whose run_dir is `DIR`"},
	}
}

// printJSON writes v for programs, and for people who look at it.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// statusDir returns the run directory of the agent meant.
func statusDir(c *cli.Context) (string, error) {
	site, dir := c.String("site"), c.String("run-dir")
	given := c.NArg()
	for _, s := range []string{site, dir} {
		if s != "" {
			given++
		}
	}
	switch {
	case given > 1:
		return "", refuse("choose one of CONFIG, --site and --run-dir")
	case c.NArg() == 1:
		cfg, err := config.LoadFile(c.Args().First())
		if err != nil {
			return "", refusal{err}
		}
		return cfg.RunDir, nil
	}
	return agentDir(site, dir)
}

// agentDir returns the run directory of the agent that the flags --site and
// --run-dir mean, of the only one without them.
func agentDir(site, dir string) (string, error) {
	switch {
	case dir != "" && site != "":
		return "", refuse("choose one of --site and --run-dir")
	case dir != "":
		return dir, nil
	case site == "":
		return onlyAgent(runRoot)
	case strings.ContainsAny(site, "/\x00") || site == ".." || site == ".":
		return "", refuse("--site %q is not the name of a site: --run-dir takes a directory", site)
	}
	return filepath.Join(runRoot, site), nil
}

// onlyAgent returns the run directory of the only agent under root.
func onlyAgent(root string) (string, error) {
	found, err := filepath.Glob(filepath.Join(root, "*", control.Socket))
	if err != nil {
		return "", err
	}
	switch len(found) {
	case 0:
		return "", hint{fmt.Errorf("%s: %w", root, control.ErrNotRunning), "start it with `stitch up CONFIG`; with another run_dir: `stitch status CONFIG`"}
	case 1:
		return filepath.Dir(found[0]), nil
	}
	var sites []string
	for _, f := range found {
		sites = append(sites, filepath.Base(filepath.Dir(f)))
	}
	return "", refuse("several agents run here: choose one with --site (%s)", strings.Join(sites, ", "))
}

// printStatus writes a status for people.
func printStatus(w io.Writer, st *control.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...any) {
		text := make([]string, len(cells))
		for i, c := range cells {
			text[i] = printable(fmt.Sprint(c))
		}
		fmt.Fprintln(t, strings.Join(text, "\t"))
	}
	row("site", st.Site, "up", seconds(st.Uptime), "version", st.Version)
	row("\nPROCESS", "STATE", "PID", "RESTARTS", "LAST EXIT")
	for _, p := range st.Processes {
		row(p.Name, p.State, p.Pid, p.Restarts, p.LastExit)
	}
	row("\nLINK", "STATE", "RTT", "LOSS", "HANDSHAKE", "ENDPOINT")
	for _, l := range st.Links {
		row(l.Peer, l.State, rtt(l), fmt.Sprintf("%.1f%%", l.Loss*100), handshake(l), l.Endpoint)
	}
	printClasses(row, st)
	if len(st.Segments) > 0 {
		printSegments(row, st)
	}
	if len(st.Workloads) > 0 {
		row("\nWORKLOAD", "SITE", "SEQ", "HERE")
		for _, o := range st.Workloads {
			row(o.Name, o.Site, o.Seq, o.Here)
		}
	}
	if len(st.Services) > 0 {
		row("\nSERVICE", "WORKLOAD", "ADDRESS")
		for _, s := range st.Services {
			row(s.Name, s.Workload, s.Address)
		}
	}
	if st.Streams != nil {
		printStreams(row, st)
	}
	for _, a := range st.Alarms {
		row("\nALARM  " + a)
	}
	return t.Flush()
}

// printable makes foreign text safe for a terminal; a leading line feed is ours.
func printable(s string) string {
	lead := ""
	if strings.HasPrefix(s, "\n") {
		lead, s = "\n", s[1:]
	}
	return lead + strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// rtt writes the round-trip time of a link.
func rtt(l control.LinkStatus) string {
	if l.RTTms <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", l.RTTms)
}

// handshake writes the age of a link's session.
func handshake(l control.LinkStatus) string {
	if l.LastHandshake < 0 {
		return "never"
	}
	return seconds(l.LastHandshake) + " ago"
}

// seconds writes a number of seconds as 1h2m3s.
func seconds(s float64) string {
	return (time.Duration(s) * time.Second).String()
}
