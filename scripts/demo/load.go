package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"stitch/scripts/traffic"
	"stitch/tunnel/lab"
)

const (
	requestPace   = 100 * time.Millisecond
	stall         = time.Minute
	gapFloor      = 250 * time.Millisecond
	downloadSize  = 24 << 20
	downloadRate  = 100 << 10 // bytes a second
	tlsPace       = 200 * time.Millisecond
	guestPace     = 200 * time.Millisecond // as the guest has it
	serviceName   = "www.app.example"
	guestOpened   = "opened by the guest"
	connectWithin = 10 * time.Second
)

// connection is one long-lived TCP connection the demo watches.
type connection struct {
	name, kind string
	meter      *traffic.Meter
	// local is the client's address, entry where it connected to; both unset
	// for the guest's own.
	local, entry netip.AddrPort
	// whole, if not nil, says in the end whether everything arrived.
	whole func() error
}

// load is all the traffic of the demo. Its sockets live in the lab's
// namespaces, its goroutines here.
type load struct {
	lab    *lab.Lab
	ctx    context.Context // the wish to go on
	finish context.CancelFunc

	clients, servers sync.WaitGroup

	mu    sync.Mutex
	conns []*connection
	open  []io.Closer
}

func newLoad(ctx context.Context, l *lab.Lab) *load {
	ctx, cancel := context.WithCancel(ctx)
	return &load{lab: l, ctx: ctx, finish: cancel}
}

// dial connects from a lab host to addr.
func dial(ctx context.Context, l *lab.Lab, host, network, addr string) (conn net.Conn, err error) {
	ns, err := l.Namespace(host)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: connectWithin}
	err = ns.Do(func() error {
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// watch registers a connection whose bytes a meter of its own counts.
func (l *load) watch(name, kind string, conn net.Conn) *connection {
	c := &connection{name: name, kind: kind, meter: traffic.NewMeter(name, gapFloor)}
	if conn != nil {
		c.local = conn.LocalAddr().(*net.TCPAddr).AddrPort()
		c.entry = conn.RemoteAddr().(*net.TCPAddr).AddrPort()
		l.keep(conn)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, c)
	return c
}

// keep has c closed in the end.
func (l *load) keep(c io.Closer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = append(l.open, c)
}

// connections returns all there are.
func (l *load) connections() []*connection {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*connection(nil), l.conns...)
}

// answers is how many requests were answered so far, on all connections.
func (l *load) answers() (n uint64) {
	for _, c := range l.connections() {
		n += c.meter.Snapshot().Requests
	}
	return n
}

// serve listens on a lab host for the one connection the guest opens to it.
func (l *load) serve(host, addr string) error {
	ns, err := l.lab.Namespace(host)
	if err != nil {
		return err
	}
	var ln net.Listener
	err = ns.Do(func() error {
		ln, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", host, err)
	}
	l.keep(ln)
	c := l.watch("guest to "+host, guestOpened, nil)
	l.servers.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			l.keep(conn)
			l.servers.Go(func() { _ = traffic.ServeConn(conn, c.meter, guestPace) })
		}
	})
	return nil
}

// client opens a connection from c1 to addr and keeps requests going on it.
func (l *load) client(name, kind, addr string, id uint64) (*connection, error) {
	conn, err := dial(l.ctx, l.lab, "c1", "tcp4", addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	c := l.watch(name, kind, conn)
	client := traffic.NewClient(conn, id, c.meter)
	l.clients.Go(func() {
		_ = client.Run(l.ctx, traffic.Load{Pace: requestPace, Sizes: traffic.Sizes(id), Stall: stall})
	})
	return c, nil
}

// download fetches one long file from addr and checks each byte as it comes.
func (l *load) download(addr string, id uint64) error {
	conn, err := dial(l.ctx, l.lab, "c1", "tcp4", addr)
	if err != nil {
		return fmt.Errorf("download: %w", err)
	}
	c := l.watch("download", "HTTP", conn)
	finished := make(chan struct{})
	c.whole = func() error {
		select {
		case <-finished:
			return nil
		case <-time.After(stall):
			return errors.New("the download did not end")
		}
	}
	c.meter.Dialled(conn.RemoteAddr().String())
	l.clients.Go(func() {
		c.meter.Ended(fetch(conn, c.meter, id))
		close(finished)
	})
	return nil
}

// fetch does the work of download.
func fetch(conn net.Conn, meter *traffic.Meter, id uint64) error {
	path := fmt.Sprintf("http://app/download?id=%d&bytes=%d&rate=%d", id, downloadSize, downloadRate)
	body, err := get(conn, bufio.NewReader(conn), path)
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for got := uint64(0); got < downloadSize; {
		start := time.Now()
		if err := conn.SetDeadline(start.Add(stall)); err != nil {
			return err
		}
		n, err := body.Read(buf)
		meter.Moved(n, 0)
		meter.Waited(start, time.Since(start))
		if i := traffic.Check(buf[:n], id, traffic.Answer, got); i >= 0 {
			return fmt.Errorf("%w: download differs at %d", traffic.ErrWrong, got+uint64(i))
		}
		if got += uint64(n); err != nil && got < downloadSize {
			return fmt.Errorf("download ended at %d: %w", got, err)
		}
	}
	meter.Answered(time.Now(), 0)
	return nil
}

// get sends one HTTP request on conn and returns the body of its answer, read
// through in.
func get(conn net.Conn, in *bufio.Reader, url string) (io.Reader, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return resp.Body, nil
}

// session keeps requests going in one TLS connection to addr, which must show
// the guest's own certificate.
func (l *load) session(addr, certFile string, id uint64) error {
	pem, err := os.ReadFile(certFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	conn, err := dial(l.ctx, l.lab, "c1", "tcp4", addr)
	if err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	c := l.watch("TLS session", "HTTPS", conn)
	c.meter.Dialled(conn.RemoteAddr().String())
	secure := tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: serviceName, MinVersion: tls.VersionTLS13})
	l.clients.Go(func() { c.meter.Ended(l.browse(secure, c.meter, id)) })
	return nil
}

// browse asks for consecutive parts of a stream until the load is to finish.
func (l *load) browse(conn net.Conn, meter *traffic.Meter, id uint64) error {
	defer conn.Close()
	in := bufio.NewReader(conn)
	tick := time.NewTicker(tlsPace)
	defer tick.Stop()
	sizes := traffic.Sizes(id)
	for n, off := uint64(0), uint64(0); ; n++ {
		_, size := sizes(n)
		start := time.Now()
		if err := conn.SetDeadline(start.Add(stall)); err != nil {
			return err
		}
		body, err := get(conn, in, fmt.Sprintf("https://%s/bytes?id=%d&offset=%d&bytes=%d", serviceName, id, off, size))
		if err != nil {
			return err
		}
		b, err := io.ReadAll(io.LimitReader(body, traffic.MaxBody))
		if err != nil {
			return err
		}
		if len(b) != size || traffic.Check(b, id, traffic.Answer, off) >= 0 {
			return fmt.Errorf("%w: TLS answer at %d", traffic.ErrWrong, off)
		}
		off += uint64(size)
		meter.Moved(size, 0)
		meter.Answered(start, time.Since(start))
		select {
		case <-l.ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// settle lets the clients finish the request they are at and waits for them.
func (l *load) settle() {
	l.finish()
	l.clients.Wait()
}

// close ends everything that still runs. It may be called again.
func (l *load) close() {
	l.finish()
	l.mu.Lock()
	open := l.open
	l.open = nil
	l.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
	l.clients.Wait()
	l.servers.Wait()
}
