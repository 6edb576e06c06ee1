package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// pollInterval is how often a running migration is asked how far it is.
const pollInterval = 100 * time.Millisecond

// ErrMigration is wrapped by the error of a migration that failed or was
// cancelled; the machine then runs on at its source.
var ErrMigration = errors.New("migration failed")

// Parameters of a live migration. The zero value of a field leaves what the
// hypervisor has.
type Parameters struct {
	// MaxBandwidth limits the stream, in bytes a second.
	MaxBandwidth int64 `json:"max-bandwidth,omitempty"`
	// DowntimeLimit is the pause aimed at, in milliseconds: the machine is
	// stopped when the rest is estimated to be sent within it.
	DowntimeLimit int64 `json:"downtime-limit,omitempty"`
}

// Progress of a migration, as the source tells it.
type Progress struct {
	// Status is QEMU's word: setup, active, device, completed, failed, …
	Status string `json:"status"`
	// TotalMillis and DowntimeMillis are the source's own measurements.
	TotalMillis    int64 `json:"total-time"`
	DowntimeMillis int64 `json:"downtime"`
	// ExpectedMillis is how long the rest would take at the rate seen last, until
	// the machine is stopped.
	ExpectedMillis int64 `json:"expected-downtime"`
	// Error is QEMU's description of a failure.
	Error string `json:"error-desc"`
	RAM   RAM    `json:"ram"`
}

// RAM counts a migration's memory, in bytes unless said otherwise.
type RAM struct {
	Transferred int64 `json:"transferred"`
	Remaining   int64 `json:"remaining"`
	Total       int64 `json:"total"`
	// Duplicate and Normal count pages: of one repeated byte, and sent whole.
	Duplicate int64 `json:"duplicate"`
	Normal    int64 `json:"normal"`
	// Rounds is how often the dirty pages were collected.
	Rounds int64 `json:"dirty-sync-count"`
	// DirtyRate is in pages a second.
	DirtyRate int64   `json:"dirty-pages-rate"`
	Mbps      float64 `json:"mbps"`
}

// Finished reports whether the migration is over, well or not.
func (p Progress) Finished() bool {
	return p.Status == "completed" || p.Status == "failed" || p.Status == "cancelled"
}

// SetParameters sets the parameters of the migrations to come.
func (c *Client) SetParameters(ctx context.Context, p Parameters) error {
	return c.Execute(ctx, "migrate-set-parameters", p, nil)
}

// SetCapability switches a migration capability, for example "events".
func (c *Client) SetCapability(ctx context.Context, name string, on bool) error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	arguments := map[string][]capability{"capabilities": {{name, on}}}
	return c.Execute(ctx, "migrate-set-capabilities", arguments, nil)
}

// Progress returns how far the last migration started is; its Status is empty if
// there was none.
func (c *Client) Progress(ctx context.Context) (Progress, error) {
	var p Progress
	err := c.Execute(ctx, "query-migrate", nil, &p)
	return p, err
}

// Cancel asks a running migration to stop; the machine stays where it is.
func (c *Client) Cancel(ctx context.Context) error {
	return c.Execute(ctx, "migrate_cancel", nil, nil)
}

// Quit ends the hypervisor process at once, without telling the guest.
func (c *Client) Quit(ctx context.Context) error {
	return c.Execute(ctx, "quit", nil, nil)
}

// Migrate sends the machine to uri ("tcp:10.2.0.10:4444") and waits for the end.
// Each time it has asked, it calls progress (nil: nobody), from this goroutine.
// On failure the error wraps ErrMigration. If ctx ends, the migration goes on:
// Cancel stops it.
func (c *Client) Migrate(ctx context.Context, uri string, progress func(Progress)) (Progress, error) {
	if err := c.Execute(ctx, "migrate", map[string]string{"uri": uri}, nil); err != nil {
		return Progress{}, err
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		p, err := c.Progress(ctx)
		if err != nil {
			return p, err
		}
		if progress != nil {
			progress(p)
		}
		if p.Status == "completed" {
			return p, nil
		}
		if p.Finished() {
			return p, fmt.Errorf("%w: to %s: %s %s", ErrMigration, uri, p.Status, p.Error)
		}
		select {
		case <-ctx.Done():
			return p, ctx.Err()
		case <-tick.C:
		}
	}
}
