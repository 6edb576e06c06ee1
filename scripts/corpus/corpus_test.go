package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"image/jpeg"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestManifest(t *testing.T) {
	dir := t.TempDir()
	var m manifest
	for _, name := range []string{"b", "a"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("abc"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := m.add(path, "file "+name); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.write(filepath.Join(dir, "manifest.json")); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got []Entry
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	const digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" // FIPS 180-2, B.1
	if len(got) != 2 || got[0] != (Entry{"a", "file a", 3, digest}) || got[1].Name != "b" {
		t.Errorf("%+v", got)
	}
	if err := m.add(filepath.Join(dir, "none"), ""); err == nil {
		t.Error("no error of a file that is not there")
	}
}

func TestMadeUpDataIsTheSameEachTime(t *testing.T) {
	line := regexp.MustCompile(`^\d+\.\d+\.\d+\.\d+ - - \[\d\d/Mar/2026:[\d:]+ \+0000\] "GET /item/\d+\?s=[0-9a-f]{8} HTTP/1.1" \d{3} \d+ "[^"]+" "[^"]+" \d+\.\d{3}$`)
	var first, again, next bytes.Buffer
	if err := errors.Join(accessLog(&first, 0, 500), accessLog(&again, 0, 500), accessLog(&next, 1, 500)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), again.Bytes()) || bytes.Equal(first.Bytes(), next.Bytes()) {
		t.Error("a day's log must be the same each time and another on the next day")
	}
	n := 0
	for l := range strings.Lines(first.String()) {
		n++
		if !line.MatchString(strings.TrimSuffix(l, "\n")) {
			t.Fatalf("line %d: %q", n, l)
		}
	}
	if n != 500 {
		t.Errorf("%d lines", n)
	}
	var picture bytes.Buffer
	if err := jpegs(&picture, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := jpeg.Decode(&picture); err != nil {
		t.Error(err)
	}
}
