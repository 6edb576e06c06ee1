package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"stitch/scripts/traffic"
	"stitch/tunnel/lab"
)

// snapshot is what one end knows of its connection.
type snapshot = traffic.Snapshot

const (
	name     = "www.app.example"
	site1    = "203.0.113.10"
	site2    = "198.51.100.20"
	client   = "192.0.2.7"
	many     = 20
	fresh    = 5
	pace     = 100 * time.Millisecond
	stall    = 60 * time.Second
	download = 18 << 20
	rate     = 256 << 10 // bytes a second of the download: 72 s, more than both moves
	floor    = 250 * time.Millisecond
)

// stage is the guest in the two sites with all the traffic around it.
type stage struct {
	*hypervisors
	sampler  *sampler
	captures []*capture
	meters   []*traffic.Meter
	servers  []net.Listener
	stop     context.CancelFunc // of the traffic that goes on until told
	work     context.Context
	wg       sync.WaitGroup
	loaded   chan struct{} // closed when the download is complete
}

// newStage starts the captures and the servers of the guest's own connections.
func newStage(ctx context.Context, d *demo, l *lab.Lab) (*stage, error) {
	s := &stage{hypervisors: newHypervisors(d, l), loaded: make(chan struct{})}
	s.work, s.stop = context.WithCancel(ctx)
	wan, err := startCapture(l, "wan", "e1", filepath.Join(d.dir, "wan.pcap"), "host "+site1+" and host "+site2)
	if err != nil {
		return nil, err
	}
	// The control: the same machine's traffic before it is encrypted.
	lan, err := startCapture(l, "e1", "lan-vm1", filepath.Join(d.dir, "lan.pcap"), "tcp")
	if err != nil {
		return nil, err
	}
	s.captures = []*capture{wan, lan}
	for _, at := range [][2]string{{"d1", "10.1.1.20:5432"}, {"c1", client + ":7000"}} {
		if err := s.serve(at[0], at[1]); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// serve answers the guest's own connections on a host.
func (s *stage) serve(host, addr string) error {
	ns, err := s.lab.Namespace(host)
	if err != nil {
		return err
	}
	var ln net.Listener
	if err := ns.Do(func() (err error) { ln, err = net.Listen("tcp", addr); return }); err != nil {
		return err
	}
	s.servers = append(s.servers, ln)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			m := traffic.NewMeter("guest to "+host, floor)
			go func() { _ = traffic.ServeConn(c, m, 200*time.Millisecond) }()
		}
	}()
	return nil
}

// begin boots the guest and opens every connection.
func (s *stage) begin(ctx context.Context) error {
	if err := s.boot(ctx, "h1"); err != nil {
		return err
	}
	d := s.d
	d.talk.say("clients: %d connections, a download, a TLS session, all through %s", many, site1)
	for id := range many {
		if err := s.exchange(ctx, site1, uint64(id+1), fmt.Sprintf("service %d", id+1)); err != nil {
			return err
		}
	}
	file, session := traffic.NewMeter("download", floor), traffic.NewMeter("TLS session", floor)
	s.meters = append(s.meters, file, session)
	s.wg.Go(func() { s.download(file) })
	s.wg.Go(func() { s.session(session) })
	s.sampler = newSampler(s.lab)
	s.wg.Go(func() { s.sampler.run(s.work) })
	// The guest's own connections are open once it says so.
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		st, err := s.status(ctx)
		if err == nil && len(st.Outgoing) == 2 && st.Outgoing[0].Up && st.Outgoing[1].Up {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the guest's own connections are not open: %+v, %v", st, err)
		}
	}
}

// exchange opens one long-lived connection of the client to a site's service.
func (s *stage) exchange(ctx context.Context, site string, id uint64, title string) error {
	c, err := dialFrom(ctx, s.lab, "c1", site+":8080")
	if err != nil {
		return fmt.Errorf("%s: %w", title, err)
	}
	m := traffic.NewMeter(title, floor)
	s.meters = append(s.meters, m)
	cl := traffic.NewClient(c, id, m)
	s.wg.Go(func() { _ = cl.Run(s.work, traffic.Load{Pace: pace, Sizes: traffic.Sizes(id), Stall: stall}) })
	return nil
}

