package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// maxKeyFile is the largest key file in bytes: a key and a comment or two.
const maxKeyFile = 4096

// LoadFile reads and checks the configuration file called name and the key
// files it names. A key file must be a regular file that only its owner can
// read; a file that is not is refused with the reason.
func LoadFile(name string) (*Config, error) {
	data, _, err := readRegular(name, MaxFile+1, 0)
	if err != nil {
		return nil, err
	}
	return Load(name, data, ReadKeyFile)
}

// LoadKey reads the one key in a key file, with the checks of ReadKeyFile.
func LoadKey(name string) (Key, error) {
	data, err := ReadKeyFile(name)
	if err != nil {
		return Key{}, err
	}
	k, err := parseKeyFile(data)
	if err != nil {
		return Key{}, fmt.Errorf("%s: %w", name, err)
	}
	return k, nil
}

// ReadKeyFile returns the content of a key file after the checks LoadFile
// promises.
func ReadKeyFile(name string) ([]byte, error) {
	data, mode, err := readRegular(name, maxKeyFile+1, syscall.O_NOFOLLOW)
	switch {
	case errors.Is(err, syscall.ELOOP):
		return nil, fmt.Errorf("%s: is a symbolic link: name the file itself", name)
	case err != nil:
		return nil, err
	case mode&0o077 != 0:
		return nil, fmt.Errorf("%s: others can read it (mode %04o): run `chmod 600 %s`", name, mode, name)
	case len(data) > maxKeyFile:
		return nil, fmt.Errorf("%s: larger than %d bytes: this is not a key file", name, maxKeyFile)
	}
	return data, nil
}

// readRegular reads at most limit bytes of a regular file. It never blocks on
// a pipe or a device.
func readRegular(name string, limit int64, flags int) ([]byte, os.FileMode, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|flags, 0)
	if err != nil {
		if pe, ok := errors.AsType[*os.PathError](err); ok {
			err = fmt.Errorf("%s: %w", name, pe.Err)
		}
		return nil, 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !fi.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s: is not a regular file but a %s: name a file", name, fileKind(fi.Mode()))
	}
	data, err := io.ReadAll(io.LimitReader(f, limit))
	return data, fi.Mode().Perm(), err
}

// fileKind names what is not a regular file.
func fileKind(m os.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&os.ModeNamedPipe != 0:
		return "pipe"
	case m&os.ModeSocket != 0:
		return "socket"
	}
	return "device"
}
