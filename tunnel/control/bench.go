package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// upgrade is the protocol a connection to POST /v1/bench turns into: the bytes of
// a stream to a service in the peer's agent (package far).
const upgrade = "stitch-bench"

// ErrBenchRefused is returned by Bench and Train when the agent, or the peer's, does
// not do it; the text says why.
var ErrBenchRefused = errors.New("cannot be measured")

// benchRefused is an ErrBenchRefused in the agent's own words.
type benchRefused string

func (e benchRefused) Error() string        { return string(e) }
func (e benchRefused) Is(target error) bool { return target == ErrBenchRefused }

// BenchLink is where a benchmark's datagrams go; for those that are packets of
// the link.
type BenchLink struct {
	// Device is the link's TUN, Local and Remote are its addresses.
	Device, Local, Remote string
}

// BenchFunc opens a stream to a service in the peer's agent and relays it, until
// it ends or ctx does. accept is called once the peer has agreed and returns the
// client's connection, which the BenchFunc then owns.
type BenchFunc func(ctx context.Context, peer, service string, accept func(BenchLink) (*net.UnixConn, error)) error

// serveBench answers POST /v1/bench?peer=P&service=S: the connection becomes the
// stream.
func serveBench(ctx context.Context, bench BenchFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != upgrade {
			http.Error(w, "ask for Upgrade: "+upgrade, http.StatusUpgradeRequired)
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stop := context.AfterFunc(r.Context(), cancel)
		defer stop()
		accepted := false
		accept := func(l BenchLink) (*net.UnixConn, error) {
			accepted = true
			stop() // from here on the client's end is seen on its connection
			return hijack(w, l)
		}
		if err := bench(ctx, r.FormValue("peer"), r.FormValue("service"), accept); err != nil && !accepted {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	}
}

// hijack takes the connection of a request over, and says so to its client.
func hijack(w http.ResponseWriter, l BenchLink) (*net.UnixConn, error) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	own, ok := c.(*peerConn)
	if !ok || rw.Reader.Buffered() > 0 { // it did not wait for the answer
		_ = c.Close()
		return nil, errors.New("bench: the client sent before it was told to")
	}
	own.release() // the place among the requests; from now on the agent counts it
	_ = own.SetDeadline(time.Time{})
	text := fmt.Sprintf("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\nStitch-Device: %s\r\nStitch-Local: %s\r\nStitch-Remote: %s\r\n\r\n",
		upgrade, l.Device, l.Local, l.Remote)
	if _, err := io.WriteString(own.UnixConn, text); err != nil {
		_ = own.Close()
		return nil, err
	}
	return own.UnixConn, nil
}

// Bench opens a stream to a service in the agent of peer; the stream process
// whose socket c is for relays it. What is written to the connection arrives
// there; CloseWrite ends that direction. The caller closes it.
func (c *Client) Bench(ctx context.Context, peer, service string) (*net.UnixConn, BenchLink, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.path)
	if err != nil {
		return nil, BenchLink{}, c.explain(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	l, err := c.askBench(conn, peer, service)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, BenchLink{}, err
	}
	return conn.(*net.UnixConn), l, nil
}

// askBench does the exchange that turns a connection into a stream.
func (c *Client) askBench(conn net.Conn, peer, service string) (l BenchLink, err error) {
	q := url.Values{"peer": {peer}, "service": {service}}
	_, err = fmt.Fprintf(conn, "POST /v1/bench?%s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 0\r\n\r\n", q.Encode(), Host, upgrade)
	if err != nil {
		return l, c.explain(err)
	}
	head, err := readHead(conn)
	if err != nil {
		return l, fmt.Errorf("%s: %w", c.path, err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.MultiReader(bytes.NewReader(head), conn)), nil)
	if err != nil {
		return l, fmt.Errorf("%s: %w", c.path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return BenchLink{resp.Header.Get("Stitch-Device"), resp.Header.Get("Stitch-Local"), resp.Header.Get("Stitch-Remote")}, nil
	}
	return l, c.refused(resp)
}

// readHead reads the head of an answer and not a byte more: what follows may be
// the service's.
func readHead(r io.Reader) (head []byte, err error) {
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		if len(head) == maxHeader {
			return nil, errors.New("the head of the answer is too long")
		}
		head = append(head, 0)
		if _, err := io.ReadFull(r, head[len(head)-1:]); err != nil {
			return nil, err
		}
	}
	return head, nil
}

// refused is the error of an answer that is none.
func (c *Client) refused(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxSeedLine))
	switch resp.StatusCode {
	case http.StatusConflict:
		return benchRefused(strings.TrimSpace(string(text)))
	case http.StatusNotFound:
		return fmt.Errorf("%w: %s: the agent that runs here cannot measure: restart it with this release", ErrBenchRefused, c.path)
	}
	return fmt.Errorf("%s: the agent answered %s: %s", c.path, resp.Status, strings.TrimSpace(string(text)))
}

// Train is the body of POST /v1/train, which the link process answers: send
// datagrams on a link at a pace, and say what arrived.
type Train struct {
	Peer string `json:"peer"`
	// Size is the length of what each carries in bytes: a message that crosses
	// whole if it fits into the link's MTU, and in parts as a frame would if not;
	// 0: the largest that crosses whole.
	Size int `json:"size"`
	// Rate is in bits of IP packets on the WAN per second; 0: nothing is sent but
	// the questions that time round trips.
	Rate int64 `json:"rate"`
	// Length is how long it sends, in nanoseconds.
	Length time.Duration `json:"length_ns"`
}

// TrainResult is what became of a Train: a wg.TrainResult.
type TrainResult struct {
	// Sent messages left here, of which Received arrived; WANSize is what each
	// takes on the WAN in bytes of IP packets.
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
	WANSize  int    `json:"wan_size"`
	// Took is how long the sending took, Span the time from the first arrival to
	// the last.
	Took time.Duration `json:"took_ns"`
	Span time.Duration `json:"span_ns"`
	// Jitter of the arrivals (RFC 3550).
	Jitter time.Duration `json:"jitter_ns"`
	// Asked and Answered are questions during the train, RTTs how long the answers
	// took, in the order they came.
	Asked    int             `json:"asked"`
	Answered int             `json:"answered"`
	RTTs     []time.Duration `json:"rtts_ns"`
}

// TrainFunc does a Train.
type TrainFunc func(context.Context, Train) (TrainResult, error)

// serveTrain answers POST /v1/train.
func serveTrain(train TrainFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req Train
		dec := json.NewDecoder(r.Body)
		dec.DisallowUnknownFields()
		if err := dec.Decode(&req); err != nil {
			http.Error(w, "not a train: "+err.Error(), http.StatusBadRequest)
			return
		}
		// It may take longer than other requests; it bounds itself.
		ctl := http.NewResponseController(w)
		_ = ctl.SetReadDeadline(time.Time{})
		_ = ctl.SetWriteDeadline(time.Time{})
		res, err := train(r.Context(), req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		_ = ctl.SetWriteDeadline(time.Now().Add(requestTimeout))
		reply(w, res)
	}
}

// Train asks the link process whose socket c is for to send a Train.
func (c *Client) Train(ctx context.Context, t Train) (res TrainResult, err error) {
	body, err := json.Marshal(t)
	if err != nil {
		return res, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+Host+"/v1/train", bytes.NewReader(body))
	if err != nil {
		return res, err
	}
	resp, err := c.patient().Do(req)
	if err != nil {
		return res, c.explain(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return res, c.refused(resp)
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&res)
	return res, err
}

// patient is a client for what takes long and bounds itself.
func (c *Client) patient() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", c.path)
	}}}
}