// web returns an HTTP client of c1 whose connections are counted in m.
func (s *stage) web(m *traffic.Meter, config *tls.Config) *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config, MaxIdleConns: 1, MaxConnsPerHost: 1,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			_, port, _ := net.SplitHostPort(addr)
			c, err := dialFrom(ctx, s.lab, "c1", site1+":"+port)
			if err == nil {
				m.Dialled(site1)
			}
			return c, err
		}}}
}

// download fetches one large file, every byte checked, and paces itself by what
// the server sends.
func (s *stage) download(m *traffic.Meter) {
	defer close(s.loaded)
	const id = 500
	err := func() error {
		r, err := s.web(m, nil).Get(fmt.Sprintf("http://%s/download?id=%d&bytes=%d&rate=%d", name, id, download, rate))
		if err != nil {
			return err
		}
		defer r.Body.Close()
		buf, off := make([]byte, 64<<10), uint64(0)
		for {
			start := time.Now()
			n, err := r.Body.Read(buf)
			m.Waited(start, time.Since(start))
			if i := traffic.Check(buf[:n], id, traffic.Answer, off); i >= 0 {
				return fmt.Errorf("%w: byte %d of the download", traffic.ErrWrong, off+uint64(i))
			}
			off += uint64(n)
			m.Moved(n, 0)
			switch {
			case err == io.EOF && off == download:
				return nil
			case err == io.EOF:
				return io.ErrUnexpectedEOF
			case err != nil:
				return err
			}
		}
	}()
	m.Ended(err)
}

// session keeps one TLS session busy until the traffic stops.
func (s *stage) session(m *traffic.Meter) {
	const id, step = 600, 2000
	err := func() error {
		pem, err := os.ReadFile(filepath.Join(s.d.guest, "cert.pem"))
		if err != nil {
			return err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		web := s.web(m, &tls.Config{RootCAs: roots})
		for off := uint64(0); s.work.Err() == nil; off += step {
			start := time.Now()
			r, err := web.Get(fmt.Sprintf("https://%s/bytes?id=%d&offset=%d&bytes=%d", name, id, off, step))
			if err != nil {
				return err
			}
			body, err := io.ReadAll(r.Body)
			r.Body.Close()
			if err != nil {
				return err
			}
			if len(body) != step || traffic.Check(body, id, traffic.Answer, off) >= 0 {
				return fmt.Errorf("%w: TLS answer at %d", traffic.ErrWrong, off)
			}
			m.Moved(len(body), 0)
			m.Answered(start, time.Since(start))
			time.Sleep(pace)
		}
		return nil
	}()
	m.Ended(err)
}

// newConnections follows the name to the guest's new site and connects there.
func (s *stage) newConnections(ctx context.Context) error {
	start := time.Now()
	var answers map[string]netip.Addr
	for {
		answers = map[string]netip.Addr{"e1": s.resolve(ctx, site1), "e2": s.resolve(ctx, site2)}
		if answers["e1"].String() == site2 && answers["e2"].String() == site2 {
			break
		}
		if time.Since(start) > 20*time.Second {
			return fmt.Errorf("DNS does not follow the guest: %v", answers)
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.d.talk.say("DNS: both edges answer %s for %s; new connections go there", site2, name)
	for i := range fresh {
		if err := s.exchange(ctx, answers["e1"].String(), uint64(101+i), fmt.Sprintf("new %d", i+1)); err != nil {
			return err
		}
	}
	time.Sleep(time.Second)
	r := &s.d.report
	r.NewConnections = s.via(site2, fresh)
	r.OldConnections = s.via(site1, many)
	s.d.talk.say("conntrack: %s; %s", r.OldConnections.Evidence, r.NewConnections.Evidence)
	return nil
}

// resolve asks one edge's name server, from the client.
func (s *stage) resolve(ctx context.Context, server string) netip.Addr {
	ns, err := s.lab.Namespace("c1")
	if err != nil {
		return netip.Addr{}
	}
	var conn net.Conn
	err = ns.Do(func() (err error) { conn, err = net.DialTimeout("udp", server+":53", time.Second); return })
	if err != nil {
		return netip.Addr{}
	}
	defer conn.Close()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	in, _, err := (&dns.Client{Timeout: time.Second}).ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: conn})
	if err != nil || len(in.Answer) == 0 {
		return netip.Addr{}
	}
	a, ok := in.Answer[0].(*dns.A)
	if !ok {
		return netip.Addr{}
	}
	addr, _ := netip.AddrFromSlice(a.A.To4())
	return addr
}

// via counts at which edge the client's connections to a service address are
// anchored.
func (s *stage) via(addr string, want int) Via {
	found := map[string]int{}
	v := Via{Via: "nowhere"}
	for _, e := range []string{"e1", "e2"} {
		out, _ := s.lab.Command(e, "conntrack", "-L", "-p", "tcp", "--orig-src", client, "--orig-dst", addr).Output()
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "ESTABLISHED") && strings.Contains(line, "dport=8080") {
				found[e]++
			}
		}
		if found[e] >= want {
			v.Via = e
		}
	}
	v.Evidence = fmt.Sprintf("to %s: %d at e1, %d at e2", addr, found["e1"], found["e2"])
	return v
}

