package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const pageSize = 4096

// nonzeroPages counts the 4 KiB pages of the first size bytes of f that have a
// byte other than zero. Holes are not read.
func nonzeroPages(f *os.File, size int64) (int64, error) {
	var count int64
	buf := make([]byte, 1<<20)
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= size { // only a hole is left
			return count, nil
		}
		if err != nil {
			return count, fmt.Errorf("look for data: %w", err)
		}
		at = data &^ (pageSize - 1)
		n, err := f.ReadAt(buf[:min(int64(len(buf)), size-at)], at)
		if n == 0 && err != nil {
			return count, fmt.Errorf("read memory: %w", err)
		}
		count += countNonzero(buf[:n])
		at += int64(n)
	}
	return count, nil
}

// countNonzero counts pages of b; a part of a page at the end counts as one.
func countNonzero(b []byte) (count int64) {
	var zero [pageSize]byte
	for ; len(b) > 0; b = b[min(pageSize, len(b)):] {
		if p := b[:min(pageSize, len(b))]; !bytes.Equal(p, zero[:len(p)]) {
			count++
		}
	}
	return count
}
