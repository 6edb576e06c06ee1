package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/estimate"
)

// inputs are the files of an estimate.
type inputs struct {
	seeds, names []string
	size         int64 // of all together; -1 if it cannot be known
}

// findInputs looks at the files, so that a wrong name is noticed before the
// first one has been read for minutes.
func findInputs(seeds, names []string) (*inputs, error) {
	in := &inputs{seeds: seeds, names: names}
	stdin := 0
	for _, list := range [][]string{seeds, names} {
		for _, name := range list {
			if name == "-" {
				stdin++
			}
			n, err := inputSize(name)
			if err != nil {
				return nil, err
			}
			if in.size < 0 || n < 0 {
				in.size = -1
				continue
			}
			in.size += n
		}
	}
	if stdin > 1 {
		return nil, refuse("standard input (-) can be read only once, not %d times", stdin)
	}
	return in, nil
}

// inputSize is the size of a file, -1 if it is none that has one.
func inputSize(name string) (int64, error) {
	if name == "-" {
		return -1, nil
	}
	fi, err := os.Stat(name)
	switch {
	case err != nil:
		return 0, refusal{err}
	case fi.IsDir():
		return 0, hint{refuse("%s is a directory", name), "name files, or write `tar c " + name + " | stitch estimate -`"}
	case !fi.Mode().IsRegular():
		return -1, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return 0, refusal{err}
	}
	return fi.Size(), f.Close()
}

// run carries the seeds and the files.
func (in *inputs) run(s *estimate.Session, link int64, bar *progress) (*estimate.Report, error) {
	defer bar.end()
	var seeded int64
	for _, name := range in.seeds {
		err := bar.read(name, func(r io.Reader) error {
			n, err := s.Seed(r)
			seeded += n
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	var results []estimate.Result
	for _, name := range in.names {
		err := bar.read(name, func(r io.Reader) error {
			result, err := s.Send(r)
			results = append(results, result)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	rep := estimate.NewReport(in.names, results, s.History(), link)
	rep.SeedBytes, rep.KeptBytes = seeded, s.Kept()
	var err error
	rep.PeakRSS, err = estimate.PeakRSS()
	return rep, err
}

// progressEvery is the pause between two looks of a progress line.
const progressEvery = 200 * time.Millisecond

// progress is a line on a terminal that says how far the reading is; nothing
// if the output is none. It is not safe for concurrent use.
type progress struct {
	w     io.Writer // nil: not a terminal
	name  string
	done  int64
	total int64 // -1: unknown
	last  time.Time
}

// newProgress returns a line on w for total bytes.
func newProgress(w io.Writer, total int64) *progress {
	p := &progress{total: total}
	if f, ok := w.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			p.w = w
		}
	}
	return p
}

// read opens a file while f reads it, and names it in f's error.
func (p *progress) read(name string, f func(io.Reader) error) error {
	file := os.Stdin
	if name != "-" {
		var err error
		if file, err = os.Open(name); err != nil {
			return err
		}
		defer file.Close()
	}
	p.name = name
	err := f(watched{file, p})
	if _, named := errors.AsType[*os.PathError](err); err != nil && !named {
		return fmt.Errorf("%s: %w", name, err)
	}
	return err
}

// watched is a reader of which p counts the bytes.
type watched struct {
	io.Reader
	p *progress
}

func (w watched) Read(b []byte) (int, error) {
	n, err := w.Reader.Read(b)
	w.p.done += int64(n)
	w.p.show()
	return n, err
}

// show writes the line, if it is time to.
func (p *progress) show() {
	if now := time.Now(); p.w != nil && now.Sub(p.last) >= progressEvery {
		p.last = now
		fmt.Fprint(p.w, "\r\x1b[K"+p.line())
	}
}

// line is what stands there now.
func (p *progress) line() string {
	const width = 30
	mb := fmt.Sprintf("%d MB", p.done/1_000_000)
	if p.total <= 0 {
		return fmt.Sprintf("%s  %s", mb, printable(p.name))
	}
	full := int(min(p.done*width/p.total, width))
	return fmt.Sprintf("[%-*s] %3d%%  %s  %s", width, strings.Repeat("=", full), min(p.done*100/p.total, 100), mb, printable(p.name))
}

// end removes the line.
func (p *progress) end() {
	if p.w != nil && !p.last.IsZero() {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
