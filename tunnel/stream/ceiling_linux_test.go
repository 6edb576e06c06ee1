package stream_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// limited puts the process of a site into a control group that has so much memory, of
// whichever version this machine has, and returns the group's directory.
func (r *rig) limited(site string, bytes int) string {
	r.t.Helper()
	var failed error
	for _, v := range []struct{ parent, limit string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"},
	} {
		dir := filepath.Join(v.parent, r.prefix+site)
		if err := os.Mkdir(dir, 0o755); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		r.t.Cleanup(func() {
			r.edges[site].kill()
			if err := os.Remove(dir); err != nil {
				r.t.Error(err)
			}
		})
		err := os.WriteFile(filepath.Join(dir, v.limit), []byte(strconv.Itoa(bytes)), 0)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(r.edges[site].cmd.Process.Pid)), 0)
		}
		if err == nil {
			return dir
		}
		failed = errors.Join(failed, err)
	}
	r.t.Skipf("this machine lets nobody limit memory: %v", failed)
	return ""
}

// TestKernelMemory gives the far stream process little memory and more work than fits:
// connections whose servers do not read. It must close the door before the kernel ends
// it; connections that are not optimised do their work meanwhile, and when the others
// have ended new ones are split again. The control is the near process, which has the
// memory.
func TestKernelMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("the race detector, with which -short is used, takes much more memory than the process")
	}
	r := newRig(t)
	const addr, echo, many, room = "10.2.0.10:6200", "10.2.0.10:6201", 400, 256 << 20
	r.serveEcho(echo)
	l := r.listen("h2", addr)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() }) // and is not read
		}
	}()
	dir := r.limited("dc2", room)
	var conns []*net.TCPConn
	noise := data(9, 8<<20)
	for i := range many {
		c, err := r.dial("h1", addr)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conns = append(conns, c)
		go c.Write(noise) // until nobody takes more
		time.Sleep(5 * time.Millisecond)
	}
	r.until("all have come", func() bool {
		p := r.stats("dc1").Peers[0]
		return p.Total+p.Passed >= many
	})
	near, far := r.stats("dc1"), r.stats("dc2")
	t.Logf("%d of %d connections were split; near %+v, far %+v; the group has %s", far.Peers[0].Total, many, near.Memory, far.Memory, peak(dir))
	if far.Memory.Turned == 0 || !far.Memory.Lately || !strings.HasPrefix(far.Memory.Place, "cgroup ") || far.Open == many || far.Open < 10 {
		t.Errorf("%d streams, %+v: the door was not closed, or too early", far.Open, far.Memory)
	}
	if near.Memory.Short || near.Memory.Turned > 0 {
		t.Errorf("the near side: %+v", near.Memory)
	}
	conns = append(conns, r.crowd(echo, 5)...)
	for _, c := range conns {
		c.SetLinger(0)
		c.Close()
	}
	r.until("there is room again", func() bool { s := r.stats("dc2"); return s.Open == 0 && !s.Memory.Short })
	t.Log("afterwards ", r.stats("dc2").Memory, " at most ", peak(dir))
	r.again(echo)
}

// peak is the most that a control group had, if it says so.
func peak(dir string) string {
	for _, file := range []string{"memory.max_usage_in_bytes", "memory.peak"} {
		if text, err := os.ReadFile(filepath.Join(dir, file)); err == nil {
			return "had at most " + strings.TrimSpace(string(text)) + " bytes"
		}
	}
	return "not said how much it had"
}
