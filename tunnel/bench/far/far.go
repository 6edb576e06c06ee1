// Package far is the far end of a benchmark: what takes the bytes that are
// sent, and what answers messages. An agent runs it for its peer, the lab for
// itself; both speak the same over any connection.
//
// # What is spoken
//
// To Sink one sends bytes and reads records, numbers in big-endian order: 8
// bytes, how many have arrived, every 20 ms while that changes; and when the
// sending direction has ended a last one, with the top bit set, followed by 4
// bytes, the CRC-32C of all of them. Echo sends back what comes. Packets sends a
// UDP port (8 bytes), then counts the datagrams that come to it until the sending
// direction ends, and sends how many there were, and the nanoseconds between the
// first and the last (8 bytes each).
package far

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Service is what is asked of the far end. The values are wire values.
type Service uint8

// The services.
const (
	Sink    Service = 1
	Echo    Service = 2
	Packets Service = 3
)

// String returns the service's name, "" for one that does not exist.
func (s Service) String() string { return names[s] }

var names = map[Service]string{Sink: "sink", Echo: "echo", Packets: "packets"}

// Parse returns the service of a name.
func Parse(name string) (Service, error) {
	for s, n := range names {
		if n == name {
			return s, nil
		}
	}
	return 0, fmt.Errorf("no service %q", name)
}

const (
	// countEvery is the pause between two records.
	countEvery = 20 * time.Millisecond
	lastCount  = 1 << 63
	bufSize    = 64 << 10
	// lateDatagrams is how long datagrams are still counted after the end.
	lateDatagrams = 50 * time.Millisecond
)

// Table is that of the CRC.
var Table = crc32.MakeTable(crc32.Castagnoli)

// Serve serves s on c until its sending direction ends or c fails. Socket opens
// the UDP socket of Packets, from where datagrams count that come from the given
// address; nil: there are none. It does not close c.
func Serve(s Service, c io.ReadWriter, socket func() (*net.UDPConn, netip.Addr, error)) error {
	switch s {
	case Sink:
		return sink(c)
	case Echo:
		_, err := io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 4<<10))
		return err
	case Packets:
		return packets(c, socket)
	}
	return fmt.Errorf("no service %d", s)
}

// sink takes bytes.
func sink(c io.ReadWriter) error {
	var n atomic.Uint64
	done := make(chan struct{})
	var tasks sync.WaitGroup
	tasks.Go(func() { tell(c, &n, done) })
	sum, err := take(c, &n)
	close(done)
	tasks.Wait()
	if err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint64(nil, n.Load()|lastCount)
	_, err = c.Write(binary.BigEndian.AppendUint32(b, sum))
	return err
}

// take reads to the end.
func take(c io.Reader, n *atomic.Uint64) (sum uint32, err error) {
	buf := make([]byte, bufSize)
	for {
		m, err := c.Read(buf)
		sum = crc32.Update(sum, Table, buf[:m])
		n.Add(uint64(m))
		switch {
		case errors.Is(err, io.EOF):
			return sum, nil
		case err != nil:
			return 0, err
		}
	}
}

// tell writes records until done; one that cannot be written is the last.
func tell(c io.Writer, n *atomic.Uint64, done chan struct{}) {
	t := time.NewTicker(countEvery)
	defer t.Stop()
	said := uint64(0)
	for {
		select {
		case <-done:
			return
		case <-t.C:
		}
		if now := n.Load(); now != said {
			said = now
			if _, err := c.Write(binary.BigEndian.AppendUint64(nil, now)); err != nil {
				return
			}
		}
	}
}

// Count is a record of Sink.
type Count struct {
	N    uint64
	Last bool
	Sum  uint32 // of the last one
}

// ReadCount reads a record.
func ReadCount(r io.Reader) (Count, error) {
	var b [8]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Count{}, err
	}
	c := Count{N: binary.BigEndian.Uint64(b[:])}
	if c.N&lastCount == 0 {
		return c, nil
	}
	c.N, c.Last = c.N&^lastCount, true
	if _, err := io.ReadFull(r, b[:4]); err != nil {
		return Count{}, err
	}
	c.Sum = binary.BigEndian.Uint32(b[:])
	return c, nil
}

// packets counts datagrams.
func packets(c io.ReadWriter, socket func() (*net.UDPConn, netip.Addr, error)) error {
	if socket == nil {
		return errors.New("no datagrams can be counted here")
	}
	u, from, err := socket()
	if err != nil {
		return err
	}
	defer u.Close()
	port := u.LocalAddr().(*net.UDPAddr).Port
	if _, err := c.Write(binary.BigEndian.AppendUint64(nil, uint64(port))); err != nil {
		return err
	}
	var n uint64
	var first, last time.Time
	var tasks sync.WaitGroup
	tasks.Go(func() {
		buf := make([]byte, 2048)
		for {
			_, at, err := u.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			if err == nil && at.Addr().Unmap() == from {
				if last = time.Now(); n == 0 {
					first = last
				}
				n++
			}
		}
	})
	_, err = io.Copy(io.Discard, c)
	_ = u.SetReadDeadline(time.Now().Add(lateDatagrams)) // what has arrived is counted
	tasks.Wait()
	if err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint64(nil, n)
	_, err = c.Write(binary.BigEndian.AppendUint64(b, uint64(last.Sub(first))))
	return err
}

// ReadPort reads the port that Packets counts at.
func ReadPort(r io.Reader) (uint16, error) {
	n, err := readNumber(r)
	if err == nil && (n == 0 || n > 65535) {
		err = fmt.Errorf("port %d", n)
	}
	return uint16(n), err
}

// ReadTally reads what Packets counted.
func ReadTally(r io.Reader) (n uint64, span time.Duration, err error) {
	n, err = readNumber(r)
	if err != nil {
		return 0, 0, err
	}
	ns, err := readNumber(r)
	return n, time.Duration(ns & (1<<62 - 1)), err
}

func readNumber(r io.Reader) (uint64, error) {
	var b [8]byte
	_, err := io.ReadFull(r, b[:])
	return binary.BigEndian.Uint64(b[:]), err
}
