package machine

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
)

const (
	maxFrame = 64 << 10
	maxFetch = 1 << 30
	// failedFrame ends the answer to a command that failed in the guest.
	failedFrame = 1<<32 - 1
)

var errGuest = errors.New("the command failed in the guest")

// ErrTooLong is the error of an answer or a stream that says more than its limit.
var ErrTooLong = errors.New("more bytes than the limit")

// Fetch asks a Shop guest, whose "port" is at socket, to carry out a command and
// writes the answer to a file. scripts/corpus/image/corpus-load is the other side.
func Fetch(ctx context.Context, socket, what, file string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := fmt.Fprintln(conn, what); err != nil {
		return err
	}
	if err := unframe(f, bufio.NewReader(conn), maxFetch); err != nil {
		return fmt.Errorf("fetch %s: %w", what, err)
	}
	return f.Close()
}

// unframe copies an answer: frames of a length of four bytes, big endian, and
// so many bytes of data. A length of 0 ends it well, failedFrame badly.
func unframe(w io.Writer, r io.Reader, limit int64) error {
	for {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		n := int64(binary.BigEndian.Uint32(head[:]))
		switch {
		case n == 0:
			return nil
		case n == failedFrame:
			return errGuest
		case n > maxFrame:
			return fmt.Errorf("a frame of %d bytes", n)
		case n > limit:
			return ErrTooLong
		}
		limit -= n
		if _, err := io.CopyN(w, r, n); err != nil {
			return err
		}
	}
}
