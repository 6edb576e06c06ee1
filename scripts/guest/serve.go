package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"stitch/scripts/traffic"
)

const (
	pagePath     = "/"
	statusPath   = "/status"
	downloadPath = "/download"
	bytesPath    = "/bytes"
	hurryPath    = "/hurry"
	// maxDownload bounds one download, maxRate its speed in bytes a second.
	maxDownload = 1 << 30
	maxRate     = 1 << 30
	// downloadTick is how often a paced download sends.
	downloadTick = 100 * time.Millisecond
)

// handler is the web server of the guest.
func handler(status func() Status) http.Handler {
	d := downloads{hurry: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc(pagePath, servePage)
	mux.HandleFunc(downloadPath, d.serve)
	mux.HandleFunc(bytesPath, serveBytes)
	mux.HandleFunc(hurryPath, func(http.ResponseWriter, *http.Request) { d.once.Do(func() { close(d.hurry) }) })
	mux.HandleFunc(statusPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(status())
	})
	return mux
}

func servePage(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != pagePath {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, "<!doctype html><title>app</title><h1>It works</h1><p>You are %s, I am %s.</p>\n",
		r.RemoteAddr, r.Context().Value(http.LocalAddrContextKey))
}

// span is what a request asks for: bytes [off, off+n) of an answer stream.
type span struct{ id, off, n, rate uint64 }

// parseSpan reads the query parameters id, offset, bytes and rate.
func parseSpan(r *http.Request, most uint64) (span, error) {
	var s span
	for _, f := range []struct {
		name string
		to   *uint64
		most uint64
	}{{"id", &s.id, 1 << 62}, {"offset", &s.off, 1 << 62}, {"bytes", &s.n, most}, {"rate", &s.rate, maxRate}} {
		text := r.URL.Query().Get(f.name)
		if text == "" {
			continue
		}
		v, err := strconv.ParseUint(text, 10, 64)
		if err != nil || v > f.most {
			return s, fmt.Errorf("%s: %q is not a number up to %d", f.name, text, f.most)
		}
		*f.to = v
	}
	return s, nil
}

// serveBytes answers with a span of up to 1 MiB at once.
func serveBytes(w http.ResponseWriter, r *http.Request) {
	s, err := parseSpan(r, traffic.MaxBody)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	b := make([]byte, s.n)
	traffic.Fill(b, s.id, traffic.Answer, s.off)
	_, _ = w.Write(b)
}

// downloads serves paced downloads. Once hurry is closed, by a request for
// hurryPath, pacing ends: a download can so be made to last exactly as long as
// what it has to live through.
type downloads struct {
	once  sync.Once
	hurry chan struct{}
}

// serve sends a span at the rate asked for, in bytes a second; without a rate as
// fast as the connection takes it.
func (d *downloads) serve(w http.ResponseWriter, r *http.Request) {
	s, err := parseSpan(r, maxDownload)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatUint(s.n, 10))
	step := uint64(64 << 10)
	if s.rate > 0 {
		step = max(1, s.rate*uint64(downloadTick)/uint64(time.Second))
	}
	tick := time.NewTicker(downloadTick)
	defer tick.Stop()
	b := make([]byte, step)
	for sent := uint64(0); sent < s.n; {
		n := min(step, s.n-sent)
		traffic.Fill(b[:n], s.id, traffic.Answer, s.off+sent)
		if _, err := w.Write(b[:n]); err != nil {
			return
		}
		sent += n
		if s.rate == 0 {
			continue
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-d.hurry:
		case <-tick.C:
		}
	}
}

// serveWeb serves HTTP on plain and HTTPS on secure until either fails.
func serveWeb(plain, secure net.Listener, cert tls.Certificate, h http.Handler) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: time.Minute,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13},
	}
	failed := make(chan error, 2)
	go func() { failed <- srv.Serve(plain) }()
	go func() { failed <- srv.ServeTLS(secure, "", "") }()
	return <-failed
}

// serveExchange answers the checked exchange on ln until it fails.
func serveExchange(ln net.Listener, pace time.Duration) error {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			meter := traffic.NewMeter(conn.RemoteAddr().String(), time.Second)
			if err := traffic.ServeConn(conn, meter, pace); err != nil && err != io.EOF {
				say("connection of %s: %v", conn.RemoteAddr(), err)
			}
		}()
	}
}
