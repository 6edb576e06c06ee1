package wan

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// EmulatorConfig describes an Emulator; its JSON form is the daemon's file.
type EmulatorConfig struct {
	Ports []Port `json:"ports"`
	// Paths are the ways between ports. A pair that is not listed is no way.
	Paths []Path `json:"paths"`
	// Control is the path of the control socket; empty: none.
	Control string `json:"control"`
	// Log receives a line for each change; nil: discard.
	Log *slog.Logger `json:"-"`
}

func (c EmulatorConfig) withDefaults() EmulatorConfig {
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	return c
}

// Path is one direction between two ports, by name.
type Path struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Params Params `json:"params"`
}

// PathStatus is a Path and what passed. At any moment
//
//	Counters.Delivered = Sent + Waiting + HostDrops
type PathStatus struct {
	Path
	Counters Counters `json:"counters"`
	// Sent packets left the emulator, Waiting are still under way.
	Sent    uint64 `json:"sent"`
	Waiting uint64 `json:"waiting"`
	// HostDrops are packets lost because this machine was too slow or out of
	// buffers. Anything but zero spoils a measurement.
	HostDrops uint64 `json:"host_drops"`
}

// PortCounters count frames that never reached a path.
type PortCounters struct {
	// Strays were not for us or led nowhere (multicast, unknown prefixes).
	Strays uint64 `json:"strays"`
	// Oversize frames were longer than any frame on a wire: an offload is
	// still on at the sender.
	Oversize uint64 `json:"oversize"`
	// Unread frames were dropped by the kernel because the lane was late. As
	// HostDrops they spoil a measurement.
	Unread uint64 `json:"unread"`
}

// Report is the state of an Emulator.
type Report struct {
	Paths []PathStatus            `json:"paths"`
	Ports map[string]PortCounters `json:"ports"`
}

// Find returns the status of one path; the zero value if there is none.
func (r Report) Find(from, to string) PathStatus {
	for _, p := range r.Paths {
		if p.From == from && p.To == to {
			return p
		}
	}
	return PathStatus{}
}

// Emulator forwards between interfaces through Models. Hosts are one hop
// away: it answers ARP and neighbour solicitations for every address but the
// asker's own, and sends what comes in to the port with the longest prefix.
//
// The interfaces must hand over frames as they would be on a wire: checksums
// filled in and no segmentation offload (see DisableOffloads).
//
// Accuracy: an idle path adds about 0.2 ms. A busy port works in rounds of a
// tenth of its shortest delay, 0.1 to 1 ms: packets come in small bursts, each
// up to a round early or late, the mean and the rate stay exact. All methods
// are safe for concurrent use.
type Emulator struct {
	cfg    EmulatorConfig
	lanes  []*lane
	socks  []*socket
	listen net.Listener
	stop   int // event descriptor

	once sync.Once
}

// Open opens the ports in the calling thread's network namespace and the
// control socket; a stale socket file is replaced. Run may be called from
// anywhere. Every Open needs a Run, which closes everything, or a Close.
func Open(cfg EmulatorConfig) (*Emulator, error) {
	cfg = cfg.withDefaults()
	r, err := newRouter(cfg.Ports)
	if err != nil {
		return nil, fmt.Errorf("wan: %w", err)
	}
	e := &Emulator{cfg: cfg, stop: -1}
	if err := errors.Join(e.openSockets(), e.openLanes(r), e.openControl()); err != nil {
		e.Close()
		return nil, fmt.Errorf("wan: %w", err)
	}
	return e, nil
}

func (e *Emulator) openSockets() (err error) {
	if e.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	for _, p := range e.cfg.Ports {
		s, err := openSocket(p.Interface, false)
		if err != nil {
			return err
		}
		e.socks = append(e.socks, s)
	}
	return nil
}

