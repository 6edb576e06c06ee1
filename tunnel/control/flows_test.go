package control

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestFlows(t *testing.T) {
	path := serve(t, Config{Status: fixed(Status{}), Flows: func() json.RawMessage { return json.RawMessage(`{"flows":[{"reason":1}]}`) }})
	got, err := NewClient(path).Flows(t.Context())
	if err != nil || strings.TrimSpace(string(got)) != `{"flows":[{"reason":1}]}` {
		t.Errorf("%s, %v", got, err)
	}
	for name, c := range map[string]struct{ request, want string }{
		"wrong method": {"POST /v1/flows HTTP/1.1\r\nHost: stitch\r\nContent-Length: 0\r\n\r\n", "405 "},
		"web page":     {"GET /v1/flows HTTP/1.1\r\nHost: stitch\r\nOrigin: http://evil.example\r\n\r\n", "403 "},
	} {
		if got := raw(t, path, c.request); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %.80q", name, got)
		}
	}
	none := serve(t, Config{Status: fixed(Status{})})
	if _, err := NewClient(none).Flows(t.Context()); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a process without flows: %v", err)
	}
	if _, err := NewClient(none + "-gone").Flows(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("nobody there: %v", err)
	}
}
