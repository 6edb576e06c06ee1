package main

import (
	"context"
	"errors"
	"fmt"

	"stitch/tunnel/hypervisor"
)

const (
	// maxBandwidth does not limit.
	maxBandwidth = 10 << 30
	downtimeAim  = 300 // ms
)

// move migrates the guest live into a new QEMU on the same disk, with channels
// connections for memory beside the first (0: one connection carries all), and
// records it as name. The source has ended when it returns; the caller must
// stop the machine returned.
func (c *corpus) move(ctx context.Context, from *machine, name, what string, channels int) (*machine, error) {
	defer from.stop()
	to, err := c.launch(ctx, name, from.disk, 0)
	if err != nil {
		return nil, err
	}
	if err := c.carry(ctx, from, to, name, what, channels); err != nil {
		to.stop()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return to, nil
}

// carry records one migration and adds its files to the manifest.
func (c *corpus) carry(ctx context.Context, from, to *machine, name, what string, channels int) error {
	incoming := map[string]string{"uri": "unix:" + to.socket("in")}
	err := errors.Join(from.channels(ctx, channels), to.channels(ctx, channels),
		to.qmp.Execute(ctx, "migrate-incoming", incoming, nil),
		from.qmp.SetParameters(ctx, hypervisor.Parameters{MaxBandwidth: maxBandwidth, DowntimeLimit: downtimeAim}))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, moveWait)
	defer cancel()
	r, err := record(ctx, to.socket("rec"), to.socket("in"), maxRecord, func(n int) string {
		if channels == 0 {
			return c.path(name)
		}
		return c.path(fmt.Sprintf("%s.%d", name, n))
	})
	if err != nil {
		return err
	}
	end, err := from.qmp.Migrate(ctx, "unix:"+to.socket("rec"), nil)
	if err == nil {
		err = to.running(ctx)
	}
	from.stop() // its connections end
	files, recordErr := r.close()
	if err = errors.Join(err, recordErr); err != nil {
		return err
	}
	if len(files) != 1+channels {
		return fmt.Errorf("%d connections recorded, want %d", len(files), 1+channels)
	}
	c.say("%s: %.0f MB in %.1f s, %d rounds, %d ms down", name, float64(end.RAM.Transferred)/1e6,
		float64(end.TotalMillis)/1e3, end.RAM.Rounds, end.DowntimeMillis)
	return c.list(what, files...)
}
