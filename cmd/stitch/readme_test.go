package main

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"stitch/tunnel/config"
)

// blocks returns the fenced blocks of the README in one language.
func blocks(t *testing.T, language string) []string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		out = append(out, m[1])
	}
	return out
}

// TestReadmeConfigs loads the quick start's files as printed and holds the two
// sites' views against each other. A block that begins with "# in [table]" is
// lines for that table of the first file, one with "# besides" tables for it, and
// one with "# besides a rate" tables for it when its peer has one.
func TestReadmeConfigs(t *testing.T) {
	dir := t.TempDir()
	sites := map[string]*config.Config{}
	first, parts := "", 0
	keygen(t, filepath.Join(dir, "history.key"))
	for _, text := range blocks(t, "toml") {
		head, rest, _ := strings.Cut(text, "\n")
		if table, ok := strings.CutPrefix(head, "# in "); ok {
			parts++
			whole := strings.Replace(first, "\n"+table+"\n", "\n"+table+"\n"+rest, 1)
			if whole == first {
				t.Fatalf("no %s before %q", table, text)
			}
			loadReadme(t, filepath.Join(dir, "part.toml"), whole)
			continue
		}
		if head == "# besides a rate" {
			rated := strings.Replace(first, "\n[[peer]]\n", "\n[[peer]]\nrate = \"98mbit\"\n", 1)
			loadReadme(t, filepath.Join(dir, "part.toml"), rated+"\n"+rest)
			continue
		}
		if head == "# besides" {
			loadReadme(t, filepath.Join(dir, "part.toml"), first+"\n"+rest)
			continue
		}
		name, ok := strings.CutPrefix(head, "# /etc/stitch/")
		if !ok {
			t.Fatalf("no file name and no table in the first line of %q", text)
		}
		file := filepath.Join(dir, name)
		keygen(t, strings.TrimSuffix(file, ".toml")+".key")
		cfg := loadReadme(t, file, text)
		sites[cfg.Site] = cfg
		if first == "" {
			first = text
		}
	}
	if parts == 0 {
		t.Error("no block for a table found")
	}
	a, b := sites["dc1"], sites["dc2"]
	if a == nil || b == nil || len(sites) != 2 {
		t.Fatalf("sites %v", sites)
	}
	for _, p := range []struct{ a, b *config.Config }{{a, b}, {b, a}} {
		peer := p.a.Peers[0]
		if peer.Name != p.b.Site || !reflect.DeepEqual(peer.Subnets, p.b.Subnets) {
			t.Errorf("%s says of its peer %+v", p.a.Site, peer)
		}
		for _, s := range p.a.Streams {
			if !reflect.DeepEqual(s.To, p.b.Dials[0].To) || !reflect.DeepEqual(s.Ports, p.b.Dials[0].Ports) || s.Domain != p.b.Dials[0].Domain {
				t.Errorf("%s dials not what %s sends: %+v", p.b.Site, p.a.Site, s)
			}
		}
	}
	if !reflect.DeepEqual(a.Workloads, b.Workloads) || !reflect.DeepEqual(a.Services, b.Services) || a.Segments[0].GatewayMAC != b.Segments[0].GatewayMAC {
		t.Error("the sites differ in what must be the same")
	}
}

// keygen makes a key file.
func keygen(t *testing.T, file string) {
	t.Helper()
	if code, _, stderr := stitch("keygen", file); code != 0 {
		t.Fatal(stderr)
	}
}

// loadReadme writes a configuration file and loads it.
func loadReadme(t *testing.T, file, text string) *config.Config {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.LoadFile(file)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return cfg
}

// TestReadmeCommands holds every stitch command line in the README to the
// program's commands and flags.
func TestReadmeCommands(t *testing.T) {
	seen := 0
	for _, block := range blocks(t, "sh") {
		for _, m := range regexp.MustCompile(`(?m)^sudo (?:build/)?stitch ([^#\n]*)`).FindAllStringSubmatch(block, -1) {
			seen++
			words := strings.Fields(m[1])
			depth := 1
			if words[0] == "lab" {
				depth = 2
			}
			code, help, stderr := stitch(append(words[:depth:depth], "--help")...)
			if code != 0 || !strings.HasPrefix(help, "NAME:\n   stitch "+strings.Join(words[:depth], " ")+" - ") {
				t.Errorf("stitch %s: %s%s", m[1], help, stderr)
			}
			for _, w := range words[depth:] {
				if w == "--" {
					break
				}
				if strings.HasPrefix(w, "--") && !strings.Contains(help, w) {
					t.Errorf("stitch %s has no flag %s", words[0], w)
				}
			}
		}
	}
	if seen < 5 {
		t.Errorf("only %d commands found", seen)
	}
}
