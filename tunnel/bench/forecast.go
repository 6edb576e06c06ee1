package bench

import (
	"fmt"
	"time"
)

// VM is a virtual machine that is to be moved while it runs.
type VM struct {
	// Memory in bytes; Dirty is how many bytes a second it writes, to pages that
	// were not written since they were last sent.
	Memory int64 `json:"memory"`
	Dirty  int64 `json:"dirty"`
	// Downtime is how long it may stand still at the end.
	Downtime time.Duration `json:"downtime_ns"`
}

// Forecast is how a migration goes.
type Forecast struct {
	// Converges: the memory that is left becomes so little that it can be sent
	// within the downtime.
	Converges bool          `json:"converges"`
	Total     time.Duration `json:"total_ns"`
	Rounds    int           `json:"rounds"`
}

// maxRounds is when a migration counts as endless.
const maxRounds = 100

// Forecast simulates a pre-copy migration over a path that takes rate bytes of
// memory a second: each round sends what was written during the one before
// (Clark et al., Live Migration of Virtual Machines, NSDI 2005).
func (v VM) Forecast(rate float64) Forecast {
	left, seconds := float64(v.Memory), 0.0
	for round := 1; round <= maxRounds && rate > 0; round++ {
		if left <= rate*v.Downtime.Seconds() {
			seconds += left / rate
			return Forecast{true, time.Duration(seconds * float64(time.Second)), round}
		}
		took := left / rate
		seconds += took
		left = min(took*float64(v.Dirty), float64(v.Memory))
	}
	return Forecast{Rounds: maxRounds}
}

// String says it in words.
func (f Forecast) String() string {
	if !f.Converges {
		return "never ends: it writes faster than the path takes"
	}
	return fmt.Sprintf("%v in %d rounds", f.Total.Round(time.Second), f.Rounds)
}
