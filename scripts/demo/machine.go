package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"stitch/tunnel/hypervisor"
	"stitch/tunnel/lab"
)

const (
	guestMAC  = "52:54:00:00:00:50"
	guestTap  = "tap-app"
	guestRAM  = 1 << 30
	bridge    = "br-vm"
	bootWait  = 3 * time.Minute
	memoryTag = "memory-backend-memfd"
)

// machine is one QEMU process on a hypervisor host of the lab: the guest, or
// the empty shell that receives it.
type machine struct {
	host string
	lab  *lab.Lab
	cmd  *exec.Cmd
	qmp  *hypervisor.Client
	size int64

	done  chan struct{} // closed when the process has ended
	ready chan struct{} // closed when the guest says so

	mu     sync.Mutex
	events []hypervisor.Event
	said   string // the console's last line
	errors []byte // what QEMU itself complained about
}

// ramSize is the size of the guest's memory. QEMU before 9.0 forgets to flush
// the emulated TLB when it collects dirty pages from a block whose size is a
// multiple of 256 KiB: pages written meanwhile are then never sent, and the
// guest wakes up with a hundred stale pages (fixed there by "physmem: Fix
// migration dirty bitmap coherency with TCG memory access"). 8 KiB more take the
// path without the fault.
func ramSize(qemuVersion string) int64 {
	if major(qemuVersion) < 9 {
		return guestRAM + 8<<10
	}
	return guestRAM
}

// startMachine starts QEMU on host. With incoming ("tcp:10.2.0.10:4444") it
// waits for a guest, else it boots one. The caller must stop it.
func startMachine(ctx context.Context, l *lab.Lab, t tools, host, incoming string) (*machine, error) {
	for _, line := range []string{
		"tuntap add dev " + guestTap + " mode tap",
		"link set " + guestTap + " master " + bridge + " up",
	} {
		if err := finish(l.CommandContext(ctx, host, "ip", strings.Fields(line)...)); err != nil {
			return nil, err
		}
	}
	m := &machine{
		host: host, lab: l, size: ramSize(t.qemuVersion),
		done: make(chan struct{}), ready: make(chan struct{}),
	}
	socket := filepath.Join(l.Options().Dir, "qmp-"+host)
	m.cmd = l.Command(host, t.qemu, m.arguments(t, socket, incoming)...)
	console, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	m.cmd.Stderr = writer(m.complain)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the demo
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start QEMU on %s: %w", host, err)
	}
	go func() {
		m.follow(console)
		_ = m.cmd.Wait()
		close(m.done)
	}()
	if err := m.connect(ctx, socket); err != nil {
		m.stop()
		return nil, err
	}
	return m, nil
}

// arguments is QEMU's command line. One processor: the guest has little to do,
// and QEMU's work of tracking dirty memory grows with the number.
func (m *machine) arguments(t tools, socket, incoming string) []string {
	a := []string{
		"-name", "stitch-app", "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "pc,memory-backend=ram", "-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", "1",
		"-m", fmt.Sprintf("%dk", m.size>>10),
		"-object", fmt.Sprintf("%s,id=ram,size=%d,share=on", memoryTag, m.size),
		"-kernel", t.kernel, "-initrd", t.initrd,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off nokaslr",
		"-serial", "stdio", "-qmp", "unix:" + socket + ",server=on,wait=off",
		"-netdev", "tap,id=net,ifname=" + guestTap + ",script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=net,mac=" + guestMAC + ",romfile=",
	}
	if incoming != "" {
		a = append(a, "-incoming", incoming)
	}
	return a
}

// connect waits for QEMU's socket.
func (m *machine) connect(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		var err error
		if m.qmp, err = hypervisor.Dial(ctx, socket); err == nil {
			go m.collect()
			return nil
		}
		select {
		case <-m.done:
			return fmt.Errorf("QEMU on %s ended: %s", m.host, m.complaints())
		case <-ctx.Done():
			return fmt.Errorf("QEMU on %s: %w", m.host, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// collect keeps QEMU's events.
func (m *machine) collect() {
	for e := range m.qmp.Events() {
		m.mu.Lock()
		m.events = append(m.events, e)
		m.mu.Unlock()
	}
}

// event waits until the machine has had the named event and returns its time.
func (m *machine) event(ctx context.Context, name string) (time.Time, error) {
	for {
		m.mu.Lock()
		for _, e := range m.events {
			if e.Name == name {
				m.mu.Unlock()
				return e.Time, nil
			}
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("no %s from QEMU on %s: %w", name, m.host, ctx.Err())
		case <-m.done:
			return time.Time{}, fmt.Errorf("no %s: QEMU on %s ended: %s", name, m.host, m.complaints())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// follow reads the guest's console. Lines over 64 KiB end it.
func (m *machine) follow(console io.Reader) {
	in := bufio.NewScanner(console)
	for ready := false; in.Scan(); {
		line := strings.TrimSpace(in.Text())
		m.mu.Lock()
		m.said = line
		m.mu.Unlock()
		if !ready && line == "guest: ready" {
			ready = true
			close(m.ready)
		}
	}
	_, _ = io.Copy(io.Discard, console)
}

// booted waits until the guest's memory is filled.
func (m *machine) booted(ctx context.Context, con *console) error {
	ctx, cancel := context.WithTimeout(ctx, bootWait)
	defer cancel()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-m.ready:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("the guest is not ready: %w; its last words: %s", ctx.Err(), m.lastWords())
		case <-m.done:
			return fmt.Errorf("QEMU on %s ended: %s %s", m.host, m.lastWords(), m.complaints())
		case <-tick.C:
			con.progress("guest: %s", strings.TrimPrefix(m.lastWords(), "guest: "))
		}
	}
}

func (m *machine) lastWords() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.said
}

// complain keeps the first 4 KiB of QEMU's own messages.
func (m *machine) complain(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.errors = append(m.errors, b[:min(len(b), 4096-len(m.errors))]...)
}

func (m *machine) complaints() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.TrimSpace(string(m.errors))
}

// nonzero counts the guest's memory in 4 KiB pages that are not all zero, while
// the guest runs.
func (m *machine) nonzero() (int64, error) {
	dir := fmt.Sprintf("/proc/%d/fd", m.cmd.Process.Pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if to, err := os.Readlink(path); err == nil && strings.Contains(to, memoryTag) {
			f, err := os.Open(path)
			if err != nil {
				return 0, err
			}
			defer f.Close()
			return nonzeroPages(f, m.size)
		}
	}
	return 0, errors.New("QEMU's memory file is not there")
}

// stop ends QEMU at once and removes the guest's cable. It may be called again.
func (m *machine) stop() {
	if m.qmp != nil {
		_ = m.qmp.Close()
	}
	_ = m.cmd.Process.Kill()
	<-m.done
	_ = m.lab.Command(m.host, "ip", "link", "delete", guestTap).Run()
}

// writer makes an io.Writer of a function.
type writer func([]byte)

func (w writer) Write(b []byte) (int, error) {
	w(b)
	return len(b), nil
}
