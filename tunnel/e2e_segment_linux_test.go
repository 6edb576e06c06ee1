package tunnel_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/ether"
	"stitch/tunnel/lab"
)

// segmentStats are the counters of an edge's first segment.
func segmentStats(t *testing.T, l *lab.Lab, edge string) (out ether.Stats) {
	t.Helper()
	if err := json.Unmarshal(status(t, l, edge).Segments[0], &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestE2ELoop lays a second cable between the LANs of a segment (L-01): one
// edge blocks within 2 s and says so, routed traffic is not touched, and the
// segment carries again when the cable is gone. Then a cable is laid within one LAN
// (L-02).
func TestE2ELoop(t *testing.T) {
	l := world(t, lab.Options{})
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	run(t, l, "s1", "ping", "-c2", "-i0.2", "-W2", "10.1.0.12")
	lost := pinger(t, l)
	ip("link", "add", "loop0", "netns", l.Options().Name+"-e1", "type", "veth", "peer", "name", "loop0", "netns", l.Options().Name+"-e2")
	ip("-n", l.Options().Name+"-e1", "link", "set", "loop0", "master", "br-lan", "up")
	ip("-n", l.Options().Name+"-e2", "link", "set", "loop0", "master", "br-app", "up")
	blocked := func() int {
		n := 0
		for _, e := range []string{"e1", "e2"} {
			if segmentStats(t, l, e).Loop != nil {
				n++
			}
		}
		return n
	}
	start := time.Now()
	eventually(t, 10*time.Second, "an edge blocks its segment", func() bool { return blocked() > 0 })
	t.Logf("blocked %v after the cable was laid", time.Since(start).Round(time.Millisecond))
	time.Sleep(2 * time.Second)
	if n := blocked(); n != 1 {
		t.Errorf("%d edges are blocked, want one", n)
	}
	alarms := strings.Join(append(status(t, l, "e1").Alarms, status(t, l, "e2").Alarms...), "\n")
	if !strings.Contains(alarms, "segment 100 is blocked") {
		t.Errorf("no alarm: %s", alarms)
	}
	for _, e := range []string{"e1", "e2"} {
		if st := segmentStats(t, l, e); st.ToPeers > 1000 {
			t.Errorf("%s sent %d frames into the loop, want at most 1000", e, st.ToPeers)
		}
	}
	ip("-n", l.Options().Name+"-e1", "link", "del", "loop0")
	eventually(t, 10*time.Second, "the segment carries again", func() bool { return blocked() == 0 })
	eventually(t, 5*time.Second, "s1 reaches s2 by the segment", func() bool {
		return l.Command("s1", "ping", "-c1", "-W1", "10.1.0.12").Run() == nil
	})
	if n := lost(); n > 0 {
		t.Errorf("%d routed pings were lost", n)
	}
	loopInside(t, l, ip)
}

// loopInside is L-02: two ports of one LAN are joined, by a cable of 4 Mbit/s so that
// the storm does not take the machine. The edge there blocks the segment, and the other
// site gets no more broadcasts than it would of any storm. That the storm is one is
// seen by a host in it.
func loopInside(t *testing.T, l *lab.Lab, ip func(...string)) {
	e1 := l.Options().Name + "-e1"
	out, there := rawSocket(t, l, "s1"), rawSocket(t, l, "s2")
	before, sent := segmentStats(t, l, "e1"), time.Now()
	ip("-n", e1, "link", "add", "loop1", "type", "veth", "peer", "name", "loop2")
	for _, end := range []string{"loop1", "loop2"} {
		run(t, l, "e1", "tc", "qdisc", "add", "dev", end, "root", "tbf", "rate", "4mbit", "burst", "5kb", "limit", "20kb")
		ip("-n", e1, "link", "set", end, "master", "br-lan", "up")
	}
	received := func() uint64 {
		var n uint64
		if _, err := fmt.Sscan(run(t, l, "s1", "cat", "/sys/class/net/eth0/statistics/rx_packets"), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	storm := received()
	for range 20 {
		frame := ethernet(t, "02:53:54:01:00:11", "ff:ff:ff:ff:ff:ff | 88b5", "<goes round>")
		if _, err := unix.Write(out, frame); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 10*time.Second, "e1 blocks its segment", func() bool { return segmentStats(t, l, "e1").Loop != nil })
	took := time.Since(sent)
	eventually(t, 10*time.Second, "a storm", func() bool { return received()-storm > 3000 })
	if segmentStats(t, l, "e2").Loop != nil {
		t.Error("e2 is blocked, though the loop is at the other site")
	}
	ip("-n", e1, "link", "del", "loop1")
	arrived := 0
	buf := make([]byte, 2048)
	for {
		n, err := unix.Read(there, buf)
		if err != nil {
			break
		}
		if bytes.Contains(buf[:n], []byte("<goes round>")) {
			arrived++
		}
	}
	crossed := segmentStats(t, l, "e1").ToPeers - before.ToPeers
	t.Logf("blocked after %v; %d frames went round to s1, %d crossed the link, %d arrived at s2", took.Round(time.Millisecond), received()-storm, crossed, arrived)
	if most := 100 + int(500*took.Seconds()); arrived > most || crossed > uint64(most)+100 {
		t.Errorf("%d frames crossed and %d arrived in %v, want at most %d", crossed, arrived, took, most)
	}
	if took > 4*time.Second {
		t.Errorf("blocked after %v", took)
	}
	eventually(t, 15*time.Second, "the segment carries again", func() bool {
		return segmentStats(t, l, "e1").Loop == nil && l.Command("s1", "ping", "-c1", "-W1", "10.1.0.12").Run() == nil
	})
}

// TestE2ESilentHost restarts an edge whose hosts keep the MAC of a host at the
// other site for ever, so that nobody asks for it (L-11).
func TestE2ESilentHost(t *testing.T) {
	l := world(t, lab.Options{})
	run(t, l, "s2", "ping", "-c2", "-i0.2", "-W2", "10.1.0.11")
	run(t, l, "s2", "ip", "neigh", "replace", "10.1.0.11", "lladdr", "02:53:54:01:00:11", "dev", "eth0", "nud", "permanent")
	old := kill(t, l, "e2", "link")
	restarted(t, l, "e2", "link", old)
	eventually(t, 15*time.Second, "the link is up again", func() bool {
		s, err := agentStatus(l, "e2")
		return err == nil && len(s.Links) == 1 && s.Links[0].State == "up"
	})
	start := time.Now()
	eventually(t, 3*time.Second, "s2 reaches s1 without asking", func() bool {
		return l.Command("s2", "ping", "-c1", "-W1", "10.1.0.11").Run() == nil
	})
	t.Logf("reached after %v; %d searches", time.Since(start).Round(time.Millisecond), segmentStats(t, l, "e2").Queries)
}

// TestE2EVLAN sends tagged frames through real TAPs: those of a listed VLAN
// cross with their tags, others do not.
func TestE2EVLAN(t *testing.T) {
	l := world(t, lab.Options{Edit: func(_, toml string) string {
		return strings.Replace(toml, "[[segment]]\n", "[[segment]]\nvlans = [10]\n", 1)
	}})
	src, dst := rawSocket(t, l, "s1"), rawSocket(t, l, "s2")
	for _, c := range []struct {
		name string
		tags []byte // behind the addresses
		want bool
	}{
		{"untagged", nil, true},
		{"VLAN 10", []byte{0x81, 0, 0x60, 10}, true},
		{"VLAN 11", []byte{0x81, 0, 0, 11}, false},
		{"VLAN 10 of a provider, VLAN 77 inside", []byte{0x88, 0xa8, 0, 10, 0x81, 0, 0, 77}, true},
		{"VLAN 10 again", []byte{0x81, 0, 0, 10}, true},
	} {
		frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0x53, 0x54, 0x01, 0x00, 0x11}, c.tags...)
		frame = append(append(frame, 0x88, 0xb5), []byte(c.name)...)
		frame = append(frame, make([]byte, 64)...)
		if _, err := unix.Write(src, frame); err != nil {
			t.Fatal(err)
		}
		if got := receiveTagged(t, dst, c.name); (got != nil) != c.want || c.want && !bytes.Equal(got, frame) {
			t.Errorf("%s: arrived as %x, sent %x", c.name, got, frame)
		}
	}
}

// TestE2EStorm is L-03 and L-04: a host sends broadcasts and unicast to hosts
// that do not exist, thousands a second. Little of the one and nothing of the
// other reaches the other site, and ping passes.
func TestE2EStorm(t *testing.T) {
	l := world(t, lab.Options{})
	run(t, l, "s1", "ping", "-c2", "-i0.2", "-W2", "10.1.0.12")
	src, dst := rawSocket(t, l, "s1"), rawSocket(t, l, "s2")
	const length = 3 * time.Second
	sent := make(chan int, 1)
	go func() {
		n := 0
		frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0x53, 0x54, 0x01, 0x00, 0x11, 0x88, 0xb5}, make([]byte, 46)...)
		stray := append([]byte{0x02, 0xee, 0, 0, 0, 0, 0x02, 0x53, 0x54, 0x01, 0x00, 0x11, 0x88, 0xb6}, make([]byte, 46)...)
		for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(time.Millisecond) {
			for range 10 {
				stray[4], stray[5] = byte(n>>8), byte(n)
				_, _ = unix.Write(src, frame)
				_, _ = unix.Write(src, stray)
				n++
			}
		}
		sent <- n
	}()
	run(t, l, "s1", "ping", "-c12", "-i0.2", "-W2", "10.1.0.12") // fails if none is answered
	n := <-sent
	var storm, strays int
	buf := make([]byte, 2048)
	for quiet := time.Now().Add(500 * time.Millisecond); time.Now().Before(quiet); {
		switch size, err := unix.Read(dst, buf); {
		case err != nil:
			time.Sleep(time.Millisecond)
		case size > 14 && buf[12] == 0x88 && buf[13] == 0xb5:
			storm++
		case size > 14 && buf[12] == 0x88 && buf[13] == 0xb6:
			strays++
		}
	}
	st := segmentStats(t, l, "e1")
	t.Logf("%d of each sent, %d broadcasts arrived, dropped %v, %d searches", n, storm, st.FromLAN, st.Queries)
	if n < 2000 || storm == 0 || storm > 100+500*int(length/time.Second+1) || strays != 0 {
		t.Errorf("%d broadcasts and %d strays of %d arrived, want 500 a second and none", storm, strays, n)
	}
	if st.FromLAN["limit-broadcast"] == 0 || st.FromLAN["unknown-unicast"] == 0 || st.Queries > 24*uint64(length/time.Second+1) {
		t.Errorf("counted %v and %d searches", st.FromLAN, st.Queries)
	}
	if out := run(t, l, "s1", "ping", "-c5", "-i0.2", "-W2", "10.1.0.12"); !strings.Contains(out, " 0% packet loss") {
		t.Errorf("after the storm: %s", out)
	}
}

