package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// maxProblems is the most problems one Load reports; a file with more is told
// how many there are.
const maxProblems = 10

// Error is one thing wrong with a configuration file. Load joins several of
// them; errors.AsType finds the first.
type Error struct {
	// File is the name given to Load.
	File string
	// Line counts from 1; 0 when the problem is something missing from the file.
	Line int
	// Key is the dotted key concerned, such as peer.endpoint; empty for a
	// mistake of TOML itself.
	Key string
	// Text says what is wrong and what to write instead.
	Text string
}

// Error returns "file:line: key: text".
func (e *Error) Error() string {
	where := e.File
	if e.Line > 0 {
		where = fmt.Sprintf("%s:%d", e.File, e.Line)
	}
	if e.Key == "" {
		return where + ": " + e.Text
	}
	return where + ": " + e.Key + ": " + e.Text
}

// problems collects what is wrong with one file. The zero value is not ready:
// file must be set.
type problems struct {
	file  string
	found []*Error
}

// add records one problem.
func (p *problems) add(line int, key, format string, args ...any) {
	p.found = append(p.found, &Error{File: p.file, Line: line, Key: key, Text: fmt.Sprintf(format, args...)})
}

// err returns the first problems in the order of the file, or nil.
func (p *problems) err() error {
	if len(p.found) == 0 {
		return nil
	}
	slices.SortStableFunc(p.found, func(a, b *Error) int { return cmp.Compare(a.Line, b.Line) })
	shown := p.found[:min(len(p.found), maxProblems)]
	errs := make([]error, 0, len(shown)+1)
	for _, e := range shown {
		errs = append(errs, e)
	}
	if more := len(p.found) - len(shown); more > 0 {
		errs = append(errs, fmt.Errorf("%s: %d more problems: mend these first", p.file, more))
	}
	return errors.Join(errs...)
}
