package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// tools are the files the demo runs, made from this tree.
type tools struct {
	stitch, wireguard    string // absolute paths
	kernel, initrd, cert string
	qemu                 string
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
		qemu: "qemu-system-x86_64",
	}
	con.step("building stitch, wireguard-go and the guest's image")
	for _, argv := range [][]string{
		{"go", "build", "-trimpath", "-o", t.stitch, "./cmd/stitch"},
		{"go", "build", "-trimpath", "-o", t.wireguard, "golang.zx2c4.com/wireguard"},
		{"scripts/guest-image"},
	} {
		if err := command(ctx, argv...); err != nil {
			return t, err
		}
	}
	for _, name := range []string{"ip", "nft", "tcpdump", "conntrack", "dig", t.qemu} {
		if _, err := exec.LookPath(name); err != nil {
			return t, fmt.Errorf("%s is missing: run `sudo scripts/setup demo`", name)
		}
	}
	out, err := exec.CommandContext(ctx, t.qemu, "--version").Output()
	if err != nil {
		return t, fmt.Errorf("%s: %w", t.qemu, err)
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

// major returns the first number of a version, or 0.
func major(version string) int {
	first, _, _ := strings.Cut(version, ".")
	n, _ := strconv.Atoi(first)
	return n
}

// command runs argv to its end; its output is part of the error.
func command(ctx context.Context, argv ...string) error {
	return finish(exec.CommandContext(ctx, argv[0], argv[1:]...))
}

// finish runs cmd to its end; its output is part of the error.
func finish(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
