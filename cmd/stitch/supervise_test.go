package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"stitch/tunnel/control"
)

func TestPolicy(t *testing.T) {
	crash := exit{code: 1}
	long := exit{code: 1, ran: healthyAfter}
	refused := exit{code: 2, complaint: "no"}
	ms := func(list ...int) (out []time.Duration) {
		for _, n := range list {
			out = append(out, time.Duration(n)*time.Millisecond)
		}
		return out
	}
	for name, c := range map[string]struct {
		exits  []exit
		delays []time.Duration
		gaveUp bool
	}{
		"crash loop":            {slices.Repeat([]exit{crash}, 9), ms(0, 200, 400, 800, 1600, 3200, 5000, 5000, 5000), false},
		"long life starts anew": {[]exit{crash, crash, long, crash}, ms(0, 200, 0, 200), false},
		"refused at once":       {[]exit{refused}, nil, true},
		"refused later":         {[]exit{crash, refused, refused}, ms(0, 200, 400), false},
		"panic has code 2 too":  {[]exit{{code: 2, panicked: true}}, ms(0), false},
		"hung with code 2":      {[]exit{{code: 2, hung: true}}, ms(0), false},
		"killed":                {[]exit{{code: -1, signal: "killed"}}, ms(0), false},
	} {
		var p policy
		var delays []time.Duration
		gaveUp := false
		for _, e := range c.exits {
			d, again := p.next(e)
			if !again {
				gaveUp = true
				break
			}
			delays = append(delays, d)
		}
		if !slices.Equal(delays, c.delays) || gaveUp != c.gaveUp {
			t.Errorf("%s: %v, gave up %v", name, delays, gaveUp)
		}
	}
}

func TestPolicyNeverOverflows(t *testing.T) {
	var p policy
	for i := range 10_000 {
		if d, again := p.next(exit{code: 1}); !again || d < 0 || d > maxDelay {
			t.Fatalf("restart %d after %v", i, d)
		}
	}
}

func TestLastLine(t *testing.T) {
	for name, c := range map[string]struct {
		writes   []string
		want     string
		panicked bool
	}{
		"last of several":   {[]string{"a\nb\n", "\n  \n"}, "b", false},
		"split":             {[]string{"he", "llo\nwor", "ld"}, "world", false},
		"panic beats trace": {[]string{"log\npanic: boom\n\ngoroutine 1 [running]:\nmain.main()\n"}, "panic: boom", true},
		"runtime":           {[]string{"fatal error: all goroutines are asleep - deadlock!\nx\n"}, "fatal error: all goroutines are asleep - deadlock!", true},
		"long":              {[]string{strings.Repeat("x", 3*maxLine)}, strings.Repeat("x", maxComplaint), false},
		"nothing":           {nil, "", false},
	} {
		var out bytes.Buffer
		l := &lastLine{out: &out}
		for _, w := range c.writes {
			if n, err := io.WriteString(l, w); n != len(w) || err != nil {
				t.Fatal(n, err)
			}
			if len(l.partial) > maxLine {
				t.Errorf("%s: keeps %d bytes", name, len(l.partial))
			}
		}
		l.flush()
		if got, panicked := l.complaint(); got != c.want || panicked != c.panicked {
			t.Errorf("%s: %q %v", name, got, panicked)
		}
		if got, want := strings.TrimSuffix(out.String(), "\n"), strings.TrimSuffix(strings.Join(c.writes, ""), "\n"); got != want {
			t.Errorf("%s: passed on %d bytes of %d", name, len(got), len(want))
		}
	}
}

