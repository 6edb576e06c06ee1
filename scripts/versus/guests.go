package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"stitch/scripts/machine"
	"stitch/scripts/program"
	"stitch/tunnel/hypervisor"
	"stitch/tunnel/lab"
)

const (
	bootWait      = 10 * time.Minute
	moveWait      = 5 * time.Minute
	migrationPort = 4444
	diskPort      = 4809
	// hotLimit is how long a guest that is too busy gets to move.
	hotLimit = 2 * time.Minute
	hotWarm  = 10 * time.Second
	// tellEvery is how often one is told how far a move is.
	tellEvery = 15 * time.Second
	// busyPages is how many pages a second the busy guest edits.
	busyPages = 4000
	// calmDown is what databases take to write what they had in mind.
	calmDown = 45 * time.Second
)

// snapshot is a guest's memory and disk at one moment.
type snapshot struct{ memory, disk string }

// fill boots the two guests, unless an earlier run has, waits until their
// databases are filled, and keeps what they are then.
func (v *versus) fill(ctx context.Context) error {
	if v.first != (snapshot{}) {
		return nil
	}
	if err := machine.MakeShop(ctx); err != nil {
		return err
	}
	recipe, err := os.ReadFile(filepath.Join(machine.ShopImage, "recipe"))
	if err != nil {
		return err
	}
	dir := filepath.Join(workDir, "guests-"+strings.TrimSpace(string(recipe)))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for seed, into := range []*snapshot{&v.first, &v.sibling} {
		name := fmt.Sprintf("seed%d", seed+1)
		*into = snapshot{filepath.Join(dir, name+".memory"), filepath.Join(dir, name+".img")}
		if _, err := os.Stat(into.memory); err != nil { // it comes last
			g.Go(func() error { return v.snapshot(ctx, *into, name, seed+1) })
		}
	}
	return g.Wait()
}

// soothe makes a snapshot of the first guest with less to do (see corpus-load's calm),
// unless an earlier run has.
func (v *versus) soothe(ctx context.Context) error {
	if err := v.fill(ctx); err != nil || v.calm != (snapshot{}) {
		return err
	}
	dir := filepath.Dir(v.first.memory)
	s := snapshot{filepath.Join(dir, "calm.memory"), filepath.Join(dir, "calm.img")}
	if _, err := os.Stat(s.memory); err != nil {
		v.Say("calm: %v for the first guest's databases to come to rest", calmDown)
		if err := copyDisk(ctx, v.first.disk, s.disk); err != nil {
			return err
		}
		m, err := v.shop("calm", s.disk, 0).Start(ctx, nil)
		if err != nil {
			return err
		}
		defer m.Stop()
		err = errors.Join(m.Await(ctx, "exec:cat "+v.first.memory), m.Running(ctx, moveWait),
			machine.Fetch(ctx, v.shop("calm", "", 0).Socket("port"), "calm", os.DevNull), program.Sleep(ctx, calmDown))
		if err == nil {
			err = v.keep(ctx, m, s)
		}
		if err != nil {
			return err
		}
	}
	v.calm = s
	return nil
}

// keep makes a snapshot of a machine, whose disk is there.
func (v *versus) keep(ctx context.Context, m *machine.Machine, s snapshot) error {
	if err := m.Set(ctx, machine.Method{}); err != nil {
		return err
	}
	if _, err := m.QMP.Migrate(ctx, "exec:cat >"+s.memory+".new", nil); err != nil {
		return err
	}
	return os.Rename(s.memory+".new", s.memory)
}

// snapshot boots and fills one guest and makes s of it.
func (v *versus) snapshot(ctx context.Context, s snapshot, name string, seed int) error {
	v.Say("%s: booting", name)
	if err := copyDisk(ctx, filepath.Join(machine.ShopImage, "golden.img"), s.disk); err != nil {
		return err
	}
	m, err := v.shop(name, s.disk, seed).Start(ctx, nil)
	if err != nil {
		return err
	}
	defer m.Stop()
	if err := errors.Join(m.Booted(ctx, bootWait, nil), v.keep(ctx, m, s)); err != nil {
		return err
	}
	v.Say("%s: booted, filled and kept", name)
	return nil
}

func (v *versus) shop(name, disk string, seed int) machine.Shop {
	return machine.Shop{Name: name, Image: machine.ShopImage, Disk: disk, Sockets: v.sockets, Seed: seed}
}

func copyDisk(ctx context.Context, from, to string) error {
	return machine.Run(exec.CommandContext(ctx, "cp", "--sparse=always", from, to))
}

