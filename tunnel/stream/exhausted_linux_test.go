package stream_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
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

// burst opens n connections at once and uses each. None may fail.
func (r *rig) burst(addr string, n int) {
	r.t.Helper()
	failed := make(chan error, n)
	for range n {
		go func() {
			c, err := r.dial("h1", addr)
			if err == nil {
				c.SetDeadline(time.Now().Add(20 * time.Second))
				err = errors.Join(echoed(c), c.Close())
			}
			failed <- err
		}()
	}
	for range n {
		if err := <-failed; err != nil {
			r.t.Errorf("one of %d connections at once: %v", n, err)
		}
	}
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
		r.burst(addr, many)
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

// TestKernelTracked fills the tables in which the kernels of both edges track
// connections: what is open goes on; a new one is lost in the kernel, as every
// connection is, and connects as soon as there is room, without another try of its
// client's program.
func TestKernelTracked(t *testing.T) {
	r := newRig(t)
	const addr = "10.2.0.10:4000"
	r.serveEcho(addr)
	open := r.crowd(addr, 2)
	for _, e := range []string{"e2", "e1"} { // the far one first: its peer's SYN is held
		most := r.track(e)
		for _, c := range open {
			if err := echoed(c); err != nil {
				t.Errorf("%s is full: what was open: %v", e, err)
			}
		}
		before := r.streams("dc1")
		done := make(chan error, 1)
		go func() {
			c, err := r.dial("h1", addr)
			if err == nil {
				err = echoed(c)
			}
			done <- err
		}()
		select {
		case err := <-done:
			t.Errorf("%s is full, with %d entries: connected all the same: %v", e, most, err)
			continue
		case <-time.After(1500 * time.Millisecond):
		}
		_, err := in(r, e, func() (int, error) { return 0, netlink.ConntrackTableFlush(netlink.ConntrackTable) })
		if err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Errorf("%s has room again: %v", e, err)
		}
		if n := r.streams("dc1") - before; n != 1 {
			t.Errorf("%s has room again: %d connections were split", e, n)
		}
	}
}

// track fills the table of connections of an edge, with such that the kernel does not
// give up to make room, and returns how many there may be.
func (r *rig) track(e string) int {
	r.t.Helper()
	most, err := in(r, e, func() (int, error) {
		most, err := numberIn("/proc/sys/net/netfilter/nf_conntrack_max")
		if err != nil || most > 1<<20 {
			return most, fmt.Errorf("this kernel tracks up to %d connections, too many to make: %w", most, err)
		}
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return most, err
		}
		defer unix.Close(fd)
		var batch []byte
		for i := range most + 100 { // those beyond are refused
			if batch = append(batch, trackedEntry(uint32(i))...); len(batch) > 32<<10 || i == most+99 {
				if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
					return most, err
				}
				batch = batch[:0]
			}
		}
		if n, err := numberIn("/proc/sys/net/netfilter/nf_conntrack_count"); err != nil || n < most {
			return most, fmt.Errorf("%d of %d connections are tracked: %w", n, most, err)
		}
		return most, nil
	})
	if err != nil {
		r.t.Fatalf("%s: %v", e, err)
	}
	return most
}

func numberIn(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// trackedEntry is the message that makes the kernel track a UDP connection of its own
// for ten minutes.
func trackedEntry(i uint32) []byte {
	attr := func(typ uint16, body ...byte) []byte {
		b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(body)))
		b = append(binary.NativeEndian.AppendUint16(b, typ), body...)
		return append(b, make([]byte, -len(b)&3)...)
	}
	nest := func(typ uint16, parts ...[]byte) []byte {
		return attr(typ|unix.NLA_F_NESTED, slices.Concat(parts...)...)
	}
	here, there := binary.BigEndian.AppendUint32(nil, 100<<24|i>>8), []byte{100, 100, 0, byte(i)}
	tuple := func(typ uint16, src, dst []byte) []byte {
		return nest(typ,
			nest(nl.CTA_TUPLE_IP, attr(nl.CTA_IP_V4_SRC, src...), attr(nl.CTA_IP_V4_DST, dst...)),
			nest(nl.CTA_TUPLE_PROTO, attr(nl.CTA_PROTO_NUM, unix.IPPROTO_UDP), attr(nl.CTA_PROTO_SRC_PORT, 0, 9), attr(nl.CTA_PROTO_DST_PORT, 0, 9)))
	}
	const confirmedAssured = 1<<1 | 1<<2 | 1<<3 // and there was an answer
	body := slices.Concat([]byte{unix.AF_INET, nl.NFNETLINK_V0, 0, 0},
		tuple(nl.CTA_TUPLE_ORIG, here, there), tuple(nl.CTA_TUPLE_REPLY, there, here),
		attr(nl.CTA_STATUS, 0, 0, 0, confirmedAssured), attr(nl.CTA_TIMEOUT, 0, 0, 600>>8, 600&0xff))
	b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
	b = binary.NativeEndian.AppendUint16(b, uint16(netlink.ConntrackTable)<<8|nl.IPCTNL_MSG_CT_NEW)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	return append(append(b, make([]byte, 8)...), body...)
}
