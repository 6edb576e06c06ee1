package main

import (
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What arrived is held against the data: all of a file, or the beginning if it was
// cut off.
func TestVerify(t *testing.T) {
	data := make([]byte, 100_000)
	if _, err := io.ReadFull(random(1), data); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	arrived := func(b []byte, cut bool) transfer {
		return transfer{bytes: int64(len(b)), cut: cut, sum: sha256.Sum256(b)}
	}
	damaged := append([]byte{data[0] ^ 1}, data[1:]...)
	longer := append(append([]byte{}, data...), 0)
	for _, c := range []struct {
		name string
		t    transfer
		ok   bool
	}{
		{"all", arrived(data, false), true},
		{"a part, cut off", arrived(data[:50_000], true), true},
		{"a part", arrived(data[:50_000], false), false},
		{"damaged", arrived(damaged, false), false},
		{"damaged, cut off", arrived(damaged[:50_000], true), false},
		{"more than there was", arrived(longer, false), false},
	} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.t.verify(f); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		f.Close()
	}
	if err := arrived(data, false).verify(random(1)); err != nil {
		t.Errorf("made data: %v", err)
	}
	if err := arrived(data, false).verify(random(2)); err == nil {
		t.Error("made data of another seed passes")
	}
}

// The window begins at its 5th second and ends at its 65th, or with the data.
func TestWindow(t *testing.T) {
	for _, c := range []struct {
		name string
		last int // seconds, in each of which 100 bytes arrive
		want float64
	}{{"long", 90, 100}, {"until the end", 30, 100}, {"too short", 8, 0}} {
		start := time.Unix(1000, 0)
		s := newSink()
		s.begin(start)
		for i := range c.last {
			size := 100
			if i+1 < 5 || i+1 > 65 { // not in the window
				size = 1
			}
			s.add(make([]byte, size), start.Add(time.Duration(i+1)*time.Second))
		}
		got := s.result(start.Add(time.Duration(c.last) * time.Second)).window
		if got < c.want*0.99 || got > c.want*1.01 {
			t.Errorf("%s: %v bytes a second, want %v", c.name, got, c.want)
		}
	}
}
