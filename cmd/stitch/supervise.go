package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"stitch/tunnel/control"
)

const (
	// stopPatience is the patience of an agent's keepers.
	stopPatience = 5 * time.Second
	// maxLine bounds what is kept of a line of a child's output, maxComplaint
	// what of its last one is shown in the status.
	maxLine, maxComplaint = 16 << 10, 400
)

// keeper keeps one child process running.
type keeper struct {
	name string
	exe  string
	args []string
	out  io.Writer // the child's output; safe for concurrent use
	log  *slog.Logger
	// patience is how long the child may take to stop before it is killed.
	patience time.Duration

	mu    sync.Mutex
	state control.Process // name, state and so on, as last set
}

// update changes the state shown to the outside.
func (k *keeper) update(change func(*control.Process)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(&k.state)
}

// status returns the state shown to the outside.
func (k *keeper) status() control.Process {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

// run keeps the child running until ctx is done, then stops it and returns
// nil. It returns an error if it gives up; then the child does not run.
func (k *keeper) run(ctx context.Context) error {
	// The kernel kills the child when the thread that started it ends. This
	// thread does nothing else and ends with run.
	runtime.LockOSThread()
	k.update(func(p *control.Process) { p.Name, p.State = k.name, "starting" })
	defer k.update(func(p *control.Process) { p.Pid = 0 })
	var decide policy
	for {
		e := k.once(ctx)
		if ctx.Err() != nil {
			k.update(func(p *control.Process) { p.State, p.LastExit = "stopped", e.String() })
			return nil
		}
		delay, again := decide.next(e)
		if !again {
			k.update(func(p *control.Process) { p.State, p.LastExit = "failed", e.String() })
			return exitCode(e.code) // it has said why on our own output
		}
		k.update(func(p *control.Process) { p.State, p.Pid, p.LastExit = "waiting", 0, e.String() })
		k.log.Error("process ended, starting it again", "process", k.name, "exit", e.String(), "in", delay)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delay):
		}
		k.update(func(p *control.Process) { p.Restarts++ })
	}
}

// once runs the child to its end. When ctx is done it is asked to stop, and
// killed when it does not; it is killed too when it hangs.
func (k *keeper) once(ctx context.Context) exit {
	said := &lastLine{out: k.out}
	cmd := exec.CommandContext(ctx, k.exe, k.args...)
	cmd.Stdout, cmd.Stderr = said, said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = k.patience
	// A group of its own: Ctrl-C in a terminal is ours to pass on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	heart, beat, err := os.Pipe()
	if err != nil {
		return exit{code: -1, complaint: err.Error()}
	}
	defer heart.Close()
	cmd.ExtraFiles = []*os.File{beat} // beatFD there
	began := time.Now()
	err = cmd.Start()
	beat.Close()
	if err != nil {
		return exit{code: -1, complaint: err.Error()}
	}
	k.update(func(p *control.Process) { p.State, p.Pid = "running", cmd.Process.Pid })
	endWatch := k.watch(ctx, cmd.Process, heart, said)
	_ = cmd.Wait() // the process state says it better
	hung := endWatch()
	said.flush()
	e := exit{code: cmd.ProcessState.ExitCode(), hung: hung, ran: time.Since(began)}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.signal = ws.Signal().String()
	}
	e.complaint, e.panicked = said.complaint()
	return e
}

// lastLine passes whole lines on and remembers the last one, or the first of a
// panic. Of the output after dump is set it passes on maxDump bytes. It is not
// safe for concurrent use, but for dump; out must be.
type lastLine struct {
	dump    atomic.Bool
	dumped  int
	out     io.Writer
	partial []byte
	last    string
	panic   string
}

// Write takes output of the child. It never fails: a child must not be stopped
// by our output's trouble.
func (l *lastLine) Write(p []byte) (int, error) {
	l.partial = append(l.partial, p...)
	for {
		i := bytes.IndexByte(l.partial, '\n')
		if i < 0 && len(l.partial) < maxLine {
			return len(p), nil
		}
		if i < 0 {
			i = maxLine - 1
		}
		l.line(l.partial[:i+1])
		l.partial = l.partial[:copy(l.partial, l.partial[i+1:])]
	}
}

// flush ends an unfinished line.
func (l *lastLine) flush() {
	if len(l.partial) > 0 {
		l.line(append(l.partial, '\n'))
		l.partial = nil
	}
}

// line passes one line on.
func (l *lastLine) line(b []byte) {
	if l.dump.Load() {
		l.dumped += len(b)
	}
	if l.dumped <= maxDump {
		_, _ = l.out.Write(b)
	}
	text := strings.TrimSpace(string(b))
	text = text[:min(len(text), maxComplaint)]
	if text == "" {
		return
	}
	l.last = text
	if l.panic == "" && (strings.HasPrefix(text, "panic: ") || strings.HasPrefix(text, "fatal error: ")) {
		l.panic = text
	}
}

// complaint returns what the child said last, or why it panicked.
func (l *lastLine) complaint() (text string, panicked bool) {
	if l.panic != "" {
		return l.panic, true
	}
	return strings.TrimPrefix(l.last, "stitch: "), false
}

// lockedWriter lets several children write to one stream, a line at a time.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// Write implements io.Writer.
func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// supervisor runs the processes of one agent and answers for them.
type supervisor struct {
	site    string
	sockets string    // directory of the sockets
	keepers []*keeper // in the order of start; stopped from the last
	began   time.Time
	log     *slog.Logger
	ready   func() // called once, when all processes have answered
}

// run runs the agent until ctx is done or a process is given up, and returns
// when all processes have ended.
func (s *supervisor) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	server, err := control.Listen(control.Config{Path: s.sockets + "/" + control.Socket, Status: s.status, Log: s.log})
	if err != nil {
		return refusal{err}
	}
	var all sync.WaitGroup
	all.Go(func() {
		if err := server.Run(ctx); err != nil {
			cancel(fmt.Errorf("control socket: %w", err))
		}
	})
	all.Go(func() { s.waitReady(ctx) })
	stops := make([]func(), len(s.keepers))
	for i, k := range s.keepers {
		own, stop := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan struct{})
		stops[i] = func() { stop(); <-done }
		all.Go(func() {
			defer close(done)
			if err := k.run(own); err != nil {
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	for _, stop := range slices.Backward(stops) {
		stop()
	}
	all.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// status answers the control socket.
func (s *supervisor) status(ctx context.Context) control.Status {
	st := control.Status{Site: s.site, Version: version(), Uptime: time.Since(s.began).Seconds()}
	for _, k := range s.keepers {
		p := k.status()
		st.Processes = append(st.Processes, p)
		if p.State != "running" {
			st.Alarms = append(st.Alarms, fmt.Sprintf("the %s process is %s: %s", p.Name, p.State, p.LastExit))
		}
	}
	control.Collect(ctx, &st, time.Second, s.children())
	return st
}

// children are the sockets of the processes that run.
func (s *supervisor) children() []control.Child {
	var out []control.Child
	for _, k := range s.keepers {
		if k.status().State == "running" {
			out = append(out, control.Child{Name: k.name, Path: s.sockets + "/" + k.name + ".sock"})
		}
	}
	return out
}

// waitReady calls ready once every process has answered.
func (s *supervisor) waitReady(ctx context.Context) {
	const pause = 100 * time.Millisecond
	for {
		var st control.Status
		children := s.children()
		answered := control.Collect(ctx, &st, time.Second, children)
		if ctx.Err() != nil {
			return
		}
		if answered == len(s.keepers) {
			s.ready()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}
