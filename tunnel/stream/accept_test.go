package stream

import (
	"context"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// failing is a listener that gives errors for a while, then a connection, and then
// is closed.
type failing struct {
	Listener
	until time.Time
	err   error
	calls int
	given bool
}

func (l *failing) Accept() (Conn, error) {
	l.calls++
	switch {
	case time.Now().Before(l.until):
		return nil, l.err
	case !l.given:
		l.given = true
		return nil, nil
	}
	return nil, net.ErrClosed
}

// TestAcceptErrors is R-06: a process that has no descriptors left for a minute does
// not spin, does not give up, and accepts the next connection after it.
func TestAcceptErrors(t *testing.T) {
	for _, err := range []error{nil, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		synctest.Test(t, func(t *testing.T) {
			l := &failing{until: time.Now(), err: err}
			if err != nil {
				l.until = l.until.Add(time.Minute)
			}
			taken := 0
			acceptLoop(t.Context(), l, func(error) bool { return false }, func(context.Context, Conn) { taken++ })
			if most := 2 + int(time.Minute/backoffMin); taken != 1 || l.calls > most {
				t.Errorf("%v: %d connections taken in %d calls, want one and at most %d", err, taken, l.calls, most)
			}
		})
	}
}
