package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"stitch/scripts/machine"
)

// mirror copies m's disk while the guest writes, over NBD to a QEMU that waits
// for the guest, as a storage migration does, and records what the server gets
// as name. The guest stays where it is.
func (c *corpus) mirror(ctx context.Context, m *guest, name, what string) error {
	target := filepath.Join(c.work, name+".img")
	if err := machine.EmptyLike(m.Disk, target); err != nil {
		return err
	}
	defer os.Remove(target)
	to, err := c.launch(ctx, name, target, 0)
	if err != nil {
		return err
	}
	defer to.Stop()
	if err := to.Export(ctx, machine.Unix(to.Socket("nbd"))); err != nil {
		return err
	}
	r, err := record(ctx, to.Socket("rec"), to.Socket("nbd"), maxRecord, func(int) string { return c.path(name) })
	if err != nil {
		return err
	}
	err = m.Mirror(ctx, machine.Unix(to.Socket("rec")))
	to.Stop()
	files, recordErr := r.close()
	if err = errors.Join(err, recordErr); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	c.Say("%s: disk mirrored", name)
	return c.list(what, files...)
}
