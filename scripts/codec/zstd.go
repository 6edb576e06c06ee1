package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// zstdArgs are the peer's options: its default level with the longest window,
// in one thread.
func zstdArgs(patch string) []string {
	args := []string{"-q", "-f", "--single-thread", "--long=31"}
	if patch != "" {
		args = append(args, "--patch-from="+patch)
	}
	return args
}

// zstd runs a case through zstd once, each file on its own, in dir.
func zstd(dir string, c *comparison) (total Side, err error) {
	for _, file := range c.files {
		patch := c.patch
		if patch == file { // zstd refuses that, and looks at the inode
			patch = filepath.Join(dir, "patch")
			defer os.Remove(patch)
			if _, err := cpu(exec.Command("cp", file, patch), nil); err != nil {
				return total, err
			}
		}
		s, err := zstdFile(filepath.Join(dir, "packed.zst"), file, patch)
		if err != nil {
			return total, err
		}
		total.Bytes += s.Bytes
		total.Encode += s.Encode
		total.Decode += s.Decode
	}
	return total, nil
}

// zstdFile makes packed of a file, decodes and compares it, and removes it.
func zstdFile(packed, file, patch string) (s Side, err error) {
	defer os.Remove(packed)
	reading, err := cpu(exec.Command("cat", file), nil)
	if err != nil {
		return s, err
	}
	enc, err := cpu(exec.Command("zstd", append(zstdArgs(patch), "-3", file, "-o", packed)...), nil)
	if err != nil {
		return s, err
	}
	want, err := os.Open(file)
	if err != nil {
		return s, err
	}
	defer want.Close()
	check := &comparer{want: want}
	dec, err := cpu(exec.Command("zstd", append(zstdArgs(patch), "-d", "-c", packed)...), check)
	if err = errors.Join(err, check.end()); err != nil {
		return s, fmt.Errorf("%s: %w", file, err)
	}
	s.Encode, s.Decode = (enc - reading).Seconds(), dec.Seconds()
	s.Bytes, err = sizes([]string{packed})
	return s, err
}

// cpu runs a command to its end, with its output to w (nil: nowhere), and
// returns its processor time.
func cpu(cmd *exec.Cmd, w io.Writer) (time.Duration, error) {
	var complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &complaint
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(complaint.Bytes()))
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// comparer is a Writer that takes only what want holds.
type comparer struct {
	want io.Reader
	buf  []byte
}

var errDiffers = errors.New("the decoded bytes differ from the input")

func (c *comparer) Write(b []byte) (int, error) {
	if len(c.buf) < len(b) {
		c.buf = make([]byte, len(b))
	}
	if _, err := io.ReadFull(c.want, c.buf[:len(b)]); err != nil || !bytes.Equal(b, c.buf[:len(b)]) {
		return 0, errDiffers
	}
	return len(b), nil
}

// end says whether all of want was written.
func (c *comparer) end() error {
	if n, err := c.want.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return errDiffers
	}
	return nil
}
