package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"stitch/tunnel/hypervisor"
)

const (
	// guestRAM is 1 GiB and 8 KiB more, see ramSize in scripts/demo: with a
	// whole number of 256 KiB, QEMU before 9.0 loses dirty pages under TCG.
	guestRAM  = 1<<30 + 8<<10
	bootWait  = 10 * time.Minute
	moveWait  = 5 * time.Minute
	pollEvery = 50 * time.Millisecond
)

// machine is one QEMU process: a guest, or the empty shell that receives it.
type machine struct {
	name    string
	disk    string
	sockets string // directory
	cmd     *exec.Cmd
	qmp     *hypervisor.Client

	done  chan struct{} // closed when the process has ended
	ready chan struct{} // closed when the guest says so

	mu     sync.Mutex
	said   string // the console's last line
	errors []byte // what QEMU itself complained about
}

// launch runs QEMU with the guest of c's image on disk: it boots with seed, or
// waits for a migration if that is 0. The caller must stop it.
func (c *corpus) launch(ctx context.Context, name, disk string, seed int) (*machine, error) {
	m := &machine{
		name: name, disk: disk, sockets: c.sockets,
		done: make(chan struct{}), ready: make(chan struct{}),
	}
	m.cmd = exec.Command("qemu-system-x86_64", m.arguments(c.image, seed)...)
	console, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	m.cmd.Stderr = writer(m.complain)
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	go func() {
		m.follow(console)
		_ = m.cmd.Wait()
		close(m.done)
	}()
	if err := m.connect(ctx); err != nil {
		m.stop()
		return nil, err
	}
	return m, nil
}

func (m *machine) socket(kind string) string {
	return filepath.Join(m.sockets, m.name+"."+kind)
}

// arguments is QEMU's command line. A power cut is no concern of these disks,
// so the guest's flushes need not wait for the host's.
func (m *machine) arguments(image string, seed int) []string {
	a := []string{
		"-name", m.name, "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "pc,memory-backend=ram", "-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", "1",
		"-m", fmt.Sprintf("%dk", guestRAM>>10), "-object", fmt.Sprintf("memory-backend-ram,id=ram,size=%d", guestRAM),
		"-kernel", filepath.Join(image, "vmlinuz"), "-initrd", filepath.Join(image, "initrd"),
		"-append", fmt.Sprintf("console=ttyS0 root=/dev/vda rw quiet panic=-1 mitigations=off nokaslr corpus.seed=%d", seed),
		"-serial", "stdio", "-qmp", "unix:" + m.socket("qmp") + ",server=on,wait=off",
		"-blockdev", "raw,node-name=disk,file.driver=file,file.filename=" + m.disk + ",cache.no-flush=on",
		"-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=port,server=on,wait=off,path=" + m.socket("port"),
		"-device", "virtserialport,chardev=port,name=corpus",
	}
	if seed == 0 {
		a = append(a, "-incoming", "defer")
	}
	return a
}

// connect waits for QEMU's socket.
func (m *machine) connect(ctx context.Context) error {
	return m.poll(ctx, 30*time.Second, "QEMU answers", func() (bool, error) {
		var err error
		m.qmp, err = hypervisor.Dial(ctx, m.socket("qmp"))
		return err == nil, nil
	})
}

// booted waits until the guest's databases are filled.
func (m *machine) booted(ctx context.Context) error {
	return m.poll(ctx, bootWait, "the guest is ready", func() (bool, error) {
		select {
		case <-m.ready:
			return true, nil
		default:
			return false, nil
		}
	})
}

// running waits until the guest runs here.
func (m *machine) running(ctx context.Context) error {
	return m.poll(ctx, moveWait, "the guest runs", func() (bool, error) {
		var status struct {
			Running bool `json:"running"`
		}
		err := m.qmp.Execute(ctx, "query-status", nil, &status)
		return status.Running, err
	})
}

// poll asks until is says yes, QEMU ends, or the time is up.
func (m *machine) poll(ctx context.Context, wait time.Duration, what string, is func() (bool, error)) error {
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
func (m *machine) follow(console io.Reader) {
	in := bufio.NewScanner(console)
	for ready := false; in.Scan(); {
		line := strings.TrimSpace(in.Text())
		m.mu.Lock()
		m.said = line
		m.mu.Unlock()
		if !ready && strings.HasSuffix(line, "corpus: ready") {
			ready = true
			close(m.ready)
		}
	}
	_, _ = io.Copy(io.Discard, console)
}

// complain keeps the first 4 KiB of QEMU's own messages.
func (m *machine) complain(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.errors = append(m.errors, b[:min(len(b), 4096-len(m.errors))]...)
}

func (m *machine) lastWords() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.TrimSpace(m.said + " " + string(m.errors))
}

// stop ends QEMU at once. It may be called again.
func (m *machine) stop() {
	if m.qmp != nil {
		_ = m.qmp.Close()
	}
	_ = m.cmd.Process.Kill()
	<-m.done
}

// channels makes a migration use n connections for memory, on both sides.
func (m *machine) channels(ctx context.Context, n int) error {
	if err := m.qmp.SetCapability(ctx, "multifd", n > 0); err != nil || n == 0 {
		return err
	}
	return m.qmp.Execute(ctx, "migrate-set-parameters", map[string]int{"multifd-channels": n}, nil)
}

// writer makes an io.Writer of a function.
type writer func([]byte)

func (w writer) Write(b []byte) (int, error) {
	w(b)
	return len(b), nil
}
