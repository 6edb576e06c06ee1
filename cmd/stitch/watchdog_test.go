package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"stitch/tunnel/control"
)

func TestWatchdog(t *testing.T) {
	const beat, silence = true, false
	type looks struct {
		n     int
		every time.Duration
		heard bool
	}
	second := 2 // looks
	for name, c := range map[string]struct {
		script []looks
		ask    int // the look that asks for a dump, from 1; 0: none does
		kill   int
	}{
		"beats":              {[]looks{{100, watchEvery, beat}}, 0, 0},
		"never began":        {[]looks{{1000, watchEvery, silence}}, 0, 0},
		"stall of 3 s":       {[]looks{{1, watchEvery, beat}, {3 * second, watchEvery, silence}, {9, watchEvery, beat}}, 0, 0},
		"late beat":          {[]looks{{1, watchEvery, beat}, {6*second - 1, watchEvery, silence}, {9, watchEvery, beat}}, 0, 0},
		"hang":               {[]looks{{1, watchEvery, beat}, {9 * second, watchEvery, silence}}, 13, 17},
		"beats after asking": {[]looks{{1, watchEvery, beat}, {6 * second, watchEvery, silence}, {9, watchEvery, beat}}, 13, 17},
		"we slept an hour":   {[]looks{{1, watchEvery, beat}, {1, time.Hour, silence}, {1, watchEvery, beat}}, 0, 0},
		"we sleep often":     {[]looks{{1, watchEvery, beat}, {5, time.Hour, silence}, {1, watchEvery, beat}}, 0, 0},
		"hang after a sleep": {[]looks{{1, watchEvery, beat}, {1, time.Hour, silence}, {9 * second, watchEvery, silence}}, 12, 16},
		"clock stands":       {[]looks{{1, watchEvery, beat}, {1000, 0, silence}}, 0, 0},
	} {
		now := time.Unix(1, 0)
		w := watchdog{last: now}
		n, ask, kill := 0, 0, 0
		for _, l := range c.script {
			for range l.n {
				n++
				now = now.Add(l.every)
				switch w.look(l.heard, now) {
				case askDump:
					if ask != 0 {
						t.Errorf("%s: asked again at look %d", name, n)
					}
					ask = n
				case killNow:
					if kill == 0 {
						kill = n
					}
				}
			}
		}
		if ask != c.ask || kill != c.kill {
			t.Errorf("%s: asks at look %d and kills at %d, want %d and %d", name, ask, kill, c.ask, c.kill)
		}
	}
}

// TestWatchdogBound: whenever in the time between two beats and two looks a
// hang begins, it ends within 10 s, and a stall of 3 s is never one.
func TestWatchdogBound(t *testing.T) {
	for phase := time.Duration(0); phase < time.Second; phase += 10 * time.Millisecond {
		for _, stall := range []time.Duration{3 * time.Second, time.Hour} {
			synctest.Test(t, func(t *testing.T) {
				w := watchdog{last: time.Now()}
				begin := time.Now().Add(5*time.Second + phase)
				lastBeat := time.Now()
				for range 60 {
					time.Sleep(watchEvery)
					now := time.Now()
					hangs := now.After(begin) && now.Before(begin.Add(stall))
					heard := !hangs && now.Sub(lastBeat) >= time.Second
					if heard {
						lastBeat = now
					}
					if r := w.look(heard, now); r == killNow && now.Sub(begin) > 10*time.Second || r != leaveAlone && stall == 3*time.Second {
						t.Fatalf("stall of %v: %v after %v", stall, r, now.Sub(begin))
					} else if r == killNow {
						return
					}
				}
				if stall > 3*time.Second {
					t.Fatal("never killed")
				}
			})
		}
	}
}

func TestDumpIsBounded(t *testing.T) {
	var out bytes.Buffer
	l := &lastLine{out: &out}
	line := strings.Repeat("x", 99) + "\n"
	for range 2 * maxDump / len(line) {
		_, _ = io.WriteString(l, line)
	}
	before := out.Len()
	if before < 2*maxDump-len(line) {
		t.Errorf("control case: %d bytes passed without a dump", before)
	}
	l.dump.Store(true)
	for range 2 * maxDump / len(line) {
		_, _ = io.WriteString(l, line)
	}
	if n := out.Len() - before; n > maxDump || n < maxDump-len(line) {
		t.Errorf("a dump of %d bytes, want %d", n, maxDump)
	}
}

