package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inNamespace runs `stitch up` in the namespaces the test made for this
// process, after breaking one thing, and then says what it left there.
func inNamespace(args []string) int {
	broken, config := args[0], args[1]
	if err := breakMachine(broken); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 99
	}
	code := run([]string{"stitch", "up", config}, os.Stdout, os.Stderr)
	links, err := net.Interfaces()
	if err != nil || len(links) != 1 {
		fmt.Fprintln(os.Stderr, "interfaces left:", links, err)
		return 99
	}
	return code
}

// breakMachine takes away one thing that an agent needs.
func breakMachine(what string) error {
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	switch what {
	case "tun":
		return unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, "")
	case "port":
		_, err := net.ListenUDP("udp", &net.UDPAddr{Port: 51820})
		return err
	case "nft":
		return os.Setenv("PATH", "/nowhere")
	case "rights":
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		runtime.LockOSThread() // rights belong to a thread
		return unix.Capset(&hdr, &none[0])
	}
	return nil
}

// TestUpRefusesAWrongMachine runs the program in namespaces of its own and
// takes away one thing at a time.
func TestUpRefusesAWrongMachine(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: network and mount namespaces")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "dc1.toml")
	if code, _, stderr := stitch("keygen", filepath.Join(dir, "dc1.key")); code != 0 {
		t.Fatal(stderr)
	}
	text := "site = \"dc1\"\nrun_dir = \"" + dir + "/run\"\nprivate_key_file = \"dc1.key\"\n[[peer]]\nname = \"dc2\"\n" +
		"public_key = \"L+dgrlz6Kx0HFBeH1GNZlskq+6O5Kwe6eHGm1qhybRA=\"\nsubnets = [\"10.2.0.0/24\"]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for broken, want := range map[string]string{
		"tun":    "stitch: /dev/net/tun is missing: run `modprobe tun`",
		"port":   "stitch: UDP port 51820 of peer dc2 is in use: stop the program that has it",
		"nft":    "stitch: the program nft is missing: run `apt install nftables`",
		"rights": "stitch: this user may not configure the network: run it as root",
	} {
		cmd := exec.Command(os.Args[0], broken, file)
		cmd.Env = append(os.Environ(), "STITCH_TEST_CHILD=stitch")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		_ = cmd.Run() // the exit code says it
		if code := cmd.ProcessState.ExitCode(); code != 2 || !strings.HasPrefix(out.String(), want) || strings.Count(out.String(), "\n") != 1 {
			t.Errorf("without %s: code %d\n%s", broken, code, out.String())
		}
	}
}
