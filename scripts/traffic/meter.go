package traffic

import (
	"errors"
	"io"
	"sync"
	"syscall"
	"time"
)

// maxGaps bounds the gaps a Meter keeps; later ones are only counted into
// Longest.
const maxGaps = 256

// Gap is a time in which a connection got nothing although it should have.
type Gap struct {
	Start  time.Time     `json:"start"`
	Length time.Duration `json:"length_ns"`
}

// Meter counts what one connection did. It is safe for concurrent use.
type Meter struct {
	name  string
	floor time.Duration

	mu   sync.Mutex
	snap Snapshot
	gaps []Gap
}

// Snapshot is a Meter's state at one moment.
type Snapshot struct {
	Name string `json:"name"`
	// Peer is the remote address as seen by this end.
	Peer string `json:"peer,omitempty"`
	// Up says that the connection is open.
	Up bool `json:"up"`
	// Dials counts connections made: more than one is a reconnect.
	Dials int `json:"dials"`
	// Resets counts connections that ended in any way but on our wish.
	Resets int `json:"resets"`
	// Refused counts attempts to connect that failed.
	Refused  int    `json:"refused"`
	Requests uint64 `json:"requests"`
	BytesIn  uint64 `json:"bytes_in"`
	BytesOut uint64 `json:"bytes_out"`
	// Wrong counts checks that found a wrong byte.
	Wrong int `json:"wrong"`
	// Longest is the longest gap, see Gap.
	Longest time.Duration `json:"longest_gap_ns"`
	// Error is the last error, in words.
	Error string `json:"error,omitempty"`
}

// NewMeter returns a meter that keeps gaps of at least floor.
func NewMeter(name string, floor time.Duration) *Meter {
	return &Meter{name: name, floor: floor}
}

// Snapshot returns the state now.
func (m *Meter) Snapshot() Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.snap
	s.Name = m.name
	return s
}

// Gaps returns the gaps kept so far, oldest first. The caller owns the slice.
func (m *Meter) Gaps() []Gap {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]Gap(nil), m.gaps...)
}

// Dialled records a connection that was made, to or from peer.
func (m *Meter) Dialled(peer string) {
	m.update(func(s *Snapshot) { s.Dials++; s.Up, s.Peer = true, peer })
}

// DialFailed records an attempt to connect that failed.
func (m *Meter) DialFailed(err error) {
	m.update(func(s *Snapshot) { s.Refused++; s.Error = err.Error() })
}

// Moved records bytes received and checked, and bytes sent.
func (m *Meter) Moved(in, out int) {
	m.update(func(s *Snapshot) { s.BytesIn += uint64(in); s.BytesOut += uint64(out) })
}

// Answered records a finished request and how long it took from start on.
func (m *Meter) Answered(start time.Time, took time.Duration) {
	m.update(func(s *Snapshot) { s.Requests++ })
	m.Waited(start, took)
}

// Waited records a wait; waits below the meter's floor only count for Longest.
func (m *Meter) Waited(start time.Time, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.snap.Longest = max(m.snap.Longest, took)
	if took >= m.floor && len(m.gaps) < maxGaps {
		m.gaps = append(m.gaps, Gap{Start: start, Length: took})
	}
}

// Ended records the end of the connection. err is nil if we ended it.
func (m *Meter) Ended(err error) {
	m.update(func(s *Snapshot) {
		s.Up = false
		if err == nil {
			return
		}
		s.Error = err.Error()
		s.Resets++
		if errors.Is(err, ErrWrong) {
			s.Wrong++
		}
	})
}

func (m *Meter) update(f func(*Snapshot)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(&m.snap)
}

// Exact reports whether the connection was made once, never broke, and every
// byte was right.
func (s Snapshot) Exact() bool {
	return s.Dials == 1 && s.Resets == 0 && s.Wrong == 0 && s.BytesIn > 0
}

// IsReset reports whether err says that the other side broke the connection.
func IsReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrUnexpectedEOF)
}
