package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// stateFile marks a directory as a lab's and records what it started.
const stateFile = "lab.json"

// state is what the directory remembers.
type state struct {
	Options   Options   `json:"options"`
	Processes []Process `json:"processes"`
	// Ready: Up has returned without error.
	Ready bool `json:"ready"`
}

// save replaces the state file.
func (s state) save(dir string) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, stateFile+".new")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, stateFile))
}

// loadState reads a lab's state file.
func loadState(dir string) (s state, err error) {
	data, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	return s, err
}

// removeDir deletes a lab's directory. It refuses one that is not empty and
// not a lab's.
func removeDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, stateFile)); err != nil && len(entries) > 0 {
		return fmt.Errorf("%s is not empty and not a lab's directory: choose another or remove it", dir)
	}
	return os.RemoveAll(dir)
}

// lock takes the machine-wide lock of the lab called name and returns how to
// give it back. The file goes away with the lock.
func lock(ctx context.Context, name string) (unlock func(), err error) {
	path := "/run/" + name + "-lab.lock"
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && sameFile(f, path) {
			return func() { _ = os.Remove(path); f.Close() }, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("another lab command holds %s: %w", path, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// sameFile reports whether path still names f.
func sameFile(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// tail returns the last lines of a process's log.
func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	data = bytes.TrimSpace(data)
	all := bytes.Split(data, []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}
