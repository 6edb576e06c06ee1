package stream

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
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
	if _, err := c.Unacked(); !errors.Is(err, syscall.ECONNRESET) {
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
	if n, err := c.Unacked(); n != 0 || err != nil {
		t.Errorf("unacked at the end: %d, %v", n, err)
	}
	if err := c.Finish(); err != nil {
		t.Error(err)
	}
	if err := c.Wait(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("wait after the end: %v", err)
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
