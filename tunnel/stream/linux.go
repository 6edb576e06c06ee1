package stream

import "stitch/tunnel/netdev"

// Linux is the real Net.
type Linux struct {
	// Opener makes the private TUN for held SYNs.
	Opener netdev.Opener
	// HoldRoute, if not nil, is called with the TUN's name once it is up: it
	// makes packets marked MarkHold go there.
	HoldRoute func(device string) error
}
