package store_test

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"stitch/dedupe/store"
)

// TestHealth tells a disk's story step by step.
func TestHealth(t *testing.T) {
	var h store.Health
	now := time.Unix(0, 0)
	other := errors.New("other")
	for i, c := range []struct {
		after  time.Duration
		sync   bool
		err    error
		state  string
		rests  time.Duration // from now on, at least; not a second longer
		alarms int
	}{
		{0, false, nil, "open", 0, 0},
		{0, false, syscall.ENOSPC, "full", 5 * time.Second, 1},
		{5 * time.Second, false, syscall.EDQUOT, "full", 5 * time.Second, 1},
		{5 * time.Second, false, nil, "open", 0, 1},
		{0, false, syscall.EIO, "open", 0, 2},
		{0, false, syscall.EIO, "open", 0, 2},
		{0, false, other, "failing", time.Minute, 3},
		{time.Minute, false, nil, "open", 0, 3},
		{0, true, nil, "open", 0, 3},
		{0, true, syscall.EIO, "failing", time.Minute, 3},
		{time.Minute, false, nil, "open", 0, 3},
	} {
		now = now.Add(c.after)
		if h.Rests(now) {
			t.Errorf("step %d: it still rests", i)
		}
		if c.sync {
			h.Synced(c.err, now)
		} else {
			h.Wrote(c.err, now)
		}
		if h.State() != c.state || len(h.Alarms()) != c.alarms {
			t.Errorf("step %d: %s, alarms %q", i, h.State(), h.Alarms())
		}
		if c.rests > 0 && !h.Rests(now.Add(c.rests-1)) || h.Rests(now.Add(c.rests)) {
			t.Errorf("step %d: does not rest for %v", i, c.rests)
		}
	}
	for i := range 100 {
		h.Warn(fmt.Sprint(i))
	}
	if a := h.Alarms(); len(a) != 8 || a[7] != "99" {
		t.Errorf("alarms are not bounded: %q", a)
	}
}
