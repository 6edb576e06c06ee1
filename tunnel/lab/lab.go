package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"stitch/tunnel/wan"
)

// Lab is a running lab. Its methods are safe for concurrent use. It holds
// nothing open: the lab lives on when the program that built it ends.
type Lab struct {
	opts Options

	mu    sync.Mutex
	state state
}

// Up builds a lab and starts its processes, which outlive the caller. A lab of
// the same name, running or half dead, is taken down first. It returns when
// both agents say that their links are up, within 15 s of their start, or with
// an error that shows why not. On any error, and when ctx ends, everything is
// removed again.
func Up(ctx context.Context, o Options) (*Lab, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := checkMachine(o); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, o.Name)
	if err != nil {
		return nil, fmt.Errorf("lab up: %w", err)
	}
	defer unlock()
	if err := clean(ctx, o.Name, o.Dir); err != nil {
		return nil, fmt.Errorf("lab up: an earlier lab: %w", err)
	}
	l := &Lab{opts: o, state: state{Options: o}}
	if err := l.build(ctx); err != nil {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if ctx.Err() != nil {
			err = fmt.Errorf("interrupted: %w", ctx.Err())
		}
		return nil, fmt.Errorf("lab up: %w", errors.Join(err, clean(late, o.Name, o.Dir)))
	}
	return l, nil
}

// checkMachine names what is missing.
func checkMachine(o Options) error {
	if os.Geteuid() != 0 {
		return errors.New("lab: needs root for network namespaces: run it with sudo")
	}
	programs := []string{"ip", "nft"}
	if o.Plain {
		programs = append(programs, o.WireGuard)
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("lab: %q is missing: install iproute2, nftables and (for plain) wireguard-go", p)
		}
	}
	if o.Stitch != "" {
		if _, err := os.Stat(o.Stitch); err != nil {
			return fmt.Errorf("lab: the stitch program: %w", err)
		}
	}
	return nil
}

// build makes everything in order; what it made before an error stays.
func (l *Lab) build(ctx context.Context) error {
	if err := os.MkdirAll(l.opts.Dir, 0o700); err != nil {
		return err
	}
	if err := l.save(); err != nil {
		return err
	}
	if err := l.buildNetwork(ctx, newPlan(l.opts.Rate > 0, l.opts.Congestion)); err != nil {
		return err
	}
	if l.opts.Rate > 0 {
		if err := l.startWAN(ctx); err != nil {
			return err
		}
	}
	var err error
	switch {
	case l.opts.Plain:
		err = l.startPlain(ctx)
	case !l.opts.NoAgents:
		err = l.startAgents(ctx)
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.state.Ready = true
	l.mu.Unlock()
	return l.save()
}

// buildNetwork makes namespaces, cables, addresses, routes and rules.
func (l *Lab) buildNetwork(ctx context.Context, p plan) error {
	var lines string
	for _, h := range hosts {
		lines += "netns add " + string(l.ns(h)) + "\n"
	}
	if err := ipBatch(ctx, "", lines); err != nil {
		return err
	}
	for _, h := range hosts {
		if err := l.ns(h).sysctl(p.sysctls[h]); err != nil {
			return err
		}
	}
	if err := ipBatch(ctx, "", p.cableLines(func(h string) string { return string(l.ns(h)) })); err != nil {
		return err
	}
	for _, c := range p.wire {
		err := errors.Join(
			l.ns(c.host).Do(func() error { return wan.DisableOffloads(c.dev) }),
			l.ns(c.peer).Do(func() error { return wan.DisableOffloads(c.peerDev) }))
		if err != nil {
			return err
		}
	}
	for _, h := range hosts {
		if err := ipBatch(ctx, l.ns(h), p.ip[h]); err != nil {
			return err
		}
		if p.nft[h] != "" {
			if err := feed(l.ns(h).Command(ctx, "nft", "-f", "-"), p.nft[h]); err != nil {
				return err
			}
		}
	}
	return l.waitDevices(ctx)
}

// waitDevices waits until every device runs: the kernel tells bridges up to a
// second late that a cable is plugged in, and drops frames until then.
func (l *Lab) waitDevices(ctx context.Context) error {
	for _, h := range hosts {
		running := func() bool { return l.ns(h).Do(devicesRunning) == nil }
		if !waitFor(ctx, 5*time.Second, running) {
			return errors.Join(fmt.Errorf("%s: %w", h, l.ns(h).Do(devicesRunning)), ctx.Err())
		}
	}
	return ctx.Err()
}

// devicesRunning names a device of the thread's namespace without carrier.
func devicesRunning() error {
	all, err := net.Interfaces()
	for _, d := range all {
		if d.Flags&net.FlagUp != 0 && d.Flags&net.FlagRunning == 0 {
			err = fmt.Errorf("%s has no carrier", d.Name)
		}
	}
	return err
}

// startWAN starts the emulator's process and waits for its control socket.
func (l *Lab) startWAN(ctx context.Context) error {
	file := filepath.Join(l.opts.Dir, "wan.json")
	cfg, err := json.MarshalIndent(emulatorConfig(l.opts.path(), l.wanSocket()), "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, cfg, 0o600); err != nil {
		return err
	}
	argv := append(slices.Clone(l.opts.WANDaemon), file)
	if err := l.launch("wan", "wan", argv[0], argv[1:]...); err != nil {
		return err
	}
	c := wan.NewClient(l.wanSocket())
	ready := func() bool { _, err := c.Report(ctx); return err == nil || l.dead() != "" }
	if !waitFor(ctx, 5*time.Second, ready) || l.dead() != "" {
		return fmt.Errorf("the WAN emulator does not run; the last lines of its log:\n%s", l.tail("wan"))
	}
	return ctx.Err()
}

// RunWAN is the emulator's process: it runs the wan.EmulatorConfig in file, in
// the network namespace the process is in, until ctx ends.
func RunWAN(ctx context.Context, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var cfg wan.EmulatorConfig
	if err := json.Unmarshal(data, &cfg); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	e, err := wan.Open(cfg)
	if err != nil {
		return err
	}
	return e.Run(ctx)
}

// launch starts a process on a host and records it.
func (l *Lab) launch(name, host, program string, args ...string) error {
	l.opts.Log.Info("starting", "process", name, "host", host)
	cmd := l.ns(host).Command(context.Background(), program, args...)
	p, err := launch(name, cmd, filepath.Join(l.opts.Dir, name+".log"))
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.state.Processes = append(l.state.Processes, p)
	l.mu.Unlock()
	return l.save()
}

func (l *Lab) save() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.save(l.opts.Dir)
}

