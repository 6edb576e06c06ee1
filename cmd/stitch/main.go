// Command stitch is a site-to-site encrypted tunnel agent that optimises what
// it carries and keeps connections alive when a machine moves between sites.
//
// Data goes to stdout, everything said to people goes to stderr. Exit codes: 0
// done, 1 it failed while running, 2 it was not tried because the command
// line, the configuration or the machine is not as it must be.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
)

func main() {
	os.Exit(run(os.Args, os.Stdout, os.Stderr))
}

// run is main with its seams: it prints and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	err := newApp(stdout, stderr).Run(args)
	return report(stderr, err)
}

// newApp assembles the commands.
func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:            "stitch",
		Usage:           "encrypted, optimising tunnels between sites, through which machines move live",
		HideVersion:     true,
		HideHelpCommand: true,
		Suggest:         true,
		// A comma may be part of a file's name.
		DisableSliceFlagSeparator: true,
		Writer:                    stdout,
		ErrWriter:                 stderr,
		// The library would exit by itself, and print usage with each error.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   usageError,
		Action:         noCommand,
		Commands: []*cli.Command{
			keygenCommand(), upCommand(), downCommand(), statusCommand(), flowsCommand(), seedCommand(), labCommand(), estimateCommand(), benchCommand(), versionCommand(), childCommand(),
		},
	}
	for _, c := range app.Commands {
		harden(c, "stitch "+c.Name)
	}
	return app
}

// harden gives a command and its subcommands what the library leaves open:
// usage errors of one form, and a refusal of flags behind arguments, which it
// would silently take for arguments.
func harden(c *cli.Command, path string) {
	c.OnUsageError = usageError
	c.HideHelpCommand = true
	if c.Action == nil {
		c.Action = noCommand
	}
	for _, sub := range c.Subcommands {
		harden(sub, path+" "+sub.Name)
	}
	if len(c.Subcommands) == 0 && !c.SkipFlagParsing {
		c.Before = func(ctx *cli.Context) error { return noLateFlags(path, ctx.Args().Slice()) }
	}
}

// noLateFlags refuses arguments that look like flags. What follows "--" is
// somebody else's command.
func noLateFlags(path string, args []string) error {
	for _, a := range args {
		if a == "--" {
			return nil
		}
		if len(a) > 1 && a[0] == '-' {
			return refuse("flag %s stands behind an argument: write %s %s ARGUMENTS", a, path, a)
		}
	}
	return nil
}

// usageError is what the library calls for a wrong flag.
func usageError(c *cli.Context, err error, _ bool) error {
	return hint{refuse("%w", err), "`" + helpCommand(c) + "` lists the flags"}
}

// noCommand is the action of a command that only has subcommands.
func noCommand(c *cli.Context) error {
	if word := c.Args().First(); word != "" {
		return hint{refuse("unknown command %q", word), "`" + helpCommand(c) + "` lists the commands" + didYouMean(c, word)}
	}
	return hint{refuse("which command?"), "`" + helpCommand(c) + "` lists them"}
}

// didYouMean suggests a command that begins like word.
func didYouMean(c *cli.Context, word string) string {
	list := c.App.Commands
	if c.Command != nil && len(c.Command.Subcommands) > 0 {
		list = c.Command.Subcommands
	}
	for _, sub := range list {
		if !sub.Hidden && strings.HasPrefix(sub.Name, word[:min(len(word), 2)]) {
			return "; did you mean `" + sub.HelpName + "`?"
		}
	}
	return ""
}

// helpCommand is how to ask for the help of the command c is in.
func helpCommand(c *cli.Context) string {
	if c.Command != nil && c.Command.HelpName != "" {
		return c.Command.HelpName + " --help"
	}
	return "stitch --help"
}

// refusal is an error of the exit code 2: nothing was done.
type refusal struct{ err error }

func (r refusal) Error() string { return r.err.Error() }
func (r refusal) Unwrap() error { return r.err }

// refuse makes a refusal.
func refuse(format string, args ...any) error { return refusal{fmt.Errorf(format, args...)} }

// hint is an error with advice for a person, printed behind it.
type hint struct {
	err    error
	advice string
}

func (h hint) Error() string { return h.err.Error() }
func (h hint) Unwrap() error { return h.err }

// report prints an error, every line of it with our name, and returns the exit
// code. It is the only place that does either.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[exitCode](err); ok {
		return int(code)
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(stderr, "stitch: %s\n", line)
	}
	if h, ok := errors.AsType[hint](err); ok {
		fmt.Fprintf(stderr, "stitch: %s\n", h.advice)
	}
	if _, ok := errors.AsType[refusal](err); ok {
		return 2
	}
	return 1
}

// exitCode is the exit code of a command run on somebody's behalf; it is
// passed on without a word.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit %d", int(e)) }

// oneArg returns the only argument of a command.
func oneArg(c *cli.Context, what string) (string, error) {
	switch {
	case c.NArg() == 0:
		return "", hint{refuse("%s is missing", what), "write `" + c.Command.HelpName + " " + what + "`"}
	case c.NArg() > 1:
		return "", refuse("one %s, not %d: %s", what, c.NArg(), strings.Join(c.Args().Slice(), " "))
	}
	return c.Args().First(), nil
}

// noArgs refuses arguments of a command that has none.
func noArgs(c *cli.Context) error {
	if c.NArg() > 0 {
		return refuse("%s takes no argument: remove %q", c.Command.HelpName, c.Args().First())
	}
	return nil
}
