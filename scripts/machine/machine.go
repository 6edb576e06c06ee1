// Package machine runs virtual machines for the demo, the corpus and the
// comparison with others: QEMU processes that boot a guest or wait for one,
// moves between them, and disks mirrored from one to another.
package machine

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"stitch/tunnel/hypervisor"
)

const (
	// QEMU is the program.
	QEMU = "qemu-system-x86_64"
	// RAM is the size of a guest's memory in bytes: 1 GiB and 8 KiB more. QEMU
	// before 9.0 forgets to flush the emulated TLB when it collects dirty pages
	// from a block whose size is a multiple of 256 KiB: pages written meanwhile
	// are then never sent, and the guest wakes up with a hundred stale pages
	// (fixed there by "physmem: Fix migration dirty bitmap coherency with TCG
	// memory access"). 8 KiB more take the path without the fault.
	RAM = 1<<30 + 8<<10
	// RAMFile is in the name of the file that SharedRAM's memory is.
	RAMFile = "memory-backend-memfd"

	pollEvery   = 50 * time.Millisecond
	connectWait = 30 * time.Second
)

// Arguments begin QEMU's command line: a guest of RAM bytes called name with
// its console on standard output and a QMP server at socket. One processor:
// guests have little to do, and QEMU's work of tracking dirty memory grows with
// the number. The memory is a file (RAMFile) if shared.
func Arguments(name, socket string, shared bool) []string {
	memory := fmt.Sprintf("memory-backend-ram,id=ram,size=%d", RAM)
	if shared {
		memory = fmt.Sprintf("%s,id=ram,size=%d,share=on", RAMFile, RAM)
	}
	return []string{
		"-name", name, "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "pc,memory-backend=ram", "-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", "1",
		"-m", fmt.Sprintf("%dk", RAM>>10), "-object", memory,
		"-serial", "stdio", "-qmp", "unix:" + socket + ",server=on,wait=off",
	}
}

// Machine is one QEMU process: a guest, or the empty shell that receives it.
// Its methods are safe for concurrent use.
type Machine struct {
	// QMP controls it.
	QMP *hypervisor.Client

	name string
	cmd  *exec.Cmd

	done  chan struct{} // closed when the process has ended
	ready chan struct{} // closed when the guest says so

	mu     sync.Mutex
	events []hypervisor.Event
	said   string // the console's last line
	errors []byte // what QEMU itself complained about
}

// Start starts cmd, a QEMU with Arguments that name socket; Ctrl-C does not
// reach it. The guest is ready when its console has a line that ends with
// ready. The caller must Stop the machine. If ctx ends first it is stopped.
func Start(ctx context.Context, name string, cmd *exec.Cmd, socket, ready string) (*Machine, error) {
	m := &Machine{name: name, cmd: cmd, done: make(chan struct{}), ready: make(chan struct{})}
	console, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = writer(m.complain)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: start QEMU: %w", name, err)
	}
	go func() {
		m.follow(console, ready)
		_ = cmd.Wait()
		close(m.done)
	}()
	err = m.Poll(ctx, connectWait, "QEMU answers", func() (bool, error) {
		var err error
		m.QMP, err = hypervisor.Dial(ctx, socket)
		return err == nil, nil
	})
	if err != nil {
		m.Stop()
		return nil, err
	}
	go m.collect()
	return m, nil
}

// PID is the process's.
func (m *Machine) PID() int { return m.cmd.Process.Pid }

// collect keeps QEMU's events.
func (m *Machine) collect() {
	for e := range m.QMP.Events() {
		m.mu.Lock()
		m.events = append(m.events, e)
		m.mu.Unlock()
	}
}

// Booted waits until the guest is ready; said, if not nil, hears the console's
// last line again and again meanwhile.
func (m *Machine) Booted(ctx context.Context, wait time.Duration, said func(string)) error {
	return m.Poll(ctx, wait, "the guest is ready", func() (bool, error) {
		if said != nil {
			said(m.lastLine())
		}
		select {
		case <-m.ready:
			return true, nil
		default:
			return false, nil
		}
	})
}

// Running waits until the guest runs here.
func (m *Machine) Running(ctx context.Context, wait time.Duration) error {
	return m.Poll(ctx, wait, "the guest runs", func() (bool, error) {
		var status struct {
			Running bool `json:"running"`
		}
		err := m.QMP.Execute(ctx, "query-status", nil, &status)
		return status.Running, err
	})
}

// Event waits until the machine has had the named event and returns the time of
// the first of them, by the hypervisor's clock.
func (m *Machine) Event(ctx context.Context, name string, wait time.Duration) (at time.Time, err error) {
	err = m.Poll(ctx, wait, name, func() (bool, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, e := range m.events {
			if e.Name == name {
				at = e.Time
				return true, nil
			}
		}
		return false, nil
	})
	return at, err
}

// Poll asks until is says yes or fails, QEMU ends, or the time is up.
func (m *Machine) Poll(ctx context.Context, wait time.Duration, what string, is func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		if yes, err := is(); yes || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-m.done:
			return fmt.Errorf("%s: waiting until %s: QEMU ended: %s", m.name, what, m.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("%s: waiting until %s: %w: %s", m.name, what, ctx.Err(), m.lastWords())
		}
	}
}

// follow reads the guest's console. Lines over 64 KiB end it.
func (m *Machine) follow(console io.Reader, ready string) {
	in := bufio.NewScanner(console)
	for is := false; in.Scan(); {
		line := strings.TrimSpace(in.Text())
		m.mu.Lock()
		m.said = line
		m.mu.Unlock()
		if !is && strings.HasSuffix(line, ready) {
			is = true
			close(m.ready)
		}
	}
	_, _ = io.Copy(io.Discard, console)
}

// complain keeps the first 4 KiB of QEMU's own messages.
func (m *Machine) complain(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.errors = append(m.errors, b[:min(len(b), 4096-len(m.errors))]...)
}

func (m *Machine) lastLine() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.said
}

func (m *Machine) lastWords() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.TrimSpace(m.said + " " + string(m.errors))
}

// Stop ends QEMU at once. It may be called again.
func (m *Machine) Stop() {
	if m.QMP != nil {
		_ = m.QMP.Close()
	}
	_ = m.cmd.Process.Kill()
	<-m.done
}

// writer makes an io.Writer of a function.
type writer func([]byte)

func (w writer) Write(b []byte) (int, error) {
	w(b)
	return len(b), nil
}

// Run runs cmd to its end; its output is part of the error.
func Run(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
