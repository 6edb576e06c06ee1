package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// maxAnswer is the largest answer a Client reads in bytes.
const maxAnswer = 16 << 20

// ErrNotRunning is returned by a Client when nobody serves its socket.
var ErrNotRunning = errors.New("no agent is running")

// Client asks one socket. It is safe for concurrent use.
type Client struct {
	path string
	http *http.Client
}

// NewClient returns a client for the socket at path. It opens nothing yet and
// keeps nothing open between calls.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	return &Client{path: path, http: &http.Client{
		Timeout:   2 * requestTimeout,
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true, ResponseHeaderTimeout: requestTimeout},
	}}
}

// Status returns what the agent says about itself. The error is ErrNotRunning
// when there is none, os.ErrPermission when this user may not ask it.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	data, err := c.get(ctx, "status")
	if err != nil {
		return nil, err
	}
	var s Status
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("%s: not a status: %w", c.path, err)
	}
	return &s, nil
}

// Flows returns what the stream process says of the connections that cross the
// links, a stream.FlowList. Errors are as Status'.
func (c *Client) Flows(ctx context.Context) (json.RawMessage, error) { return c.get(ctx, "flows") }

// get returns the answer to a question.
func (c *Client) get(ctx context.Context, what string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+Host+"/v1/"+what, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", c.path, err)
	case len(data) > maxAnswer:
		return nil, fmt.Errorf("%s: the answer is larger than %d bytes", c.path, maxAnswer)
	case resp.StatusCode == http.StatusForbidden:
		return nil, fmt.Errorf("%s: %w: %s", c.path, os.ErrPermission, strings.TrimSpace(string(data)))
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: the agent answered %s", c.path, resp.Status)
	}
	return data, nil
}

// explain says what a failed connection means.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s: %w", c.path, ErrNotRunning)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s: %w: run as root", c.path, os.ErrPermission)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: no answer within %v", c.path, 2*requestTimeout)
	}
	return fmt.Errorf("%s: %w", c.path, err)
}

// Child is a process asked by Collect.
type Child struct {
	Name string // for alarms
	Path string // of its socket
}

// Collect asks the children at once, merges their answers into s in the order
// given, and returns how many answered. One that does not answer within
// timeout becomes an alarm.
func Collect(ctx context.Context, s *Status, timeout time.Duration, children []Child) (answered int) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	parts := make([]*Status, len(children))
	var wg sync.WaitGroup
	for i, c := range children {
		wg.Go(func() { parts[i], _ = NewClient(c.Path).Status(ctx) })
	}
	wg.Wait()
	for i, part := range parts {
		if part == nil {
			s.Alarms = append(s.Alarms, "the "+children[i].Name+" process does not answer")
			continue
		}
		answered++
		s.Merge(part)
	}
	return answered
}
