package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"stitch/tunnel/hypervisor"
	"stitch/tunnel/lab"
)

const (
	guestAddr = "10.1.0.50"
	guestMAC  = "52:54:00:00:00:50"
	guestRAM  = 1 << 30
	pageSize  = 4096
	// bootLimit is how long the guest may take to boot and fill its memory.
	bootLimit = 3 * time.Minute
)

// hosts are the addresses of the hypervisor hosts, where migrations arrive.
var hosts = map[string]string{"h1": "10.1.0.10", "h2": "10.2.0.10"}

// machine is one QEMU process on a hypervisor host.
type machine struct {
	host, ram string
	cmd       *exec.Cmd
	qmp       *hypervisor.Client
}

// hypervisors runs the guest, on one host at a time.
type hypervisors struct {
	d     *demo
	lab   *lab.Lab
	dir   string // sockets and memory; on a file system in memory
	count int
	now   *machine   // where the guest runs
	all   []*machine // to end
}

func newHypervisors(d *demo, l *lab.Lab) *hypervisors { return &hypervisors{d: d, lab: l} }

// start starts QEMU on a host: to boot the guest or, with incoming, to wait for
// it.
func (h *hypervisors) start(ctx context.Context, host, incoming string) (*machine, error) {
	if h.dir == "" {
		dir, err := os.MkdirTemp("/dev/shm", "stitch-demo-")
		if err != nil {
			return nil, err
		}
		h.dir = dir
	}
	h.count++
	base := filepath.Join(h.dir, fmt.Sprintf("%d", h.count))
	m := &machine{host: host, ram: base + ".ram"}
	if err := h.tap(host); err != nil {
		return nil, err
	}
	args := []string{
		"-name", "app", "-machine", "pc,memory-backend=ram", "-accel", "tcg,thread=multi", "-smp", "1", "-m", "1024", "-nodefaults",
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%d,mem-path=%s,share=on", guestRAM, m.ram),
		"-kernel", filepath.Join(h.d.guest, "vmlinuz"), "-initrd", filepath.Join(h.d.guest, "initrd"),
		"-append", "console=ttyS0 quiet panic=-1", "-display", "none", "-no-reboot",
		"-netdev", "tap,id=n0,ifname=vm0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n0,romfile=,mac=" + guestMAC,
		"-serial", fmt.Sprintf("file:%s/guest-%d-%s.log", h.d.dir, h.count, host), "-qmp", "unix:" + base + ".qmp,server=on,wait=off",
	}
	if incoming != "" {
		args = append(args, "-incoming", incoming)
	}
	var said bytes.Buffer
	m.cmd = h.lab.Command(host, "qemu-system-x86_64", args...)
	m.cmd.Stderr = &said
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is the demo's, not QEMU's
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	h.all = append(h.all, m)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c, err := hypervisor.Dial(ctx, base+".qmp")
		if err == nil {
			m.qmp = c
			return m, nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return nil, fmt.Errorf("qemu on %s: %w: %s", host, err, said.Bytes())
		}
	}
}

// tap makes the guest's port in the host's bridge.
func (h *hypervisors) tap(host string) error {
	for _, args := range [][]string{{"tuntap", "add", "vm0", "mode", "tap"}, {"link", "set", "vm0", "master", "br-vm", "up"}} {
		if args[0] == "tuntap" && h.lab.Command(host, "ip", "link", "show", "vm0").Run() == nil {
			continue
		}
		if err := quiet(h.lab.Command(host, "ip", args...)); err != nil {
			return err
		}
	}
	return nil
}

// boot starts the guest on a host and waits until its memory is full.
func (h *hypervisors) boot(ctx context.Context, host string) error {
	h.d.talk.say("booting the guest on %s: 1 GiB, 384 MiB of data, 1,000 pages a second edited", host)
	m, err := h.start(ctx, host, "")
	if err != nil {
		return err
	}
	h.now = m
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	for start := time.Now(); ; time.Sleep(500 * time.Millisecond) {
		s, err := h.status(ctx)
		if err == nil && s.Ready {
			h.d.talk.say("the guest is ready after %.0f s", time.Since(start).Seconds())
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("the guest is not ready after %v: see its console in %s (%w)", bootLimit, h.d.dir, errors.Join(err, ctx.Err()))
		}
		h.d.talk.progress("the guest fills its memory")
	}
}

// guestStatus is the part of the guest's /status that the demo reads.
type guestStatus struct {
	Ready    bool       `json:"ready"`
	Outgoing []snapshot `json:"outgoing"`
}

