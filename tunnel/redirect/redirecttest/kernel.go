// Package redirecttest is a kernel for tests that only remembers what it was
// asked for.
package redirecttest

import (
	"sync"

	"stitch/tunnel/redirect"
)

// Kernel implements redirect.Kernel. The zero value is ready and empty. It is
// safe for concurrent use.
type Kernel struct {
	mu      sync.Mutex
	last    redirect.Desired
	steered redirect.Desired
	applied int
	flushed bool
	guards  []redirect.Route
	err     error
}

// Apply implements redirect.Kernel.
func (k *Kernel) Apply(d redirect.Desired) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		return k.err
	}
	k.last, k.flushed = d, false
	k.applied++
	return nil
}

// Steer implements redirect.Kernel: Apply follows and is what counts.
func (k *Kernel) Steer(d redirect.Desired) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.steered = d
	return k.err
}

// Steered returns the state of the last Steer.
func (k *Kernel) Steered() redirect.Desired {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.steered
}

// Guard implements redirect.Kernel.
func (k *Kernel) Guard(d redirect.Desired) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.setGuards(d)
	return k.err
}

func (k *Kernel) setGuards(d redirect.Desired) {
	k.guards = nil
	for _, r := range d.Routes {
		if r.Guard {
			k.guards = append(k.guards, r)
		}
	}
}

// Clear implements redirect.Kernel.
func (k *Kernel) Clear(keepGuards bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.setGuards(k.last)
	if !keepGuards {
		k.guards = nil
	}
	k.last = redirect.Desired{}
	return k.err
}

// Intact implements redirect.Kernel: false after Flush until the next Apply.
func (k *Kernel) Intact(redirect.Desired) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.flushed
}

// Warnings implements redirect.Kernel: there are none.
func (k *Kernel) Warnings(redirect.Desired) []string { return nil }

// Flush does what another tool's "nft flush ruleset" does.
func (k *Kernel) Flush() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.flushed = true
}

// Fail makes Apply, Guard and Clear return err until it is called with nil.
func (k *Kernel) Fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.err = err
}

// Last returns the state of the last successful Apply and how many there were.
func (k *Kernel) Last() (redirect.Desired, int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.last, k.applied
}

// Guards returns the guard routes that stand alone, after Guard or Clear.
func (k *Kernel) Guards() []redirect.Route {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.guards
}
