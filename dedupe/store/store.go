package store

import (
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Options say what a store is for.
type Options struct {
	// Segments is how many each ring has, at most accord.MaxSize/Segment.
	Segments int
	// Key has 32 bytes, or none for no encryption. It is borrowed.
	Key []byte
	// Machine names the machine: a store that comes from another one is not
	// used. "" binds to none.
	Machine string
}

// Store is a history on disk: its state and a Log for each ring. State and
// Save are for one goroutine at a time; the logs have rules of their own.
type Store struct {
	Sent, Received *Log
	// Notice says why what was on disk is not used, "" if it is.
	Notice string

	disk     Disk
	file     File
	state    State
	secret   secret
	check    [16]byte
	sequence uint64
}

// MachineID is the machine's own id, "" if it has none.
func MachineID() string {
	b, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Open reads the store on d, or begins a new one if there is none, it is
// damaged, or it belongs to another machine or key. The generation rises by
// one. ErrNewer leaves everything as it is. The store takes d, and closes it
// on error too.
func Open(d Disk, o Options) (*Store, error) {
	s := &Store{disk: d}
	if o.Machine != "" {
		h := sha256.Sum256([]byte(o.Machine))
		copy(s.secret.machine[:], h[:])
	}
	if len(o.Key) > 0 {
		s.secret.key = o.Key
	}
	if err := s.open(o.Segments); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) open(segments int) (err error) {
	if s.file, err = s.disk.Open("state"); err != nil {
		return err
	}
	a, err := s.load()
	if err != nil {
		return err
	}
	if s.Sent, err = openLog(s.disk, "sent", segments, s.state.Epochs[0], a); err != nil {
		return err
	}
	if s.Received, err = openLog(s.disk, "received", segments, s.state.Epochs[1], a); err != nil {
		return err
	}
	s.state.Generation++
	return s.Save(s.state)
}

// load reads the newer of the two slots that verify, or makes a new state.
func (s *Store) load() (cipher.AEAD, error) {
	var b [2 * stateSize]byte
	n, err := s.file.ReadAt(b[:], 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	best, reason := -1, error(nil)
	var a cipher.AEAD
	for i := range 2 {
		var st State
		slot := b[i*stateSize:][:stateSize]
		c, check, err := st.decode(slot, &s.secret)
		switch {
		case errors.Is(err, ErrNewer):
			return nil, err
		case errors.Is(err, ErrCorrupt):
			continue
		}
		if seq := sequenceOf(slot); best < 0 || seq > s.sequence {
			best, reason = i, err
			s.state, s.check, s.sequence, a = st, check, seq, c
		}
	}
	if best >= 0 && reason == nil {
		return a, nil
	}
	if best < 0 && n > 0 {
		reason = errors.New("its state file is damaged")
	}
	return s.renew(reason)
}

// renew begins a new store in the place of what was there, for a reason.
func (s *Store) renew(reason error) (a cipher.AEAD, err error) {
	if reason != nil {
		s.Notice = fmt.Sprintf("the history store on disk is not used: %v; starting cold", reason)
	}
	s.state = newState()
	a, s.check, err = s.secret.derive(s.state.Salt)
	return a, err
}

// State returns the state as last saved.
func (s *Store) State() State { return s.state }

// Save writes the state; its Salt must be the one it had.
func (s *Store) Save(st State) error {
	s.sequence++
	b := st.encode(s.sequence, &s.secret, s.check)
	s.state = st
	_, err := s.file.WriteAt(b[:], int64(s.sequence%2)*stateSize)
	return err
}

// Sync brings everything to the disk.
func (s *Store) Sync() error {
	return errors.Join(s.Sent.Sync(), s.Received.Sync(), s.file.Sync())
}

// Close closes the files and gives the directory free.
func (s *Store) Close() error {
	var err error
	for _, l := range []*Log{s.Sent, s.Received} {
		if l != nil {
			err = errors.Join(err, l.Close())
		}
	}
	if s.file != nil {
		err = errors.Join(err, s.file.Close())
	}
	return errors.Join(err, s.disk.Close())
}
