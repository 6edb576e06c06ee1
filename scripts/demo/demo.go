package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"stitch/scripts/traffic"
	"stitch/tunnel/lab"
)

const (
	settleTime = 4 * time.Second // traffic before the first move
	dwellTime  = 4 * time.Second // traffic after a move
	quietTime  = 2 * time.Second // in which only old connections talk
	newCount   = 4               // connections opened through DNS after a move
	firstID    = 1               // numbers of the connections, see traffic
	newID      = 500
	downloadID = 700
	sessionID  = 701
	cleanUp    = time.Minute
)

// demo is one run of the whole story.
type demo struct {
	o      options
	con    *console
	files  tools
	report *Report
}

func newDemo(o options, con *console) *demo {
	return &demo{o: o, con: con, report: &Report{
		Started: time.Now().UTC(), RateBit: o.rate, RTTMS: millis(o.rtt),
	}}
}

// play does everything and returns what it has to report, also with an error;
// nil if it did not get as far as a lab.
func (d *demo) play(ctx context.Context) (*Report, error) {
	var err error
	if d.files, err = prepare(ctx, d.con); err != nil {
		return nil, err
	}
	d.report.QEMU, d.report.GuestKernel = d.files.qemuVersion, d.files.guestKernel
	err = d.throughStitch(ctx)
	if err == nil && !d.o.skipPlain {
		err = d.throughPlain(ctx)
	}
	d.report.judge(2, !d.o.skipPlain)
	d.report.Seconds = time.Since(d.report.Started).Seconds()
	return d.report, err
}

// withLab runs f with a lab and removes the lab.
func (d *demo) withLab(ctx context.Context, o lab.Options, f func(*lab.Lab) error) error {
	o.Name, o.Rate, o.RTT, o.Stitch, o.WireGuard = d.o.lab, d.o.rate, d.o.rtt, d.files.stitch, d.files.wireguard
	l, err := lab.Up(ctx, o)
	if err != nil {
		return err
	}
	err = errors.Join(f(l), d.keep(ctx, l))
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUp)
	defer cancel()
	return errors.Join(err, l.Down(late))
}

// keep copies the logs of the lab's processes and what they say about themselves
// to the reports, for whoever wants to know more.
func (d *demo) keep(ctx context.Context, l *lab.Lab) error {
	dir := filepath.Join(d.o.out, "plain")
	if !l.Options().Plain {
		dir = filepath.Join(d.o.out, "stitch")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	logs, err := filepath.Glob(filepath.Join(l.Options().Dir, "*.log"))
	if err != nil {
		return err
	}
	for _, from := range logs {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(from)), b, 0o644); err != nil {
			return err
		}
	}
	b, err := json.MarshalIndent(l.Status(ctx), "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "status.json"), append(b, '\n'), 0o644)
}

// act is one lab with its guest and what watches them.
type act struct {
	*demo
	lab     *lab.Lab
	load    *load
	tl      *timeline
	machine *guest
}

// throughStitch is the mission: there and back, with everything watching.
func (d *demo) throughStitch(ctx context.Context) error {
	d.con.step("two sites, a WAN of %d Mbit/s and %v between them, a stitch agent on each edge", d.o.rate/1_000_000, d.o.rtt)
	return d.withLab(ctx, lab.Options{Streams: true}, func(l *lab.Lab) error {
		a := &act{demo: d, lab: l, load: newLoad(ctx, l)}
		defer a.load.close()
		wan, err := startCapture(l, "e1", "wan0", "host 203.0.113.10 and host 198.51.100.20", nil)
		if err != nil {
			return err
		}
		defer wan.stop()
		if err := a.boot(ctx); err != nil {
			return err
		}
		defer func() { a.machine.stop() }()
		watch, stop := context.WithCancel(ctx)
		defer stop()
		a.tl = startTimeline(watch, l, a.load.answers)
		err = a.thereAndBack(ctx)
		stop()
		<-a.tl.done
		d.report.Timeline = a.tl.samples
		var searched error
		d.report.WAN, searched = wan.stop()
		return errors.Join(err, searched)
	})
}

