package stream

import (
	"context"
	"fmt"
	"time"
)

// leads reports whether this side begins to bring the histories in step; the
// other one waits for it, so that they never do it twice at a time.
func (d *domain) leads() bool { return d.q.odd == 0 }

// setEpochs changes the epochs and tells those who wait for it; mu is held.
func (d *domain) setEpochs(e epochs) {
	d.epochs = e
	d.gen++
	close(d.changed)
	d.changed = make(chan struct{})
}

// resync brings the two histories in step on a connection of the leading side,
// which has authenticated itself; exchange gives the peer our summary and
// returns its own. It returns errRestarted when another connection has done so
// meanwhile: this one was made under past epochs.
func (d *domain) resync(ctx context.Context, own, peer hello, exchange func(summary []byte) ([]byte, error)) error {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if !d.untie(own, peer) {
		return errRestarted
	}
	if err := d.quiet(ctx); err != nil {
		return err
	}
	mine := d.history.Summary()
	theirs, err := exchange(mine)
	if err != nil {
		return err
	}
	return d.tie(own, peer, mine, theirs)
}

// tie keeps what both histories hold and ties their epochs.
func (d *domain) tie(own, peer hello, mine, theirs []byte) error {
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	if d.epochs.own != own.Epoch {
		return errRestarted
	}
	a, err := d.history.Agree(mine, theirs)
	if err != nil {
		return fmt.Errorf("stream: domain %q: %w", d.name, err)
	}
	d.setEpochs(epochs{own.Epoch, peer.Epoch})
	d.resyncs++
	d.alarm = a.Alarm
	d.log.Info("histories are in step", "kept_sent", a.Sent, "kept_received", a.Received, "summary", len(mine)+len(theirs))
	if a.Alarm != "" {
		d.log.Warn(a.Alarm)
	}
	return nil
}

// untie ends the work under past epochs. False: own is itself past, or the
// histories are in step already, by another connection.
func (d *domain) untie(own, peer hello) bool {
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	if d.epochs.own != own.Epoch || d.epochs.peer != own.Tied {
		return false
	}
	if d.epochs.peer != 0 {
		d.log.Info("peer restarted: bringing the histories in step")
		d.stats.Restarts++
	}
	d.setEpochs(epochs{own: own.Epoch})
	d.dropConns()
	return true
}

// quiet waits until nothing uses the history any more.
func (d *domain) quiet(ctx context.Context) error {
	for {
		d.q.mu.Lock()
		n := len(d.relays) + d.seeds
		d.q.mu.Unlock()
		if n == 0 || ctx.Err() != nil {
			return ctx.Err()
		}
		sleep(ctx, 5*time.Millisecond)
	}
}

// awaitTie waits, on the leading side, until our own connection has brought the
// histories in step with the peer's of that epoch.
func (d *domain) awaitTie(ctx context.Context, own, peer hello) error {
	for {
		d.q.mu.Lock()
		e, changed := d.epochs, d.changed
		if e.own == own.Epoch && !e.tied(peer.Epoch) && e.peer != 0 && e.peer == own.Tied {
			d.setEpochs(epochs{own: e.own}) // the peer has restarted: what we have is past
			d.stats.Restarts++
			d.dropConns()
			changed = d.changed
		}
		d.q.mu.Unlock()
		if e.own != own.Epoch {
			return errRestarted
		}
		if e.tied(peer.Epoch) {
			return nil
		}
		signal(d.wake)
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// restart starts the history again, empty, if the epochs are still those of
// gen: the two sides no longer agree about what is in it.
func (d *domain) restart(gen int) {
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	if d.gen != gen {
		return
	}
	own, err := d.q.p.epoch()
	if err != nil {
		d.log.Error("no new epoch", "err", err)
		return
	}
	d.log.Warn("histories differ: starting again")
	d.history.Restart()
	d.setEpochs(epochs{own: own})
	d.stats.Restarts++
	d.dropConns()
}

// behind says whether the peer, in step with our history as it believes, knows more
// of it than there is: this machine was set back to an earlier state while it ran.
// Positions would mean two things, so the history then starts again, empty.
func (d *domain) behind(own, peer hello) bool {
	d.q.mu.Lock()
	sent, _ := d.history.Heads()
	gen := d.gen
	back := peer.Tied == own.Epoch && d.epochs.own == own.Epoch && peer.Received > sent
	d.q.mu.Unlock()
	if back {
		d.log.Warn("this site's history was set back to an earlier state")
		d.restart(gen)
	}
	return back
}

// use says that a seed uses the history until unuse; false: the connection was
// made under past epochs.
func (d *domain) use(pc *peerConn) bool {
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	if d.gen != pc.gen || d.q.stopping {
		return false
	}
	d.seeds++
	return true
}

func (d *domain) unuse() {
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	d.seeds--
}
