package stream

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"stitch/tunnel/config"
)

// kernelPair is a connection over loopback: one end ours, the other a host's.
func kernelPair(t *testing.T) (*tcpConn, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	host, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ours, err := newTCP(c.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); host.Close() })
	return ours, host.(*net.TCPConn)
}

// TestTCPReset: when a write has taken the error of a reset, a read must still
// not look like the end of the stream.
func TestTCPReset(t *testing.T) {
	c, host := kernelPair(t)
	host.SetLinger(0)
	host.Close()
	for {
		if _, err := c.Write([]byte("x")); err != nil {
			break
		}
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read after a reset: %v", err)
	}
	if _, _, err := c.Unacked(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("unacked after a reset: %v", err)
	}
}

func TestTCPEnds(t *testing.T) {
	c, host := kernelPair(t)
	c.Close()
	if _, err := host.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the host of a closed connection read %v", err)
	}
	c, host = kernelPair(t)
	io.WriteString(c, "all")
	c.CloseWrite()
	if got, err := io.ReadAll(host); err != nil || string(got) != "all" {
		t.Errorf("%q, %v", got, err)
	}
	host.Close()
	if err := c.Wait(); err != nil {
		t.Errorf("wait at the end: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read at the end: %v", err)
	}
	if n, _, err := c.Unacked(); n != 0 || err != nil {
		t.Errorf("unacked at the end: %d, %v", n, err)
	}
	if err := c.Finish(); err != nil {
		t.Error(err)
	}
	if err := c.Wait(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("wait after the end: %v", err)
	}
}

// TestTCPEndsTogether: the host's last acknowledgement and its FIN, which come
// at any moment between two looks, are never taken for a reset.
func TestTCPEndsTogether(t *testing.T) {
	for range 3000 {
		c, host := kernelPair(t)
		go func() {
			io.Copy(io.Discard, host)
			host.Close()
		}()
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		for {
			n, _, err := c.Unacked()
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				break
			}
		}
		if err := c.Finish(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTCPWait: Wait consumes nothing, and a close ends it.
func TestTCPWait(t *testing.T) {
	c, host := kernelPair(t)
	io.WriteString(host, "abc")
	for range 2 {
		if err := c.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 10)
	if n, err := c.Read(b); err != nil || string(b[:n]) != "abc" {
		t.Errorf("%q, %v", b[:n], err)
	}
	ended := make(chan error)
	go func() { ended <- c.Wait() }()
	c.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("wait: %v", err)
	}
}

// TestDeliveryRate: the kernel says what a connection took, and whether there
// was too little to send. A few bytes now and then are too little; a write that
// never ends is not.
func TestDeliveryRate(t *testing.T) {
	c, host := kernelPair(t)
	if rate, _ := c.DeliveryRate(); rate != 0 {
		t.Errorf("%v B/s before anything was sent", rate)
	}
	one := make([]byte, 1)
	for range 20 {
		c.Write(one)
		io.ReadFull(host, one)
	}
	if rate, limited := c.DeliveryRate(); rate <= 0 || !limited {
		t.Errorf("single bytes: %v B/s, limited %v", rate, limited)
	}
	host.SetReadBuffer(16 << 10)
	go io.Copy(io.Discard, host)
	block := make([]byte, 1<<20)
	for range 200 {
		if _, err := c.Write(block); err != nil {
			t.Fatal(err)
		}
		if rate, limited := c.DeliveryRate(); rate > 0 && !limited {
			return
		}
	}
	t.Error("200 MiB in one go are called too little to send")
}

// TestLinkRate holds what samples are believed.
func TestLinkRate(t *testing.T) {
	var l linkRate
	for i, s := range []struct {
		sample  float64
		limited bool
		want    float64
	}{
		{0, false, 0},     // not known
		{5e6, true, 0},    // ours, not the path's
		{8e6, false, 8e6}, // the path
		{1e6, true, 8e6},  // we had little to send
		{9e6, true, 9e6},  // even so more than we knew
		{2e6, false, 2e6}, // the path is worse now
		{0, true, 2e6},    // no sample
	} {
		if got := l.Update(s.sample, s.limited); got != s.want {
			t.Errorf("sample %d: %v, want %v", i, got, s.want)
		}
	}
}

// TestCongestion: a kernel without the congestion control that is wanted gives the
// next one, and the connection says which.
func TestCongestion(t *testing.T) {
	c, _ := kernelPair(t)
	choose := func(names ...string) (err error) {
		if e := c.raw.Control(func(fd uintptr) { err = congestion(int(fd), names...) }); e != nil {
			t.Fatal(e)
		}
		return err
	}
	if err := choose("nonesuch", "reno"); err != nil || c.Congestion() != "reno" {
		t.Errorf("%q, %v", c.Congestion(), err)
	}
	if err := choose("nonesuch"); !errors.Is(err, syscall.ENOENT) || c.Congestion() != "reno" {
		t.Errorf("%q, %v", c.Congestion(), err)
	}
}

// TestAnew: BBR knows nothing any more, and stays.
func TestAnew(t *testing.T) {
	c, host := kernelPair(t)
	var err error
	if e := c.raw.Control(func(fd uintptr) { err = congestion(int(fd), "bbr") }); e != nil {
		t.Fatal(e)
	}
	if err != nil {
		t.Skip("this kernel has no BBR: ", err)
	}
	gain := func() (gain uint32) {
		if e := c.raw.Control(func(fd uintptr) {
			info, err := unix.GetsockoptTCPCCBBRInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_CC_INFO)
			if err == nil {
				gain = info.Pacing_gain
			}
		}); e != nil {
			t.Fatal(e)
		}
		return gain
	}
	exchange := func() {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(host, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		for n := 1; n > 0; {
			if n, _, err = c.Unacked(); err != nil {
				t.Fatal(err)
			}
		}
		c.Pace() // harmless at any time
	}
	exchange()
	if gain() == 0 {
		t.Fatal("BBR has no gain after an exchange")
	}
	if err := c.Anew(); err != nil {
		t.Fatal(err)
	}
	if gain() != 0 || c.Congestion() != "bbr" {
		t.Errorf("gain %d, %s", gain(), c.Congestion())
	}
	exchange()
}

// TestSetMark: the DSCP says how the link's rate is shared.
func TestSetMark(t *testing.T) {
	c, _ := kernelPair(t)
	if err := c.SetMark(config.MaxMarks - 1); err != nil {
		t.Fatal(err)
	}
	tos := 0
	if err := c.raw.Control(func(fd uintptr) { tos, _ = unix.GetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TOS) }); err != nil {
		t.Fatal(err)
	}
	if tos>>2 != config.MaxMarks-1 {
		t.Errorf("TOS %#x", tos)
	}
}

