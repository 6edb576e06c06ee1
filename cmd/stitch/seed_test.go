package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stitch/tunnel/control"
)

// seedAgent answers on the stream process's socket in a run directory.
func seedAgent(t *testing.T, seed control.SeedFunc) (dir string) {
	t.Helper()
	dir = t.TempDir()
	s, err := control.Listen(control.Config{
		Path: filepath.Join(dir, control.StreamSocket), Seed: seed,
		Status: func(context.Context) control.Status { return control.Status{} },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return dir
}

func TestSeedCommand(t *testing.T) {
	file := filepath.Join(t.TempDir(), "image.raw")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	var asked control.SeedRequest
	answer, fail := control.SeedProgress{}, error(nil)
	dir := seedAgent(t, func(_ context.Context, r control.SeedRequest, report func(control.SeedProgress)) error {
		asked = r
		report(answer)
		return fail
	})
	for name, c := range map[string]struct {
		answer control.SeedProgress
		err    error
		code   int
		want   string
	}{
		"all":       {control.SeedProgress{Pieces: 3, Common: 3, Planted: 3, History: 1 << 30, Peer: "dc2", Domain: "m"}, nil, 0, "3 pieces of 1 MiB, 3 of them at both sites, 3 in the history\n"},
		"first":     {control.SeedProgress{Pieces: 3, History: 1 << 30, Peer: "dc2"}, nil, 0, "3 pieces are not known at dc2: run `stitch seed` there"},
		"changed":   {control.SeedProgress{Pieces: 3, Common: 3, Planted: 2, History: 1 << 30, Peer: "dc2"}, nil, 0, "1 pieces could not be planted"},
		"too large": {control.SeedProgress{Pieces: 3, Common: 3, Planted: 3, History: 2 << 20, Peer: "dc2"}, nil, 0, "the history holds 2 MiB"},
		"failed":    {control.SeedProgress{}, errors.New("there is no such domain"), 1, "stitch: there is no such domain\n"},
	} {
		answer, fail = c.answer, c.err
		code, stdout, stderr := stitch("seed", "--run-dir", dir, "--domain", "m", "--peer", "dc2", file)
		if code != c.code || !strings.Contains(stdout+stderr, c.want) || asked.Domain != "m" || asked.Peer != "dc2" || asked.Files[0] != file {
			t.Errorf("%s: %d, %q, %q; asked %+v", name, code, stdout, stderr, asked)
		}
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no file":    {nil, "FILE is missing"},
		"not there":  {[]string{file + "-not"}, "no such file"},
		"no file 2":  {[]string{filepath.Dir(file)}, "is not a regular file"},
		"no agent":   {[]string{"--run-dir", t.TempDir(), file}, "no agent is running"},
		"two agents": {[]string{"--run-dir", "x", "--site", "y", file}, "choose one of"},
	} {
		if code, _, stderr := stitch(append([]string{"seed"}, c.args...)...); code == 0 || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: %d, %q", name, code, stderr)
		}
	}
}
