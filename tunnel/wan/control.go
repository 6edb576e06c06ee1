package wan

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// The control socket speaks HTTP with JSON:
//
//	GET /v1/report   a Report
//	PUT /v1/path     a Path; changes its parameters; answers 204
//
// Errors are {"error": "..."} with status 400.

// maxMessage bounds a request and a response in bytes.
const maxMessage = 1 << 20

// serve answers on the control socket, if there is one, until the returned
// function is called.
func (e *Emulator) serve(wg *sync.WaitGroup) (end func()) {
	if e.listen == nil {
		return func() {}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/report", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(e.Report())
	})
	mux.HandleFunc("PUT /v1/path", func(w http.ResponseWriter, r *http.Request) {
		var p Path
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxMessage))
		dec.DisallowUnknownFields()
		err := dec.Decode(&p)
		if err == nil {
			err = e.Set(p)
		}
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	wg.Go(func() { _ = srv.Serve(e.listen) })
	return func() { _ = srv.Close() }
}

// Client talks to the control socket of a running Emulator. It is safe for
// concurrent use and keeps no connection.
type Client struct{ http http.Client }

// NewClient returns a client of the control socket at path. It does not
// connect yet.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{http.Client{Timeout: 10 * time.Second,
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Report reads all parameters and counters.
func (c *Client) Report(ctx context.Context) (Report, error) {
	var r Report
	body, err := c.do(ctx, http.MethodGet, "/v1/report", nil)
	if err == nil {
		err = json.Unmarshal(body, &r)
	}
	if err != nil {
		return Report{}, fmt.Errorf("wan: %w", err)
	}
	return r, nil
}

// Set changes the parameters of one path.
func (c *Client) Set(ctx context.Context, p Path) error {
	body, err := json.Marshal(p)
	if err == nil {
		_, err = c.do(ctx, http.MethodPut, "/v1/path", body)
	}
	if err != nil {
		return fmt.Errorf("wan: %w", err)
	}
	return nil
}

// Change reads the parameters of the paths between a and b, both ways, and
// sets what edit made of them.
func (c *Client) Change(ctx context.Context, a, b string, edit func(*Params)) error {
	r, err := c.Report(ctx)
	if err != nil {
		return err
	}
	for _, p := range r.Paths {
		if p.From == a && p.To == b || p.From == b && p.To == a {
			edit(&p.Params)
			if err := c.Set(ctx, p.Path); err != nil {
				return err
			}
		}
	}
	return nil
}

// Cut takes both directions between a and b down (every packet is dropped),
// or up again.
func (c *Client) Cut(ctx context.Context, a, b string, down bool) error {
	return c.Change(ctx, a, b, func(p *Params) { p.Down = down })
}

// do sends one request and returns the body of its answer.
func (c *Client) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://wan"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxMessage))
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(data))
	}
	return data, err
}
