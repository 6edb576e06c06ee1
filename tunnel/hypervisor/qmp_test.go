package hypervisor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}`

// fake is a QMP server at the other end of a pipe. answer gets each command
// after the negotiation and returns the lines to send.
type fake struct {
	conn   net.Conn
	seen   []string
	answer func(n int, command string, arguments json.RawMessage, id uint64) []string
}

func ok(id uint64, result string) string { return fmt.Sprintf(`{"return": %s, "id": %d}`, result, id) }

func (f *fake) serve() {
	defer f.conn.Close()
	if _, err := fmt.Fprintf(f.conn, "%s\r\n", greeting); err != nil {
		return
	}
	dec := json.NewDecoder(f.conn)
	for n := 0; ; n++ {
		var r struct {
			Execute   string
			Arguments json.RawMessage
			ID        uint64
		}
		if dec.Decode(&r) != nil {
			return
		}
		f.seen = append(f.seen, r.Execute+" "+string(r.Arguments))
		lines := []string{ok(r.ID, "{}")}
		if n > 0 {
			lines = f.answer(n, r.Execute, r.Arguments, r.ID)
		}
		for _, l := range lines {
			if l == "close" {
				return
			}
			if _, err := fmt.Fprintf(f.conn, "%s\r\n", l); err != nil {
				return
			}
		}
	}
}

// start returns a client connected to a fake.
func start(t *testing.T, answer func(n int, command string, arguments json.RawMessage, id uint64) []string) (*Client, *fake) {
	t.Helper()
	near, far := net.Pipe()
	f := &fake{conn: far, answer: answer}
	go f.serve()
	c, err := NewClient(t.Context(), near)
	if err != nil {
		t.Fatal(err)
	}
	return c, f
}

func TestExecuteReturnsEventsAndErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := start(t, func(n int, command string, _ json.RawMessage, id uint64) []string {
			if command == "stop" {
				return []string{`{"timestamp": {"seconds": 1700000000, "microseconds": 250000}, "event": "STOP"}`, ok(id, "{}")}
			}
			return []string{fmt.Sprintf(`{"id": %d, "error": {"class": "CommandNotFound", "desc": "no such command"}}`, id)}
		})
		defer c.Close()
		if err := c.Execute(t.Context(), "stop", nil, nil); err != nil {
			t.Fatal(err)
		}
		e := <-c.Events()
		if e.Name != "STOP" || !e.Time.Equal(time.Unix(1700000000, 250_000_000)) {
			t.Errorf("event %+v", e)
		}
		err := c.Execute(t.Context(), "dance", nil, nil)
		if ce, is := errors.AsType[*CommandError](err); !is || ce.Class != "CommandNotFound" || ce.Command != "dance" {
			t.Errorf("error %v", err)
		}
	})
}

func TestMigrateFollowsProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		states := []string{
			`{}`,
			`{"status": "setup"}`,
			`{"status": "active", "ram": {"transferred": 1000, "remaining": 500, "total": 1500, "mbps": 10.5}}`,
			`{"status": "completed", "total-time": 1234, "downtime": 55, "ram": {"transferred": 1600, "duplicate": 7}}`,
		}
		polls := 0
		c, f := start(t, func(n int, command string, _ json.RawMessage, id uint64) []string {
			if command != "query-migrate" {
				return []string{ok(id, "{}")}
			}
			polls++
			return []string{ok(id, states[polls-1])}
		})
		defer c.Close()
		if err := c.SetParameters(t.Context(), Parameters{MaxBandwidth: 1 << 40, DowntimeLimit: 300}); err != nil {
			t.Fatal(err)
		}
		if err := c.SetCapability(t.Context(), "events", true); err != nil {
			t.Fatal(err)
		}
		var seen []string
		p, err := c.Migrate(t.Context(), "tcp:10.2.0.10:4444", func(p Progress) { seen = append(seen, p.Status) })
		if err != nil {
			t.Fatal(err)
		}
		if p.TotalMillis != 1234 || p.DowntimeMillis != 55 || p.RAM.Transferred != 1600 || p.RAM.Duplicate != 7 {
			t.Errorf("progress %+v", p)
		}
		if want := []string{"", "setup", "active", "completed"}; !slices.Equal(seen, want) {
			t.Errorf("progress %q, want %q", seen, want)
		}
		want := []string{
			"qmp_capabilities ",
			`migrate-set-parameters {"max-bandwidth":1099511627776,"downtime-limit":300}`,
			`migrate-set-capabilities {"capabilities":[{"capability":"events","state":true}]}`,
			`migrate {"uri":"tcp:10.2.0.10:4444"}`,
		}
		if !slices.Equal(f.seen[:4], want) {
			t.Errorf("commands %q, want %q", f.seen[:4], want)
		}
	})
}

func TestMigrateReportsFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := start(t, func(n int, command string, _ json.RawMessage, id uint64) []string {
			if command == "migrate" {
				return []string{ok(id, "{}")}
			}
			return []string{ok(id, `{"status": "failed", "error-desc": "Connection refused"}`)}
		})
		defer c.Close()
		_, err := c.Migrate(t.Context(), "tcp:x:1", nil)
		if !errors.Is(err, ErrMigration) || !strings.Contains(err.Error(), "Connection refused") {
			t.Errorf("error %v", err)
		}
	})
}

func TestContextEndsAWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := start(t, func(int, string, json.RawMessage, uint64) []string { return nil })
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Execute(ctx, "query-status", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}

func TestServerThatGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := start(t, func(int, string, json.RawMessage, uint64) []string { return []string{"close"} })
		if err := c.Execute(t.Context(), "quit", nil, nil); err == nil {
			t.Error("no error")
		}
		if _, open := <-c.Events(); open {
			t.Error("the channel of events is open")
		}
		if err := c.Execute(t.Context(), "stop", nil, nil); err == nil {
			t.Error("no error after the end")
		}
	})
}

func TestClosedClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := start(t, func(int, string, json.RawMessage, uint64) []string { return nil })
		wait := make(chan error)
		go func() { wait <- c.Execute(t.Context(), "stop", nil, nil) }()
		synctest.Wait()
		c.Close()
		if err := <-wait; !errors.Is(err, net.ErrClosed) {
			t.Errorf("pending: %v", err)
		}
		if err := c.Execute(t.Context(), "stop", nil, nil); !errors.Is(err, net.ErrClosed) {
			t.Errorf("later: %v", err)
		}
	})
}

func TestEventsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := start(t, func(_ int, _ string, _ json.RawMessage, id uint64) []string {
			lines := slices.Repeat([]string{`{"event": "RTC_CHANGE", "timestamp": {"seconds": -1, "microseconds": -1}}`}, eventQueue+5)
			return append(lines, ok(id, "{}"))
		})
		defer c.Close()
		if err := c.Execute(t.Context(), "cont", nil, nil); err != nil {
			t.Fatal(err)
		}
		if c.Dropped() != 5 || len(c.Events()) != eventQueue {
			t.Errorf("dropped %d, kept %d", c.Dropped(), len(c.Events()))
		}
		if e := <-c.Events(); !e.Time.IsZero() {
			t.Errorf("unknown time became %v", e.Time)
		}
	})
}

func TestNegotiationFails(t *testing.T) {
	for name, line := range map[string]string{
		"not json":     "hello\r\n",
		"not greeting": `{"return": {}}` + "\r\n",
		"nothing":      "",
	} {
		near, far := net.Pipe()
		go func() {
			far.Write([]byte(line))
			far.Close()
		}()
		if _, err := NewClient(t.Context(), near); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestReadLineIsBounded(t *testing.T) {
	r := bufio.NewReader(strings.NewReader(strings.Repeat("x", maxLine+10) + "\n"))
	if _, err := readLine(r); !errors.Is(err, ErrProtocol) {
		t.Errorf("error %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(greeting))
	f.Add([]byte(`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}`))
	f.Add([]byte(`{"event": "MIGRATION", "data": {"status": "active"}, "timestamp": {"seconds": -1, "microseconds": -1}}`))
	f.Add([]byte(`{"return": {}, "id": 3}`))
	f.Add([]byte(`{"error": {"class": "GenericError", "desc": "x"}, "id": 3}`))
	f.Add([]byte(`{"return": {}, "event": "both"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Errorf("error %v", err)
			}
			return
		}
		if m.Event != "" {
			if e := m.event(); e.Name != m.Event || !bytes.Equal(e.Data, m.Data) {
				t.Errorf("%q became %+v", b, e)
			}
		}
	})
}