// on starts a machine on a host of a lab; it waits for a guest.
func (v *versus) on(ctx context.Context, l *lab.Lab, host, name, disk string) (*machine.Machine, machine.Shop, error) {
	shop := v.shop(name, disk, 0)
	m, err := shop.Start(ctx, func(args []string) *exec.Cmd { return l.Command(host, machine.QEMU, args...) })
	return m, shop, err
}

// restored is a guest that goes on from a snapshot, on a disk of its own.
type restored struct {
	*machine.Machine
	machine.Shop
}

// churn makes the guest edit so many pages a second, and waits until it does.
func (r *restored) churn(ctx context.Context, pages int) error {
	return errors.Join(machine.Fetch(ctx, r.Socket("port"), fmt.Sprintf("churn %d", pages), os.DevNull), program.Sleep(ctx, hotWarm))
}

// restore starts the guest of a snapshot on a host. The caller must end it.
func (v *versus) restore(ctx context.Context, l *lab.Lab, host string, s snapshot) (*restored, error) {
	disk := filepath.Join(v.work, "disk.img")
	if err := copyDisk(ctx, s.disk, disk); err != nil {
		return nil, err
	}
	m, shop, err := v.on(ctx, l, host, "source", disk)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(m.Await(ctx, "exec:cat "+s.memory), m.Running(ctx, moveWait), program.Sleep(ctx, settle)); err != nil {
		m.Stop()
		return nil, err
	}
	return &restored{m, shop}, nil
}

// methods are how QEMU moves memory, by their names in the table.
var methods = map[string]machine.Method{
	asItIs:  {},
	multifd: {Channels: 4, Compression: "zstd"},
	xbzrle:  {XBZRLE: true},
}

const (
	asItIs  = "QEMU"
	multifd = "QEMU multifd+zstd"
	xbzrle  = "QEMU XBZRLE"
)

// meet starts a machine on a host that waits for a guest, by a method, and returns
// it with the address by which it is reached over the carrier.
func (v *versus) meet(ctx context.Context, l *lab.Lab, from *restored, c carrier, to end, by string) (*restored, string, error) {
	next := map[string]string{"source": "target", "target": "source"}[from.Name]
	m, shop, err := v.on(ctx, l, to.host, next, from.Disk)
	if err != nil {
		return nil, "", err
	}
	there := fmt.Sprintf("tcp:%s:%d", to.addr, migrationPort)
	if err := errors.Join(from.Set(ctx, methods[by]), m.Set(ctx, methods[by]), m.Await(ctx, there)); err != nil {
		m.Stop()
		return nil, "", err
	}
	if c.via != "" {
		there = fmt.Sprintf("tcp:%s:%d", c.via, migrationPort)
	}
	return &restored{m, shop}, there, nil
}

// move moves a guest to a host, adds a row, and returns the guest there; the one
// here has ended. A move that takes longer than limit, or that cannot end, is given
// up, which is a row too, and nothing is returned.
func (v *versus) move(ctx context.Context, l *lab.Lab, c carrier, from *restored, to end, name, by string, limit time.Duration) (*restored, error) {
	defer from.Stop()
	arrived, there, err := v.meet(ctx, l, from, c, to, by)
	if err != nil {
		return nil, err
	}
	ok := false
	defer func() {
		if !ok {
			arrived.Stop()
		}
	}()
	before, err := read(ctx, l, c)
	if err != nil {
		return nil, err
	}
	moved, given, err := v.goes(ctx, from, arrived, there, limit, nil)
	if err != nil {
		return nil, fmt.Errorf("%s, %s, %s: %w", name, c.name, by, err)
	}
	r, err := before.row(ctx, l, c, name, by)
	if err != nil {
		return nil, err
	}
	r.Rounds, r.Offered, r.Seconds = moved.RAM.Rounds, moved.RAM.Transferred, given.Seconds()
	if r.GivenUp = given > 0; !r.GivenUp {
		r.Seconds, r.DowntimeMS = moved.Total().Seconds(), milliseconds(moved.Downtime())
	}
	v.add(r)
	if r.GivenUp {
		return nil, nil
	}
	ok = true
	return arrived, nil
}

// goes has the guest move, and gives it up after limit, or once it is hopeless;
// given is then when. heard, if not nil, hears what the source says.
func (v *versus) goes(ctx context.Context, from, to *restored, there string, limit time.Duration, heard func(hypervisor.Progress)) (moved machine.Moved, given time.Duration, err error) {
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	var last hypervisor.Progress
	var o outlook
	told := began
	moved, err = from.Move(within, to.Machine, there, func(p hypervisor.Progress) {
		last = p
		if now := time.Now(); now.Sub(told) >= tellEvery {
			told = now
			v.Say("%v of at most %v: round %d, %s sent, %s left", now.Sub(began).Round(time.Second), limit, p.RAM.Rounds,
				megabytes(p.RAM.Transferred), megabytes(p.RAM.Remaining))
		}
		if heard != nil {
			heard(p)
		}
		if o.hopeless(time.Now(), p.RAM) {
			cancel()
		}
	})
	if err != nil && within.Err() != nil && ctx.Err() == nil {
		moved.Progress = last
		return moved, time.Since(began), nil
	}
	return moved, 0, err
}

