package control

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestSeed(t *testing.T) {
	want := SeedRequest{Peer: "dc2", Domain: "migration", Files: []string{"/a", "/b"}}
	var asked SeedRequest
	path := serve(t, Config{Status: fixed(Status{}), Seed: func(_ context.Context, r SeedRequest, report func(SeedProgress)) error {
		asked = r
		for i := range 1000 {
			report(SeedProgress{Hashed: int64(i), Total: 1000})
		}
		if r.Domain == "none" {
			return errors.New("no such domain")
		}
		report(SeedProgress{Hashed: 1000, Total: 1000, Planted: 7})
		return nil
	}})
	lines := 0
	got, err := NewClient(path).Seed(t.Context(), want, func(SeedProgress) { lines++ })
	if err != nil || got.Planted != 7 || !reflect.DeepEqual(asked, want) {
		t.Errorf("%+v, %v; asked %+v", got, err, asked)
	}
	if lines == 0 || lines > 100 {
		t.Errorf("%d lines of progress for 1000 reports", lines)
	}
	want.Domain = "none"
	if got, err := NewClient(path).Seed(t.Context(), want, func(SeedProgress) {}); err == nil || err.Error() != "no such domain" || got.Hashed != 999 {
		t.Errorf("%+v, %v", got, err)
	}
	want.Files = nil
	if _, err := NewClient(path).Seed(t.Context(), want, nil); err == nil || !strings.Contains(err.Error(), "name 1 to") {
		t.Errorf("no files: %v", err)
	}
	for name, c := range map[string]struct{ request, want string }{
		"unknown field": {"POST /v1/seed HTTP/1.1\r\nHost: stitch\r\nContent-Length: 9\r\n\r\n{\"x\":\"y\"}", "400 not a seed request"},
		"wrong method":  {"GET /v1/seed HTTP/1.1\r\nHost: stitch\r\n\r\n", "405 "},
		"web page":      {"POST /v1/seed HTTP/1.1\r\nHost: stitch\r\nOrigin: http://evil.example\r\nContent-Length: 0\r\n\r\n", "403 "},
	} {
		if got := raw(t, path, c.request); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %.80q", name, got)
		}
	}
}

// TestSeedCancelled: who no longer waits for a seed ends it.
func TestSeedCancelled(t *testing.T) {
	ended := make(chan struct{})
	path := serve(t, Config{Status: fixed(Status{}), Seed: func(ctx context.Context, _ SeedRequest, report func(SeedProgress)) error {
		report(SeedProgress{})
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := NewClient(path).Seed(ctx, SeedRequest{Files: []string{"/a"}}, func(SeedProgress) { cancel() })
	if err == nil {
		t.Error("no error")
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the seed goes on")
	}
}

func TestReadSeedBroken(t *testing.T) {
	for _, text := range []string{"", "{", "{\"hashed\":1}\n", strings.Repeat("x", maxSeedLine+1)} {
		if _, err := readSeed(strings.NewReader(text), func(SeedProgress) {}); err == nil {
			t.Errorf("%.20q is taken", text)
		}
	}
}
