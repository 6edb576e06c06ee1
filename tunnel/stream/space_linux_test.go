package stream

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/netdev"
)

// TestSpace: what a namespace for a segment takes is given back, and this
// process' own namespace is not touched.
func TestSpace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	namespace := func() string {
		name, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	descriptors := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	home := namespace()
	before := 0
	for i := range 6 {
		s, err := openSpace(1500)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.listeners) == 0 {
			t.Error("nobody listens")
		}
		if _, err := os.Stat("/sys/class/net/" + spaceDevice); err == nil {
			t.Error("the device is in this namespace")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if now := namespace(); now != home {
			t.Fatalf("this process is in %s, was in %s", now, home)
		}
		if i == 0 {
			before = descriptors() // the runtime's own are there from now on
		}
	}
	if n := descriptors(); n > before {
		t.Errorf("%d descriptors are open, %d were", n, before)
	}
}

// TestSpaceDial: a SYN leaves by the TAP with the client's address, and how the dial
// ends is what the answer, or its absence, says.
func TestSpaceDial(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	s, err := openSpace(1500)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	fd, err := unix.FcntlInt(uintptr(s.tap), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	tap, err := netdev.Linux{}.Adopt(spaceDevice, fd)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	syns := make(chan syn, 64)
	go func() {
		bufs, sizes := [][]byte{make([]byte, netdev.BufferLen)}, []int{0}
		for {
			n, err := tap.Read(bufs, sizes, netdev.MinOffset)
			if err != nil {
				return
			}
			for range n {
				packet := bufs[0][netdev.MinOffset:][:sizes[0]][etherHeader:]
				if p := unpartial(packet); p.dst.Port() != 0 {
					syns <- p
				}
			}
		}
	}()
	for _, c := range []struct{ src, dst string }{{"10.1.0.11:40000", "10.1.0.12:4000"}, {"[fd00:1::11]:40000", "[fd00:1::12]:4000"}} {
		src, dst := netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		refused := make(chan error, 1)
		go func() {
			_, err := s.dial(ctx, src, dst)
			refused <- err
		}()
		got := <-syns
		for got.src != src || got.dst != dst { // one of the last dial, or none in time
			select {
			case got = <-syns:
			case <-ctx.Done():
				t.Fatalf("%s to %s left as %+v", src, dst, got.tuple)
			}
		}
		if err := s.inject(append(make([]byte, 12, 100), frameOf(buildRST(nil, got))...)); err != nil {
			t.Error(err)
		}
		if err := <-refused; !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("refused: %v", err)
		}
		cancel()
		ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := s.dial(ctx, src, dst); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without an answer: %v", err)
		}
		cancel()
	}
}

// frameOf puts the type of its protocol before a packet.
func frameOf(packet []byte) []byte {
	if packet[0]>>4 == 6 {
		return append([]byte{0x86, 0xdd}, packet...)
	}
	return append([]byte{0x08, 0x00}, packet...)
}

// unpartial reads a SYN whose checksum is not complete; a zero one if it is none.
func unpartial(packet []byte) (s syn) {
	var segment []byte
	ok := false
	if packet[0]>>4 == 4 {
		s.tuple, segment, ok = parseIPv4(packet)
	} else {
		s.tuple, segment, ok = parseIPv6(packet)
	}
	if !ok {
		return syn{}
	}
	segment[16], segment[17] = 0, 0
	sum := checksum(segment, pseudoSum(s.src.Addr(), s.dst.Addr(), protoTCP, len(segment)))
	segment[16], segment[17] = byte(sum>>8), byte(sum)
	if !s.parseTCP(segment) {
		return syn{}
	}
	return s
}
