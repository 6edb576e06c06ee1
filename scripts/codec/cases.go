package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// comparison is one case: files that are sent, after others, and what zstd
// does with the same.
type comparison struct {
	name  string
	files []string // sent, each on a connection of its own, at the same time
	prior []string // sent before, one after the other
	seeds []string // in both sites' history before anything is sent
	patch string   // the file zstd refers to; none if empty
	link  float64  // bytes a second; 0: unknown
	aims  []aim
}

// aim is a bound on something measured; exactly one of the bounds is set.
type aim struct {
	bytes float64 // our bytes are at most so many times zstd's
	speed float64 // our encoding speed is at least so many times zstd's
	ratio float64 // input is at least so many times our bytes
	extra float64 // our bytes exceed the input by at most this share
}

// cases are those of a corpus: the names are those scripts/corpus gives. The
// paths are dir's.
func cases(dir string) []comparison {
	at := func(name string) string { return filepath.Join(dir, name) }
	a1, a2, image := at("a1"), at("a2"), at("disk.img")
	channels, err := filepath.Glob(at("multifd.*"))
	if err != nil {
		panic(err) // the pattern is ours
	}
	list := []comparison{
		{name: "cold", files: []string{a1}, aims: []aim{{bytes: 1}}},
		{name: "return", files: []string{a2}, prior: []string{a1}, patch: a1, aims: []aim{{bytes: 1}, {speed: 5}}},
		{name: "sibling", files: []string{at("s")}, prior: []string{a1}, patch: a1, aims: []aim{{bytes: 1}, {speed: 2}}},
		{name: "repeat", files: []string{a1}, prior: []string{a1}, patch: a1, aims: []aim{{ratio: 2000}}},
		{name: "seeded", files: []string{a1}, seeds: []string{image}, patch: image},
		{name: "multifd", files: channels},
		{name: "multifd return", files: channels, prior: []string{a2}, patch: a2},
		{name: "disk mirror", files: []string{at("nbd")}},
		{name: "disk mirror seeded", files: []string{at("nbd")}, seeds: []string{image}, patch: image},
		{name: "disk image", files: []string{image}},
	}
	return slices.Concat(list,
		twice("database dump", at("dump1.sql"), at("dump2.sql")), twice("source tree", at("source1.tar"), at("source2.tar")),
		twice("log", at("web1.log"), at("web2.log")), dense("zip", at("source1.zip")), dense("jpeg", at("pictures.jpg")))
}

// twice are the cases of two versions of something.
func twice(name, first, second string) []comparison {
	return []comparison{
		{name: name, files: []string{first}},
		{name: name + " later", files: []string{second}, prior: []string{first}, patch: first},
	}
}

// dense are the cases of a file that does not compress, sent twice.
func dense(name, file string) []comparison {
	return []comparison{
		{name: name, files: []string{file}, aims: []aim{{extra: 0.001}}},
		{name: name + " again", files: []string{file}, prior: []string{file}, patch: file, aims: []aim{{ratio: 2000}}},
	}
}

// missing is what c lacks; nil if nothing.
func (c *comparison) missing() error {
	if len(c.files) == 0 {
		return fmt.Errorf("no files of it: %w", os.ErrNotExist)
	}
	for _, name := range slices.Concat(c.files, c.prior, c.seeds) {
		if _, err := os.Stat(name); err != nil {
			return err
		}
	}
	return nil
}
