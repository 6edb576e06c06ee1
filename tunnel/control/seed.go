package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// SeedRequest is the body of POST /v1/seed, which the stream process answers:
// put files into a history without sending them.
type SeedRequest struct {
	// Peer and Domain say into which history; empty if there is only one.
	Peer   string `json:"peer"`
	Domain string `json:"domain"`
	// Files are absolute paths on the agent's machine. The agent reads them with
	// its own rights.
	Files []string `json:"files"`
}

// SeedProgress says how far a seed is: a stream.SeedProgress.
type SeedProgress struct {
	Total   int64  `json:"total"`
	Hashed  int64  `json:"hashed"`
	Pieces  int    `json:"pieces"`
	Offered int    `json:"offered"`
	Common  int    `json:"common"`
	Planted int    `json:"planted"`
	History int64  `json:"history"`
	Unsaved string `json:"unsaved,omitempty"`
	Peer    string `json:"peer"`
	Domain  string `json:"domain"`
}

// seedLine is one line of the answer; the last one has Done or Error.
type seedLine struct {
	SeedProgress
	Done  bool   `json:"done,omitempty"`
	Error string `json:"error,omitempty"`
}

// SeedFunc does a seed. report is called from one goroutine at a time.
type SeedFunc func(ctx context.Context, r SeedRequest, report func(SeedProgress)) error

const (
	// seedEvery is the pause between two lines of progress.
	seedEvery = 200 * time.Millisecond
	// maxSeedFiles bounds the files of one request, maxSeedLine a line of its
	// answer.
	maxSeedFiles = 1024
	maxSeedLine  = 64 << 10
)

// serveSeed answers POST /v1/seed with lines of JSON.
func serveSeed(seed SeedFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req SeedRequest
		dec := json.NewDecoder(r.Body)
		dec.DisallowUnknownFields()
		if err := dec.Decode(&req); err != nil {
			http.Error(w, "not a seed request: "+err.Error(), http.StatusBadRequest)
			return
		}
		if len(req.Files) == 0 || len(req.Files) > maxSeedFiles {
			http.Error(w, fmt.Sprintf("%d files: name 1 to %d", len(req.Files), maxSeedFiles), http.StatusBadRequest)
			return
		}
		a := seedAnswer{enc: json.NewEncoder(w), ctl: http.NewResponseController(w)}
		w.Header().Set("Content-Type", "application/x-ndjson")
		_ = a.ctl.SetReadDeadline(time.Time{}) // the request is read; its client may wait long
		err := seed(r.Context(), req, a.report)
		last := seedLine{SeedProgress: a.last, Done: err == nil}
		if err != nil {
			last.Error = err.Error()
		}
		a.write(last)
	}
}

// seedAnswer writes lines, not more often than seedEvery.
type seedAnswer struct {
	enc   *json.Encoder
	ctl   *http.ResponseController
	last  SeedProgress
	wrote time.Time
}

func (a *seedAnswer) report(p SeedProgress) {
	a.last = p
	if time.Since(a.wrote) >= seedEvery {
		a.write(seedLine{SeedProgress: p})
	}
}

// write writes a line; a client that does not take it is cut off, which ends
// the request's context.
func (a *seedAnswer) write(l seedLine) {
	a.wrote = time.Now()
	_ = a.ctl.SetWriteDeadline(a.wrote.Add(requestTimeout))
	_ = a.enc.Encode(l)
	_ = a.ctl.Flush()
}

// Seed asks the stream process whose socket c is for to seed, and returns when
// it is done or ctx ends. report hears of the progress.
func (c *Client) Seed(ctx context.Context, r SeedRequest, report func(SeedProgress)) (SeedProgress, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return SeedProgress{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+Host+"/v1/seed", bytes.NewReader(body))
	if err != nil {
		return SeedProgress{}, err
	}
	resp, err := c.patient().Do(req)
	if err != nil {
		return SeedProgress{}, c.explain(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxSeedLine))
		return SeedProgress{}, fmt.Errorf("%s: the agent answered %s: %s", c.path, resp.Status, strings.TrimSpace(string(text)))
	}
	return readSeed(resp.Body, report)
}

// readSeed reads the lines of an answer up to the last one.
func readSeed(r io.Reader, report func(SeedProgress)) (last SeedProgress, err error) {
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxSeedLine)
	for in.Scan() {
		var l seedLine
		if err := json.Unmarshal(in.Bytes(), &l); err != nil {
			return last, fmt.Errorf("not a line of progress: %w", err)
		}
		last = l.SeedProgress
		switch {
		case l.Error != "":
			return last, errors.New(l.Error)
		case l.Done:
			return last, nil
		}
		report(last)
	}
	return last, fmt.Errorf("the agent ended in the middle: %w", errors.Join(in.Err(), io.ErrUnexpectedEOF))
}
