package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// Entry is one file of the corpus.
type Entry struct {
	Name   string `json:"name"`
	What   string `json:"what"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// manifest collects entries. It is safe for concurrent use.
type manifest struct {
	mu      sync.Mutex
	entries []Entry
}

// add measures the file at path and lists it as what.
func (m *manifest) add(path, what string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries = append(m.entries, Entry{filepath.Base(path), what, n, hex.EncodeToString(h.Sum(nil))})
	return nil
}

// write saves the manifest, sorted by name.
func (m *manifest) write(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	slices.SortFunc(m.entries, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
	b, err := json.MarshalIndent(m.entries, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// print tells a person what there is.
func (m *manifest) print(w io.Writer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		fmt.Fprintf(w, "%-14s %7.1f MB  %s\n", e.Name, float64(e.Bytes)/1e6, e.What)
	}
}