// dead names a process of the lab that has ended, or "".
func (l *Lab) dead() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.state.Processes {
		if !p.Running() {
			return p.Name
		}
	}
	return ""
}

// tail returns the end of a process's log.
func (l *Lab) tail(name string) string { return tail(filepath.Join(l.opts.Dir, name+".log"), 15) }

func (l *Lab) wanSocket() string { return filepath.Join(l.opts.Dir, "wan.sock") }

func (l *Lab) ns(host string) Namespace { return Namespace(l.opts.Name + "-" + host) }

// Attach returns the lab called name ("" means stitch) that is running, or an
// error that says that there is none. dir is as in Options.
func Attach(name, dir string) (*Lab, error) {
	o, err := Options{Name: name, Dir: dir, NoAgents: true}.withDefaults()
	if err != nil {
		return nil, err
	}
	s, err := loadState(o.Dir)
	if err != nil || !s.Ready {
		return nil, fmt.Errorf("no lab %q is up: start it with `stitch lab up`", o.Name)
	}
	s.Options.Log = o.Log
	return &Lab{opts: s.Options, state: s}, nil
}

// Down removes the lab called name ("" means stitch), in whatever state it is:
// it ends every process that lives in the lab's namespaces (first SIGTERM,
// after 5 s SIGKILL), then deletes the namespaces and the directory. It is no
// error if there is nothing. dir is as in Options.
func Down(ctx context.Context, name, dir string) error {
	o, err := Options{Name: name, Dir: dir, NoAgents: true}.withDefaults()
	if err != nil {
		return err
	}
	if err := checkMachine(o); err != nil {
		return err
	}
	unlock, err := lock(ctx, o.Name)
	if err != nil {
		return fmt.Errorf("lab down: %w", err)
	}
	defer unlock()
	if err := clean(ctx, o.Name, o.Dir); err != nil {
		return fmt.Errorf("lab down: %w", err)
	}
	return nil
}

// Down is the function Down for this lab.
func (l *Lab) Down(ctx context.Context) error { return Down(ctx, l.opts.Name, l.opts.Dir) }

// clean does the work of Down under the lock.
func clean(ctx context.Context, name, dir string) error {
	var spaces []Namespace
	for _, h := range hosts {
		if _, err := os.Lstat(filepath.Join(netnsDir, name+"-"+h)); err == nil {
			spaces = append(spaces, Namespace(name+"-"+h))
		}
	}
	s, _ := loadState(dir) // missing or torn: the namespaces tell enough
	ids := namespaceIDs(spaces)
	list := func() []Process {
		running := slices.DeleteFunc(slices.Clone(s.Processes), func(p Process) bool { return !p.Running() })
		return append(running, inNamespaces(ids)...)
	}
	if err := endAll(ctx, list); err != nil {
		return err
	}
	var errs []error
	for _, n := range spaces {
		errs = append(errs, feed(exec.CommandContext(ctx, "ip", "netns", "delete", string(n)), ""))
	}
	errs = append(errs, endAll(ctx, list)) // who was just entering when the names went
	if s.Options.Plain {
		removePlain()
	}
	return errors.Join(append(errs, removeDir(dir))...)
}
