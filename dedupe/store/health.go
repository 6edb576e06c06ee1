package store

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"
)

const (
	// fullPause and failPause are the waits before a full or failing disk is
	// tried again.
	fullPause = 5 * time.Second
	failPause = time.Minute
	// strikes is how many failed writes in a row make a disk failing.
	strikes = 3
	// maxAlarms is how many different alarms are kept, the newest.
	maxAlarms = 8
)

// Health decides what follows from a disk's errors: when to write again and
// what to tell the operator. The zero value is a disk that is well. It is pure,
// and not safe for concurrent use.
type Health struct {
	full    bool
	failing int // writes in a row
	retry   time.Time
	alarms  []string
}

// Wrote takes the outcome of a write.
func (h *Health) Wrote(err error, now time.Time) {
	switch {
	case err == nil:
		h.full, h.failing, h.retry = false, 0, time.Time{}
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		h.full, h.retry = true, now.Add(fullPause)
		h.Warn("the disk of the history store is full: what is there is used, nothing is added until there is room")
	default:
		if h.failing++; h.failing >= strikes {
			h.retry = now.Add(failPause)
		}
		h.Warn(FailAlarm(err))
	}
}

// Synced takes the outcome of a sync. After a failed one the disk rests: what
// was written lately may be lost without our being told again. Digests will
// say.
func (h *Health) Synced(err error, now time.Time) {
	if err != nil {
		h.failing, h.retry = strikes, now.Add(failPause)
		h.Warn(FailAlarm(err))
	}
}

// FailAlarm is the alarm about an error of the disk.
func FailAlarm(err error) string {
	return fmt.Sprintf("the disk of the history store fails: %v", err)
}

// Rests says that nothing is to be written now.
func (h *Health) Rests(now time.Time) bool { return now.Before(h.retry) }

// Warn adds an alarm, once; "" is none.
func (h *Health) Warn(s string) {
	if s != "" && !slices.Contains(h.alarms, s) {
		h.alarms = append(h.alarms, s)
		h.alarms = h.alarms[max(0, len(h.alarms)-maxAlarms):]
	}
}

// Alarms are the alarms, newest last.
func (h *Health) Alarms() []string { return slices.Clone(h.alarms) }

// State is "open", "full" or "failing".
func (h *Health) State() string {
	switch {
	case h.full:
		return "full"
	case h.failing >= strikes:
		return "failing"
	}
	return "open"
}
