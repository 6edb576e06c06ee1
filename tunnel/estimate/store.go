package estimate

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"stitch/dedupe"
)

// ErrStore is returned when a directory was given that cannot be used.
var ErrStore = errors.New("estimate: the history cannot be kept")

// loadPoll is the pause between two looks at how far the loading is.
const loadPoll = 20 * time.Millisecond

// load waits until what the agents' stores hold of an earlier session is in
// memory and in the index: an estimate shall not depend on how fast that goes.
func (s *Session) load() error {
	for _, h := range s.agents() {
		for h.Stats().Store.Loading > 0 {
			time.Sleep(loadPoll)
		}
		if st := h.Stats().Store; st.State == "memory" {
			return fmt.Errorf("%w: %s", ErrStore, strings.Join(st.Alarms, "; "))
		}
	}
	return nil
}

// Alarms are what the agents' stores complain about, each complaint once.
func (s *Session) Alarms() (all []string) {
	for _, h := range s.agents() {
		all = append(all, h.Stats().Store.Alarms...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// agents are the histories of both.
func (s *Session) agents() []*dedupe.History { return []*dedupe.History{s.sender, s.receiver} }
