package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 keeps named namespaces.
const netnsDir = "/run/netns"

// Namespace is the name of a network namespace known to iproute2. Its methods
// are safe for concurrent use.
type Namespace string

// Do runs fn on a thread of its own inside the namespace and returns its
// error. Sockets and processes that fn makes stay in the namespace; goroutines
// it starts are not in it. A thread that cannot be brought back is thrown away.
func (n Namespace) Do(fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- n.onThread(fn) }()
	return <-done
}

// onThread does the work of Do on the calling goroutine. Never on the main
// thread: /proc shows its namespace as the whole process's, and Down ends the
// processes that live in the lab.
func (n Namespace) onThread(fn func() error) error {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		defer runtime.UnlockOSThread()
		return n.Do(fn) // this goroutine keeps the main thread busy meanwhile
	}
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := n.enter(); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return fn()
}

// enter moves the calling thread.
func (n Namespace) enter() error {
	f, err := os.Open(filepath.Join(netnsDir, string(n)))
	if err != nil {
		return fmt.Errorf("namespace %s: %w", n, err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("namespace %s: %w", n, err)
	}
	return nil
}

// Command returns a command that runs inside the namespace, by ip netns exec:
// the process is the program itself, with /sys of the namespace.
func (n Namespace) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", string(n), name}, args...)...)
}

// sysctl sets "path=value" entries. One the kernel does not have is skipped.
func (n Namespace) sysctl(entries []string) error {
	return n.Do(func() error {
		for _, e := range entries {
			key, value, _ := strings.Cut(e, "=")
			err := os.WriteFile("/proc/sys/"+key, []byte(value), 0)
			if err != nil && !os.IsNotExist(err) {
				return fmt.Errorf("sysctl %s in %s: %w", e, n, err)
			}
		}
		return nil
	})
}

// ipBatch runs lines through ip -batch, inside namespace ns unless it is empty.
func ipBatch(ctx context.Context, ns Namespace, lines string) error {
	args := []string{"-batch", "-"}
	if ns != "" {
		args = append([]string{"-n", string(ns)}, args...)
	}
	return feed(exec.CommandContext(ctx, "ip", args...), lines)
}

// feed runs cmd with text as its input; its output is part of the error.
func feed(cmd *exec.Cmd, text string) error {
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
