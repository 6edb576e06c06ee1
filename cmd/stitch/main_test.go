package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stitch/tunnel/config"
	"stitch/tunnel/control"
)

// TestMain lets the test program stand in for the children it starts.
func TestMain(m *testing.M) {
	if role := os.Getenv("STITCH_TEST_CHILD"); role != "" {
		os.Exit(actAs(role, os.Args[1:]))
	}
	os.Exit(m.Run())
}

// stitch runs the program in this process.
func stitch(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(append([]string{"stitch"}, args...), &out, &errs)
	return code, out.String(), errs.String()
}

func TestCommandLine(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	for _, c := range []struct {
		args string
		code int
		want string // the beginning of stderr, or of stdout if code is 0
	}{
		{"--help", 0, "NAME:\n   stitch - "},
		{"keygen --help", 0, "NAME:\n   stitch keygen - "},
		{"lab up --help", 0, "NAME:\n   stitch lab up - "},
		{"version", 0, "stitch "},
		{"", 2, "stitch: which command?\nstitch: `stitch --help` lists them\n"},
		{"stat", 2, "stitch: unknown command \"stat\"\nstitch: `stitch --help` lists the commands; did you mean `stitch status`?\n"},
		{"lab upp", 2, "stitch: unknown command \"upp\"\nstitch: `stitch lab --help` lists the commands; did you mean `stitch lab up`?\n"},
		{"--frobnicate", 2, "stitch: flag provided but not defined: -frobnicate\nstitch: `stitch --help` lists the flags\n"},
		{"status --frobnicate", 2, "stitch: flag provided but not defined: -frobnicate\nstitch: `stitch status --help` lists the flags\n"},
		{"lab up --rtt fast", 2, "stitch: invalid value \"fast\" for flag -rtt: parse error\nstitch: `stitch lab up --help` lists the flags\n"},
		{"lab up --rate fast", 2, "stitch: rate \"fast\": write it like 100mbit"},
		{"lab up --loss 200%", 2, "stitch: loss \"200%\": write it like 0.1%"},
		{"lab up now", 2, "stitch: stitch lab up takes no argument: remove \"now\"\n"},
		{"lab exec h1", 2, "stitch: a host and a command are needed\n"},
		{"status " + none + " --json", 2, "stitch: flag --json stands behind an argument: write stitch status --json ARGUMENTS\n"},
		{"up", 2, "stitch: CONFIG is missing\nstitch: write `stitch up CONFIG`\n"},
		{"up a b", 2, "stitch: one CONFIG, not 2: a b\n"},
		{"up " + none, 2, "stitch: " + none + ": no such file or directory\n"},
		{"child link " + none, 2, "stitch: " + none + ": no such file or directory\n"},
		{"down " + none, 2, "stitch: " + none + ": no such file or directory\n"},
		{"status --run-dir " + none, 1, "stitch: " + none + "/control.sock: no agent is running\nstitch: start it with `stitch up CONFIG`\n"},
		{"status --site ../etc", 2, "stitch: --site \"../etc\" is not the name of a site"},
		{"status --site a --run-dir b", 2, "stitch: choose one of CONFIG, --site and --run-dir\n"},
		{"keygen --public " + none, 2, "stitch: " + none + ": no such file or directory\n"},
		{"keygen --public --preshared " + none, 2, "stitch: a preshared key has no public key"},
	} {
		code, stdout, stderr := stitch(strings.Fields(c.args)...)
		got, other := stderr, stdout
		if c.code == 0 {
			got, other = stdout, stderr
		}
		if code != c.code || !strings.HasPrefix(got, c.want) || other != "" {
			t.Errorf("stitch %s: code %d\nstdout %q\nstderr %q\nwant %d %q", c.args, code, stdout, stderr, c.code, c.want)
		}
	}
}

// TestHelpHasExamples holds every visible command to an example.
func TestHelpHasExamples(t *testing.T) {
	for _, c := range newApp(nil, nil).Commands {
		all := c.Subcommands
		if len(all) == 0 {
			all = append(all, c)
		}
		for _, sub := range all {
			if !sub.Hidden && !c.Hidden && !strings.Contains(sub.Description, "Example") {
				t.Errorf("stitch %s %s has no example", c.Name, sub.Name)
			}
		}
	}
}

