package config

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestReadKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, mode os.FileMode, size int) {
		if err := os.WriteFile(path(name), make([]byte, size), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("good", 0o600, 45)
	write("read-only", 0o400, 45)
	write("world", 0o644, 45)
	write("group", 0o640, 45)
	write("big", 0o600, maxKeyFile+1)
	if err := os.Symlink(path("good"), path("link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"good": "", "read-only": "",
		"world":    "others can read it (mode 0644): run `chmod 600 ",
		"group":    "others can read it (mode 0640)",
		"big":      "larger than 4096 bytes",
		"link":     "is a symbolic link: name the file itself",
		"pipe":     "is not a regular file but a pipe",
		".":        "is not a regular file but a directory",
		"gone":     "no such file",
		"good/key": "not a directory",
	} {
		data, err := ReadKeyFile(path(name))
		switch {
		case want == "" && (err != nil || len(data) != 45):
			t.Errorf("%s: %d bytes, %v", name, len(data), err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

func TestLoadFileResolvesKeysBesideTheFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, mode os.FileMode, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("own.key", 0o600, testKey(1).Base64())
	write("c.toml", 0o644, "site = \"a\"\nprivate_key_file = \"own.key\"\n[[peer]]\nname = \"b\"\npublic_key = \""+publicOf(testKey(2)).Base64()+"\"\n")
	cfg, err := LoadFile(filepath.Join(dir, "c.toml"))
	if err != nil || cfg.PrivateKey != testKey(1) {
		t.Fatal(cfg, err)
	}
	if err := os.Chmod(filepath.Join(dir, "own.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = LoadFile(filepath.Join(dir, "c.toml"))
	if err == nil || !strings.Contains(err.Error(), "c.toml:2: private_key_file: ") {
		t.Errorf("world-readable key: %v", err)
	}
	if _, err := LoadFile(dir); err == nil || !strings.Contains(err.Error(), "directory") {
		t.Errorf("a directory: %v", err)
	}
}