// actAs is what the test program does as a child. Its arguments are the
// directory of the sockets and its name.
func actAs(role string, args []string) int {
	if role == "stitch" {
		return inNamespace(args)
	}
	dir, name := args[0], args[1]
	fmt.Fprintln(os.Stderr, "started", name, os.Getpid())
	switch role {
	case "refuse":
		fmt.Fprintln(os.Stderr, "stitch: the machine is wrong: mend it")
		return 2
	case "supervisor":
		s := testSupervisor(dir, os.Stderr, "serve", "link")
		_ = s.run(context.Background())
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if role == "stubborn" { // it hears of the signal and stays
		ctx = context.WithoutCancel(ctx)
	}
	s, err := control.Listen(control.Config{
		Path:   filepath.Join(dir, name+".sock"),
		Status: func(context.Context) control.Status { return control.Status{Alarms: []string{name + " says hello"}} },
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if role == "beat" {
		go beatUntil(ctx)
	}
	if err := s.Run(ctx); err != nil {
		return 1
	}
	return 0
}

// testSupervisor supervises copies of the test program.
func testSupervisor(dir string, out io.Writer, role string, names ...string) *supervisor {
	s := &supervisor{site: "dc1", sockets: dir, began: time.Now(), log: slog.New(slog.DiscardHandler), ready: func() {}}
	for _, n := range names {
		s.keepers = append(s.keepers, &keeper{
			name: n, exe: "/usr/bin/env", args: []string{"STITCH_TEST_CHILD=" + role, os.Args[0], dir, n},
			out: &lockedWriter{w: out}, log: s.log, patience: stopPatience,
		})
	}
	return s
}

// poll asks for the status until ok likes it.
func poll(t *testing.T, dir string, ok func(*control.Status) bool) *control.Status {
	t.Helper()
	client := control.NewClient(filepath.Join(dir, control.Socket))
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); ; {
		st, err := client.Status(t.Context())
		if err == nil && ok(st) {
			return st
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never so: %+v, %v", st, err)
		}
	}
}

// running reports that every process runs and answers.
func running(restarts int) func(*control.Status) bool {
	return func(st *control.Status) bool {
		for _, p := range st.Processes {
			if p.State != "running" || !slices.Contains(st.Alarms, p.Name+" says hello") {
				return false
			}
		}
		return len(st.Processes) > 0 && st.Processes[0].Restarts == restarts
	}
}

func TestSupervisorRestartsAndStops(t *testing.T) {
	dir := t.TempDir()
	s := testSupervisor(dir, io.Discard, "serve", "link", "stream")
	ready := make(chan struct{})
	s.ready = func() { close(ready) }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	st := poll(t, dir, running(0))
	<-ready
	if err := syscall.Kill(st.Processes[0].Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	again := poll(t, dir, running(1))
	if p := again.Processes[0]; p.Pid == st.Processes[0].Pid || !strings.HasPrefix(p.LastExit, "ended by signal: killed") {
		t.Errorf("after kill -9: %+v", p)
	}
	if again.Processes[1] != st.Processes[1] {
		t.Errorf("the other one was touched: %+v", again.Processes[1])
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, p := range again.Processes {
		if err := syscall.Kill(p.Pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is still there: %v", p.Pid, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, control.Socket)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestSupervisorGivesUpWhatRefusesToStart(t *testing.T) {
	var said bytes.Buffer
	s := testSupervisor(t.TempDir(), &said, "refuse", "link")
	err := s.run(t.Context())
	if code := report(&said, err); code != 2 || strings.Count(said.String(), "stitch: the machine is wrong: mend it\n") != 1 {
		t.Errorf("%d %q", code, said.String())
	}
	if p := s.keepers[0].status(); p.State != "failed" || p.LastExit != "exit code 2: the machine is wrong: mend it" {
		t.Errorf("%+v", p)
	}
}

func TestStubbornChildIsKilled(t *testing.T) {
	dir := t.TempDir()
	s := testSupervisor(dir, io.Discard, "stubborn", "link")
	s.keepers[0].patience = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	poll(t, dir, running(0))
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := s.keepers[0].status(); got.State != "stopped" || !strings.HasPrefix(got.LastExit, "ended by signal: killed") {
		t.Errorf("%+v", got)
	}
}

// TestChildrenDieWithTheSupervisor kills a supervisor without a chance to
// clean up, and waits for the end of its child.
func TestChildrenDieWithTheSupervisor(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], dir, "supervisor")
	cmd.Env = append(os.Environ(), "STITCH_TEST_CHILD=supervisor")
	output, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	child := 0
	for lines := bufio.NewScanner(output); child == 0 && lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "started link "); ok {
			child, _ = strconv.Atoi(rest)
		}
	}
	if child == 0 {
		t.Fatal("no child")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// The child holds the other end of our pipe: its end is the pipe's.
	if _, err := io.Copy(io.Discard, output); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}

func TestSupervisorRefusesASocketInUse(t *testing.T) {
	dir := t.TempDir()
	other, err := control.Listen(control.Config{Path: filepath.Join(dir, control.Socket), Status: func(context.Context) control.Status { return control.Status{} }})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	go other.Run(t.Context())
	err = testSupervisor(dir, io.Discard, "serve", "link").run(t.Context())
	if !errors.Is(err, control.ErrInUse) || report(io.Discard, err) != 2 {
		t.Error(err)
	}
}
