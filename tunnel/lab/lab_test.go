package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/config"
	"stitch/tunnel/control"
)

// TestMain lets the test binary play the programs a lab starts.
func TestMain(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	var err error
	switch {
	case len(os.Args) == 4 && os.Args[2] == "wan-daemon":
		err = RunWAN(ctx, os.Args[3])
	case len(os.Args) > 2 && os.Args[1] == "up":
		err = fakeAgent(ctx, os.Args[len(os.Args)-1])
	default:
		stop()
		if labName, err = Claim("stlabtest"); err == nil || os.Geteuid() != 0 { // only root has labs
			os.Exit(m.Run())
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// fakeAgent reads its configuration and says that its links are up, or ends at
// once if its peer is at port 1.
func fakeAgent(ctx context.Context, file string) error {
	cfg, err := config.LoadFile(file)
	if err != nil {
		return err
	}
	if strings.HasSuffix(cfg.Peers[0].Endpoint, ":1") {
		return errors.New("fake agent: told to end")
	}
	if err := os.MkdirAll(cfg.RunDir, 0o700); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "fake agent: args", os.Args[1:])
	s, err := control.Listen(control.Config{Path: filepath.Join(cfg.RunDir, control.Socket),
		Status: func(context.Context) control.Status {
			return control.Status{Site: cfg.Site, Links: []control.LinkStatus{{Peer: cfg.Peers[0].Name, State: "up"}}}
		}})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// labName is the prefix of this run's labs.
var labName string

// network returns options of a lab without agents.
func network(rate int64, rtt time.Duration) Options {
	return Options{Name: labName, Rate: rate, RTT: rtt, NoAgents: true, Stitch: os.Args[0]}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
}

func TestClaim(t *testing.T) {
	needRoot(t)
	base := labName + "claim" // nobody else's: labName is ours
	for _, want := range []string{base, base + "2"} {
		if name, err := Claim(base); err != nil || name != want {
			t.Errorf("%q, %v, want %s", name, err, want)
		}
	}
	if name, err := Claim(strings.Repeat("a", 21)); err == nil {
		t.Errorf("a name that is too long: %q", name)
	}
}

// leftovers lists what a lab that is down must not have left.
func leftovers(t *testing.T) (found []string) {
	t.Helper()
	for _, pattern := range []string{netnsDir + "/" + labName + "-*", "/run/" + labName + "-lab*"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, names...)
	}
	out, _ := exec.Command("ip", "-br", "link").Output()
	for _, d := range []string{"lan-", "wan0", "br-", "db-d1"} {
		if strings.Contains(string(out), d) {
			found = append(found, d)
		}
	}
	return found
}

// run runs a command on a host and fails the test if it fails.
func run(t *testing.T, l *Lab, host, name string, args ...string) string {
	t.Helper()
	out, err := l.CommandContext(t.Context(), host, name, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %s %v: %v\n%s", host, name, args, err, out)
	}
	return string(out)
}

func TestOptionsRefused(t *testing.T) {
	for name, o := range map[string]Options{
		"name": {Name: "a/b", NoAgents: true}, "long name": {Name: strings.Repeat("a", 21), NoAgents: true},
		"relative": {Dir: "x", NoAgents: true}, "both": {Plain: true, NoAgents: true}, "no program": {},
		"loss": {Loss: 2, NoAgents: true}, "no daemon": {Rate: 1, NoAgents: true},
	} {
		if _, err := o.withDefaults(); err == nil {
			t.Errorf("%s: %+v accepted", name, o)
		}
	}
}

// TestAgentConfigs loads what the lab writes with the agent's own loader.
func TestAgentConfigs(t *testing.T) {
	keys, err := newKeys()
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range edges {
		text := e.agentConfig("/run/x-lab", "1GiB", edges[1-i], keys[e.other])
		read := func(string) ([]byte, error) { return []byte(keys[e.host].Base64()), nil }
		cfg, err := config.Load(e.host+".toml", []byte(text), read)
		if err != nil {
			t.Fatalf("%s: %v\n%s", e.host, err, text)
		}
		if cfg.Site != e.site || len(cfg.Services) != 3 || len(cfg.Workloads) != 2 || len(cfg.Streams) != 1 || cfg.DNS == nil ||
			cfg.RunDir != "/run/x-lab/"+e.host || cfg.Segments[0].Bridge != e.bridge || cfg.Peers[0].PublicKey != keys[e.other] {
			t.Errorf("%s: %+v", e.host, cfg)
		}
	}
}

// TestLocked: a second command waits for the first and gives up with its context.
func TestLocked(t *testing.T) {
	needRoot(t)
	unlock, err := lock(t.Context(), labName)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := lock(ctx, labName); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second lock: %v", err)
	}
	unlock()
	again, err := lock(t.Context(), labName)
	if err != nil {
		t.Fatal(err)
	}
	again()
	if left := leftovers(t); left != nil {
		t.Errorf("left: %v", left)
	}
}

// TestForeignDirectory: a directory that is not a lab's is never deleted.
func TestForeignDirectory(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o := network(0, 0)
	o.Dir = dir
	if _, err := Up(t.Context(), o); err == nil {
		t.Error("a foreign directory was accepted")
	}
	if err := Down(t.Context(), labName, dir); err == nil {
		t.Error("a foreign directory was removed")
	}
	if _, err := os.Stat(filepath.Join(dir, "mine")); err != nil {
		t.Error(err)
	}
}

// TestKilled: whatever is killed, Down and a second Up leave nothing of the
// first lab behind.
func TestKilled(t *testing.T) {
	needRoot(t)
	if err := Down(t.Context(), labName, ""); err != nil {
		t.Fatalf("down without a lab: %v", err)
	}
	l := Start(t, network(100e6, 0))
	wan, _ := l.Process("wan")
	guest := l.CommandContext(t.Context(), "h1", "sh", "-c", "echo in; exec sleep 1000")
	out, err := guest.StdoutPipe()
	if err := errors.Join(err, guest.Start()); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(wan.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(l.Options().Dir, stateFile)); err != nil { // as if Up had been killed
		t.Fatal(err)
	}
	if _, err := Attach(labName, ""); err == nil {
		t.Error("attached to a lab without state")
	}
	if err := os.WriteFile(filepath.Join(l.Options().Dir, stateFile), []byte("{torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	Start(t, network(100e6, 0))
	if _, state, err := procStat(guest.Process.Pid); err == nil && state != 'Z' {
		t.Error("a process of the first lab runs on")
		_ = guest.Cancel()
	}
	_ = guest.Wait()
	if err := l.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t); left != nil {
		t.Errorf("left: %v", left)
	}
}

// TestInterrupted: a context that ends in the middle of Up undoes all of it.
func TestInterrupted(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go waitFor(ctx, 10*time.Second, func() bool {
		_, err := os.Stat(netnsDir + "/" + labName + "-d1")
		if err == nil {
			cancel()
		}
		return err == nil
	})
	if _, err := Up(ctx, network(100e6, 0)); !errors.Is(err, context.Canceled) {
		t.Errorf("up: %v", err)
	}
	if left := leftovers(t); left != nil {
		t.Errorf("left: %v", left)
	}
}

// TestAgents starts fake agents with the real configuration files.
func TestAgents(t *testing.T) {
	needRoot(t)
	o := network(100e6, 10*time.Millisecond)
	o.NoAgents, o.Streams = false, true
	l := Start(t, o)
	st := l.Status(t.Context())
	if len(st.Agents) != 2 || len(st.Errors) != 0 || st.WAN == nil || len(st.Processes) != 3 {
		t.Errorf("status %+v", st)
	}
	for name, mode := range map[string]os.FileMode{"e1.key": 0o600, "e2.toml": 0o600, "lab.json": 0o600, "wan.sock": 0o600} {
		if fi, err := os.Stat(filepath.Join(l.Options().Dir, name)); err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", name, fi, err)
		}
	}
	attached, err := Attach(labName, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := attached.Exec(t.Context(), "s1", []string{"sh", "-c", "exit 7"}); exitStatus(err) != 7 {
		t.Errorf("exec: %v", err)
	}
	if err := attached.Exec(t.Context(), "s9", []string{"true"}); err == nil {
		t.Error("exec on an unknown host succeeded")
	}
}

func exitStatus(err error) int {
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	return -1
}

// TestAgentEnds: an agent that ends at once is named, with its log, and the
// lab is removed.
func TestAgentEnds(t *testing.T) {
	needRoot(t)
	o := network(0, 0)
	o.NoAgents = false
	o.Edit = func(_, toml string) string { return strings.ReplaceAll(toml, ":51820\"", ":1\"") }
	_, err := Up(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "fake agent: told to end") {
		t.Errorf("up: %v", err)
	}
	if left := leftovers(t); left != nil {
		t.Errorf("left: %v", left)
	}
}
