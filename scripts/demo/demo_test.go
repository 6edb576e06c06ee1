package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"
	"time"

	"stitch/scripts/traffic"
)

func TestQEMUVersions(t *testing.T) {
	for _, c := range []struct{ out, version string }{
		{"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright", "7.2.22"},
		{"QEMU emulator version 10.0.2\nCopyright", "10.0.2"},
		{"QEMU emulator version 9.0.0 (x)\n", "9.0.0"},
		{"", ""},
	} {
		if v := parseQEMUVersion(c.out); v != c.version {
			t.Errorf("%q: version %q, want %q", c.out, v, c.version)
		}
	}
}

func TestNonzeroPages(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "ram"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 64 << 20
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	want := int64(0)
	for _, at := range []int64{0, pageSize - 1, 5 * pageSize, 7*pageSize + 100, 1<<20 - 1, 1 << 20, 40<<20 + 3, size - 1} {
		if _, err := f.WriteAt([]byte{1}, at); err != nil {
			t.Fatal(err)
		}
		want++
	}
	want-- // the first two are in one page
	if _, err := f.WriteAt(make([]byte, 3*pageSize), 50<<20); err != nil {
		t.Fatal(err) // written, but zero
	}
	if got, err := nonzeroPages(f, size); err != nil || got != want {
		t.Errorf("%d pages, %v, want %d", got, err, want)
	}
	if got, err := nonzeroPages(f, size/2); err != nil || got != want-2 {
		t.Errorf("first half: %d pages, %v, want %d", got, err, want-2)
	}
}

// pcap makes a capture of packets.
func pcap(order binary.ByteOrder, packets ...[]byte) []byte {
	b := make([]byte, 24)
	order.PutUint32(b, 0xa1b2c3d4)
	for _, p := range packets {
		record := make([]byte, 16)
		order.PutUint32(record[8:], uint32(len(p)))
		order.PutUint32(record[12:], uint32(len(p)))
		b = append(append(b, record...), p...)
	}
	return b
}

func TestReadPackets(t *testing.T) {
	want := [][]byte{[]byte("one"), {}, bytes.Repeat([]byte("x"), 70_000)}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		whole := pcap(order, want...)
		var got [][]byte
		if err := readPackets(bytes.NewReader(whole), func(p []byte) { got = append(got, bytes.Clone(p)) }); err != nil {
			t.Fatal(err)
		}
		if len(got) != 3 || !bytes.Equal(got[0], want[0]) || len(got[1]) != 0 || !bytes.Equal(got[2], want[2]) {
			t.Errorf("%v: %d packets", order, len(got))
		}
		for _, cut := range []int{0, 23, 30, 41, len(whole) - 1} {
			if err := readPackets(bytes.NewReader(whole[:cut]), func([]byte) {}); err == nil {
				t.Errorf("%v: no error when cut after %d bytes", order, cut)
			}
		}
	}
	huge := pcap(binary.LittleEndian, nil)
	binary.LittleEndian.PutUint32(huge[24+8:], maxPacket+1)
	if err := readPackets(bytes.NewReader(huge), func([]byte) {}); err == nil {
		t.Error("no error for a huge packet")
	}
}

func FuzzReadPackets(f *testing.F) {
	f.Add(pcap(binary.LittleEndian, []byte("abc"), []byte("d")))
	f.Add(pcap(binary.BigEndian, make([]byte, 60)))
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 24
		err := readPackets(bytes.NewReader(b), func(p []byte) {
			total += 16 + len(p)
			tcpPort(p, 1)
		})
		if err == nil && total != len(b) {
			t.Errorf("%d of %d bytes read without error", total, len(b))
		}
	})
}

func TestTCPPort(t *testing.T) {
	frame := make([]byte, 60)
	binary.BigEndian.PutUint16(frame[12:], 0x0800)
	frame[14], frame[23] = 0x46, 6 // with four bytes of options
	binary.BigEndian.PutUint16(frame[38:], 40000)
	binary.BigEndian.PutUint16(frame[40:], 4444)
	for port, want := range map[uint16]bool{4444: true, 40000: true, 80: false} {
		if tcpPort(frame, port) != want {
			t.Errorf("port %d: %v", port, !want)
		}
	}
	if tcpPort(frame[:40], 4444) || tcpPort(nil, 0) {
		t.Error("found a port beyond the end")
	}
	frame[23] = 17
	if tcpPort(frame, 4444) {
		t.Error("UDP taken for TCP")
	}
}

func TestMissedPackets(t *testing.T) {
	out := "tcpdump: listening on wan0\n120 packets captured\n120 packets received by filter\n7 packets dropped by kernel\n"
	if n := missedPackets(out); n != 7 {
		t.Errorf("%d, want 7", n)
	}
}

