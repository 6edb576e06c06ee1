package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"stitch/tunnel/config"
)

// claimMachine checks that the machine can run this agent and claims its run
// directory. It changes nothing but that directory; every refusal is one line
// that says what to do. The function returned gives the claim back.
func claimMachine(cfg *config.Config) (func(), error) {
	if err := errors.Join(checkCapability(), checkNamespaces(cfg), checkTUN("/dev/net/tun"), checkNft()); err != nil {
		return nil, refusal{err}
	}
	unlock, err := lockRunDir(cfg.RunDir)
	if err != nil {
		return nil, refusal{err}
	}
	if err := checkPorts(cfg); err != nil {
		unlock()
		return nil, refusal{err}
	}
	return unlock, nil
}

// checkCapability checks that this process may configure the network.
func checkCapability() error {
	may, err := capable(unix.CAP_NET_ADMIN)
	if err == nil && !may {
		err = errors.New("this user may not configure the network: run it as root (sudo stitch ...) or give it CAP_NET_ADMIN")
	}
	return err
}

// checkNamespaces checks that this process may make network namespaces if
// connections within segments are to be split.
func checkNamespaces(cfg *config.Config) error {
	if len(cfg.SplitSegments()) == 0 {
		return nil
	}
	may, err := capable(unix.CAP_SYS_ADMIN)
	if err == nil && !may {
		err = errors.New("a [[stream]] or [[dial]] rule has a segment, whose connections live in a network namespace, which this user may not make: run it as root (sudo stitch ...), give it CAP_SYS_ADMIN, or remove the rule")
	}
	return err
}

// capable reports whether this process has a capability of the first 32.
func capable(capability int) (bool, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false, fmt.Errorf("capabilities: %w", err)
	}
	return data[0].Effective&(1<<capability) != 0, nil
}

// checkTUN checks that TUN devices can be made.
func checkTUN(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%s is missing: run `modprobe tun`, or give the container that device", path)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%s has no driver: run `modprobe tun`", path)
	case err != nil:
		return fmt.Errorf("%s cannot be opened (%w): run it as root, and allow the container that device", path, err)
	}
	return unix.Close(fd)
}

// checkNft checks that the packet filter's tool is there.
func checkNft() error {
	if _, err := exec.LookPath("nft"); err != nil {
		return errors.New("the program nft is missing: run `apt install nftables`")
	}
	return nil
}

// checkPorts checks that the ports of the links and of the name server are
// free. An address that is not there yet is no obstacle: it may appear.
func checkPorts(cfg *config.Config) error {
	var errs []error
	for _, p := range cfg.Peers {
		l, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(p.ListenPort)})
		if err == nil {
			err = l.Close()
		}
		if errors.Is(err, syscall.EADDRINUSE) {
			errs = append(errs, fmt.Errorf("UDP port %d of peer %s is in use: stop the program that has it (`ss -lunp`) or change listen_port", p.ListenPort, p.Name))
		} else if err != nil {
			errs = append(errs, fmt.Errorf("UDP port %d of peer %s: %w", p.ListenPort, p.Name, err))
		}
	}
	if cfg.DNS == nil {
		return errors.Join(errs...)
	}
	for _, a := range cfg.DNS.Listen {
		l, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
		if err == nil {
			err = l.Close()
		}
		if errors.Is(err, syscall.EADDRINUSE) {
			errs = append(errs, fmt.Errorf("UDP port %v for names is in use: stop the program that has it (`ss -lunp`) or change dns.listen", a))
		}
	}
	return errors.Join(errs...)
}

// lockRunDir makes the run directory and claims it, or says who has it. The
// claim ends with the function returned or with this process; the directory
// stays.
func lockRunDir(dir string) (func(), error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("run_dir: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("run_dir: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		owner := make([]byte, 20)
		n, _ := f.ReadAt(owner, 0)
		_ = f.Close()
		return nil, fmt.Errorf("an agent runs already with run_dir %s (process %s): stop it first", dir, strings.TrimSpace(string(owner[:n])))
	}
	if err == nil {
		err = errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())+"\n"))
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("run_dir: %w", err)
	}
	return func() { _ = f.Close() }, nil
}

// writeAt writes text at the beginning of f.
func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}
