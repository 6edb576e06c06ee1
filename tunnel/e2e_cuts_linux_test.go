package tunnel_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stitch/scripts/traffic"
	"stitch/tunnel/lab"
)

// verdict is what became of one direction of a connection.
type verdict int

const (
	exact     verdict = iota // every byte announced, and a clean end
	cut                      // an error, after nothing but right bytes
	truncated                // a clean end before every byte announced
	wrong                    // a byte that differs, or more than announced
	hung                     // nothing for hangTime
)

func (v verdict) String() string {
	return [...]string{"exact", "cut", "truncated", "wrong", "hung"}[v]
}

const (
	hangTime = time.Minute
	// chunk is the unit of self-checking data: it is a connection's own, or one
	// that all connections share.
	chunk      = 32 << 10
	headerSize = 16
)

// pattern names the stream and the offset in it of which chunk n of a connection
// consists. One connection in three is unlike any other, one is half made of
// chunks all share, one nearly whole.
func pattern(id, n uint64) (stream, off uint64) {
	if share := [...]uint64{0, 50, 95}[id%3]; (id*31+n*17)%100 < share {
		return 1, n % 64 * chunk
	}
	return id, n * chunk
}

// sendChecked announces and sends size bytes of a connection's data in one
// direction, and ends it.
func sendChecked(c *net.TCPConn, id uint64, d traffic.Direction, size uint64) error {
	buf := make([]byte, headerSize, chunk)
	binary.BigEndian.PutUint64(buf, id)
	binary.BigEndian.PutUint64(buf[8:], size)
	_ = c.SetWriteDeadline(time.Now().Add(hangTime))
	if _, err := c.Write(buf); err != nil {
		return err
	}
	for off := uint64(0); off < size; off += chunk {
		b := buf[:min(chunk, size-off)]
		stream, at := pattern(id, off/chunk)
		traffic.Fill(b, stream, d, at)
		_ = c.SetWriteDeadline(time.Now().Add(hangTime))
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
	return c.CloseWrite()
}

// announced reads the header of a direction.
func announced(c io.Reader) (id, size uint64, err error) {
	var h [headerSize]byte
	_, err = io.ReadFull(c, h[:])
	return binary.BigEndian.Uint64(h[:]), binary.BigEndian.Uint64(h[8:]), err
}

// failed is the verdict on an error that ended a direction early.
func failed(err error) verdict {
	var n net.Error
	switch {
	case errors.As(err, &n) && n.Timeout():
		return hung
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return truncated
	}
	return cut
}

// deadlined is a connection with which a wait of more than hangTime is an error,
// and a reset always is one: the kernel tells it only once, to a Write as soon
// as to a Read, and the other one then sees an end.
type deadlined struct {
	*net.TCPConn
	sent chan error // of sendChecked
}

func (d deadlined) Read(b []byte) (int, error) {
	_ = d.SetReadDeadline(time.Now().Add(hangTime))
	n, err := d.TCPConn.Read(b)
	if err != io.EOF || !d.closed() {
		return n, err
	}
	if sent := <-d.sent; sent != nil { // else both ends are through
		return n, sent
	}
	d.sent <- nil
	return n, err
}

// closed reports whether the kernel has given the connection up: reset, or ended
// both ways.
func (d deadlined) closed() bool {
	raw, err := d.SyscallConn()
	if err != nil {
		return false
	}
	closed := false
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		closed = err == nil && info.State == 7 // TCP_CLOSE
	})
	return closed
}

// start sends what sendChecked sends; the receiver at the other end judges it.
// wait ends with what became of it. A sender that gave up ends with a reset: an
// end that looks clean would be taken for the tunnel's.
func (d deadlined) start(id uint64, way traffic.Direction, size uint64) (wait func() error) {
	var task sync.WaitGroup
	var err error
	task.Go(func() {
		if err = sendChecked(d.TCPConn, id, way, size); err != nil {
			_ = d.SetLinger(0)
		}
		d.sent <- err
	})
	return func() error {
		task.Wait()
		return err
	}
}

// receiveChecked checks the body of a direction, whose header said id and size.
func receiveChecked(r io.Reader, id uint64, d traffic.Direction, size uint64, moved *atomic.Int64) verdict {
	buf := make([]byte, chunk)
	for off := uint64(0); off < size; off += chunk {
		b := buf[:min(chunk, size-off)]
		n, err := io.ReadFull(r, b)
		moved.Add(int64(n))
		if stream, at := pattern(id, off/chunk); traffic.Check(b[:n], stream, d, at) >= 0 {
			return wrong
		}
		if err != nil {
			return failed(err)
		}
	}
	switch n, err := r.Read(buf[:1]); {
	case n > 0:
		return wrong
	case err != io.EOF:
		return failed(err)
	}
	return exact
}

