package main

import (
	"context"
	"errors"
	"fmt"

	"stitch/scripts/machine"
)

// move migrates the guest live into a new QEMU on the same disk, with channels
// connections for memory beside the first (0: one connection carries all), and
// records it as name. The source has ended when it returns; the caller must
// stop the machine returned.
func (c *corpus) move(ctx context.Context, from *guest, name, what string, channels int) (*guest, error) {
	defer from.Stop()
	to, err := c.launch(ctx, name, from.Disk, 0)
	if err != nil {
		return nil, err
	}
	if err := c.carry(ctx, from, to, name, what, channels); err != nil {
		to.Stop()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return to, nil
}

// carry records one migration and adds its files to the manifest.
func (c *corpus) carry(ctx context.Context, from, to *guest, name, what string, channels int) error {
	by := machine.Method{Channels: channels}
	if err := errors.Join(from.Set(ctx, by), to.Set(ctx, by), to.Await(ctx, "unix:"+to.Socket("in"))); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, moveWait)
	defer cancel()
	r, err := record(ctx, to.Socket("rec"), to.Socket("in"), maxRecord, func(n int) string {
		if channels == 0 {
			return c.path(name)
		}
		return c.path(fmt.Sprintf("%s.%d", name, n))
	})
	if err != nil {
		return err
	}
	end, err := from.QMP.Migrate(ctx, "unix:"+to.Socket("rec"), nil)
	if err == nil {
		err = to.Running(ctx, moveWait)
	}
	from.Stop() // its connections end
	files, recordErr := r.close()
	if err = errors.Join(err, recordErr); err != nil {
		return err
	}
	if len(files) != 1+channels {
		return fmt.Errorf("%d connections recorded, want %d", len(files), 1+channels)
	}
	c.Say("%s: %.0f MB in %.1f s, %d rounds, %d ms down", name, float64(end.RAM.Transferred)/1e6,
		float64(end.TotalMillis)/1e3, end.RAM.Rounds, end.DowntimeMillis)
	return c.list(what, files...)
}
