package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// writing is how long the guest writes between its way there and back.
	writing = time.Minute
	// fdChannels is how many connections carry memory in a multifd migration.
	fdChannels = 4
	// firstSeed and siblingSeed make the guests' data differ.
	firstSeed   = 1
	siblingSeed = 2
)

// corpus is one run.
type corpus struct {
	out     string // where the files go
	image   string // kernel, initrd and disk of the guests
	work    string // disks, removed at the end
	sockets string // short names, removed at the end
	began   time.Time
	manifest
}

// build makes the whole corpus in out. Processes and scratch files are gone
// when it returns.
func build(ctx context.Context, out string) error {
	c := &corpus{out: out, image: filepath.Join(out, "image"), began: time.Now()}
	if err := makeImage(ctx); err != nil {
		return err
	}
	var err error
	if c.work, err = os.MkdirTemp(out, "work."); err != nil {
		return err
	}
	defer os.RemoveAll(c.work)
	if c.sockets, err = os.MkdirTemp("", "corpus."); err != nil {
		return err
	}
	defer os.RemoveAll(c.sockets)
	g, ctx := errgroup.WithContext(ctx)
	for _, part := range []func(context.Context) error{c.guest, c.sibling, c.others} {
		g.Go(func() error { return part(ctx) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := c.write(c.path("manifest.json")); err != nil {
		return err
	}
	c.print(os.Stdout)
	c.say("done, in %s", out)
	return nil
}

// makeImage runs the script that makes the guests' image. If ctx ends it gets
// the time to clean up.
func makeImage(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "scripts/corpus/make-image")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", cmd.Path, err)
	}
	return nil
}

// guest follows one guest: its disk, its first move, a minute of writes, its
// return, and a move over many connections.
func (c *corpus) guest(ctx context.Context) error {
	m, err := c.boot(ctx, "guest", firstSeed)
	if err != nil {
		return err
	}
	defer func() { m.stop() }()
	if err := c.fetch(ctx, m, "dump", "dump1.sql", "pg_dump of the guest's database"); err != nil {
		return err
	}
	if err := c.mirror(ctx, m, "nbd", "the guest's disk mirrored over NBD just before a1: what the server gets"); err != nil {
		return err
	}
	steps := []struct {
		name, what string
		wait       time.Duration
		channels   int
	}{
		{"a1", "first migration of a guest with filled databases", 0, 0},
		{"a2", "the same guest after a minute of writes", writing, 0},
		{"multifd", "the same guest again, over four connections for memory and one for the rest", 0, fdChannels},
	}
	for _, s := range steps {
		if err := sleep(ctx, s.wait); err != nil {
			return err
		}
		to, err := c.move(ctx, m, s.name, s.what, s.channels)
		if err != nil {
			return err
		}
		m = to
	}
	return c.fetch(ctx, m, "dump", "dump2.sql", "pg_dump after a2")
}

// sibling captures the first move of another guest of the same image.
func (c *corpus) sibling(ctx context.Context) error {
	m, err := c.boot(ctx, "sibling", siblingSeed)
	if err != nil {
		return err
	}
	to, err := c.move(ctx, m, "s", "first migration of a sibling: same image, own boot, own data", 0)
	if err != nil {
		return err
	}
	to.stop()
	return nil
}

// boot starts a guest on a disk of its own and waits until it is filled. The
// caller must stop it.
func (c *corpus) boot(ctx context.Context, name string, seed int) (*machine, error) {
	disk := filepath.Join(c.work, name+".img")
	if err := command(ctx, "cp", "--sparse=always", filepath.Join(c.image, "golden.img"), disk); err != nil {
		return nil, err
	}
	c.say("%s: booting", name)
	m, err := c.launch(ctx, name, disk, seed)
	if err != nil {
		return nil, err
	}
	if err := m.booted(ctx); err != nil {
		m.stop()
		return nil, err
	}
	c.say("%s: booted and filled", name)
	return m, nil
}

// fetch gets a file from the guest and lists it.
func (c *corpus) fetch(ctx context.Context, m *machine, command, name, what string) error {
	if err := fetch(ctx, m.socket("port"), command, c.path(name)); err != nil {
		return fmt.Errorf("%s: %w", m.name, err)
	}
	c.say("%s: here", name)
	return c.list(what, c.path(name))
}

func (c *corpus) path(name string) string { return filepath.Join(c.out, name) }

// list adds files to the manifest.
func (c *corpus) list(what string, paths ...string) error {
	for _, p := range paths {
		if err := c.add(p, what); err != nil {
			return err
		}
	}
	return nil
}

// say tells a person what goes on.
func (c *corpus) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(c.began).Seconds(), fmt.Sprintf(format, args...))
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// command runs argv to its end; its output is part of the error.
func command(ctx context.Context, argv ...string) error {
	if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
