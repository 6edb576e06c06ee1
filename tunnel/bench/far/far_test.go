package far

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"testing"
)

// served returns a connection to a service of this machine, and its end.
func served(t *testing.T, s Service, socket func() (*net.UDPConn, netip.Addr, error)) (*net.TCPConn, chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			err = Serve(s, c, socket)
		}
		done <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn), done
}

// TestSink: the counts grow to what was sent, and the last has its sum.
func TestSink(t *testing.T) {
	c, done := served(t, Sink, nil)
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i * i >> 3)
	}
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	var n Count
	for n.N < uint64(len(data)) { // before the end of the direction
		last := n
		var err error
		if n, err = ReadCount(c); err != nil || n.Last || n.N <= last.N {
			t.Fatalf("%+v after %+v, %v", n, last, err)
		}
	}
	_ = c.CloseWrite()
	if n, err := ReadCount(c); err != nil || n != (Count{uint64(len(data)), true, crc32.Checksum(data, Table)}) {
		t.Errorf("%+v, %v", n, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestPackets counts datagrams, but only those of one address.
func TestPackets(t *testing.T) {
	for from, want := range map[string]uint64{"127.0.0.1": 10, "127.0.0.2": 0} {
		c, done := served(t, Packets, func() (*net.UDPConn, netip.Addr, error) {
			u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			return u, netip.MustParseAddr(from), err
		})
		port, err := ReadPort(c)
		if err != nil {
			t.Fatal(err)
		}
		u, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)})
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if _, err := u.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		u.Close()
		_ = c.CloseWrite()
		if n, span, err := ReadTally(c); err != nil || n != want || span < 0 {
			t.Errorf("from %s: %d in %v, %v, want %d", from, n, span, err, want)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	c, done := served(t, Packets, func() (*net.UDPConn, netip.Addr, error) { return nil, netip.Addr{}, errors.ErrUnsupported })
	if err := <-done; !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("no socket: %v", err)
	}
	if _, err := ReadPort(c); !errors.Is(err, io.EOF) {
		t.Errorf("its client: %v", err)
	}
}

// TestServices: names and numbers agree, and none else is served.
func TestServices(t *testing.T) {
	for s := range 256 {
		name := Service(s).String()
		if got, err := Parse(name); (err == nil) != (s >= 1 && s <= 3) || err == nil && got != Service(s) {
			t.Errorf("%d %q: %v, %v", s, name, got, err)
		}
	}
	if err := Serve(9, nil, nil); err == nil {
		t.Error("service 9 was served")
	}
	var b [8]byte
	for _, port := range []uint64{0, 65536, 1 << 60} {
		binary.BigEndian.PutUint64(b[:], port)
		r, w := net.Pipe()
		go func() { _, _ = w.Write(b[:]) }()
		if _, err := ReadPort(r); err == nil {
			t.Errorf("port %d was taken", port)
		}
		r.Close()
	}
}