func TestKeygen(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dc1.key")
	code, public, stderr := stitch("keygen", file)
	if code != 0 || stderr != "" {
		t.Fatal(code, stderr)
	}
	if _, err := config.ParseKey(strings.TrimSpace(public)); err != nil {
		t.Errorf("public key %q: %v", public, err)
	}
	fi, err := os.Stat(file)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	private, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if code, again, _ := stitch("keygen", "--public", file); code != 0 || again != public {
		t.Errorf("--public gave %d %q, not %q", code, again, public)
	}
	code, stdout, stderr := stitch("keygen", file)
	if code != 2 || stdout != "" || !strings.Contains(stderr, "exists already and is not overwritten") {
		t.Errorf("a second time: %d %q %q", code, stdout, stderr)
	}
	if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, private) {
		t.Error("the key was overwritten")
	}
	if code, stdout, _ := stitch("keygen", "--preshared", file+".psk"); code != 0 || stdout != "" {
		t.Errorf("--preshared: %d %q", code, stdout)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := stitch("keygen", "--public", file); code != 2 || !strings.Contains(stderr, "others can read it") {
		t.Errorf("a key everybody can read: %d %q", code, stderr)
	}
}

// TestBadConfigIsOneLineEach holds `up` to the configuration's own messages.
func TestBadConfigIsOneLineEach(t *testing.T) {
	file := filepath.Join(t.TempDir(), "e1.toml")
	if err := os.WriteFile(file, []byte("site = \"dc1\"\n[[peeer]]\nname = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := stitch("up", file)
	if want := "stitch: " + file + ":2: unknown key \"peeer\": did you mean \"peer\"?\n"; code != 2 || stdout != "" || stderr != want {
		t.Errorf("%d %q %q, want %q", code, stdout, stderr, want)
	}
}

func TestPrintStatus(t *testing.T) {
	var b bytes.Buffer
	st := &control.Status{
		Site: "dc1", Version: "v1", Uptime: 3723,
		Processes: []control.Process{{Name: "link", State: "waiting", Restarts: 3, LastExit: "exit code 1: stitch: \x1b[2Jno"}},
		Links:     []control.LinkStatus{{Peer: "dc2", State: "connecting", LastHandshake: -1}, {Peer: "dc3", State: "up", RTTms: 40.26, Loss: 0.015, LastHandshake: 5, Endpoint: "198.51.100.20:51820"}},
		Workloads: []control.Workload{{Name: "app", Site: "dc2", Seq: 4}},
		Services:  []control.Service{{Name: "www", Workload: "app", Address: "198.51.100.20:443"}},
		Alarms:    []string{"the link process does not answer"},
	}
	if err := printStatus(&b, st); err != nil {
		t.Fatal(err)
	}
	want := `
site  dc1  up  1h2m3s  version  v1

PROCESS  STATE    PID  RESTARTS  LAST EXIT
link     waiting  0    3         exit code 1: stitch: ?[2Jno

LINK  STATE       RTT      LOSS  HANDSHAKE  ENDPOINT
dc2   connecting  -        0.0%  never      
dc3   up          40.3 ms  1.5%  5s ago     198.51.100.20:51820

WORKLOAD  SITE  SEQ  HERE
app       dc2   4    false

SERVICE  WORKLOAD  ADDRESS
www      app       198.51.100.20:443

ALARM  the link process does not answer
`
	if got := "\n" + b.String(); got != want {
		t.Errorf("got:%s\nwant:%s", got, want)
	}
}

func TestOnlyAgent(t *testing.T) {
	root := t.TempDir()
	if _, err := onlyAgent(root); err == nil || report(&bytes.Buffer{}, err) != 1 {
		t.Errorf("none: %v", err)
	}
	for i, site := range []string{"a", "b"} {
		if err := os.MkdirAll(filepath.Join(root, site), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, site, control.Socket), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		dir, err := onlyAgent(root)
		if i == 0 && (err != nil || dir != filepath.Join(root, "a")) {
			t.Errorf("one: %q, %v", dir, err)
		}
		if i == 1 && (err == nil || !strings.Contains(err.Error(), "choose one with --site (a, b)")) {
			t.Errorf("two: %q, %v", dir, err)
		}
	}
}
