package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"stitch/scripts/traffic"
	"stitch/tunnel/lab"
)

// loads are what a tunnel is measured with.
var loads = []string{"tcp1", "tcp8", "udp64", "udp512", "udp1400", "ping"}

// sample is one measurement.
type sample struct {
	bytes   int64 // that arrived
	whole   int64 // and of TCP, with those before the measurement
	packets int64
	took    time.Duration
	tunnel  time.Duration // processor time of the tunnel's processes
	total   time.Duration // and of sender and receiver, which are this process
	pings   []time.Duration
}

// apply measures the tunnel with one load.
func (t *tunnel) apply(ctx context.Context, load string, length time.Duration) (sample, error) {
	kind, n := split(load)
	if kind == "ping" {
		return t.ping(ctx)
	}
	before, own := t.processor(), processorSelf()
	var s sample
	var err error
	if kind == "tcp" {
		s, err = t.tcp(n, length, traffic.Noise(128<<10))
	} else {
		s, err = t.udp(n, length)
	}
	s.tunnel = t.processor() - before
	s.total = s.tunnel + processorSelf() - own
	if err != nil {
		err = fmt.Errorf("%s, %s: %w", t.name, load, err)
	}
	return s, err
}

// split takes the number off the name of a load.
func split(load string) (kind string, n int) {
	kind = strings.TrimRight(load, "0123456789")
	n, _ = strconv.Atoi(load[len(kind):])
	return kind, n
}

// tcp sends data through n connections at once, again and again.
func (t *tunnel) tcp(n int, length time.Duration, data []byte) (sample, error) {
	var l net.Listener
	var err error
	waitFor(context.Background(), 10*time.Second, func() bool { // the last load's end may be on its way
		err = t.to.Do(func() (err error) {
			l, err = net.Listen("tcp4", t.addr+":5201")
			return err
		})
		return err == nil
	})
	if err != nil {
		return sample{}, err
	}
	defer l.Close()
	var received atomic.Int64
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { receive(l, n, &received, &all) })
	conns := make([]net.Conn, 0, n)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
		l.Close()
	}()
	for range n {
		c, err := dial(t.from, "tcp4", t.addr+":5201")
		if err != nil {
			return sample{}, err
		}
		conns = append(conns, c)
		all.Go(func() { blast(c, data) })
	}
	time.Sleep(length / 4) // slow start is over
	start, first := time.Now(), received.Load()
	time.Sleep(length)
	last := received.Load()
	return sample{bytes: last - first, whole: last, took: time.Since(start)}, nil
}

// receive reads n connections to their ends.
func receive(l net.Listener, n int, received *atomic.Int64, all *sync.WaitGroup) {
	for range n {
		c, err := l.Accept()
		if err != nil {
			return
		}
		all.Go(func() {
			defer c.Close()
			buf := make([]byte, 256<<10)
			for {
				k, err := c.Read(buf)
				received.Add(int64(k))
				if err != nil {
					return
				}
			}
		})
	}
}

// blast writes until the connection ends.
func blast(c net.Conn, data []byte) {
	for {
		if _, err := c.Write(data); err != nil {
			return
		}
	}
}

// dial connects from a namespace; a connection uses CUBIC, as hosts do.
func dial(from lab.Namespace, network, addr string) (c net.Conn, err error) {
	err = from.Do(func() (err error) {
		c, err = net.DialTimeout(network, addr, 5*time.Second)
		return err
	})
	return c, err
}

// udp sends datagrams of size bytes as fast as one sender can, and counts those
// that arrive.
func (t *tunnel) udp(size int, length time.Duration) (sample, error) {
	var in net.PacketConn
	err := t.to.Do(func() (err error) {
		in, err = net.ListenPacket("udp4", t.addr+":5202")
		return err
	})
	if err != nil {
		return sample{}, err
	}
	defer in.Close()
	out, err := dial(t.from, "udp4", t.addr+":5202")
	if err != nil {
		return sample{}, err
	}
	var arrived atomic.Int64
	var all sync.WaitGroup
	all.Go(func() {
		buf := make([]byte, 2048)
		for {
			if _, _, err := in.ReadFrom(buf); err != nil {
				return
			}
			arrived.Add(1)
		}
	})
	all.Go(func() {
		buf := make([]byte, size)
		for {
			if _, err := out.Write(buf); errors.Is(err, net.ErrClosed) {
				return
			}
		}
	})
	start := time.Now()
	time.Sleep(length)
	n, took := arrived.Load(), time.Since(start)
	out.Close()
	in.Close()
	all.Wait()
	return sample{packets: n, bytes: n * int64(size), took: took}, nil
}

var pingTime = regexp.MustCompile(`time=([0-9.]+) ms`)

// ping sends 300 echo requests, 5 ms apart, on the idle tunnel.
func (t *tunnel) ping(ctx context.Context) (sample, error) {
	out, err := t.from.Command(ctx, "ping", "-n", "-i", "0.005", "-c", "300", t.addr).Output()
	if err != nil {
		return sample{}, fmt.Errorf("%s: ping: %w", t.name, err)
	}
	return sample{pings: pingTimes(string(out))}, nil
}

// pingTimes reads ping's output.
func pingTimes(out string) (all []time.Duration) {
	for _, m := range pingTime.FindAllStringSubmatch(out, -1) {
		ms, _ := strconv.ParseFloat(m[1], 64)
		all = append(all, time.Duration(ms*float64(time.Millisecond)))
	}
	return all
}

// sentBytes reads what a device has sent in the text of /proc/net/dev.
func sentBytes(text, device string) int64 {
	for line := range strings.Lines(text) {
		name, rest, _ := strings.Cut(line, ":")
		if f := strings.Fields(rest); strings.TrimSpace(name) == device && len(f) > 8 {
			n, _ := strconv.ParseInt(f[8], 10, 64)
			return n
		}
	}
	return 0
}

// processor is the time the tunnel's processes have used so far.
func (t *tunnel) processor() time.Duration { return t.lab.Processor("e1", "e2") }

// processorSelf is the time this process has used so far.
func processorSelf() time.Duration {
	var r unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
