package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is one that the lab started. PID and Start together name it for
// ever: a PID may be given out again, but not with the same start time.
type Process struct {
	Name  string `json:"name"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot
	Log   string `json:"log"`
}

// Running reports whether the process is there and no zombie.
func (p Process) Running() bool {
	start, state, err := procStat(p.PID)
	return err == nil && start == p.Start && state != 'Z'
}

// signal sends sig if the process is still the same one.
func (p Process) signal(sig syscall.Signal) {
	if p.Running() {
		_ = unix.Kill(p.PID, sig)
	}
}

// procStat reads start time and state of a process.
func procStat(pid int) (start uint64, state byte, err error) {
	fields, err := statFields(pid)
	if err != nil {
		return 0, 0, err
	}
	start, err = strconv.ParseUint(string(fields[19]), 10, 64)
	return start, fields[0][0], err
}

// statFields are the fields of a process's stat file behind its name: the first
// is field 3 of proc(5).
func statFields(pid int) ([][]byte, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 20 {
		return nil, fmt.Errorf("process %d: short stat", pid)
	}
	return fields, nil
}

// userTick is the unit of processor times in /proc (USER_HZ, fixed for programs).
const userTick = 10 * time.Millisecond

// Processor is the processor time that the processes now on these hosts have
// used so far: on the edges, the tunnel's. What the kernel does in interrupts is
// not in it.
func (l *Lab) Processor(hosts ...string) (sum time.Duration) {
	var spaces []Namespace
	for _, h := range hosts {
		spaces = append(spaces, l.ns(h))
	}
	for _, p := range inNamespaces(namespaceIDs(spaces)) {
		fields, err := statFields(p.PID)
		if err != nil {
			continue // it has ended
		}
		for _, field := range fields[11:13] { // utime and stime
			n, _ := strconv.ParseInt(string(field), 10, 64)
			sum += time.Duration(n) * userTick
		}
	}
	return sum
}

// launch starts cmd in a session of its own with its output in a log file. The
// child is reaped when it ends, if this process lives so long.
func launch(name string, cmd *exec.Cmd, log string) (Process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return Process{}, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return Process{}, fmt.Errorf("start %s: %w", name, err)
	}
	start, _, err := procStat(cmd.Process.Pid)
	go func() { _ = cmd.Wait() }() // ends with the child; its state is read from /proc
	return Process{Name: name, PID: cmd.Process.Pid, Start: start, Log: log}, err
}

// namespaceIDs returns the identities of the named namespaces that exist.
func namespaceIDs(names []Namespace) map[nsID]bool {
	ids := map[nsID]bool{}
	for _, n := range names {
		if id, err := statNS(filepath.Join(netnsDir, string(n))); err == nil {
			ids[id] = true
		}
	}
	return ids
}

// inNamespaces returns the processes, but this one, that live in one of the
// namespaces.
func inNamespaces(ids map[nsID]bool) (found []Process) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		id, err := statNS(d + "/ns/net")
		if err != nil || !ids[id] || pid == os.Getpid() {
			continue
		}
		if start, _, err := procStat(pid); err == nil {
			found = append(found, Process{Name: "?", PID: pid, Start: start})
		}
	}
	return found
}

// nsID identifies a namespace.
type nsID struct{ dev, ino uint64 }

func statNS(path string) (nsID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nsID{}, err
	}
	return nsID{st.Dev, st.Ino}, nil
}

// Grace periods of endAll.
const (
	termWait = 5 * time.Second
	killWait = 5 * time.Second
)

// endAll ends the processes that list returns, first politely. It asks again
// before each signal, because ending processes may leave others behind.
func endAll(ctx context.Context, list func() []Process) error {
	for _, step := range []struct {
		sig  syscall.Signal
		wait time.Duration
	}{{unix.SIGTERM, termWait}, {unix.SIGKILL, killWait}} {
		for _, p := range list() {
			p.signal(step.sig)
		}
		gone := func() bool { return len(list()) == 0 }
		if waitFor(ctx, step.wait, gone) {
			return nil
		}
	}
	return errors.Join(fmt.Errorf("processes that do not end: %v", list()), ctx.Err())
}

// waitFor polls cond until it holds, or false after the given time or ctx.
func waitFor(ctx context.Context, limit time.Duration, cond func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			return cond()
		case <-tick.C:
		}
	}
	return true
}
