// Package hypervisor talks to the programs that run virtual machines. Today
// that is QEMU, over its machine protocol (QMP): JSON lines on a Unix socket.
//
// A Client is one such connection. Commands are answered in order; events come
// in between and carry the hypervisor's own time stamps, so a machine's
// downtime is measured where it happened. Nothing here is needed for a move:
// announcements on the wire suffice. It is how a move is driven and measured.
package hypervisor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// maxLine bounds one message of the hypervisor in bytes; a longer one ends
	// the connection.
	maxLine = 1 << 20
	// eventQueue is how many events wait for a slow reader. When it is full the
	// newest event is dropped and counted in Dropped.
	eventQueue = 256
)

// ErrProtocol is wrapped by errors about messages that are not QMP.
var ErrProtocol = errors.New("not a QMP message")

// Event is something that happened in the hypervisor.
type Event struct {
	// Name is QMP's name of the event: STOP, RESUME, MIGRATION, …
	Name string
	// Time is when it happened, by the clock of the hypervisor's host.
	Time time.Time
	// Data are the event's fields as JSON; nil if it has none.
	Data json.RawMessage
}

// CommandError is the hypervisor's refusal of a command.
type CommandError struct {
	Command, Class, Text string
}

// Error says which command was refused and why, in the hypervisor's words.
func (e *CommandError) Error() string {
	return fmt.Sprintf("qmp: %s: %s (%s)", e.Command, e.Text, e.Class)
}

// Client is a QMP connection. It is safe for concurrent use; commands wait for
// one another.
type Client struct {
	conn   net.Conn
	events chan Event
	done   chan struct{}

	command sync.Mutex // held for one command and its answer

	mu      sync.Mutex
	nextID  uint64
	waiting map[uint64]chan message
	dropped uint64
	err     error // why the reader ended
}

// Dial connects to the QMP socket at path and negotiates. The socket must be
// free: QEMU serves one client at a time.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("qmp: %w", err)
	}
	c, err := NewClient(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("qmp: %s: %w", path, err)
	}
	return c, nil
}

// NewClient negotiates on conn, which it takes, also when it fails.
func NewClient(ctx context.Context, conn net.Conn) (*Client, error) {
	c := &Client{
		conn: conn, events: make(chan Event, eventQueue), done: make(chan struct{}),
		waiting: map[uint64]chan message{},
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	lines := bufio.NewReader(conn)
	line, err := readLine(lines)
	if !stop() || err != nil {
		conn.Close()
		return nil, errors.Join(ctx.Err(), err)
	}
	if m, err := parse(line); err != nil || m.Greeting == nil {
		conn.Close()
		return nil, fmt.Errorf("%w: no greeting", ErrProtocol)
	}
	go c.read(lines)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection; the machine keeps running. Pending commands fail
// with net.ErrClosed and the channel of Events is closed.
func (c *Client) Close() error {
	c.fail(net.ErrClosed)
	err := c.conn.Close()
	<-c.done
	return err
}

// Events returns the one channel on which events arrive, in order. It is closed
// when the connection ends. Events nobody takes are dropped beyond 256.
func (c *Client) Events() <-chan Event { return c.events }

// Dropped returns how many events were lost because nobody took them.
func (c *Client) Dropped() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dropped
}

// Execute runs a command with arguments (nil: none) and decodes what it returns
// into result (nil: ignored). A refusal is a *CommandError. If ctx ends first
// the command may still be carried out.
func (c *Client) Execute(ctx context.Context, command string, arguments, result any) error {
	c.command.Lock()
	defer c.command.Unlock()
	id, answer, err := c.expect()
	if err != nil {
		return err
	}
	defer c.forget(id)
	b, err := json.Marshal(request{Execute: command, Arguments: arguments, ID: id})
	if err != nil {
		return fmt.Errorf("qmp: %s: %w", command, err)
	}
	if _, err := c.conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("qmp: %s: %w", command, err)
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("qmp: %s: %w", command, ctx.Err())
	case <-c.done:
		return fmt.Errorf("qmp: %s: %w", command, c.ended())
	case m := <-answer:
		if m.Error != nil {
			return &CommandError{Command: command, Class: m.Error.Class, Text: m.Error.Desc}
		}
		if result == nil {
			return nil
		}
		if err := json.Unmarshal(m.Return, result); err != nil {
			return fmt.Errorf("qmp: %s: %w", command, err)
		}
		return nil
	}
}

// expect registers the next command and returns where its answer will arrive.
func (c *Client) expect() (uint64, chan message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.nextID++
	answer := make(chan message, 1)
	c.waiting[c.nextID] = answer
	return c.nextID, answer, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

// fail notes why the connection ended; the first reason counts.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
}

func (c *Client) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// read distributes messages until the connection ends.
func (c *Client) read(lines *bufio.Reader) {
	defer close(c.done)
	defer close(c.events)
	defer c.conn.Close()
	for {
		line, err := readLine(lines)
		if err != nil {
			c.fail(fmt.Errorf("qmp: connection ended: %w", err))
			return
		}
		m, err := parse(line)
		if err != nil {
			c.fail(fmt.Errorf("qmp: %w", err))
			return
		}
		c.deliver(m)
	}
}

// deliver hands m to whom it concerns; an answer nobody waits for any more is
// ignored.
func (c *Client) deliver(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.Event != "" {
		select {
		case c.events <- m.event():
		default:
			c.dropped++
		}
		return
	}
	if answer := c.waiting[m.ID]; answer != nil {
		delete(c.waiting, m.ID)
		answer <- m
	}
}

// request is a command on the wire.
type request struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}

// message is anything the hypervisor says.
type message struct {
	Greeting  json.RawMessage `json:"QMP"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID uint64 `json:"id"`
}

// event converts m, whose Event is set. QEMU writes -1 for a time it cannot
// tell; that is the zero time.
func (m message) event() Event {
	e := Event{Name: m.Event, Data: m.Data}
	if m.Timestamp.Seconds >= 0 && m.Timestamp.Microseconds >= 0 {
		e.Time = time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)
	}
	return e
}

// parse reads one line. Exactly one of greeting, event, return and error must be
// there. It borrows line.
func parse(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("%w: %v", ErrProtocol, err)
	}
	kinds := 0
	for _, is := range []bool{m.Greeting != nil, m.Event != "", m.Return != nil, m.Error != nil} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return m, fmt.Errorf("%w: %.80q", ErrProtocol, line)
	}
	return m, nil
}

// readLine returns the next line that is not blank, of at most maxLine bytes. It
// is good until the next call.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxLine:
			return nil, fmt.Errorf("%w: a line of more than %d bytes", ErrProtocol, maxLine)
		case err == bufio.ErrBufferFull:
			continue
		case err == io.EOF && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			return line, nil
		}
	}
}
