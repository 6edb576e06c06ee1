package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"stitch/scripts/traffic"
	"stitch/tunnel/lab"
)

// maxPacket bounds one packet of a capture.
const maxPacket = 1 << 18

// Scan is what a capture had in it.
type Scan struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	// Hits counts packets with the canary.
	Hits uint64 `json:"hits"`
	// MigrationHits are those of them that belong to a migration stream.
	MigrationHits uint64 `json:"migration_hits"`
	// Missed are packets the kernel dropped before tcpdump saw them.
	Missed uint64 `json:"missed"`
}

// capture is a running tcpdump whose packets are searched for the canary as
// they come; nothing is kept.
type capture struct {
	cmd      *exec.Cmd
	messages bytes.Buffer
	done     chan error
	once     sync.Once

	mu   sync.Mutex
	scan Scan
}

// startCapture runs tcpdump on a device of a lab host. It ends itself when
// enough, if not nil, says so of what was seen.
func startCapture(l *lab.Lab, host, device, filter string, enough func(Scan) bool) (*capture, error) {
	c := &capture{done: make(chan error, 1)}
	c.cmd = l.Command(host, "tcpdump", "-i", device, "-n", "-p", "-U", "-s", "0", "-B", "32768", "-Z", "root", "-w", "-", filter)
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the demo
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	messages, err := c.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("tcpdump: %w", err)
	}
	listening := make(chan struct{})
	go c.run(out, messages, listening, enough)
	<-listening
	return c, nil
}

// run reads everything tcpdump says and closes listening once it captures.
func (c *capture) run(out, messages io.Reader, listening chan struct{}, enough func(Scan) bool) {
	var wg sync.WaitGroup
	wg.Go(func() {
		first := bufio.NewReader(messages)
		line, _ := first.ReadString('\n')
		c.messages.WriteString(line)
		close(listening)
		_, _ = io.CopyN(&c.messages, first, 64<<10)
	})
	err := readPackets(out, func(p []byte) { c.see(p, enough) })
	wg.Wait()
	_ = c.cmd.Wait()
	c.done <- err
}

// see examines one packet.
func (c *capture) see(p []byte, enough func(Scan) bool) {
	hit := bytes.Contains(p, []byte(traffic.Canary))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.scan.Packets++
	c.scan.Bytes += uint64(len(p))
	if hit {
		c.scan.Hits++
		if tcpPort(p, migrationPort) {
			c.scan.MigrationHits++
		}
		if enough != nil && enough(c.scan) {
			c.interrupt()
		}
	}
}

func (c *capture) interrupt() {
	c.once.Do(func() { _ = c.cmd.Process.Signal(syscall.SIGINT) })
}

// stop ends the capture and returns what it saw.
func (c *capture) stop() (Scan, error) {
	c.interrupt()
	err := <-c.done
	c.done <- err
	s := c.scan
	s.Missed = missedPackets(c.messages.String())
	if s.Packets == 0 && err == nil {
		err = fmt.Errorf("tcpdump saw nothing: %s", strings.TrimSpace(c.messages.String()))
	}
	return s, err
}

// missedPackets reads "12 packets dropped by kernel" in tcpdump's farewell.
func missedPackets(messages string) uint64 {
	for line := range strings.Lines(messages) {
		if n, found := strings.CutSuffix(strings.TrimSpace(line), " packets dropped by kernel"); found {
			v, _ := strconv.ParseUint(n, 10, 64)
			return v
		}
	}
	return 0
}

// readPackets reads a pcap stream to its end and lends each packet to see.
func readPackets(r io.Reader, see func([]byte)) error {
	in := bufio.NewReaderSize(r, 1<<20)
	var head [24]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return fmt.Errorf("capture: no header: %w", err)
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch binary.LittleEndian.Uint32(head[:]) {
	case 0xa1b2c3d4, 0xa1b23c4d:
	case 0xd4c3b2a1, 0x4d3cb2a1:
		order = binary.BigEndian
	default:
		return errors.New("capture: not in pcap format")
	}
	packet := make([]byte, maxPacket)
	for {
		var record [16]byte
		if _, err := io.ReadFull(in, record[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("capture: %w", err)
		}
		n := order.Uint32(record[8:])
		if n > maxPacket {
			return fmt.Errorf("capture: a packet of %d bytes", n)
		}
		if _, err := io.ReadFull(in, packet[:n]); err != nil {
			return fmt.Errorf("capture: %w", err)
		}
		see(packet[:n])
	}
}

// tcpPort reports whether an Ethernet frame is TCP over IPv4 from or to port.
func tcpPort(frame []byte, port uint16) bool {
	if len(frame) < 34 || binary.BigEndian.Uint16(frame[12:]) != 0x0800 || frame[23] != syscall.IPPROTO_TCP {
		return false
	}
	at := 14 + int(frame[14]&15)*4
	return len(frame) >= at+4 &&
		(binary.BigEndian.Uint16(frame[at:]) == port || binary.BigEndian.Uint16(frame[at+2:]) == port)
}