// beatUntil beats as a plane does. SIGUSR1 makes it wait for a lock that
// nobody gives back.
func beatUntil(ctx context.Context) {
	var loop sync.Mutex
	hang, stop := signal.NotifyContext(ctx, syscall.SIGUSR1)
	defer stop()
	context.AfterFunc(hang, loop.Lock)
	beat := beater()
	for ctx.Err() == nil {
		loop.Lock()
		loop.Unlock()
		beat()
		time.Sleep(100 * time.Millisecond)
	}
}

// syncBuffer is a buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// supervised runs a supervised child of a role and returns its first pid, its
// directory, and what it and its keeper said.
func supervised(t *testing.T, role string) (pid int, dir string, said *syncBuffer) {
	t.Helper()
	dir, said = t.TempDir(), &syncBuffer{}
	s := testSupervisor(dir, said, role, "stream")
	s.keepers[0].log = slog.New(slog.NewTextHandler(said, nil))
	s.keepers[0].patience = 100 * time.Millisecond // a stopped process hears no SIGTERM
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	pid = poll(t, dir, running(0)).Processes[0].Pid
	time.Sleep(time.Second) // it has beaten
	return pid, dir, said
}

// process is what the status says of the child.
func process(t *testing.T, dir string) control.Process {
	t.Helper()
	return poll(t, dir, func(st *control.Status) bool { return len(st.Processes) == 1 }).Processes[0]
}

// send sends a signal.
func send(t *testing.T, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

// TestStoppedChild: fault P-04, with a child that has no watchdog as the
// control case.
func TestStoppedChild(t *testing.T) {
	t.Parallel()
	t.Run("3 s", func(t *testing.T) {
		t.Parallel()
		pid, dir, said := supervised(t, "beat")
		send(t, pid, syscall.SIGSTOP)
		time.Sleep(3 * time.Second)
		send(t, pid, syscall.SIGCONT)
		time.Sleep(hangAfter)
		if p := process(t, dir); p.Pid != pid || p.Restarts != 0 || p.State != "running" {
			t.Errorf("it did not survive: %+v\n%s", p, said)
		}
	})
	t.Run("for good", func(t *testing.T) {
		t.Parallel()
		pid, dir, said := supervised(t, "beat")
		send(t, pid, syscall.SIGSTOP)
		began := time.Now()
		p := poll(t, dir, running(1)).Processes[0]
		t.Logf("replaced after %v", time.Since(began))
		if p.Pid == pid || p.LastExit != "hung: no sign of life for 6s, killed" {
			t.Errorf("%+v", p)
		}
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("the stopped process is still there: %v", err)
		}
		if text := said.String(); !strings.Contains(text, fmt.Sprintf("process hangs, asking for its goroutines and ending it\" process=stream pid=%d", pid)) {
			t.Error(text)
		}
	})
	t.Run("unwatched", func(t *testing.T) {
		t.Parallel()
		pid, dir, _ := supervised(t, "serve")
		send(t, pid, syscall.SIGSTOP)
		time.Sleep(hangAfter + dumpPatience + 2*time.Second)
		if p := process(t, dir); p.Pid != pid {
			t.Errorf("control case: replaced without a beat ever: %+v", p)
		}
	})
}

// TestDeadlockedChild: fault P-06. The process runs and answers its socket,
// but a lock is never given back.
func TestDeadlockedChild(t *testing.T) {
	t.Parallel()
	pid, dir, said := supervised(t, "beat")
	send(t, pid, syscall.SIGUSR1)
	p := poll(t, dir, running(1)).Processes[0]
	if p.Pid == pid || !strings.HasPrefix(p.LastExit, "hung: ") {
		t.Errorf("%+v", p)
	}
	text := said.String()
	for _, want := range []string{"SIGQUIT: quit", "beatUntil(", "sync.(*Mutex).Lock"} {
		if !strings.Contains(text, want) {
			t.Errorf("the log lacks %q:\n%s", want, text)
		}
	}
	if lines := strings.Split(text, "\n"); slices.ContainsFunc(lines, func(s string) bool { return len(s) > maxLine }) {
		t.Error("a line of the dump is too long")
	}
}