// boot starts the guest on h1; the servers it connects to are there before it.
func (a *act) boot(ctx context.Context) error {
	if err := errors.Join(a.load.serve("d1", ":5432"), a.load.serve("c1", ":7000")); err != nil {
		return err
	}
	a.con.step("booting the guest on h1: QEMU %s, Linux %s, 1 GiB", a.files.qemuVersion, a.files.guestKernel)
	m, err := startMachine(ctx, a.lab, a.files, siteOne.host, "")
	if err != nil {
		return err
	}
	if err := m.Booted(ctx, bootWait, func(said string) { a.con.progress("guest: %s", strings.TrimPrefix(said, "guest: ")) }); err != nil {
		m.stop()
		return err
	}
	a.machine = m
	return nil
}

// thereAndBack opens the connections, moves the guest twice and closes them.
func (a *act) thereAndBack(ctx context.Context) error {
	a.con.step("%d client connections, a download, a TLS session, and two connections of the guest's own", a.o.clients)
	if err := a.openClients(); err != nil {
		return err
	}
	if err := a.pause(ctx, settleTime, "traffic"); err != nil {
		return err
	}
	clear, err := startCapture(a.lab, "e1", "br-lan", fmt.Sprintf("tcp port 8080 or tcp port %d", migrationPort), enoughInClear)
	if err != nil {
		return err
	}
	defer clear.stop()
	if err := a.move(ctx, siteOne, siteTwo, edges[1]); err != nil {
		return err
	}
	if a.report.LAN, err = clear.stop(); err != nil {
		return err
	}
	if err := a.newClients(ctx); err != nil {
		return err
	}
	if err := a.pause(ctx, dwellTime, "traffic at site 2"); err != nil {
		return err
	}
	if err := a.move(ctx, siteTwo, siteOne, edges[0]); err != nil {
		return err
	}
	if err := a.pause(ctx, dwellTime, "traffic back at site 1"); err != nil {
		return err
	}
	return a.closeClients(ctx)
}

// enoughInClear is when the control capture has proved that searching works.
func enoughInClear(s Scan) bool { return s.MigrationHits >= 100 && s.Hits-s.MigrationHits >= 20 }

// openClients opens all connections through the service's address at site 1.
func (a *act) openClients() error {
	at := edges[0].address
	for i := range a.o.clients {
		if _, err := a.load.client(fmt.Sprintf("client %02d", i+1), "request/answer", at+":8080", uint64(firstID+i)); err != nil {
			return err
		}
	}
	if err := a.load.download(at+":80", downloadID); err != nil {
		return err
	}
	return a.load.session(at+":443", a.files.cert, sessionID)
}

// move moves the guest and waits until DNS at both edges names the new one.
func (a *act) move(ctx context.Context, from, to target, now edge) error {
	a.con.step("moving the guest %s -> %s through the tunnel", from.site, to.site)
	m, mv, err := move(ctx, a.lab, a.tl, a.files, a.machine, from, to, a.con)
	if err != nil {
		return err
	}
	a.machine = m
	mv.Through = "stitch"
	a.con.step("moved in %.1f s, downtime %.0f ms, %s offered, %s on the WAN", mv.TotalMS/1e3, mv.DowntimeMS,
		megabytes(mv.OfferedBytes), megabytes(mv.WANBytes))
	err = answersFrom(ctx, a.lab, now.address)
	mv.DNSMS = millis(time.Since(mv.resumed))
	a.report.Moves = append(a.report.Moves, mv)
	a.report.check(err == nil, "DNS at both edges follows the guest to "+to.site, "%s", detail(err, now.address))
	return nil
}

// detail is err in words, or what holds without one.
func detail(err error, without string) string {
	if err != nil {
		return err.Error()
	}
	return without
}

// newClients proves which way old connections go, opens new ones by name and
// proves their way.
func (a *act) newClients(ctx context.Context) error {
	old := clientsOf(a.load.connections())
	if err := a.during(ctx, "only connections opened before the move", func() error {
		return a.pause(ctx, quietTime, "old connections through both edges")
	}); err != nil {
		return err
	}
	bySite, err := via(ctx, a.lab, old)
	if err != nil {
		return err
	}
	a.report.OldConnections = newGroup(bySite)
	addr, err := resolve(ctx, a.lab, edges[0])
	if err != nil {
		return err
	}
	var fresh []*connection
	if err := a.during(ctx, fmt.Sprintf("and %d opened by name after it", newCount), func() error {
		for i := range newCount {
			c, err := a.load.client(fmt.Sprintf("new %d", i+1), "opened after the move", addr.String()+":8080", uint64(newID+i))
			if err != nil {
				return err
			}
			fresh = append(fresh, c)
		}
		return a.pause(ctx, quietTime, "new connections by way of "+addr.String())
	}); err != nil {
		return err
	}
	if bySite, err = via(ctx, a.lab, fresh); err != nil {
		return err
	}
	a.report.NewConnections = newGroup(bySite)
	return nil
}

