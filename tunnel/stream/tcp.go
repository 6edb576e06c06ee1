package stream

import (
	"fmt"
	"io"
	"math"
	"net"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tcpClosed is TCP_CLOSE of tcp_states.h.
const tcpClosed = 7

// tcpConn is a kernel connection that resets on Close until Finish.
type tcpConn struct {
	*net.TCPConn
	raw     syscall.RawConn
	sentFIN atomic.Bool
	rush    rush // of Pace
	rtt     time.Duration
}

func newTCP(c *net.TCPConn) (*tcpConn, error) {
	raw, err := c.SyscallConn()
	if err == nil {
		err = c.SetLinger(0)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return &tcpConn{TCPConn: c, raw: raw}, nil
}

// Read implements Conn. When a reset's error was taken by a concurrent Write,
// the kernel answers a read with "end of stream": the state tells the truth.
func (c *tcpConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	if err != io.EOF {
		return n, err
	}
	if !c.sentFIN.Load() {
		if info, e := c.info(); e != nil || info.State == tcpClosed {
			return n, fmt.Errorf("read: %w", unix.ECONNRESET)
		}
	}
	return n, io.EOF
}

// CloseWrite implements Conn.
func (c *tcpConn) CloseWrite() error {
	c.sentFIN.Store(true)
	return c.TCPConn.CloseWrite()
}

// Finish implements Conn.
func (c *tcpConn) Finish() error {
	c.SetLinger(-1)
	return c.Close()
}

// Wait implements Conn.
func (c *tcpConn) Wait() error {
	return waitReadable(c.raw)
}

// waitReadable blocks until a read of a socket would not.
func waitReadable(raw syscall.RawConn) error {
	var peek error
	var one [1]byte
	err := raw.Read(func(fd uintptr) bool {
		for {
			_, _, peek = unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if peek != unix.EINTR {
				return peek != unix.EAGAIN
			}
		}
	})
	return cmpErr(err, wrap("read", peek))
}

// outQueue returns how many bytes of a socket its other end has not taken.
func outQueue(raw syscall.RawConn) (n int, err error) {
	if e := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); e != nil {
		return 0, e
	}
	return n, wrap("SIOCOUTQ", err)
}

// Gather implements Conn.
func (c *tcpConn) Gather(n int) error {
	var err error
	e := c.raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, n) })
	return cmpErr(e, wrap("SO_RCVLOWAT", err))
}

// AtMark implements Conn.
func (c *tcpConn) AtMark() bool {
	at := 0
	c.raw.Control(func(fd uintptr) { at, _ = unix.IoctlGetInt(int(fd), unix.SIOCATMARK) })
	return at != 0
}

// WriteUrgent implements Conn.
func (c *tcpConn) WriteUrgent(b byte) error {
	var err error
	e := c.raw.Write(func(fd uintptr) bool {
		for {
			err = unix.Sendto(int(fd), []byte{b}, unix.MSG_OOB|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	return cmpErr(e, wrap("write", err))
}

// Unacked implements Conn. The state is asked first: a connection whose last
// acknowledgement and FIN come between the two questions would show as closed
// with something unacknowledged, as one that was reset does.
func (c *tcpConn) Unacked() (n, window int, err error) {
	info, err := c.info()
	if err != nil {
		return 0, 0, err
	}
	if n, err = outQueue(c.raw); err != nil {
		return 0, 0, err
	}
	if info.State == tcpClosed && (n > 0 || !c.sentFIN.Load()) { // else both FINs are through
		return 0, 0, fmt.Errorf("write: %w", unix.ECONNRESET)
	}
	return n, int(info.Snd_wnd), nil
}

// RTT implements Conn.
func (c *tcpConn) RTT() time.Duration {
	info, err := c.info()
	if err != nil || info.Min_rtt == math.MaxUint32 {
		return 0
	}
	return time.Duration(info.Min_rtt) * time.Microsecond
}

// appLimited is tcpi_delivery_rate_app_limited, a bit of the eighth byte of
// struct tcp_info, which package unix leaves unnamed.
const appLimited = 1

// DeliveryRate implements Conn.
func (c *tcpConn) DeliveryRate() (rate float64, limited bool) {
	info, err := c.info()
	if err != nil {
		return 0, false
	}
	flags := (*[8]byte)(unsafe.Pointer(info))[7]
	return float64(info.Delivery_rate), flags&appLimited != 0
}

// SetMark implements Conn. Inter-agent connections are IPv4.
func (c *tcpConn) SetMark(n int) error {
	var err error
	e := c.raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TOS, n<<2) })
	return cmpErr(e, wrap("IP_TOS", err))
}

// Anew implements Conn. A connection that has waited for 10 s or more would begin
// with BBR's measurement of the round trip, 200 ms with four packets in each:
// BBR takes the answer to the lone small packet that comes first for a late one,
// which tells no round trip. There is no option that resets it, but it begins anew
// when it takes over from another one, which every kernel has.
func (c *tcpConn) Anew() error {
	var err error
	e := c.raw.Control(func(fd uintptr) {
		name := ""
		if name, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); err == nil {
			err = congestion(int(fd), "reno")
		}
		if err == nil {
			err = congestion(int(fd), name)
		}
	})
	return cmpErr(e, err)
}

// Pace implements Conn. It is for the goroutine that writes.
func (c *tcpConn) Pace() {
	now := time.Now()
	if !c.rush.due(now, c.rtt) {
		return
	}
	c.raw.Control(func(fd uintptr) {
		if name, err := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil || name != "bbr" {
			c.rush.over = true
			return
		}
		bbr, err := unix.GetsockoptTCPCCBBRInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_CC_INFO)
		if err != nil {
			return
		}
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return
		}
		c.rtt = time.Duration(info.Rtt) * time.Microsecond
		limit, news := c.rush.Update(now, paceSample{
			gain: bbr.Pacing_gain, bandwidth: float64(uint64(bbr.Bw_hi)<<32 | uint64(bbr.Bw_lo)), rtt: c.rtt,
			sent: info.Bytes_sent, resent: info.Bytes_retrans,
		})
		if news { // an aid: without it more is lost
			_ = unix.SetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, limit)
		}
	})
}

// Congestion implements Conn.
func (c *tcpConn) Congestion() string {
	var name string
	c.raw.Control(func(fd uintptr) {
		name, _ = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	})
	return name
}

func (c *tcpConn) info() (info *unix.TCPInfo, err error) {
	if e := c.raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); e != nil {
		return nil, e
	}
	return info, wrap("TCP_INFO", err)
}
