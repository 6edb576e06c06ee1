package estimate

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// ProcessCPU is the processor time that all threads of this process have used,
// in user mode and in the kernel.
func ProcessCPU() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		panic(fmt.Sprintf("estimate: the clock that every Linux has: %v", err))
	}
	return time.Duration(ts.Nano())
}

// PeakRSS is the most memory, in bytes, that this process has had resident.
func PeakRSS() (int64, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("getrusage: %w", err)
	}
	return u.Maxrss * 1024, nil
}
