package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"stitch/dedupe/store"
)

// TestDir: only a directory of our own, and files of our own in it, are taken
// (D-12).
func TestDir(t *testing.T) {
	use := func(path string) error {
		d, err := store.OpenDir(path)
		if err != nil {
			return err
		}
		s, err := store.Open(d, store.Options{Segments: 2})
		if err != nil {
			return err
		}
		return s.Close()
	}
	fresh := func() string { return filepath.Join(t.TempDir(), "a", "b") }
	root := os.Geteuid() == 0
	for name, c := range map[string]struct {
		make func() string
		ok   bool
		skip bool
	}{
		"missing": {make: fresh, ok: true},
		"wide open": {make: func() string {
			p := fresh()
			_ = os.MkdirAll(p, 0o777)
			return p
		}, ok: true},
		"a link": {make: func() string {
			p := filepath.Join(t.TempDir(), "link")
			_ = os.Symlink(t.TempDir(), p)
			return p
		}},
		"a file": {make: func() string {
			p := filepath.Join(t.TempDir(), "file")
			_ = os.WriteFile(p, nil, 0o600)
			return p
		}},
		"no such place": {make: func() string { return "/proc/stitch/store" }},
		"somebody else's": {make: func() string {
			p := t.TempDir()
			_ = os.Chown(p, 12345, 12345)
			return p
		}, skip: !root},
		"a linked state": {make: func() string {
			p := t.TempDir()
			_ = os.Symlink("/etc/hostname", filepath.Join(p, "state"))
			return p
		}},
		"a pipe for a state": {make: func() string {
			p := t.TempDir()
			_ = unix.Mkfifo(filepath.Join(p, "state"), 0o600)
			return p
		}},
		"somebody else's state": {make: func() string {
			p := t.TempDir()
			_ = os.WriteFile(filepath.Join(p, "state"), nil, 0o600)
			_ = os.Chown(filepath.Join(p, "state"), 12345, 12345)
			return p
		}, skip: !root},
	} {
		if c.skip {
			t.Logf("%s: skipped, needs root", name)
			continue
		}
		path := c.make()
		if err := use(path); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if !c.ok {
			continue
		}
		for _, f := range []string{".", "state", "sent.data", "received.meta"} {
			if st, err := os.Stat(filepath.Join(path, f)); err != nil || st.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: %s: %v", name, f, err)
			}
		}
	}
}

func TestLock(t *testing.T) {
	path := t.TempDir()
	one, err := store.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.OpenDir(path); !errors.Is(err, store.ErrLocked) {
		t.Errorf("a second process: %v", err)
	}
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	two, err := store.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = two.Close()
}

// TestFullDisk: a real file system without room.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small tmpfs")
	}
	path := t.TempDir()
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, "size=3m"); err != nil {
		t.Skip("cannot mount a tmpfs: ", err)
	}
	defer func() { _ = unix.Unmount(path, unix.MNT_DETACH) }()
	d, err := store.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(d, store.Options{Segments: 8})
	if err != nil {
		t.Fatal(err)
	}
	s.Sent.Restart(epoch)
	wrote, refused := 0, 0
	for n := range uint64(8) {
		switch _, err := try(s.Sent, n, 1); {
		case err == nil:
			wrote++
		case errors.Is(err, syscall.ENOSPC):
			refused++
		default:
			t.Error(err)
		}
	}
	if wrote < 2 || refused < 4 {
		t.Errorf("%d segments written to 3 MiB, %d refused", wrote, refused)
	}
	data := make([]byte, store.Segment, store.Buffer)
	for _, n := range s.Sent.Segments() {
		if m, _, err := s.Sent.Read(n, data); err != nil || !same(n, 1, m, data) {
			t.Errorf("segment %d: %v", n, err)
		}
	}
	if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_REMOUNT, "size=30m"); err != nil {
		t.Fatal(err)
	}
	write(t, s.Sent, 7, 1) // there is room again
	closeStore(t, s)
}
