package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// File is an open file of a store. Reads and writes may run beside each other.
type File interface {
	// ReadAt and WriteAt are as in package io: short reads and writes are
	// errors.
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Truncate(size int64) error
	Size() (int64, error)
	Sync() error
	Close() error
}

// Disk is where a store's files are. The seam for tests of faults.
type Disk interface {
	// Open opens a file for reading and writing; a missing one is made empty.
	Open(name string) (File, error)
	// Close gives the lock back; the files are closed by their users.
	Close() error
}

// ErrLocked is returned by OpenDir when another process has the directory.
var ErrLocked = errors.New("store: in use by another process")

// dir is a Disk in a directory of the real file system.
type dir struct{ fd, lock *os.File }

// OpenDir makes the directory if it is missing, checks that it is ours alone
// and no symbolic link, and locks it. ErrLocked if another process has it.
func OpenDir(path string) (Disk, error) {
	path = filepath.Clean(path)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	fd, err := unix.Open(path, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("store: %w", &fs.PathError{Op: "open", Path: path, Err: err})
	}
	d := &dir{fd: os.NewFile(uintptr(fd), path)}
	if err := d.guard(); err != nil {
		return nil, errors.Join(fmt.Errorf("store: %s: %w", path, err), d.fd.Close())
	}
	return d, nil
}

// guard checks the directory and locks it.
func (d *dir) guard() error {
	if err := own(d.fd); err != nil {
		return err
	}
	if err := d.fd.Chmod(0o700); err != nil {
		return err
	}
	f, err := d.open("lock")
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return errors.Join(err, f.Close())
	}
	d.lock = f
	return nil
}

// own refuses what belongs to somebody else.
func own(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("belongs to user %d, not to this process's user %d", st.Uid, os.Geteuid())
	}
	return nil
}

func (d *dir) open(name string) (*os.File, error) {
	const flags = unix.O_RDWR | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, err := unix.Openat(int(d.fd.Fd()), name, flags, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: filepath.Join(d.fd.Name(), name), Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	st, err := f.Stat()
	switch {
	case err != nil:
	case !st.Mode().IsRegular():
		err = fmt.Errorf("%s is not a regular file", name)
	default:
		err = own(f)
	}
	if err == nil {
		err = f.Chmod(0o600)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Open implements Disk.
func (d *dir) Open(name string) (File, error) {
	f, err := d.open(name)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return file{f}, nil
}

// Close implements Disk.
func (d *dir) Close() error { return errors.Join(d.lock.Close(), d.fd.Close()) }

// file is a File of the real file system.
type file struct{ *os.File }

// Size implements File.
func (f file) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Sync implements File: the data, and of the metadata what finding it needs.
func (f file) Sync() error { return unix.Fdatasync(int(f.Fd())) }
