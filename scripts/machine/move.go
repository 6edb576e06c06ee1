package machine

import (
	"context"
	"time"

	"stitch/tunnel/hypervisor"
)

const (
	// maxBandwidth does not limit: the WAN does.
	maxBandwidth = 10 << 30
	// downtimeAim is QEMU's own default, in milliseconds.
	downtimeAim = 300
	// eventWait is how long an event may be late once the move is complete.
	eventWait = 30 * time.Second
)

// Method is how QEMU moves memory.
type Method struct {
	// Channels is how many connections carry memory beside the first (multifd);
	// 0: the first carries all.
	Channels int
	// Compression is multifd's: "" for none, "zlib" or "zstd".
	Compression string
	// XBZRLE sends pages that were sent before as differences, from a cache of
	// 512 MiB. It does not go with Channels.
	XBZRLE bool
}

// xbzrleCache is XBZRLE's memory of what it has sent, in bytes.
const xbzrleCache = 512 << 20

// Set makes the next move from or to m use the method: both need it.
func (m *Machine) Set(ctx context.Context, by Method) error {
	if err := m.QMP.SetCapability(ctx, "multifd", by.Channels > 0); err != nil {
		return err
	}
	if err := m.QMP.SetCapability(ctx, "xbzrle", by.XBZRLE); err != nil {
		return err
	}
	parameters := dict{"max-bandwidth": maxBandwidth, "downtime-limit": downtimeAim}
	if by.Channels > 0 {
		parameters["multifd-channels"] = by.Channels
	}
	if by.Compression != "" {
		parameters["multifd-compression"] = by.Compression
	}
	if by.XBZRLE {
		parameters["xbzrle-cache-size"] = xbzrleCache
	}
	return m.QMP.Execute(ctx, "migrate-set-parameters", parameters, nil)
}

// Await makes m, which was started to wait, take the guest that comes to uri.
func (m *Machine) Await(ctx context.Context, uri string) error {
	return m.QMP.Execute(ctx, "migrate-incoming", map[string]string{"uri": uri}, nil)
}

// Moved is a move's end.
type Moved struct {
	// Started is when it was ordered, Stopped when the guest was stopped at its
	// source and Resumed when it ran at its target.
	Started, Stopped, Resumed time.Time
	hypervisor.Progress
}

// Total is the time from the order to the guest running at the target.
func (m Moved) Total() time.Duration { return m.Resumed.Sub(m.Started) }

// Downtime is how long the guest was stopped.
func (m Moved) Downtime() time.Duration { return m.Resumed.Sub(m.Stopped) }

// Move moves the guest live from m to a machine that waits at uri. progress may
// be nil. If ctx ends first, the machines are as they are: Stop both.
func (m *Machine) Move(ctx context.Context, to *Machine, uri string, progress func(hypervisor.Progress)) (Moved, error) {
	moved := Moved{Started: time.Now()}
	var err error
	if moved.Progress, err = m.QMP.Migrate(ctx, uri, progress); err != nil {
		return moved, err
	}
	if moved.Stopped, err = m.Event(ctx, "STOP", eventWait); err != nil {
		return moved, err
	}
	moved.Resumed, err = to.Event(ctx, "RESUME", eventWait)
	return moved, err
}