func TestParseConntrack(t *testing.T) {
	out := `tcp      6 431999 ESTABLISHED src=192.0.2.7 dst=203.0.113.10 sport=40001 dport=8080 src=10.1.0.50 dst=192.0.2.7 sport=8080 dport=40001 [ASSURED] mark=0 use=1
tcp      6 300 ESTABLISHED src=192.0.2.7 dst=10.1.0.50 sport=40001 dport=8080 src=10.1.0.50 dst=192.0.2.7 sport=8080 dport=40001 mark=256 use=1
tcp      6 1 TIME_WAIT src=192.0.2.7 dst=198.51.100.20 sport=40002 dport=80 src=10.1.0.50 dst=192.0.2.7 sport=80 dport=40002 use=1
garbage dst=nowhere sport=99999
`
	got := parseConntrack(out)
	want := map[uint16][]netip.Addr{
		40001: {netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("10.1.0.50")},
		40002: {netip.MustParseAddr("198.51.100.20")},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestNewGroup(t *testing.T) {
	for _, c := range []struct {
		in   map[string]int
		want Group
	}{
		{map[string]int{"dc2": 4}, Group{4, "dc2"}},
		{map[string]int{"dc1": 20, "?": 1}, Group{21, "dc1+?"}},
		{map[string]int{"dc2": 1, "dc1": 1}, Group{2, "dc1+dc2"}},
		{nil, Group{}},
	} {
		if got := newGroup(c.in); got != c.want {
			t.Errorf("%v: %+v, want %+v", c.in, got, c.want)
		}
	}
}

// web serves what the guest serves, on one end of a pipe; spoil makes one byte
// of every answer wrong.
func web(t *testing.T, spoil bool) net.Conn {
	t.Helper()
	near, far := net.Pipe()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		id, _ := strconv.ParseUint(q.Get("id"), 10, 64)
		off, _ := strconv.ParseUint(q.Get("offset"), 10, 64)
		n, _ := strconv.Atoi(q.Get("bytes"))
		b := make([]byte, n)
		traffic.Fill(b, id, traffic.Answer, off)
		if spoil {
			b[n/2]++
		}
		_, _ = w.Write(b)
	})
	ln := &oneListener{conn: make(chan net.Conn, 1), closed: make(chan struct{})}
	ln.conn <- far
	srv := &http.Server{Handler: handler}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close(); near.Close() })
	return near
}

// oneListener accepts one connection.
type oneListener struct {
	conn   chan net.Conn
	closed chan struct{}
}

func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *oneListener) Close() error   { close(l.closed); return nil }
func (l *oneListener) Addr() net.Addr { return &net.TCPAddr{} }

func TestFetchChecksEveryByte(t *testing.T) {
	m := traffic.NewMeter("download", gapFloor)
	if err := fetch(web(t, false), m, 9); err != nil {
		t.Error(err)
	}
	if s := m.Snapshot(); s.BytesIn != downloadSize {
		t.Errorf("%d bytes, want %d", s.BytesIn, downloadSize)
	}
	if err := fetch(web(t, true), m, 9); !errors.Is(err, traffic.ErrWrong) {
		t.Errorf("error %v, want ErrWrong", err)
	}
}

func TestFetchTellsACutDownload(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // a pipe of package net sets no deadline once its other end is closed
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = http.ReadRequest(bufio.NewReader(far))
		fmt.Fprintf(far, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", downloadSize)
		b := make([]byte, 1000)
		traffic.Fill(b, 9, traffic.Answer, 0)
		_, _ = far.Write(b)
		far.Close()
	}()
	if err := fetch(near, traffic.NewMeter("download", gapFloor), 9); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v", err)
	}
}

func TestBrowse(t *testing.T) {
	l := newLoad(t.Context(), nil)
	m := traffic.NewMeter("session", gapFloor)
	l.finish() // one request only
	if err := l.browse(web(t, false), m, 3); err != nil {
		t.Error(err)
	}
	if s := m.Snapshot(); s.Requests != 1 || s.BytesIn == 0 {
		t.Errorf("meter %+v", s)
	}
	if err := l.browse(web(t, true), m, 3); !errors.Is(err, traffic.ErrWrong) {
		t.Errorf("error %v, want ErrWrong", err)
	}
}

func TestConsoleWithoutTerminal(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := newConsole(f)
	c.start = time.Now().Add(-time.Hour)
	c.step("one")
	for range 100 {
		c.progress("two")
	}
	c.end()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(b), "3600.0s  one\n3600.0s    two\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