// status asks the guest, from the host it runs on.
func (h *hypervisors) status(ctx context.Context) (s guestStatus, err error) {
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialFrom(ctx, h.lab, h.now.host, addr)
		}}}
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+guestAddr+"/status", nil)
	if err != nil {
		return s, err
	}
	r, err := c.Do(req)
	if err != nil {
		return s, err
	}
	defer r.Body.Close()
	return s, json.NewDecoder(r.Body).Decode(&s)
}

// dialFrom connects from a host of the lab.
func dialFrom(ctx context.Context, l *lab.Lab, host, addr string) (c net.Conn, err error) {
	ns, err := l.Namespace(host)
	if err != nil {
		return nil, err
	}
	err = ns.Do(func() error {
		c, err = (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", addr)
		return err
	})
	return c, err
}

// move migrates the guest from one host to another and measures it.
func (h *hypervisors) move(ctx context.Context, from, to string) (Move, error) {
	pages, err := nonzero(h.now.ram)
	if err != nil {
		return Move{}, err
	}
	uri := "tcp:" + hosts[to] + ":4444"
	target, err := h.start(ctx, to, uri)
	if err != nil {
		return Move{}, err
	}
	source := h.now
	if err := source.qmp.SetParameters(ctx, hypervisor.Parameters{MaxBandwidth: 4 << 30, DowntimeLimit: 300}); err != nil {
		return Move{}, err
	}
	before, err := h.lab.WAN().Counters(ctx)
	if err != nil {
		return Move{}, err
	}
	h.d.talk.say("moving the guest from %s to %s while it works", from, to)
	m := Move{Direction: from + " to " + to, NonzeroPageBytes: pages, Start: time.Now()}
	p, err := source.qmp.Migrate(ctx, uri, func(p hypervisor.Progress) {
		h.d.talk.progress("%s: %d MiB sent, %d MiB remain", p.Status, p.RAM.Transferred>>20, p.RAM.Remaining>>20)
	})
	if err != nil {
		return m, err
	}
	stopped, err := event(ctx, source.qmp, "STOP")
	if err != nil {
		return m, err
	}
	resumed, err := event(ctx, target.qmp, "RESUME")
	if err != nil {
		return m, err
	}
	after, err := h.lab.WAN().Counters(ctx)
	if err != nil {
		return m, err
	}
	m.TotalMillis, m.DowntimeMillis = resumed.Sub(m.Start).Milliseconds(), resumed.Sub(stopped).Milliseconds()
	m.OfferedBytes, m.WANBytes, m.End = p.RAM.Transferred, int64(after.Bytes()-before.Bytes()), resumed
	m.Rounds = p.RAM.Rounds
	h.now = target
	h.end(source)
	h.d.talk.say("moved in %.1f s, stopped for %d ms; %d MiB offered, %.1f MiB on the WAN", float64(m.TotalMillis)/1000, m.DowntimeMillis, m.OfferedBytes>>20, float64(m.WANBytes)/(1<<20))
	return m, nil
}

// event waits for an event of a machine and returns its time.
func event(ctx context.Context, c *hypervisor.Client, name string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		select {
		case e, ok := <-c.Events():
			if !ok {
				return time.Time{}, fmt.Errorf("qemu ended before %s", name)
			}
			if e.Name == name {
				return e.Time, nil
			}
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("no %s from qemu: %w", name, ctx.Err())
		}
	}
}

// nonzero counts the bytes of the pages of a memory file that are not all zero:
// what a migration has to carry at least. The file is the guest's memory itself,
// so nothing is stopped for it.
func nonzero(file string) (int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var n int64
	buf, zero := make([]byte, 1<<20), make([]byte, pageSize)
	for {
		got, err := f.Read(buf)
		if got == 0 {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		for off := 0; off < got; off += pageSize {
			if !bytes.Equal(buf[off:min(off+pageSize, got)], zero[:min(pageSize, got-off)]) {
				n += pageSize
			}
		}
	}
}

// end ends one QEMU and frees its memory.
func (h *hypervisors) end(m *machine) {
	if m.qmp != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		_ = m.qmp.Quit(ctx)
		cancel()
		_ = m.qmp.Close()
	}
	if m.cmd.Process != nil && m.cmd.ProcessState == nil {
		done := make(chan struct{})
		go func() { _ = m.cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(3 * time.Second):
			_ = m.cmd.Process.Kill()
			<-done
		}
	}
	_ = os.Remove(m.ram)
}

// close ends all machines.
func (h *hypervisors) close() {
	for _, m := range h.all {
		h.end(m)
	}
	if h.dir != "" {
		_ = os.RemoveAll(h.dir)
	}
}
