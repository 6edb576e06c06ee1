package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"stitch/scripts/machine"
	"stitch/scripts/program"
)

const (
	// writing is how long the guest writes between its way there and back, settling
	// what it has to come to a lighter load.
	writing  = time.Minute
	settling = 5 * time.Second
	// fdChannels is how many connections carry memory in a multifd migration.
	fdChannels = 4
	bootWait   = 10 * time.Minute
	moveWait   = 5 * time.Minute
	// firstSeed and siblingSeed make the guests' data differ.
	firstSeed   = 1
	siblingSeed = 2
)

// corpus is one run.
type corpus struct {
	program.Progress
	out     string // where the files go
	image   string // kernel, initrd and disk of the guests
	work    string // disks, removed at the end
	sockets string // short names, removed at the end
	manifest
}

// guest is a machine that runs a guest or waits for it.
type guest struct {
	*machine.Machine
	machine.Shop
}

// launch starts a machine with a disk, which boots with seed, or waits if that
// is 0. The caller must stop it.
func (c *corpus) launch(ctx context.Context, name, disk string, seed int) (*guest, error) {
	s := machine.Shop{Name: name, Image: c.image, Disk: disk, Sockets: c.sockets, Seed: seed}
	m, err := s.Start(ctx, nil)
	if err != nil {
		return nil, err
	}
	return &guest{m, s}, nil
}

// build makes the whole corpus in out. Processes and scratch files are gone
// when it returns.
func build(ctx context.Context, out string) error {
	c := &corpus{out: out, image: filepath.Join(filepath.Dir(filepath.Dir(out)), machine.ShopImage), Progress: program.Begin()}
	if err := machine.MakeShop(ctx); err != nil {
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
	c.Say("done, in %s", out)
	return nil
}

// guest follows one guest: its disk, its first move, a minute of writes, its
// return, a move over many connections, and then, with less to do, another one
// there and, after a minute, back.
func (c *corpus) guest(ctx context.Context) error {
	m, err := c.boot(ctx, "guest", firstSeed)
	if err != nil {
		return err
	}
	defer func() { m.Stop() }()
	if err := c.fetch(ctx, m, "dump", "dump1.sql", "pg_dump of the guest's database"); err != nil {
		return err
	}
	if err := c.mirror(ctx, m, "nbd", "the guest's disk mirrored over NBD just before a1: what the server gets"); err != nil {
		return err
	}
	move := func(s step) error {
		if err := program.Sleep(ctx, s.wait); err != nil {
			return err
		}
		to, err := c.move(ctx, m, s.name, s.what, s.channels)
		if err == nil {
			m = to
		}
		return err
	}
	for _, s := range []step{
		{"a1", "first migration of a guest with filled databases", 0, 0},
		{"a2", "the same guest after a minute of writes", writing, 0},
		{"multifd", "the same guest again, over four connections for memory and one for the rest", 0, fdChannels},
	} {
		if err := move(s); err != nil {
			return err
		}
	}
	if err := c.fetch(ctx, m, "dump", "dump2.sql", "pg_dump after a2"); err != nil {
		return err
	}
	if err := machine.Fetch(ctx, m.Socket("port"), "calm", os.DevNull); err != nil {
		return err
	}
	for _, s := range []step{
		{"light1", "the same guest again, now with 60 small writes a second", settling, 0},
		{"light2", "the same after a minute of such writes", writing, 0},
	} {
		if err := move(s); err != nil {
			return err
		}
	}
	return nil
}

// step is a move that is captured, after a wait.
type step struct {
	name, what string
	wait       time.Duration
	channels   int
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
	to.Stop()
	return nil
}

// boot starts a guest on a disk of its own and waits until it is filled. The
// caller must stop it.
func (c *corpus) boot(ctx context.Context, name string, seed int) (*guest, error) {
	disk := filepath.Join(c.work, name+".img")
	if err := machine.Run(exec.CommandContext(ctx, "cp", "--sparse=always", filepath.Join(c.image, "golden.img"), disk)); err != nil {
		return nil, err
	}
	c.Say("%s: booting", name)
	m, err := c.launch(ctx, name, disk, seed)
	if err != nil {
		return nil, err
	}
	if err := m.Booted(ctx, bootWait, nil); err != nil {
		m.Stop()
		return nil, err
	}
	c.Say("%s: booted and filled", name)
	return m, nil
}

// fetch gets a file from the guest and lists it.
func (c *corpus) fetch(ctx context.Context, m *guest, command, name, what string) error {
	if err := machine.Fetch(ctx, m.Socket("port"), command, c.path(name)); err != nil {
		return fmt.Errorf("%s: %w", m.Name, err)
	}
	c.Say("%s: here", name)
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
