package machine

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

const (
	// ShopImage is the directory, below the repository's root, in which MakeShop
	// leaves kernel, initrd and disk.
	ShopImage = "build/corpus/image"
	// shopReady ends the line by which the guest says that it is filled.
	shopReady = "corpus: ready"
	diskNode  = "disk"
)

// MakeShop makes the image of the Shop guests if its recipe has changed. It
// needs root and what `scripts/setup corpus` installs, and is called in the
// repository's root. If ctx ends the script gets the time to clean up.
func MakeShop(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "scripts/corpus/make-image")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", cmd.Path, err)
	}
	return nil
}

// Shop is a guest like a small shop's server: Debian with PostgreSQL, Redis and
// nginx, filled with the data of a seed, that keeps writing.
type Shop struct {
	// Name is also the beginning of its sockets' names.
	Name string
	// Image and Disk are files of the host, Sockets a directory with a short name.
	Image, Disk, Sockets string
	// Seed makes the guest's data differ; with 0 the machine waits for a guest.
	Seed int
}

// Socket is the socket called "qmp", or "port" for Fetch, or any other of the
// machine's.
func (s Shop) Socket(kind string) string { return filepath.Join(s.Sockets, s.Name+"."+kind) }

// Start starts the machine. command makes QEMU's command of its arguments; nil
// runs it here.
func (s Shop) Start(ctx context.Context, command func(args []string) *exec.Cmd) (*Machine, error) {
	if command == nil {
		command = func(args []string) *exec.Cmd { return exec.Command(QEMU, args...) }
	}
	return Start(ctx, s.Name, command(s.arguments()), s.Socket("qmp"), shopReady)
}

// arguments is QEMU's command line. A power cut is no concern of these disks,
// so the guest's flushes need not wait for the host's.
func (s Shop) arguments() []string {
	a := append(Arguments(s.Name, s.Socket("qmp"), false),
		"-kernel", filepath.Join(s.Image, "vmlinuz"), "-initrd", filepath.Join(s.Image, "initrd"),
		"-append", fmt.Sprintf("console=ttyS0 root=/dev/vda rw quiet panic=-1 mitigations=off nokaslr corpus.seed=%d", s.Seed),
		"-blockdev", "raw,node-name="+diskNode+",file.driver=file,file.filename="+s.Disk+",cache.no-flush=on",
		"-device", "virtio-blk-pci,drive="+diskNode, "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=port,server=on,wait=off,path="+s.Socket("port"),
		"-device", "virtserialport,chardev=port,name=corpus")
	if s.Seed == 0 {
		a = append(a, "-incoming", "defer")
	}
	return a
}
