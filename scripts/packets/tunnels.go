package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"stitch/tunnel/lab"
)

// tunnel is one of those compared: a path between two hosts of a lab.
type tunnel struct {
	name     string
	lab      *lab.Lab
	from, to lab.Namespace
	addr     string // of the host at to
}

// fleet is everything that was started.
type fleet struct {
	dir     string
	labs    []*lab.Lab
	tunnels []*tunnel
	skipped map[string]string
}

// names of the tunnels.
const (
	wireguardL3 = "wireguard-go (L3)"
	stitchL3    = "stitch (L3)"
	stitchL2    = "stitch (L2)"
	vxlanL2     = "VXLAN over wireguard-go (L2)"
	openvpnL2   = "OpenVPN TAP (L2)"
)

// order is that of the table.
var order = []string{wireguardL3, stitchL3, stitchL2, vxlanL2, openvpnL2}

// start builds the programs, and the labs of the tunnels whose names match. The
// fleet must be closed also after an error.
func start(ctx context.Context, among *regexp.Regexp) (*fleet, error) {
	dir, err := os.MkdirTemp("", "stitch-packets")
	f := &fleet{dir: dir, skipped: map[string]string{}}
	if err != nil {
		return f, err
	}
	stitch, wireguard := filepath.Join(dir, "stitch"), filepath.Join(dir, "wireguard-go")
	for program, pkg := range map[string]string{stitch: "./cmd/stitch", wireguard: "golang.zx2c4.com/wireguard"} {
		if err := command(exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", program, pkg)); err != nil {
			return f, err
		}
	}
	wants := among.MatchString
	if wants(wireguardL3) || wants(vxlanL2) {
		plain, err := f.up(ctx, lab.Options{Name: "packetsw", Plain: true, WireGuard: wireguard})
		if err != nil {
			return f, err
		}
		if err := plain.Stretch(ctx); err != nil {
			return f, err
		}
		f.add(wireguardL3, plain, "h1", "h2", "10.2.0.10")
		f.add(vxlanL2, plain, "s1", "s2", "10.1.0.12")
	}
	if wants(stitchL3) || wants(stitchL2) {
		ours, err := f.up(ctx, lab.Options{Name: "packetss", Stitch: stitch, History: "64MiB"})
		if err != nil {
			return f, err
		}
		f.add(stitchL3, ours, "h1", "h2", "10.2.0.10")
		f.add(stitchL2, ours, "s1", "s2", "10.1.0.12")
	}
	if wants(openvpnL2) {
		if err := f.openvpn(ctx); err != nil {
			return f, err
		}
	}
	f.tunnels = slices.DeleteFunc(f.tunnels, func(t *tunnel) bool { return !wants(t.name) })
	slices.SortStableFunc(f.tunnels, func(a, b *tunnel) int { return slices.Index(order, a.name) - slices.Index(order, b.name) })
	if len(f.tunnels) == 0 && len(f.skipped) == 0 {
		return f, fmt.Errorf("-tunnels matches none of %q", order)
	}
	return f, f.ready(ctx)
}

// up starts a lab without emulator.
func (f *fleet) up(ctx context.Context, o lab.Options) (*lab.Lab, error) {
	l, err := lab.Up(ctx, o)
	if err == nil {
		f.labs = append(f.labs, l)
	}
	return l, err
}

func (f *fleet) add(name string, l *lab.Lab, from, to, addr string) {
	a, errA := l.Namespace(from)
	b, errB := l.Namespace(to)
	if err := errors.Join(errA, errB); err != nil {
		panic(err) // a lab has these hosts
	}
	f.tunnels = append(f.tunnels, &tunnel{name: name, lab: l, from: a, to: b, addr: addr})
}

// openvpn starts OpenVPN between the edges of a lab of its own, with a static
// key and the cipher that goes with that.
func (f *fleet) openvpn(ctx context.Context) error {
	program, err := exec.LookPath("openvpn")
	if err != nil {
		f.skipped[openvpnL2] = "the program openvpn is not installed: apt install openvpn"
		return nil
	}
	l, err := f.up(ctx, lab.Options{Name: "packetso", NoAgents: true})
	if err != nil {
		return err
	}
	key := filepath.Join(f.dir, "openvpn.key")
	if err := command(exec.CommandContext(ctx, program, "--genkey", "secret", key)); err != nil {
		return err
	}
	remotes := []string{"198.51.100.20", "203.0.113.10"}
	for i, bridge := range []string{"br-lan", "br-app"} {
		edge := fmt.Sprintf("e%d", i+1)
		cmd := l.CommandContext(ctx, edge, program, "--dev", "tap0", "--remote", remotes[i], "--secret", key, "--cipher", "AES-256-CBC", "--verb", "1")
		if err := cmd.Start(); err != nil {
			return err
		}
		go func() { _ = cmd.Wait() }() // the lab's end ends it
		there := func() bool { return ip(ctx, l, edge, "link set tap0 master "+bridge+" up") == nil }
		if !waitFor(ctx, 10*time.Second, there) {
			f.skipped[openvpnL2] = "openvpn did not open its TAP within 10 s"
			return nil
		}
	}
	f.add(openvpnL2, l, "s1", "s2", "10.1.0.12")
	return nil
}

// ready waits until every tunnel carries.
func (f *fleet) ready(ctx context.Context) error {
	for _, t := range f.tunnels {
		carries := func() bool {
			return command(t.from.Command(ctx, "ping", "-c", "1", "-W", "1", t.addr)) == nil
		}
		if !waitFor(ctx, 20*time.Second, carries) {
			return errors.Join(fmt.Errorf("%s: no ping crosses", t.name), ctx.Err())
		}
	}
	return nil
}

// close removes everything.
func (f *fleet) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	for _, l := range f.labs {
		errs = append(errs, l.Down(ctx))
	}
	return errors.Join(append(errs, os.RemoveAll(f.dir))...)
}

// ip runs one command of iproute2 on a host of a lab.
func ip(ctx context.Context, l *lab.Lab, host, line string) error {
	ns, err := l.Namespace(host)
	if err != nil {
		return err
	}
	return command(exec.CommandContext(ctx, "ip", append([]string{"-n", string(ns)}, strings.Fields(line)...)...))
}

// command runs cmd; its output is part of the error.
func command(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// waitFor asks until the answer is yes.
func waitFor(ctx context.Context, limit time.Duration, ok func() bool) bool {
	for end := time.Now().Add(limit); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return false
}
