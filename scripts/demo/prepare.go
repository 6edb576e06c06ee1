package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"stitch/scripts/machine"
)

// tools are the files the demo runs, made from this tree.
type tools struct {
	stitch, wireguard    string // absolute paths
	kernel, initrd, cert string
	qemuVersion          string
	guestKernel          string
}

// prepare builds what is built here and names what is missing.
func prepare(ctx context.Context, con *console) (tools, error) {
	root, err := os.Getwd()
	if err != nil {
		return tools{}, err
	}
	if _, err := os.Stat("scripts/guest-image"); err != nil {
		return tools{}, fmt.Errorf("run it in the repository's root: %w", err)
	}
	build := func(name string) string { return filepath.Join(root, "build", name) }
	t := tools{
		stitch: build("stitch"), wireguard: build("wireguard-go"),
		kernel: build("guest/vmlinuz"), initrd: build("guest/initrd"), cert: build("guest/cert.pem"),
	}
	con.step("building stitch, wireguard-go and the guest's image")
	for _, argv := range [][]string{
		{"go", "build", "-trimpath", "-o", t.stitch, "./cmd/stitch"},
		{"go", "build", "-trimpath", "-o", t.wireguard, "golang.zx2c4.com/wireguard"},
		{"scripts/guest-image"},
	} {
		if err := machine.Run(exec.CommandContext(ctx, argv[0], argv[1:]...)); err != nil {
			return t, err
		}
	}
	for _, name := range []string{"ip", "nft", "tcpdump", "conntrack", "dig", machine.QEMU} {
		if _, err := exec.LookPath(name); err != nil {
			return t, fmt.Errorf("%s is missing: run `sudo scripts/setup demo`", name)
		}
	}
	out, err := exec.CommandContext(ctx, machine.QEMU, "--version").Output()
	if err != nil {
		return t, fmt.Errorf("%s: %w", machine.QEMU, err)
	}
	t.qemuVersion = parseQEMUVersion(string(out))
	kernel, _ := os.ReadFile(build("guest/kernel.version"))
	t.guestKernel = strings.TrimSpace(string(kernel))
	return t, nil
}

// parseQEMUVersion finds the number in "QEMU emulator version 7.2.22 (Debian…)".
func parseQEMUVersion(out string) string {
	_, rest, _ := strings.Cut(out, "version ")
	version, _, _ := strings.Cut(rest, "\n")
	version, _, _ = strings.Cut(version, " ")
	return version
}
