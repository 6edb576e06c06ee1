package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"stitch/tunnel/control"
	"stitch/tunnel/wan"
)

// Options returns the options in effect.
func (l *Lab) Options() Options { return l.opts }

// Namespace returns the namespace of a host (c1, h1, e1, wan, e2, h2, s1, s2
// or d1), or an error that lists the hosts.
func (l *Lab) Namespace(host string) (Namespace, error) {
	if !slices.Contains(hosts[:], host) {
		return "", fmt.Errorf("no host %q in the lab: use one of %v", host, hosts)
	}
	return l.ns(host), nil
}

// Command returns a command that runs on a host of the lab. An unknown host
// shows as an error of ip when it is started.
func (l *Lab) Command(host, name string, args ...string) *exec.Cmd {
	return l.CommandContext(context.Background(), host, name, args...)
}

// CommandContext is Command, killed when ctx ends.
func (l *Lab) CommandContext(ctx context.Context, host, name string, args ...string) *exec.Cmd {
	return l.ns(host).Command(ctx, name, args...)
}

// Exec runs argv on a host with this process's standard streams and waits. If
// it ends unsuccessfully the error is an *exec.ExitError.
func (l *Lab) Exec(ctx context.Context, host string, argv []string) error {
	ns, err := l.Namespace(host)
	if err != nil {
		return err
	}
	if len(argv) == 0 {
		return errors.New("no command: use `stitch lab exec HOST -- COMMAND...`")
	}
	cmd := ns.Command(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

// Process returns the record of a process of the lab: "wan", "e1" or "e2".
func (l *Lab) Process(name string) (Process, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.state.Processes, func(p Process) bool { return p.Name == name })
	if i < 0 {
		return Process{}, false
	}
	return l.state.Processes[i], true
}

// ErrNoEmulator is returned by WAN's methods in a lab with rate 0.
var ErrNoEmulator = errors.New("the lab has rate 0 and so no WAN emulator: start it with a rate")

// WAN controls and measures the path between the edges; see Lab.WAN.
type WAN struct {
	client *wan.Client
	none   bool
}

// Traffic is what passed between the edges; bytes are of IP packets as the
// edge put them on the wire.
type Traffic struct {
	E1toE2 wan.PathStatus `json:"e1_to_e2"`
	E2toE1 wan.PathStatus `json:"e2_to_e1"`
}

// Bytes is what both edges put on the wire towards each other, dropped or not.
func (t Traffic) Bytes() uint64 { return t.E1toE2.Counters.Bytes + t.E2toE1.Counters.Bytes }

// WAN returns the control of the WAN. It is safe for concurrent use.
func (l *Lab) WAN() WAN { return WAN{wan.NewClient(l.wanSocket()), l.opts.Rate == 0} }

// Cut takes the WAN between the edges down (all is dropped), or up again. The
// client's paths stay.
func (w WAN) Cut(ctx context.Context, down bool) error {
	return w.Change(ctx, func(p *wan.Params) { p.Down = down })
}

// SetLoss sets the probability of losing a packet, each way.
func (w WAN) SetLoss(ctx context.Context, loss float64) error {
	return w.Change(ctx, func(p *wan.Params) { p.Loss = loss })
}

// Change edits the parameters of both directions between the edges.
func (w WAN) Change(ctx context.Context, edit func(*wan.Params)) error {
	if w.none {
		return ErrNoEmulator
	}
	return w.client.Change(ctx, "e1", "e2", edit)
}

// Counters reads what passed between the edges since the lab came up.
func (w WAN) Counters(ctx context.Context) (Traffic, error) {
	r, err := w.Report(ctx)
	return Traffic{r.Find("e1", "e2"), r.Find("e2", "e1")}, err
}

// Report reads all paths, the client's too.
func (w WAN) Report(ctx context.Context) (wan.Report, error) {
	if w.none {
		return wan.Report{}, ErrNoEmulator
	}
	return w.client.Report(ctx)
}

// Capture records what the edges and the client put on the wire, before the
// emulator's loss, into a pcap file, each packet once. Close the Capture to
// end it; it belongs to this process. With rate 0 it records both directions
// between the edges at e1's wan0.
func (l *Lab) Capture(file string) (c *wan.Capture, err error) {
	host, both, devices := "wan", false, []string{"e1", "e2", "c1"}
	if l.opts.Rate == 0 {
		host, both, devices = "e1", true, []string{"wan0"}
	}
	err = l.ns(host).Do(func() error {
		c, err = wan.StartCapture(file, both, devices...)
		return err
	})
	return c, err
}

// Status is the state of a lab, as `stitch lab status --json` prints it.
type Status struct {
	Options   Options           `json:"options"`
	Hosts     map[string]string `json:"hosts"` // host to namespace
	Processes []ProcessStatus   `json:"processes"`
	// WAN is missing with rate 0 or when the emulator does not answer.
	WAN *wan.Report `json:"wan,omitempty"`
	// Agents are the agents' own status documents, by host; missing when an
	// agent does not answer.
	Agents map[string]json.RawMessage `json:"agents,omitempty"`
	// Errors say what did not answer, by process.
	Errors map[string]string `json:"errors,omitempty"`
}

// ProcessStatus is a process of the lab.
type ProcessStatus struct {
	Process
	Running bool `json:"running"`
}

// Status asks every part of the lab. What does not answer is in Errors.
func (l *Lab) Status(ctx context.Context) Status {
	s := Status{Options: l.opts, Hosts: map[string]string{}, Agents: map[string]json.RawMessage{}, Errors: map[string]string{}}
	for _, h := range hosts {
		s.Hosts[h] = string(l.ns(h))
	}
	l.mu.Lock()
	for _, p := range l.state.Processes {
		s.Processes = append(s.Processes, ProcessStatus{p, p.Running()})
	}
	l.mu.Unlock()
	if l.opts.Rate > 0 {
		if r, err := l.WAN().Report(ctx); err != nil {
			s.Errors["wan"] = err.Error()
		} else {
			s.WAN = &r
		}
	}
	if l.opts.Plain || l.opts.NoAgents {
		return s
	}
	for _, e := range edges {
		if doc, err := agentStatus(ctx, l.socket(e.host)); err != nil {
			s.Errors[e.host] = err.Error()
		} else {
			s.Agents[e.host] = control.Raw(doc)
		}
	}
	return s
}

// TB is the part of testing.TB that Start needs.
type TB interface {
	Helper()
	Context() context.Context
	Cleanup(func())
	Skip(args ...any)
	Fatal(args ...any)
	Error(args ...any)
}

// Claim returns a lab name that no other process of this machine has claimed:
// base, or base with a number. It stays claimed until this process ends, so two
// runs of the same tests do not take each other's labs down.
func Claim(base string) (string, error) {
	for i := 1; ; i++ {
		name := base
		if i > 1 {
			name += strconv.Itoa(i)
		}
		if !nameRule.MatchString(name) {
			return "", fmt.Errorf("lab names %s to %s are all claimed by other processes", base, name)
		}
		path := "/run/" + name + "-claim"
		fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return "", fmt.Errorf("open %s: %w", path, err)
		}
		if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
			return name, nil // fd, and with it the lock, ends with the process
		}
		unix.Close(fd)
	}
}

// Start builds a lab for a test and takes it down when the test ends. It skips
// the test when not root. Give the lab a Name from Claim if tests of other
// packages, or the same tests once more, may run at the same time.
func Start(t TB, o Options) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	l, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l
}