// finish lets the traffic end and collects what it saw.
func (s *stage) finish(ctx context.Context) error {
	s.d.talk.say("the rest of the download")
	select {
	case <-s.loaded:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(3 * time.Minute):
		return fmt.Errorf("the download hangs")
	}
	st, err := s.status(ctx)
	if err != nil {
		return fmt.Errorf("guest: %w", err)
	}
	s.stop()
	s.wg.Wait()
	r := &s.d.report
	for _, m := range s.meters {
		r.add(m.Snapshot(), m.Gaps())
	}
	for _, o := range st.Outgoing {
		r.add(o, nil)
	}
	r.Samples = s.sampler.samples
	for _, c := range s.captures {
		c.stop()
	}
	r.Canary.WAN, err = canaries(s.captures[0])
	if err != nil {
		return err
	}
	r.Canary.Control, err = canaries(s.captures[1])
	return err
}

// canaries counts the canary in a capture.
func canaries(c *capture) (int, error) { return countIn(c.file, traffic.Canary) }

// close ends what the stage started; what ended already stays so.
func (s *stage) close() {
	s.stop()
	for _, c := range s.captures {
		c.stop()
		_ = os.Remove(c.file) // large, and read already
	}
	for _, ln := range s.servers {
		_ = ln.Close()
	}
	s.hypervisors.close()
}

// capture is a tcpdump at work.
type capture struct {
	file string
	cmd  *exec.Cmd
	once sync.Once
}

// startCapture captures what passes a device of a host.
func startCapture(l *lab.Lab, host, device, file, filter string) (*capture, error) {
	cmd := l.Command(host, "tcpdump", append([]string{"-i", device, "-s0", "-U", "-Z", "root", "-B", "16384", "-w", file}, strings.Fields(filter)...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for range 100 {
		if st, err := os.Stat(file); err == nil && st.Size() > 0 {
			return &capture{file: file, cmd: cmd}, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	_ = cmd.Process.Kill()
	return nil, fmt.Errorf("tcpdump on %s of %s does not start", device, host)
}

// stop ends the capture; the file is complete then.
func (c *capture) stop() {
	c.once.Do(func() {
		time.Sleep(200 * time.Millisecond)
		_ = c.cmd.Process.Signal(syscall.SIGTERM)
		_ = c.cmd.Wait()
	})
}

// countIn counts how often text is in a file, without reading it whole.
func countIn(file, text string) (int, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, keep := 0, ""
	buf := make([]byte, 1<<20)
	for {
		got, err := f.Read(buf)
		chunk := keep + string(buf[:got])
		n += strings.Count(chunk, text)
		keep = chunk[max(0, len(chunk)-len(text)+1):]
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
