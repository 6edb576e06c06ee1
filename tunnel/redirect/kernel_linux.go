package redirect

import (
	"log/slog"
)

// Linux is the Kernel of a real host, in the network namespace of the calling
// process.
type Linux struct{ log *slog.Logger }

// NewLinux returns the kernel of this host. A nil log is silent.
func NewLinux(log *slog.Logger) *Linux { return &Linux{log} }

// Apply implements Kernel.
func (k *Linux) Apply(d Desired) error { return nil }

// Guard implements Kernel.
func (k *Linux) Guard(d Desired) error { return nil }

// Clear implements Kernel.
func (k *Linux) Clear(keepGuards bool) error { return nil }

// Intact implements Kernel.
func (k *Linux) Intact(d Desired) bool { return true }

// Warnings implements Kernel.
func (k *Linux) Warnings(d Desired) []string { return nil }

// HoldRoute sends packets with config.MarkHold into device, which the stream
// process has just opened. The route vanishes with the device.
func HoldRoute(device string) error { return nil }
