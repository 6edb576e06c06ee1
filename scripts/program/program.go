// Package program is how the programs in scripts begin and end.
package program

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Main calls run with the command line's arguments and exits: with 0; with 2 when
// help was asked for (flag.ErrHelp); with 1 after any other error, which it prints
// behind the program's name. The context ends when the program is told to, by
// SIGINT or SIGTERM: run is then to clean up and to return.
func Main(name string, run func(ctx context.Context, args []string) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
}
