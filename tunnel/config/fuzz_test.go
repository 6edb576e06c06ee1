package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzLoad holds Load to its promises on any file: a Config or bounded
// errors, each naming the file and a line that exists, and the same answer
// twice.
func FuzzLoad(f *testing.F) {
	for _, pattern := range []string{"testdata/good/*.toml", "testdata/bad/*.toml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(expand(data))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		kept := bytes.Clone(data)
		cfg, err := Load("c.toml", data, testFiles)
		if !bytes.Equal(data, kept) {
			t.Fatal("the file was changed")
		}
		again, err2 := Load("c.toml", data, testFiles)
		if !reflect.DeepEqual(cfg, again) || (err == nil) != (err2 == nil) {
			t.Fatalf("two answers: %v, %v", err, err2)
		}
		if err != nil {
			checkErrors(t, cfg, err, bytes.Count(data, []byte("\n"))+1)
			return
		}
		checkConfig(t, cfg)
	})
}

// checkErrors holds what a refusal must look like.
func checkErrors(t *testing.T, cfg *Config, err error, lines int) {
	if cfg != nil {
		t.Fatal("a Config beside an error")
	}
	if n := strings.Count(err.Error(), "\n"); n > maxProblems || len(err.Error()) > 16<<10 {
		t.Fatalf("%d lines, %d bytes of errors", n, len(err.Error()))
	}
	if !utf8.ValidString(err.Error()) {
		t.Fatalf("not UTF-8: %q", err)
	}
	e, ok := errors.AsType[*Error](err)
	if !ok || e.File != "c.toml" || e.Line < 0 || e.Line > lines || e.Text == "" {
		t.Fatalf("%+v in a file of %d lines", e, lines)
	}
}

// checkConfig holds what the rest of the program relies on.
func checkConfig(t *testing.T, cfg *Config) {
	names := []string{cfg.Site}
	for _, p := range cfg.Peers {
		names = append(names, p.Name)
		if len("st-"+p.Name) > 15 || p.ListenPort == 0 || p.PublicKey.IsZero() {
			t.Fatalf("peer %+v", p)
		}
		for _, n := range p.Subnets {
			if n.Bits() < 8 {
				t.Fatalf("peer %s has %v", p.Name, n)
			}
		}
	}
	for _, w := range cfg.Workloads {
		names = append(names, w.Name)
	}
	for _, n := range names {
		if !nameForm.MatchString(n) {
			t.Fatalf("name %q", n)
		}
	}
	for _, s := range cfg.Segments {
		if !s.Subnet.Contains(s.Gateway) || s.ID == 0 || len(s.Peers) == 0 || !deviceForm.MatchString(s.Bridge) {
			t.Fatalf("segment %+v", s)
		}
	}
	if cfg.History.Size < minHistory || cfg.History.Size > maxHistory {
		t.Fatalf("history %d", cfg.History.Size)
	}
}
