// Corpus captures what a data reducer meets between two sites, for benchmarks:
// real migration streams of QEMU guests with filled databases, the same guest
// coming back, a sibling, a migration over many connections, a disk mirrored
// over NBD, the guests' disk image, database dumps, source trees, logs and
// pictures. They go to build/corpus with a manifest.
//
// It needs root and what `scripts/setup corpus` installs, and is run from the
// repository's root: `sudo make corpus`.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

const (
	outDir  = "build/corpus"
	timeout = 30 * time.Minute
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "corpus:", err)
		os.Exit(1)
	}
}

// run makes the whole corpus. Processes and scratch files are gone when it
// returns.
func run(ctx context.Context) error {
	if len(os.Args) > 1 {
		return errors.New("takes no arguments")
	}
	if os.Getuid() != 0 {
		return errors.New("needs root to make a Debian system: run `sudo make corpus`")
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out, err := filepath.Abs(outDir)
	if err != nil {
		return err
	}
	return build(ctx, out)
}
