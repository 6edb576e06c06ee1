package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"stitch/scripts/machine"
	"stitch/tunnel/lab"
)

const (
	guestMAC = "52:54:00:00:00:50"
	guestTap = "tap-app"
	bridge   = "br-vm"
	bootWait = 3 * time.Minute
)

// guest is a machine on a hypervisor host of the lab: the guest, or the empty
// shell that receives it.
type guest struct {
	*machine.Machine
	host string
	lab  *lab.Lab
}

// startMachine starts QEMU on host. With incoming ("tcp:10.2.0.10:4444") it
// waits for a guest, else it boots one. The caller must stop it.
func startMachine(ctx context.Context, l *lab.Lab, t tools, host, incoming string) (*guest, error) {
	for _, line := range []string{
		"tuntap add dev " + guestTap + " mode tap",
		"link set " + guestTap + " master " + bridge + " up",
	} {
		if err := machine.Run(l.CommandContext(ctx, host, "ip", strings.Fields(line)...)); err != nil {
			return nil, err
		}
	}
	socket := filepath.Join(l.Options().Dir, "qmp-"+host)
	m, err := machine.Start(ctx, "QEMU on "+host, l.Command(host, machine.QEMU, arguments(t, socket, incoming)...), socket, "guest: ready")
	g := &guest{m, host, l}
	if err != nil {
		g.unplug()
		return nil, err
	}
	return g, nil
}

// arguments is QEMU's command line.
func arguments(t tools, socket, incoming string) []string {
	a := append(machine.Arguments("stitch-app", socket, true),
		"-kernel", t.kernel, "-initrd", t.initrd,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off nokaslr",
		"-netdev", "tap,id=net,ifname="+guestTap+",script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=net,mac="+guestMAC+",romfile=")
	if incoming != "" {
		a = append(a, "-incoming", incoming)
	}
	return a
}

// nonzero counts the guest's memory in 4 KiB pages that are not all zero, while
// the guest runs.
func (m *guest) nonzero() (int64, error) {
	dir := fmt.Sprintf("/proc/%d/fd", m.PID())
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if to, err := os.Readlink(path); err == nil && strings.Contains(to, machine.RAMFile) {
			f, err := os.Open(path)
			if err != nil {
				return 0, err
			}
			defer f.Close()
			return nonzeroPages(f, machine.RAM)
		}
	}
	return 0, errors.New("QEMU's memory file is not there")
}

// stop ends QEMU at once and removes the guest's cable. It may be called again.
func (m *guest) stop() {
	m.Stop()
	m.unplug()
}

func (m *guest) unplug() { _ = m.lab.Command(m.host, "ip", "link", "delete", guestTap).Run() }