// rawSocket opens a packet socket on a host's eth0.
func rawSocket(t *testing.T, l *lab.Lab, host string) (fd int) {
	t.Helper()
	ns, err := l.Namespace(host)
	if err != nil {
		t.Fatal(err)
	}
	err = ns.Do(func() (err error) {
		const all = 0x0300 // ETH_P_ALL in network order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK, all); err != nil {
			return err
		}
		dev, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20))
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: dev.Index})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// receiveTagged waits up to a second for the frame with mark in it and returns
// it with the tag that the kernel took off; nil: it did not come.
func receiveTagged(t *testing.T, fd int, mark string) []byte {
	t.Helper()
	buf, oob := make([]byte, 2048), make([]byte, 256)
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		n, oobn, _, _, err := unix.Recvmsg(fd, buf, oob, 0)
		if err != nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		if !bytes.Contains(buf[:n], []byte(mark)) {
			continue
		}
		frame := bytes.Clone(buf[:n])
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			// struct tpacket_auxdata: status and two lengths u32, two offsets, TCI and TPID u16.
			if native := binary.NativeEndian; native.Uint32(m.Data)&unix.TP_STATUS_VLAN_VALID != 0 {
				tag := binary.BigEndian.AppendUint16(nil, native.Uint16(m.Data[18:]))
				frame = slices.Concat(frame[:12], binary.BigEndian.AppendUint16(tag, native.Uint16(m.Data[16:])), frame[12:])
			}
		}
		return frame
	}
	return nil
}