// thereAndBack moves the guest of a snapshot away, lets it write, and moves it back.
func (v *versus) thereAndBack(ctx context.Context, l *lab.Lab, c carrier, s snapshot, there, back, by string) error {
	g, err := v.restore(ctx, l, c.from.host, s)
	if err != nil {
		return err
	}
	if g, err = v.move(ctx, l, c, g, c.to, there, by, moveWait); g == nil {
		return err
	}
	if err := program.Sleep(ctx, v.dwell); err != nil {
		g.Stop()
		return err
	}
	if g, err = v.move(ctx, l, c, g, c.from, back, by, moveWait); g == nil {
		return err
	}
	g.Stop()
	return nil
}

// moves is the first move, the return, and the sibling's move, by all methods.
func (v *versus) moves(ctx context.Context) error {
	ways := v.wanted("moves", way{carrier: stitch, by: asItIs}, way{carrier: vxlan, by: multifd}, way{carrier: vxlan, by: xbzrle})
	for _, s := range ways {
		if err := v.fill(ctx); err != nil {
			return err
		}
		err := v.within(ctx, s.carrier, v.wan, func(l *lab.Lab) error {
			if err := v.thereAndBack(ctx, l, s.carrier, v.first, firstMove, returnMove, s.by); err != nil {
				return err
			}
			g, err := v.restore(ctx, l, s.from.host, v.sibling)
			if err != nil {
				return err
			}
			if g, err = v.move(ctx, l, s.carrier, g, s.to, siblingMove, s.by, moveWait); g != nil {
				g.Stop()
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// disk mirrors a running guest's disk.
func (v *versus) disk(ctx context.Context) error {
	for _, s := range v.wanted("disk", way{carrier: stitch, by: "NBD"}, way{carrier: vxlan, by: "NBD"}) {
		if err := v.fill(ctx); err != nil {
			return err
		}
		c := s.carrier
		err := v.within(ctx, c, v.wan, func(l *lab.Lab) error {
			g, err := v.restore(ctx, l, c.from.host, v.first)
			if err != nil {
				return err
			}
			defer g.Stop()
			empty := filepath.Join(v.work, "mirror.img")
			if err := machine.EmptyLike(g.Disk, empty); err != nil {
				return err
			}
			defer os.Remove(empty)
			to, _, err := v.on(ctx, l, c.to.host, "target", empty)
			if err != nil {
				return err
			}
			defer to.Stop()
			at := machine.Inet(c.to.addr, diskPort)
			if err := to.Export(ctx, at); err != nil {
				return err
			}
			return v.timed(ctx, l, c, "disk mirror", s.by, func() error { return g.Mirror(ctx, at) })
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// slow is a T3 line, there and back, for a guest that plain WireGuard can move.
func (v *versus) slow(ctx context.Context) error {
	return v.onT3(ctx, "T3", func(l *lab.Lab, s way) error {
		return v.thereAndBack(ctx, l, s.carrier, v.calm, "T3: first move", "T3: return", s.by)
	})
}

// busy is a guest that dirties its memory faster than a T3 line carries it.
func (v *versus) busy(ctx context.Context) error {
	return v.onT3(ctx, "busy", func(l *lab.Lab, s way) error { return v.busyMove(ctx, l, s, busyMove) })
}

// busyMove moves a busy guest.
func (v *versus) busyMove(ctx context.Context, l *lab.Lab, s way, name string) error {
	g, err := v.restore(ctx, l, s.from.host, v.first)
	if err != nil {
		return err
	}
	if err := g.churn(ctx, busyPages); err != nil {
		g.Stop()
		return err
	}
	if g, err = v.move(ctx, l, s.carrier, g, s.to, name, s.by, hotLimit); g != nil {
		g.Stop()
	}
	return err
}

// onT3 runs a part of the comparison on a T3 line.
func (v *versus) onT3(ctx context.Context, part string, run func(*lab.Lab, way) error) error {
	for _, s := range v.wanted(part, way{carrier: stitch, by: asItIs}, way{carrier: plain, by: asItIs}, way{carrier: vxlan, by: multifd}) {
		if err := v.soothe(ctx); err != nil {
			return err
		}
		if err := v.within(ctx, s.carrier, t3, func(l *lab.Lab) error { return run(l, s) }); err != nil {
			return err
		}
	}
	return nil
}
