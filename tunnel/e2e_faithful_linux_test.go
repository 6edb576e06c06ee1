package tunnel_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stitch/tunnel/lab"
)

// patience bounds every call of a party: what would take longer is recorded as
// a timeout, which no direct connection shows.
const patience = 20 * time.Second

// party is one end of a connection that plays its part of a scene and writes
// down what its system calls told it: no times, and no counts that direct TCP
// does not fix either.
type party struct {
	*net.TCPConn
	name string
	meet map[string]chan struct{} // shared by both ends
	mu   *sync.Mutex
	log  []string
}

func (p *party) say(format string, args ...any) {
	p.log = append(p.log, p.name+": "+fmt.Sprintf(format, args...))
}

// point says that this end has come to a point of the scene; after waits for it.
func (p *party) point(name string) { close(p.channel(name)) }

func (p *party) after(name string) {
	select {
	case <-p.channel(name):
	case <-time.After(patience):
		p.say("the other end never came to %q", name)
	}
}

func (p *party) channel(name string) chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.meet[name] == nil {
		p.meet[name] = make(chan struct{})
	}
	return p.meet[name]
}

// kindOf names what a call ended with.
func kindOf(err error) string {
	var no syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, io.EOF):
		return "end of stream"
	case errors.As(err, &no):
		return unix.ErrnoName(no)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	}
	return err.Error()
}

// send writes data; a connection that breaks may do so at any byte.
func (p *party) send(data []byte) {
	p.SetWriteDeadline(time.Now().Add(patience))
	if n, err := p.Write(data); err != nil {
		p.say("write breaks: %s", kindOf(err))
	} else {
		p.say("write %d", n)
	}
}

