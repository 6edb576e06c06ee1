package main

import (
	"context"
	"net"
	"time"

	"stitch/scripts/traffic"
)

// outgoing is a connection the guest itself opens and keeps: what tells a
// tunnel that moves machines from one that only moves listeners.
type outgoing struct {
	addr  string
	id    uint64
	pace  time.Duration
	meter *traffic.Meter
}

// keep dials, uses the connection, and dials again when it broke, until ctx is
// done. The meter tells reconnects from attempts before the server was up.
func (o *outgoing) keep(ctx context.Context) {
	d := net.Dialer{Timeout: 20 * time.Second}
	said := ""
	for ctx.Err() == nil {
		conn, err := d.DialContext(ctx, "tcp", o.addr)
		if err != nil {
			o.meter.DialFailed(err)
			if said != err.Error() {
				said = err.Error()
				say("%s", said)
			}
		} else {
			load := traffic.Load{Pace: o.pace, Sizes: traffic.Sizes(o.id), Stall: 2 * time.Minute}
			err = traffic.NewClient(conn, o.id, o.meter).Run(ctx, load)
			say("connection to %s ended: %v", o.addr, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}
