package wan

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pairSocket returns a lane's socket and the host's end of the cable.
func pairSocket(t testing.TB) (*socket, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return &socket{fd: fds[0], hdrs: make([]unix.Mmsghdr, batchSize), iovs: make([]unix.Iovec, batchSize)}, fds[1]
}

// newTestLane returns the lane of port a, whose clock the test is, and the
// hosts' ends of both ports.
func newTestLane(t testing.TB, p Params) (l *lane, a, b int) {
	t.Helper()
	sa, a := pairSocket(t)
	sb, b := pairSocket(t)
	l = newLane(0, twoPorts(t), sa, func() time.Duration { return 0 }, []int{sa.fd, sb.fd})
	l.paths[1] = mustModel(t, p)
	return l, a, b
}

// readFrame returns the next frame at a host, or nil.
func readFrame(fd int) []byte {
	buf := make([]byte, frameSize)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

func TestLane(t *testing.T) {
	l, a, b := newTestLane(t, Params{Delay: 20 * time.Millisecond, Duplicate: 1})
	for _, frame := range [][]byte{ip4(t, 0xa0, "10.9.0.1", 100), arp(t, "10.0.0.1", "10.0.0.9"), ip4(t, 0xa0, "99.0.0.1", 100),
		make([]byte, frameSize+1)} {
		if _, err := unix.Write(a, frame); err != nil {
			t.Fatal(err)
		}
	}
	l.round(time.Millisecond, 0)
	if got := readFrame(a); len(got) != arpFrame {
		t.Errorf("ARP answer %x", got)
	}
	if l.round(21*time.Millisecond-1, 0); readFrame(b) != nil {
		t.Error("a packet is early")
	}
	l.round(21*time.Millisecond, 0)
	for range 2 {
		if got := readFrame(b); len(got) != 142 || !bytes.Equal(got[:6], hw(0xb1)) {
			t.Errorf("frame %x", got)
		}
	}
	if l.port.Strays != 1 || l.port.Oversize != 1 || l.sends[1] != (sends{sent: 2}) || l.due.len() != 0 {
		t.Errorf("port %+v sends %+v", l.port, l.sends)
	}
}

// TestLaneBounds fills the pool: what does not fit is counted, the rest
// arrives, and all buffers come back.
func TestLaneBounds(t *testing.T) {
	l, a, b := newTestLane(t, Params{Delay: time.Second})
	l.pool.limit = chunkFrames
	frame, arrived := ip4(t, 0xa0, "10.9.0.1", 100), 0
	const offered = 1500
	for range offered {
		if _, err := unix.Write(a, frame); err != nil {
			t.Fatal(err)
		}
		l.round(0, 0)
	}
	// Release in small steps: the cable of this test holds few frames.
	for len(l.pool.free) < chunkFrames-batchSize {
		l.mu.Lock()
		l.release(l.due.pop())
		l.boxes[1].flush(l.sent)
		l.mu.Unlock()
		if readFrame(b) != nil {
			arrived++
		}
	}
	s := l.sends[1]
	if s.waiting != 0 || int(s.sent) != arrived || s.sent+s.host != offered || arrived != chunkFrames-batchSize {
		t.Errorf("sends %+v, arrived %d", s, arrived)
	}
}

// TestLaneSendFails: a frame the kernel refuses is dropped and counted.
func TestLaneSendFails(t *testing.T) {
	l, a, b := newTestLane(t, Params{})
	unix.Shutdown(b, unix.SHUT_RD)
	if _, err := unix.Write(a, ip4(t, 0xa0, "10.9.0.1", 100)); err != nil {
		t.Fatal(err)
	}
	l.round(0, 0)
	if l.sends[1] != (sends{host: 1}) || len(l.pool.free) != chunkFrames-batchSize {
		t.Errorf("sends %+v, %d buffers free", l.sends[1], len(l.pool.free))
	}
}

func TestLaneAllocates(t *testing.T) {
	l, a, b := newTestLane(t, Params{Delay: 1, Rate: 1e9, Loss: 0.1})
	frame, now, buf := ip4(t, 0xa0, "10.9.0.1", 1000), time.Duration(0), make([]byte, frameSize)
	if n := testing.AllocsPerRun(500, func() {
		_, _ = unix.Write(a, frame)
		l.round(now, 0)
		now += time.Millisecond
		l.round(now, 0)
		_, _ = unix.Read(b, buf)
	}); n != 0 {
		t.Errorf("%v allocations a frame", n)
	}
}

func TestTick(t *testing.T) {
	for delay, want := range map[time.Duration]time.Duration{
		0: minTick, 2 * time.Millisecond: 200 * time.Microsecond, 20 * time.Millisecond: maxTick,
	} {
		if l, _, _ := newTestLane(t, Params{Delay: delay}); l.tick() != want {
			t.Errorf("delay %v: tick %v, want %v", delay, l.tick(), want)
		}
	}
}

// emulatorOf returns an Emulator around one lane, with a control socket.
func emulatorOf(t *testing.T, l *lane) *Emulator {
	t.Helper()
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	cfg := EmulatorConfig{Ports: l.r.ports, Control: filepath.Join(t.TempDir(), "wan.sock")}
	e := &Emulator{cfg: cfg.withDefaults(), lanes: []*lane{l}, stop: stop}
	if err := e.openControl(); err != nil {
		t.Fatal(err)
	}
	return e
}

// TestControl drives a running emulator through its socket.
func TestControl(t *testing.T) {
	l, a, _ := newTestLane(t, Params{Rate: 1e6})
	e := emulatorOf(t, l)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := e.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	c := NewClient(e.cfg.Control)
	if err := c.Cut(ctx, "b", "a", true); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(a, ip4(t, 0xa0, "10.9.0.1", 100)); err != nil {
		t.Fatal(err)
	}
	var got PathStatus
	for got.Counters.Packets == 0 {
		r, err := c.Report(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got = r.Find("a", "b")
	}
	if !got.Params.Down || got.Params.Rate != 1e6 || got.Counters.DownDrops != 1 || got.Counters.Bytes != 128 {
		t.Errorf("%+v", got)
	}
	for name, p := range map[string]Path{"no port": {From: "a", To: "x"}, "loop": {From: "a", To: "a"}, "loss": {From: "a", To: "b", Params: Params{Loss: 2}}} {
		if err := c.Set(ctx, p); err == nil {
			t.Errorf("%s accepted", name)
		}
	}
	if _, err := c.do(ctx, "PUT", "/v1/path", []byte(`{"from":"a","to":"b","speed":1}`)); err == nil {
		t.Error("an unknown key was accepted")
	}
	cancel()
	wg.Wait()
	if err := e.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("close after run: %v", err)
	}
	if _, err := os.Stat(e.cfg.Control); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control socket stays: %v", err)
	}
}

// TestConfigFile: the daemon's file survives being written and read.
func TestConfigFile(t *testing.T) {
	in := EmulatorConfig{Ports: twoPorts(t).ports, Paths: []Path{{"a", "b", Params{Rate: 5, Delay: time.Second, Burst: BurstLoss(0.1, 3)}}}}
	data, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out EmulatorConfig
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	again, _ := json.Marshal(out)
	if !bytes.Equal(data, again) || out.Ports[0].MAC != in.Ports[0].MAC || !bytes.Contains(data, []byte(`"02:00:00:00:00:a0"`)) {
		t.Errorf("%s\n%s", data, again)
	}
	if err := json.Unmarshal([]byte(`{"ports":[{"mac":"02:00"}]}`), &out); err == nil {
		t.Error("a short MAC was accepted")
	}
}

func TestOpenRefuses(t *testing.T) {
	p := twoPorts(t).ports
	p[0].Interface = "no-such-device"
	if _, err := Open(EmulatorConfig{Ports: p}); err == nil {
		t.Error("a missing interface was accepted")
	}
	if _, err := StartCapture(filepath.Join(t.TempDir(), "x"), false, "no-such-device"); err == nil {
		t.Error("a capture of a missing interface began")
	}
}