// during reports what passed on the WAN while f ran.
func (a *act) during(ctx context.Context, what string, f func() error) error {
	before, err := paths(ctx, a.lab)
	if err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	after, err := paths(ctx, a.lab)
	a.report.Paths = append(a.report.Paths, after.since(before, what))
	return err
}

// clientsOf leaves out what the guest opened.
func clientsOf(all []*connection) (c []*connection) {
	for _, one := range all {
		if one.kind != guestOpened {
			c = append(c, one)
		}
	}
	return c
}

// closeClients lets the download finish, ends the others and judges all.
func (a *act) closeClients(ctx context.Context) error {
	a.con.step("finishing the download, closing the connections")
	status, err := a.guestStatus(ctx)
	if err != nil {
		return fmt.Errorf("ask the guest: %w", err)
	}
	for _, c := range a.load.connections() {
		if c.whole != nil {
			_ = c.whole()
		}
	}
	a.load.settle()
	a.report.GuestUptime = status.Uptime
	age := time.Since(a.tl.start).Seconds()
	a.report.check(status.Ready && status.Uptime >= age*0.9, "the guest never restarted", "its program is %.0f s old", status.Uptime)
	for _, c := range a.load.connections() {
		a.report.addConnection(c, a.tl, status.own(c.name))
	}
	a.load.close()
	return nil
}

// guestStatus is what the guest says about itself.
type guestStatus struct {
	Ready    bool               `json:"ready"`
	Uptime   float64            `json:"uptime_s"`
	Outgoing []traffic.Snapshot `json:"outgoing"`
}

// own returns the guest's view of a connection it opened.
func (s guestStatus) own(name string) *traffic.Snapshot {
	for i := range s.Outgoing {
		if s.Outgoing[i].Name == name {
			return &s.Outgoing[i]
		}
	}
	return nil
}

// guestStatus ends the download's pacing and asks for the guest's status.
func (a *act) guestStatus(ctx context.Context) (s guestStatus, err error) {
	if _, err := a.ask(ctx, "/hurry"); err != nil {
		return s, err
	}
	body, err := a.ask(ctx, "/status")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(body, &s)
}

// ask sends one request of its own to the guest, through the service at site 1.
func (a *act) ask(ctx context.Context, path string) ([]byte, error) {
	client := http.Client{Timeout: stall, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dial(ctx, a.lab, "c1", network, addr)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+edges[0].address+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, 1<<20))
}

// pause lets the traffic run for a while.
func (a *act) pause(ctx context.Context, d time.Duration, what string) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(d); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-tick.C:
			a.con.progress("%s: %d requests answered", what, a.load.answers())
			if now.After(end) {
				return nil
			}
		}
	}
}

// throughPlain is the first move again, through plain WireGuard, with a guest
// freshly booted from the same image. Nobody is connected to it: that would only
// make the comparison slower.
func (d *demo) throughPlain(ctx context.Context) error {
	d.con.step("for comparison: the same move through plain wireguard-go")
	return d.withLab(ctx, lab.Options{Plain: true}, func(l *lab.Lab) error {
		a := &act{demo: d, lab: l, load: newLoad(ctx, l)}
		defer a.load.close()
		if err := a.boot(ctx); err != nil {
			return err
		}
		defer func() { a.machine.stop() }()
		watch, stop := context.WithCancel(ctx)
		defer stop()
		a.tl = startTimeline(watch, l, nil)
		if err := a.pause(ctx, settleTime, "the guest settles"); err != nil {
			return err
		}
		m, mv, err := move(ctx, l, a.tl, d.files, a.machine, siteOne, siteTwo, d.con)
		if err != nil {
			return err
		}
		a.machine = m
		mv.Through = "wireguard-go"
		d.report.Plain = &mv
		d.con.step("moved in %.1f s, downtime %.0f ms, %s offered, %s on the WAN", mv.TotalMS/1e3, mv.DowntimeMS,
			megabytes(mv.OfferedBytes), megabytes(mv.WANBytes))
		err = a.pause(ctx, time.Second, "done")
		stop()
		<-a.tl.done
		d.report.PlainTimeline = a.tl.samples
		return err
	})
}