// until writes until the connection breaks.
func (p *party) until() {
	p.SetWriteDeadline(time.Now().Add(patience))
	for {
		if _, err := p.Write(make([]byte, 1000)); err != nil {
			p.say("writes end by %v", errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET))
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// take reads exactly n bytes.
func (p *party) take(n int) {
	p.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, n)
	got, err := io.ReadFull(p, b)
	p.say("read %d %x, %s", got, sha256.Sum256(b[:got]), kindOf(err))
}

// rest reads to the end.
func (p *party) rest() {
	p.SetReadDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(p)
	p.say("rest %d %x, %s", len(b), sha256.Sum256(b), kindOf(err))
}

// end reads to the end; how much comes before a reset is not fixed, only that
// it is a prefix of want.
func (p *party) end(want []byte) {
	p.SetReadDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(p)
	p.say("prefix %v, %s", strings.HasPrefix(string(want), string(b)), kindOf(err))
}

// shut ends the sending direction.
func (p *party) shut() { p.say("shutdown: %s", kindOf(p.CloseWrite())) }

// leave closes.
func (p *party) leave() { p.say("close: %s", kindOf(p.Close())) }

// abort resets.
func (p *party) abort() {
	p.SetLinger(0)
	p.say("abort: %s", kindOf(p.Close()))
}

// urgent sends one byte out of band.
func (p *party) urgent(b byte) {
	raw, _ := p.SyscallConn()
	var err error
	if e := raw.Write(func(fd uintptr) bool { err = unix.Sendto(int(fd), []byte{b}, unix.MSG_OOB, nil); return true }); e != nil {
		err = e
	}
	p.say("urgent: %s", kindOf(err))
}

// mark reads up to the urgent mark, and then the byte at it, out of band.
func (p *party) mark() {
	raw, _ := p.SyscallConn()
	var before []byte
	var one [1]byte
	err := error(unix.EAGAIN)
	for end := time.Now().Add(patience); time.Now().Before(end) && err != nil; time.Sleep(2 * time.Millisecond) {
		raw.Control(func(fd uintptr) {
			_, _, err = unix.Recvfrom(int(fd), one[:], unix.MSG_OOB|unix.MSG_DONTWAIT)
		})
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		at := 0
		raw.Control(func(fd uintptr) { at, _ = unix.IoctlGetInt(int(fd), unix.SIOCATMARK) })
		if at != 0 {
			p.say("at the mark after %q: %q, %s", before, one[0], kindOf(err))
			return
		}
		var b [1]byte
		n := 0
		raw.Control(func(fd uintptr) { n, _, _ = unix.Recvfrom(int(fd), b[:], unix.MSG_DONTWAIT) })
		if n > 0 {
			before = append(before, b[0])
		}
	}
	p.say("no mark after %q", before)
}

// scene is one case of the comparison.
type scene struct {
	name           string
	client, server func(*party)
	why            string // it runs only with STITCH_LONG=1
}

// urgentStalls: once in ten runs or so the direct connection gave its client
// nothing for 20 s after the mark; whether this test's reading or the packet
// path is the cause is not known.
const urgentStalls = "after an urgent byte a direct connection stood still once, which is not understood"

var scenes = []scene{
	{"client ends first", func(c *party) {
		c.send(mix(100_000, 1))
		c.shut()
		c.rest()
		c.leave()
	}, func(s *party) {
		s.rest()
		s.send(mix(200_000, 2))
		s.leave()
	}, ""},
	{"server ends first", func(c *party) {
		c.rest()
		c.send(mix(200_000, 3))
		c.shut()
		c.point("sent")
		c.leave()
	}, func(s *party) {
		s.send([]byte("220 ready\r\n"))
		s.shut()
		s.rest()
		s.after("sent")
		s.leave()
	}, ""},
	{"server speaks first", func(c *party) {
		c.take(5)
		c.send([]byte("helo\n"))
		c.take(5)
		c.leave()
	}, func(s *party) {
		s.send([]byte("220 \n"))
		s.take(5)
		s.send([]byte("250 \n"))
		s.rest()
		s.leave()
	}, ""},
	{"both close at once", func(c *party) {
		c.send([]byte("ping"))
		c.take(4)
		c.point("c")
		c.after("s")
		c.shut()
		c.rest()
		c.leave()
	}, func(s *party) {
		s.send([]byte("pong"))
		s.take(4)
		s.point("s")
		s.after("c")
		s.shut()
		s.rest()
		s.leave()
	}, ""},
	{"nothing is sent", (*party).leave, func(s *party) { s.rest(); s.leave() }, ""},
	{"send and close at once", func(c *party) { c.send(mix(1<<20, 4)); c.leave() }, func(s *party) { s.rest(); s.leave() }, ""},
	{"single bytes", func(c *party) {
		for i := range 30 {
			c.send([]byte{byte(i)})
			c.take(1)
		}
		c.leave()
	}, func(s *party) {
		for i := range 30 {
			s.take(1)
			s.send([]byte{byte(100 + i)})
		}
		s.rest()
		s.leave()
	}, ""},
	{"client resets, idle", func(c *party) { c.take(1); c.abort() }, func(s *party) { s.send([]byte("x")); s.rest(); s.leave() }, ""},
	{"server resets, idle", func(c *party) { c.send([]byte("x")); c.rest(); c.leave() }, func(s *party) { s.take(1); s.abort() }, ""},
	{"client resets with data in flight", func(c *party) { c.send(mix(300_000, 5)); c.abort() }, func(s *party) { s.end(mix(300_000, 5)); s.leave() }, ""},
	{"server resets with data in flight", func(c *party) { c.send([]byte("x")); c.end(mix(300_000, 6)); c.leave() },
		func(s *party) { s.take(1); s.send(mix(300_000, 6)); s.abort() }, ""},
	{"client resets after it ended", func(c *party) {
		c.send([]byte("x"))
		c.shut()
		c.after("seen")
		c.abort()
		c.point("gone")
	}, func(s *party) {
		s.rest()
		s.point("seen")
		s.after("gone")
		s.until()
		s.leave()
	}, ""},
	{"server closes with unread data", func(c *party) {
		c.send(mix(50_000, 7))
		c.point("sent")
		c.rest()
		c.until()
		c.leave()
	}, func(s *party) {
		s.after("sent")
		s.take(1)
		time.Sleep(300 * time.Millisecond) // until the rest is in its buffer
		s.leave()
	}, ""},
	{"client closes with unread data", func(c *party) {
		c.after("sent")
		c.take(1)
		time.Sleep(300 * time.Millisecond)
		c.leave()
	}, func(s *party) {
		s.send(mix(50_000, 8))
		s.point("sent")
		s.rest()
		s.until()
		s.leave()
	}, ""},
	{"writes to one who left", func(c *party) { c.take(1); c.until(); c.leave() }, func(s *party) { s.send([]byte("x")); s.leave() }, ""},
	{"zero window", func(c *party) {
		c.point("writing")
		c.send(mix(8<<20, 9))
		c.shut()
		c.rest()
		c.leave()
	}, func(s *party) {
		s.after("writing")
		time.Sleep(stall())
		s.rest()
		s.send([]byte("got it"))
		s.leave()
	}, ""},
	{"urgent byte", func(c *party) {
		c.send([]byte("abc"))
		c.urgent('!')
		c.send([]byte("def"))
		c.after("marked")
		c.leave()
	}, func(s *party) {
		s.mark()
		s.point("marked")
		s.rest()
		s.leave()
	}, urgentStalls},
	{"urgent byte of the server", func(c *party) {
		c.mark()
		c.rest()
		c.leave()
	}, func(s *party) {
		s.urgent('?')
		s.send([]byte("def"))
		s.leave()
	}, urgentStalls},
}

// stall is how long a receiver does not read.
func stall() time.Duration {
	if os.Getenv("STITCH_LONG") != "" {
		return 3 * time.Minute
	}
	return 3 * time.Second
}

// play plays a scene between two hosts and returns what both ends noted.
func (sc scene) play(t *testing.T, l *lab.Lab, from, to, addr string) []string {
	t.Helper()
	ln := listen(t, l, to, addr)
	defer ln.Close()
	meet, mu := make(map[string]chan struct{}), new(sync.Mutex)
	server := &party{name: "server", meet: meet, mu: mu}
	var accept error
	var tasks sync.WaitGroup
	tasks.Go(func() {
		if server.TCPConn, accept = ln.AcceptTCP(); accept == nil {
			sc.server(server)
			server.Close()
		}
	})
	c, err := dial(l, from, addr)
	if err != nil {
		ln.Close()
		tasks.Wait()
		t.Fatalf("%s: %v", addr, err)
	}
	client := &party{name: "client", meet: meet, mu: mu, TCPConn: c}
	sc.client(client)
	client.Close()
	tasks.Wait()
	if accept != nil {
		t.Fatal(accept)
	}
	return append(client.log, server.log...)
}

// verdicts are what a server's firewall does with a SYN.
var verdicts = []string{
	"reject with tcp reset", "reject with icmp type port-unreachable", "reject with icmp type host-unreachable",
	"reject with icmp type net-unreachable", "reject with icmp type admin-prohibited", "drop", "accept",
}

// TestE2EConnect: whatever becomes of a SYN at the far end shows at the client
// as it would directly. A verdict of accept, with nobody listening and with
// somebody, is the control case.
func TestE2EConnect(t *testing.T) {
	verdictsOf(t, world(t, wan100), "h1", "h2", "10.2.0.10")
}

// verdictsOf compares what becomes of SYNs to a port that no rule covers, and to
// one that is split.
func verdictsOf(t *testing.T, l *lab.Lab, from, to, addr string) {
	rules := "add table inet faithful\nadd chain inet faithful in { type filter hook input priority 0; }\n"
	for i, v := range verdicts {
		rules += fmt.Sprintf("add rule inet faithful in tcp dport { %d, %d } %s\n", 6100+i, 4300+i, v)
	}
	cmd := l.Command(to, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	connect := func(port int) string {
		c, err := dialFor(l, from, fmt.Sprintf("%s:%d", addr, port), 2500*time.Millisecond)
		if err == nil {
			c.Close()
		}
		var no net.Error
		if errors.As(err, &no) && no.Timeout() {
			return "timeout"
		}
		return kindOf(err)
	}
	kinds := make(map[string]bool)
	for i, v := range verdicts {
		direct, split := connect(6100+i), connect(4300+i)
		if direct != split {
			t.Errorf("%s: directly %s, through the proxy %s", v, direct, split)
		}
		kinds[direct] = true
	}
	if len(kinds) < 4 {
		t.Errorf("the verdicts led to no more than %v", kinds)
	}

	// A server that answers late is met late: the first SYN is lost.
	for port, how := range map[int]string{6200: "direct", 4400: "split"} {
		listen(t, l, to, fmt.Sprintf("%s:%d", addr, port))
		run(t, l, to, "nft", "insert", "rule", "inet", "faithful", "in", "tcp", "dport", fmt.Sprint(port), "drop")
		time.AfterFunc(1500*time.Millisecond, func() { _ = l.Command(to, "nft", "flush", "chain", "inet", "faithful", "in").Run() })
		if c, err := dialFor(l, from, fmt.Sprintf("%s:%d", addr, port), 15*time.Second); err != nil {
			t.Errorf("%s, a server that answers after 1.5 s: %v", how, err)
		} else {
			c.Close()
		}
	}
}

// TestE2EFaithful plays every scene over a direct connection and over a split
// one: what the system calls of both ends return must be the same. That the
// scenes can tell a difference is shown by the scenes themselves: any two of
// different names leave different notes.
func TestE2EFaithful(t *testing.T) {
	compare(t, world(t, wan100), scenes, "h1", "h2", "10.2.0.10")
}

// compare plays scenes between two hosts, to a port that no rule covers and to one
// that is split.
func compare(t *testing.T, l *lab.Lab, scenes []scene, from, to, addr string) {
	seen := make(map[string]string)
	for i, sc := range scenes {
		t.Run(sc.name, func(t *testing.T) {
			if sc.why != "" && os.Getenv("STITCH_LONG") == "" {
				t.Skip(sc.why + ": STITCH_LONG=1 runs it")
			}
			before := streamsTotal(t, l, "e1")
			direct := sc.play(t, l, from, to, fmt.Sprintf("%s:%d", addr, 6000+i))
			if n := streamsTotal(t, l, "e1"); n != before {
				t.Fatalf("the direct connection was split")
			}
			split := sc.play(t, l, from, to, fmt.Sprintf("%s:%d", addr, 4200+i))
			if n := streamsTotal(t, l, "e1"); n != before+1 {
				t.Fatalf("%d connections were split, want one", n-before)
			}
			if !slices.Equal(direct, split) {
				t.Errorf("direct:\n  %s\nsplit:\n  %s", strings.Join(direct, "\n  "), strings.Join(split, "\n  "))
			}
			notes := strings.Join(direct, "\n")
			if other := seen[notes]; other != "" {
				t.Errorf("leaves the same notes as %q", other)
			}
			seen[notes] = sc.name
		})
	}
}