// TestTCPGather: a read that finds nothing returns with what is gathered, or at the
// end of it.
func TestTCPGather(t *testing.T) {
	for name, end := range map[string]func(*net.TCPConn){
		"all":   func(h *net.TCPConn) { h.Write(make([]byte, gatherSize/2)) },
		"end":   func(h *net.TCPConn) { h.CloseWrite() },
		"reset": func(h *net.TCPConn) { h.SetLinger(0); h.Close() },
	} {
		want := gatherSize / 2
		if name == "all" {
			want = gatherSize
		}
		// A Read that begins when something is there returns it; that it has begun
		// before cannot be seen.
		early := 0
		for gathers(t, want, end) {
			if early++; early == 50 {
				t.Fatalf("%s: no Read waits for %d bytes", name, gatherSize)
			}
		}
	}
}

const gatherSize = 100

// gathers has a Read wait for gatherSize bytes, half of which are written before end,
// and checks that it returns want. early: it returned before end.
func gathers(t *testing.T, want int, end func(*net.TCPConn)) (early bool) {
	t.Helper()
	c, host := kernelPair(t)
	if err := c.Gather(gatherSize); err != nil {
		t.Fatal(err)
	}
	type result struct {
		n   int
		err error
	}
	read := make(chan result, 1)
	go func() {
		n, err := c.Read(make([]byte, 2*gatherSize))
		read <- result{n, err}
	}()
	host.Write(make([]byte, gatherSize/2))
	for n := 0; n < gatherSize/2; { // until it has arrived
		c.raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
		select {
		case <-read:
			return true
		default:
		}
	}
	end(host)
	if got := <-read; got.n != want || got.err != nil {
		t.Errorf("%d bytes, %v, want %d", got.n, got.err, want)
	}
	return false
}