// checker runs self-checking connections between two hosts.
type checker struct {
	t       *testing.T
	l       *lab.Lab
	maxSize int64
	nextID  atomic.Uint64
	moved   atomic.Int64
	counts  [hung + 1]atomic.Int64 // of directions
	cuts    atomic.Int64           // connections
	refused atomic.Int64           // not opened
	tasks   sync.WaitGroup
	stop    atomic.Bool
}

// note says what became of a direction, if it is what must not be.
func (k *checker) note(v verdict, end string, c net.Conn, id, size uint64, began time.Time, sent error) {
	if v >= truncated {
		k.t.Logf("connection %d (%v) at the %s: %v after %v; %d bytes announced; its own sending: %v",
			id, c.LocalAddr(), end, v, time.Since(began).Round(time.Millisecond), size, sent)
	}
	if v == hung {
		k.t.Log("it began at ", began.UTC(), "\n", k.sockets(c))
	}
}

// sockets is what the hosts and edges have of a connection.
func (k *checker) sockets(c net.Conn) (text string) {
	local, remote := c.LocalAddr().(*net.TCPAddr), c.RemoteAddr().(*net.TCPAddr)
	client := local.Port
	if local.Port < remote.Port { // the server's
		client = remote.Port
	}
	for _, host := range []string{"h1", "e1", "e2", "h2"} {
		out, err := k.l.CommandContext(context.Background(), host, "ss", "-tinmoe", fmt.Sprintf("sport = %d or dport = %d", client, client)).CombinedOutput()
		text += fmt.Sprintf("%s: %s%v\n", host, out, err)
	}
	return text
}

// serve answers connections with as many bytes as they bring.
func (k *checker) serve(ln *net.TCPListener) {
	for {
		c, err := ln.AcceptTCP()
		if err != nil {
			return
		}
		k.tasks.Go(func() {
			defer c.Close()
			d, began := deadlined{c, make(chan error, 1)}, time.Now()
			id, size, err := announced(c)
			if err != nil {
				k.note(k.count(failed(err)), "server, in its first bytes", c, id, size, began, nil)
				return
			}
			wait := d.start(id, traffic.Answer, size)
			v := k.count(receiveChecked(d, id, traffic.Request, size, &k.moved))
			k.note(v, "server", c, id, size, began, wait())
		})
	}
}

func (k *checker) count(v verdict) verdict {
	k.counts[v].Add(1)
	return v
}

// call makes one connection and returns what became of what it receives.
func (k *checker) call(from, to string, size uint64) verdict {
	c, err := dialFor(k.l, from, to, 20*time.Second)
	if err != nil {
		k.refused.Add(1)
		time.Sleep(50 * time.Millisecond)
		return cut
	}
	defer c.Close()
	id, began := k.nextID.Add(1), time.Now()
	d := deadlined{c, make(chan error, 1)}
	wait := d.start(id, traffic.Request, size)
	_, back, err := announced(d)
	v := wrong
	switch {
	case err != nil:
		v = failed(err)
	case back == size:
		v = receiveChecked(d, id, traffic.Answer, size, &k.moved)
	}
	if v == cut {
		k.cuts.Add(1)
	}
	k.note(k.count(v), "client", c, id, size, began, wait())
	return v
}

// run keeps one connection after the other open until stopped.
func (k *checker) run(from, to string, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	k.tasks.Go(func() {
		for !k.stop.Load() {
			k.call(from, to, uint64(r.Int64N(k.maxSize)))
		}
	})
}

func (k *checker) String() string {
	s := fmt.Sprintf("%d MiB, %d connections, %d of them cut, %d not opened; directions:", k.moved.Load()>>20, k.nextID.Load(), k.cuts.Load(), k.refused.Load())
	for v := range k.counts {
		s += fmt.Sprintf(" %s %d", verdict(v), k.counts[v].Load())
	}
	return s
}

