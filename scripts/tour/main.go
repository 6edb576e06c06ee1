// Tour shows the mission of stitch on one machine: it builds two data centers,
// boots a real virtual machine at the first, opens connections to it and from
// it, moves it live to the second through the tunnel and back, and shows that
// nothing broke, what it cost, and what the same move costs through plain
// WireGuard. It needs root and what `scripts/setup demo` installs; `make demo`
// does both.
//
// The results are in build/demo: report.json, report.html, and the logs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"stitch/tunnel/lab"
)

// What the demo is made of.
const (
	wanRate = 100e6
	wanRTT  = 40 * time.Millisecond
	// limit ends a demo that hangs.
	limit = 12 * time.Minute
)

// demo is one run.
type demo struct {
	dir       string // build/demo
	guest     string // build/guest
	stitch    string
	wireguard string
	plain     bool
	talk      *talk
	report    Report
}

func main() {
	plain := flag.Bool("plain", true, "make the first move through plain WireGuard as well")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := run(ctx, *plain); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run makes a whole demo in the current directory's build/.
func run(ctx context.Context, plain bool) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root for network namespaces and TUN devices: run `sudo make demo`")
	}
	build, err := filepath.Abs("build")
	if err != nil {
		return err
	}
	d := &demo{
		dir: filepath.Join(build, "demo"), guest: filepath.Join(build, "guest"), stitch: filepath.Join(build, "stitch"),
		wireguard: filepath.Join(build, "wireguard-go"), plain: plain, talk: newTalk(),
	}
	if err := os.RemoveAll(d.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	d.report.Started = time.Now()
	if err := d.moves(ctx); err != nil {
		return err
	}
	if d.plain {
		if err := d.plainMove(ctx); err != nil {
			return fmt.Errorf("plain WireGuard: %w", err)
		}
	}
	d.report.judge()
	if err := d.report.write(d.dir); err != nil {
		return err
	}
	d.report.summary(os.Stdout)
	fmt.Printf("\n%s\n", filepath.Join("build", "demo", "report.html"))
	if n := d.report.failures(); n > 0 {
		return fmt.Errorf("%d of the checks failed", n)
	}
	return nil
}

// prepare builds the guest's image and the peer to compare with.
func (d *demo) prepare(ctx context.Context) error {
	d.talk.say("building the guest's image")
	if err := quiet(exec.CommandContext(ctx, "scripts/guest-image")); err != nil {
		return err
	}
	if !d.plain {
		return nil
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", d.wireguard, "golang.zx2c4.com/wireguard")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	return quiet(build)
}

// quiet runs a command and shows its output only when it fails.
func quiet(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, out)
	}
	return nil
}

// world builds the two sites; plain joins them by WireGuard alone.
func (d *demo) world(ctx context.Context, plain bool) (*lab.Lab, error) {
	return lab.Up(ctx, lab.Options{Rate: wanRate, RTT: wanRTT, Streams: !plain, Plain: plain, Stitch: d.stitch, WireGuard: d.wireguard, History: "1GiB"})
}

// down takes the sites away, also when ctx is over.
func (d *demo) down(l *lab.Lab) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, e := range []string{"e1", "e2"} {
		if text, err := os.ReadFile(filepath.Join(l.Options().Dir, e+".log")); err == nil {
			_ = os.WriteFile(filepath.Join(d.dir, e+".log"), text, 0o644)
		}
	}
	return l.Down(ctx)
}

// moves is the demo proper: there and back through stitch, under traffic.
func (d *demo) moves(ctx context.Context) (err error) {
	d.talk.say("two sites, a WAN of 100 Mbit/s and 40 ms, one agent at each edge")
	l, err := d.world(ctx, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.down(l)) }()
	s, err := newStage(ctx, d, l)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.begin(ctx); err != nil {
		return err
	}
	there, err := s.move(ctx, "h1", "h2")
	if err != nil {
		return err
	}
	if err := s.newConnections(ctx); err != nil {
		return err
	}
	back, err := s.move(ctx, "h2", "h1")
	if err != nil {
		return err
	}
	d.report.Moves = []Move{there, back}
	return s.finish(ctx)
}

// plainMove makes the first move with the same guest through WireGuard alone.
func (d *demo) plainMove(ctx context.Context) (err error) {
	d.talk.say("the same move through plain WireGuard (wireguard-go), for comparison")
	l, err := d.world(ctx, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.down(l)) }()
	h := newHypervisors(d, l)
	defer h.close()
	if err := h.boot(ctx, "h1"); err != nil {
		return err
	}
	m, err := h.move(ctx, "h1", "h2")
	d.report.Plain = m
	return err
}
