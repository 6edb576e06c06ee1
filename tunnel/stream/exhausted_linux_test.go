package stream_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// crowd opens n connections to an echo server one after the other and uses each, then
// all of them again, and returns them. None may fail.
func (r *rig) crowd(addr string, n int) (conns []*net.TCPConn) {
	r.t.Helper()
	for i := range n {
		c, err := r.dial("h1", addr)
		if err == nil {
			err = echoed(c)
		}
		if err != nil {
			r.t.Fatalf("connection %d: %v; %+v", i, err, r.stats("dc1"))
		}
		conns = append(conns, c)
	}
	for i, c := range conns {
		if err := echoed(c); err != nil {
			r.t.Fatalf("connection %d, again: %v", i, err)
		}
	}
	return conns
}

// echoed sends something to an echo server and waits for it.
func echoed(c net.Conn) error {
	_, err := c.Write([]byte("is anybody there?"))
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 17))
	}
	return err
}

// serveEcho serves at h2.
func (r *rig) serveEcho(addr string) {
	l := r.listen("h2", addr)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
}

// streams is how many the site has had.
func (r *rig) streams(site string) int { return int(r.stats(site).Peers[0].Total) }

// again waits until new connections are split.
func (r *rig) again(addr string) {
	r.t.Helper()
	r.until("new connections are split again", func() bool {
		before := r.streams("dc1")
		c := r.crowd(addr, 1)[0]
		c.Close()
		return r.streams("dc1") > before
	})
}

// TestKernelExhausted takes away from the stream process, one after the other, what
// connections need: those that are open go on, new ones pass as packets and none hangs
// or fails, the status says what is missing, and afterwards new ones are split again. The
// control is the first crowd, with everything there.
func TestKernelExhausted(t *testing.T) {
	r := newRig(t)
	const addr, many = "10.2.0.10:4000", 60
	r.serveEcho(addr)
	short := func(t *testing.T, what, site, word string) {
		t.Helper()
		before, others := r.streams("dc1"), r.stats(site).Lacked
		conns := r.crowd(addr, many)
		split, s := r.streams("dc1")-before, r.stats(site)
		t.Logf("%s: %d of %d connections were split; %d times %q", what, split, many, s.Lacked-others, s.Lack)
		if full := word == ""; (split == many) != full || (s.Lacked > others) == full || !strings.Contains(s.Lack, word) {
			t.Errorf("%s: %d of %d connections were split; %d times %q", what, split, many, s.Lacked-others, s.Lack)
		}
		for _, c := range conns {
			c.Close()
		}
		r.until("nothing is open", func() bool { return r.stats("dc1").Admitted+r.stats("dc2").Admitted == 0 })
	}
	short(t, "with everything there", "dc1", "")
	for _, site := range []string{"dc1", "dc2"} {
		pid := r.edges[site].cmd.Process.Pid
		var old unix.Rlimit
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old); err != nil {
			t.Fatal(err)
		}
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(files) + 30), Max: old.Max}, nil); err != nil {
			t.Fatal(err)
		}
		short(t, "without descriptors at "+site, site, "LimitNOFILE")
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &old, nil); err != nil {
			t.Fatal(err)
		}
		r.again(addr)
	}
	r.sh("e1", "cat /proc/sys/net/ipv4/ip_local_port_range >/run/"+r.prefix+"ports; echo 50000 50020 >/proc/sys/net/ipv4/ip_local_port_range")
	short(t, "without ports", "dc1", "ip_local_port_range")
	r.sh("e1", "cat /run/"+r.prefix+"ports >/proc/sys/net/ipv4/ip_local_port_range; rm /run/"+r.prefix+"ports")
	r.again(addr)
}
