package tunnel_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/lab"
)

// hexBytes reads hex with spaces.
func hexBytes(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ethernet is a frame of hex with a mark at its end, by which it is known. LLLL
// is the length of what follows it.
func ethernet(t *testing.T, src, text, mark string) []byte {
	t.Helper()
	dst, rest, _ := strings.Cut(text, "|")
	head, payload, long := strings.Cut(rest, "LLLL")
	frame := append(hexBytes(t, strings.ReplaceAll(dst, ":", "")), hexBytes(t, strings.ReplaceAll(src, ":", ""))...)
	frame = append(frame, hexBytes(t, head)...)
	tail := append(append(hexBytes(t, payload), make([]byte, 46)...), mark...)
	if long {
		frame = binary.BigEndian.AppendUint16(frame, uint16(len(tail)))
	}
	return append(frame, tail...)
}

// TestE2EStaysHere sends what must not cross a segment, from either site: link
// protocols (L-08, L-09), router adverts and DHCP (L-15, L-16), what gives the
// gateway's address away, odd tags (L-13, A-03), wrong sources. None
// arrives; what is sent around it, also a group membership (L-14), does.
func TestE2EStaysHere(t *testing.T) {
	l := world(t, lab.Options{})
	// Else a Linux bridge keeps most of these to itself; the first three it always does.
	run(t, l, "e1", "ip", "link", "set", "br-lan", "type", "bridge", "group_fwd_mask", "0xfff8")
	run(t, l, "e2", "ip", "link", "set", "br-app", "type", "bridge", "group_fwd_mask", "0xfff8")
	const s1, s2 = "02:53:54:01:00:11", "02:53:54:01:00:12"
	const (
		ip6 = "86dd 60000000 0030 3a ff fe80000000000000 0000000000000011 ff020000000000000000000000000001"
		udp = "0800 4500 0050 0000 0000 40 11 0000 00000000 ffffffff"
		arp = "0806 0001 0800 06 04 0002 025354010011 "
	)
	for _, way := range [][4]string{{"s1", s1, "s2", "e1"}, {"s2", s2, "s1", "e2"}} {
		from, src, to, edge := way[0], way[1], way[2], way[3]
		out, in := rawSocket(t, l, from), rawSocket(t, l, to)
		var want, stay []string
		send := func(cross bool, mark, source, text string) {
			mark = "<" + from + " " + mark + ">"
			if cross {
				want = append(want, mark)
			} else {
				stay = append(stay, mark)
			}
			if _, err := unix.Write(out, ethernet(t, source, text, mark)); err != nil {
				t.Fatal(mark, err)
			}
		}
		before := segmentStats(t, l, edge).FromLAN
		send(true, "before", src, "ff:ff:ff:ff:ff:ff | 88b5")
		send(false, "spanning tree", src, "01:80:c2:00:00:00 | LLLL 4242 03 0000 00 00 00")
		send(false, "spanning tree per VLAN", src, "01:00:0c:cc:cc:cd | LLLL aaaa 03 00000c 010b")
		send(false, "pause", src, "01:80:c2:00:00:01 | 8808 0001 ffff")
		send(false, "LACP", src, "01:80:c2:00:00:02 | 8809 01")
		send(false, "802.1X", src, "01:80:c2:00:00:03 | 888e 0101 0000")
		send(false, "LLDP", src, "01:80:c2:00:00:0e | 88cc 0207 04")
		send(false, "CDP", src, "01:00:0c:cc:cc:cc | LLLL aaaa 03 00000c 2000")
		send(false, "router advert", src, "33:33:00:00:00:01 | "+ip6+" 86 00 0000 40 00 0708 00000000 00000000")
		send(false, "DHCP discover", src, "ff:ff:ff:ff:ff:ff | "+udp+" 0044 0043 003c 0000 01 01 06 00")
		send(false, "DHCP offer", src, "ff:ff:ff:ff:ff:ff | "+udp+" 0043 0044 003c 0000 02 01 06 00")
		send(false, "gateway's address", src, "ff:ff:ff:ff:ff:ff | "+arp+"0a010001 ffffffffffff 0a010001")
		send(false, "gateway's MAC", "02:53:54:00:01:00", "ff:ff:ff:ff:ff:ff | 88b5")
		send(false, "group as source", "03:00:00:00:00:01", "ff:ff:ff:ff:ff:ff | 88b5")
		send(false, "router advert behind LLC in VLAN 0", src, "33:33:00:00:00:01 | 8100 0000 LLLL aaaa 03 000000 "+ip6+" 86 00")
		send(false, "VLAN 4095", src, "ff:ff:ff:ff:ff:ff | 8100 0fff 88b5")
		send(false, "VLAN 7", src, "ff:ff:ff:ff:ff:ff | 8100 0007 88b5")
		send(true, "group membership", src, "01:00:5e:00:00:16 | 0800 4600 0050 0000 4000 01 02 0000 0a010011 e0000016 94040000 22 00 0000 0000 0001")
		send(true, "after", src, "ff:ff:ff:ff:ff:ff | 88b5")
		got := arrivals(t, in, want[len(want)-1])
		for _, mark := range want {
			if !bytes.Contains(got, []byte(mark)) {
				t.Errorf("%s did not arrive", mark)
			}
		}
		for _, mark := range stay {
			if bytes.Contains(got, []byte(mark)) {
				t.Errorf("%s crossed", mark)
			}
		}
		after := segmentStats(t, l, edge).FromLAN
		kinds := 0
		for reason, n := range after {
			if n > before[reason] {
				kinds++
			}
		}
		t.Logf("dropped at %s: %v, before %v", edge, after, before)
		if kinds < 6 {
			t.Errorf("%s counts them under %d reasons only: %v", edge, kinds, after)
		}
	}
	duplicate(t, l)
	jumboSegment(t, l)
}

// arrivals are all frames that come until the one with the mark.
func arrivals(t *testing.T, fd int, mark string) (all []byte) {
	t.Helper()
	buf := make([]byte, 2048)
	eventually(t, 5*time.Second, mark+" arrives", func() bool {
		for {
			n, err := unix.Read(fd, buf)
			if err != nil {
				return bytes.Contains(all, []byte(mark))
			}
			all = append(all, buf[:n]...)
		}
	})
	return all
}

// duplicate is L-06 and L-07: a machine goes to and fro four times, which is
// believed; with the next time it is frozen, and an alarm says so.
func duplicate(t *testing.T, l *lab.Lab) {
	t.Helper()
	mac, addr := net.HardwareAddr{0x02, 0xaa, 0, 0, 0, 7}, netip.MustParseAddr("10.1.0.77").As4()
	garp := bytes.Join([][]byte{{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac, hexBytes(t, "0806 0001 0800 06 04 0001"), mac, addr[:], {0, 0, 0, 0, 0, 0}, addr[:], make([]byte, 18)}, nil)
	sockets := []int{rawSocket(t, l, "s1"), rawSocket(t, l, "s2")}
	for i := range 6 { // the first is no move
		before := segmentStats(t, l, "e1").Moves
		if _, err := unix.Write(sockets[i%2], garp); err != nil {
			t.Fatal(err)
		}
		eventually(t, 5*time.Second, "the move is noticed", func() bool { return i == 0 || segmentStats(t, l, "e1").Moves > before })
		time.Sleep(150 * time.Millisecond) // a machine that stays is reported ten times a second at most
		frozen := segmentStats(t, l, "e1").Frozen
		if want := i == 5; (frozen > 0) != want {
			t.Errorf("%d addresses are frozen after %d moves", frozen, i)
		}
	}
	if alarms := strings.Join(status(t, l, "e1").Alarms, "\n"); !strings.Contains(alarms, mac.String()) {
		t.Errorf("no alarm names %s: %s", mac, alarms)
	}
}

// jumboSegment is M-04: where the LANs use frames of 9000 bytes, they cross.
func jumboSegment(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, c := range [][4]string{{"s1", "e1", "lan-s1", "br-lan"}, {"s2", "e2", "app-s2", "br-app"}} {
		run(t, l, c[0], "ip", "link", "set", "eth0", "mtu", "9000")
		run(t, l, c[1], "ip", "link", "set", c[2], "mtu", "9000")
		run(t, l, c[1], "ip", "link", "set", c[3], "mtu", "9000")
	}
	if out, err := l.Command("s1", "ping", "-c1", "-W1", "-Mdo", "-s8972", "10.1.0.12").CombinedOutput(); err == nil {
		t.Errorf("control case: a frame of 9000 bytes crossed a TAP of 1500: %s", out)
	}
	for _, edge := range []string{"e1", "e2"} { // as when it joins such a bridge
		run(t, l, edge, "ip", "link", "set", "sg-100", "mtu", "9000")
	}
	eventually(t, 15*time.Second, "frames of 9000 bytes cross", func() bool {
		return l.Command("s1", "ping", "-c1", "-W1", "-Mdo", "-s8972", "10.1.0.12").Run() == nil
	})
	if parts := linkDetail(t, l, "e1").Tx.Parts; parts < 7 {
		t.Errorf("they crossed in %d parts", parts)
	}
}
