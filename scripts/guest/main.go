// Guest is the application that runs in the demo's virtual machine: it fills
// its memory with data that resembles a server's, keeps changing it, serves
// checked bytes on TCP 8080, 80 and 443, and keeps two connections of its own
// open. Its standard output is the machine's console.
//
//	guest run                 what the machine's init starts
//	guest tick                do nothing, often: see init
//	guest cert DIR NAME       make the certificate that goes into the image
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"stitch/scripts/traffic"
)

const (
	exchangePort = ":8080"
	plainPort    = ":80"
	securePort   = ":443"
	// pace is the time between two requests on the guest's own connections.
	pace = 200 * time.Millisecond
	// tick is how often a second process interrupts the application.
	tick = 5 * time.Millisecond
)

// Destinations of the guest's own connections: the database host at site 1, and
// a host on the Internet.
const (
	databaseAddr = "10.1.1.20:5432"
	internetAddr = "192.0.2.7:7000"
	databaseID   = 901
	internetID   = 902
)

// Status is what /status answers.
type Status struct {
	// Ready says that the memory is filled.
	Ready bool `json:"ready"`
	// UptimeSeconds is the time since the program began, by the guest's clock.
	UptimeSeconds float64 `json:"uptime_s"`
	DataBytes     int     `json:"data_bytes"`
	PagesEdited   uint64  `json:"pages_edited"`
	FreshBytes    uint64  `json:"fresh_bytes"`
	// Outgoing are the guest's own connections.
	Outgoing []traffic.Snapshot `json:"outgoing"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "run":
		return serve(context.Background(), third, "/etc/tls")
	case len(args) == 1 && args[0] == "tick":
		for range time.Tick(tick) {
		}
	case len(args) == 3 && args[0] == "cert":
		return makeCert(args[1], args[2])
	}
	return errors.New("usage: guest run | guest tick | guest cert DIR NAME")
}

// say writes a line to the console.
func say(format string, args ...any) {
	fmt.Printf("guest: "+format+"\n", args...)
}

// serve runs the application with three times size bytes of data.
func serve(ctx context.Context, size int, certDir string) error {
	start := time.Now()
	cert, err := tls.LoadX509KeyPair(certDir+"/"+certFile, certDir+"/"+keyFile)
	if err != nil {
		return err
	}
	listeners := make([]net.Listener, 3)
	for i, port := range []string{exchangePort, plainPort, securePort} {
		if listeners[i], err = net.Listen("tcp", port); err != nil {
			return err
		}
		defer listeners[i].Close()
	}
	m, err := mapMemory(size)
	if err != nil {
		return err
	}
	own := []*outgoing{
		{addr: databaseAddr, id: databaseID, pace: pace, meter: traffic.NewMeter("guest to d1", time.Second)},
		{addr: internetAddr, id: internetID, pace: pace, meter: traffic.NewMeter("guest to c1", time.Second)},
	}
	c := newChurn(m)
	var ready atomic.Bool
	status := func() Status {
		s := Status{
			Ready: ready.Load(), UptimeSeconds: time.Since(start).Seconds(), DataBytes: len(m.all),
			PagesEdited: c.Pages.Load(), FreshBytes: c.Bytes.Load(),
		}
		for _, o := range own {
			s.Outgoing = append(s.Outgoing, o.meter.Snapshot())
		}
		return s
	}
	failed := make(chan error, 2)
	go func() { failed <- serveExchange(listeners[0], pace) }()
	go func() { failed <- serveWeb(listeners[1], listeners[2], cert, handler(status)) }()
	m.fill(func(done, of int) {
		if done%(of/10) == 0 {
			say("filled %d of %d MiB after %.1f s", done, of, time.Since(start).Seconds())
		}
	})
	for _, o := range own {
		go o.keep(ctx)
	}
	go c.run(ctx)
	ready.Store(true)
	say("ready")
	return <-failed
}
