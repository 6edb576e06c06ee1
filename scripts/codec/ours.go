package main

import (
	"io"
	"os"
	"slices"

	"stitch/tunnel/estimate"
)

// Side is what one side of a case took.
type Side struct {
	Bytes  int64   `json:"bytes"`
	Encode float64 `json:"encode_cpu_seconds"`
	Decode float64 `json:"decode_cpu_seconds"`
}

// ours runs a case through our codec once.
func ours(c *comparison) (Side, estimate.Result, error) {
	var r estimate.Result
	in, err := sizes(slices.Concat(c.seeds, c.prior, c.files))
	if err != nil {
		return Side{}, r, err
	}
	s, err := estimate.New(estimate.Config{History: max(2*in, 256<<20), Expect: in, Link: c.link, CPU: estimate.ProcessCPU})
	if err != nil {
		return Side{}, r, err
	}
	defer s.Close()
	for _, name := range c.seeds {
		err := withFiles([]string{name}, func(from ...io.Reader) error {
			_, err := s.Seed(from[0])
			return err
		})
		if err != nil {
			return Side{}, r, err
		}
	}
	send := func(from ...io.Reader) (err error) {
		r, err = s.Send(from...)
		return err
	}
	for _, name := range c.prior {
		if err := withFiles([]string{name}, send); err != nil {
			return Side{}, r, err
		}
	}
	err = withFiles(c.files, send)
	return Side{Bytes: r.Out, Encode: r.Encode.Seconds(), Decode: r.Decode.Seconds()}, r, err
}

// sizes is the length of all files together.
func sizes(names []string) (n int64, err error) {
	for _, name := range names {
		fi, err := os.Stat(name)
		if err != nil {
			return 0, err
		}
		n += fi.Size()
	}
	return n, nil
}

// withFiles opens files while f runs.
func withFiles(names []string, f func(...io.Reader) error) error {
	var open []io.Reader
	for _, name := range names {
		file, err := os.Open(name)
		if err != nil {
			return err
		}
		defer file.Close()
		open = append(open, file)
	}
	return f(open...)
}
