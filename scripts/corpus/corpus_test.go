package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"image/jpeg"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestUnframe(t *testing.T) {
	for name, tt := range map[string]struct {
		in   string
		want string
		err  error
	}{
		"two frames":     {"\x00\x00\x00\x02ab\x00\x00\x00\x01c\x00\x00\x00\x00", "abc", nil},
		"nothing":        {"\x00\x00\x00\x00", "", nil},
		"failed":         {"\x00\x00\x00\x01a\xff\xff\xff\xff", "a", errGuest},
		"over the limit": {"\x00\x00\x00\x05abcde\x00\x00\x00\x00", "", errTooLong},
		"cut off":        {"\x00\x00\x00\x04ab", "ab", io.EOF},
		"no end":         {"\x00\x00\x00\x01a", "a", io.EOF},
	} {
		var out bytes.Buffer
		err := unframe(&out, strings.NewReader(tt.in), 4)
		if !errors.Is(err, tt.err) || out.String() != tt.want {
			t.Errorf("%s: %q, %v; want %q, %v", name, out.String(), err, tt.want, tt.err)
		}
	}
	if err := unframe(io.Discard, strings.NewReader("\x00\x01\x00\x01"), 1<<30); err == nil {
		t.Error("no error of a frame over the bound")
	}
}

// The port's guest side is played by a listener.
func TestFetch(t *testing.T) {
	dir := t.TempDir()
	l := unix(t, filepath.Join(dir, "port"))
	asked := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		line, _ := bufio.NewReader(conn).ReadString('\n')
		asked <- line
		_, _ = conn.Write([]byte("\x00\x00\x00\x04data\x00\x00\x00\x00"))
	}()
	file := filepath.Join(dir, "file")
	if err := fetch(t.Context(), filepath.Join(dir, "port"), "dump", file); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "data" || <-asked != "dump\n" {
		t.Errorf("file %q, %v", b, err)
	}
}

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

// QEMU must get a memory whose size is no multiple of 256 KiB, see guestRAM.
func TestGuestMemorySize(t *testing.T) {
	if guestRAM%(256<<10) == 0 || guestRAM%(8<<10) != 0 {
		t.Errorf("%d bytes", guestRAM)
	}
	m := &machine{name: "m", disk: "d", sockets: "/s"}
	boot, wait := strings.Join(m.arguments("/i", 7), " "), strings.Join(m.arguments("/i", 0), " ")
	if !strings.Contains(boot, "-m 1048584k ") || !strings.Contains(boot, "corpus.seed=7") || strings.Contains(boot, "-incoming") {
		t.Errorf("boot: %s", boot)
	}
	if !strings.HasSuffix(wait, " -incoming defer") {
		t.Errorf("wait: %s", wait)
	}
}