func (e *Emulator) openLanes(r router) error {
	if len(e.socks) < len(e.cfg.Ports) {
		return nil // reported by openSockets
	}
	start, fds := time.Now(), []int(nil)
	for _, s := range e.socks {
		fds = append(fds, s.fd)
	}
	for i, s := range e.socks {
		e.lanes = append(e.lanes, newLane(i, r, s, func() time.Duration { return time.Since(start) }, fds))
	}
	for _, p := range e.cfg.Paths {
		l, out, err := e.find(p.From, p.To)
		if err != nil {
			return err
		}
		if l.paths[out], err = NewModel(p.Params); err != nil {
			return fmt.Errorf("path %s to %s: %w", p.From, p.To, err)
		}
	}
	return nil
}

func (e *Emulator) openControl() (err error) {
	if e.cfg.Control == "" {
		return nil
	}
	if err := os.Remove(e.cfg.Control); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if e.listen, err = net.Listen("unix", e.cfg.Control); err != nil {
		return err
	}
	return os.Chmod(e.cfg.Control, 0o600)
}

// find returns the lane and the port number of a path.
func (e *Emulator) find(from, to string) (*lane, int, error) {
	in, out := e.port(from), e.port(to)
	if in < 0 || out < 0 || in == out {
		return nil, 0, fmt.Errorf("path %q to %q: name two different ports", from, to)
	}
	return e.lanes[in], out, nil
}

func (e *Emulator) port(name string) int {
	for i, p := range e.cfg.Ports {
		if p.Name == name {
			return i
		}
	}
	return -1
}

// Run forwards until ctx ends, then closes everything and returns nil. What
// was under way is lost. It must be called once.
func (e *Emulator) Run(ctx context.Context) error {
	defer e.Close()
	var wg sync.WaitGroup
	for _, l := range e.lanes {
		wg.Go(func() { l.run(e.stop) })
	}
	end := e.serve(&wg)
	<-ctx.Done()
	end()
	_, err := unix.Write(e.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	if err != nil {
		return fmt.Errorf("wan: stop: %w", err)
	}
	wg.Wait()
	return nil
}

// Close releases what Open took. It must not be called while Run runs: end
// Run's context instead.
func (e *Emulator) Close() error {
	err := net.ErrClosed
	e.once.Do(func() {
		err = nil
		for _, s := range e.socks {
			err = errors.Join(err, s.Close())
		}
		if e.stop >= 0 {
			err = errors.Join(err, unix.Close(e.stop))
		}
		if e.listen != nil {
			err = errors.Join(err, ignoreClosed(e.listen.Close()))
		}
	})
	return err
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Set changes one path at run time. It takes effect for the next packet.
func (e *Emulator) Set(p Path) error {
	l, out, err := e.find(p.From, p.To)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.paths[out] == nil {
		return fmt.Errorf("path %s to %s: not configured", p.From, p.To)
	}
	if err := l.paths[out].Set(p.Params); err != nil {
		return fmt.Errorf("path %s to %s: %w", p.From, p.To, err)
	}
	text, _ := json.Marshal(p.Params)
	e.cfg.Log.Info("path set", "from", p.From, "to", p.To, "params", string(text))
	return nil
}

// Report returns parameters and counters of every path and port.
func (e *Emulator) Report() Report {
	r := Report{Ports: map[string]PortCounters{}}
	for i, l := range e.lanes {
		paths, port := e.report(i, l)
		r.Paths = append(r.Paths, paths...)
		r.Ports[e.cfg.Ports[i].Name] = port
	}
	return r
}

// report reads one lane under its lock.
func (e *Emulator) report(in int, l *lane) (paths []PathStatus, port PortCounters) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.port.Unread += l.sock.drops()
	for out, m := range l.paths {
		if m != nil {
			s := l.sends[out]
			paths = append(paths, PathStatus{
				Path:     Path{e.cfg.Ports[in].Name, e.cfg.Ports[out].Name, m.Params()},
				Counters: m.Counters(), Sent: s.sent, Waiting: s.waiting, HostDrops: s.host})
		}
	}
	return paths, l.port
}