// TestE2ECuts moves 5 GiB of data that both ends can check byte by byte through
// connections that are cut, by the death of either stream process, more than 200
// times (with STITCH_LONG=1 2,000), while link processes die, processes stall and
// the WAN goes dark: no byte is wrong, no cut looks like a clean end, nothing hangs
// (FAULTS.md G-01, G-02, G-11). TestChecked is the control case of the checking.
func TestE2ECuts(t *testing.T) {
	const target = 5 << 30
	cuts, faultEvery := int64(200), int64(target/10)
	if os.Getenv("STITCH_LONG") != "" {
		cuts, faultEvery = 2000, target/24
	}
	l := world(t, lab.Options{Rate: 1e9, RTT: 10 * time.Millisecond, Streams: true, History: "256MiB"})
	k := &checker{t: t, l: l, maxSize: 3 << 20}
	k.nextID.Store(10)
	addrs := map[string]string{"h1": "10.1.0.10:4500", "h2": "10.2.0.10:4500"}
	var servers []*net.TCPListener
	for host, addr := range addrs {
		ln := listen(t, l, host, addr)
		servers = append(servers, ln)
		go k.serve(ln)
	}
	for i := range uint64(96) {
		k.run("h1", addrs["h2"], 2*i)
		k.run("h2", addrs["h1"], 2*i+1)
	}
	replace := func(edge, process string) func() {
		return func() { restarted(t, l, edge, process, kill(t, l, edge, process)) }
	}
	stall := func() {
		signal(t, l, "e1", "stream", syscall.SIGSTOP)
		time.Sleep(time.Second)
		signal(t, l, "e1", "stream", syscall.SIGCONT)
	}
	dark := func() {
		_ = l.WAN().Cut(t.Context(), true)
		time.Sleep(time.Second)
		if err := l.WAN().Cut(t.Context(), false); err != nil {
			t.Error(err)
		}
	}
	faults := []func(){
		replace("e1", "stream"), replace("e2", "stream"), stall, replace("e1", "stream"), dark, replace("e2", "stream"), replace("e1", "link"),
	}
	last := int64(0)
	for i := 0; k.moved.Load() < target || k.cuts.Load() < cuts; i++ {
		eventually(t, 3*time.Minute, "data moves and connections are split", func() bool {
			return k.moved.Load()-last > faultEvery && streamStats(t, l, "e1").Open > 60 && streamStats(t, l, "e2").Open > 60
		})
		last = k.moved.Load()
		faults[i%len(faults)]()
	}
	k.stop.Store(true)
	waited := make(chan struct{})
	go func() {
		for _, ln := range servers {
			defer ln.Close()
		}
		k.tasks.Wait()
		close(waited)
	}()
	select {
	case <-waited:
	case <-time.After(3 * hangTime):
		t.Fatal("connections do not end:", k)
	}
	t.Log(k)
	for _, v := range []verdict{truncated, wrong, hung} {
		if n := k.counts[v].Load(); n > 0 {
			t.Errorf("%d directions were %v", n, v)
		}
	}
	if n := k.counts[exact].Load(); n == 0 {
		t.Error("no direction was exact")
	}

	// Control case: with no more faults every connection is.
	go k.serve(listen(t, l, "h2", "10.2.0.10:4501"))
	for range 20 {
		if v := k.call("h1", "10.2.0.10:4501", 1<<20); v != exact {
			t.Errorf("without faults a connection was %v", v)
		}
	}
}

// TestChecked shows that the checking of TestE2ECuts notices what it must: it is
// fed streams that were spoiled.
func TestChecked(t *testing.T) {
	const size = 5*chunk/2 + 1
	whole := func(id uint64) []byte {
		var b []byte
		for off := uint64(0); off < size; off += chunk {
			stream, at := pattern(id, off/chunk)
			piece := make([]byte, min(chunk, size-off))
			traffic.Fill(piece, stream, traffic.Request, at)
			b = append(b, piece...)
		}
		return b
	}
	reset := errors.New("reset")
	for name, c := range map[string]struct {
		spoil func([]byte) []byte
		end   error
		want  verdict
	}{
		"whole":       {func(b []byte) []byte { return b }, io.EOF, exact},
		"one bit":     {func(b []byte) []byte { b[chunk+7] ^= 1; return b }, io.EOF, wrong},
		"last byte":   {func(b []byte) []byte { return b[:size-1] }, io.EOF, truncated},
		"no byte":     {func(b []byte) []byte { return nil }, io.EOF, truncated},
		"byte more":   {func(b []byte) []byte { return append(b, 0) }, io.EOF, wrong},
		"chunks swap": {func(b []byte) []byte { return append(append(b[chunk:2*chunk:2*chunk], b[:chunk]...), b[2*chunk:]...) }, io.EOF, wrong},
		"reset":       {func(b []byte) []byte { return b[:chunk+5] }, reset, cut},
		"reset after": {func(b []byte) []byte { return b }, reset, cut},
		"wrong, then": {func(b []byte) []byte { b[3]++; return b[:chunk+5] }, reset, wrong},
	} {
		for id := range uint64(3) {
			r := io.MultiReader(bytes.NewReader(c.spoil(whole(id+30))), errReader{c.end})
			var moved atomic.Int64
			if got := receiveChecked(r, id+30, traffic.Request, size, &moved); got != c.want {
				t.Errorf("%s, connection %d: %v, want %v", name, id, got, c.want)
			}
		}
	}
}

// errReader ends with an error.
type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }
