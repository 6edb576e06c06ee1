package stream_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/stream"
)

// file writes a file for one side and returns its name.
func file(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// seed seeds at a site and returns the last progress.
func (s *site) seed(t *testing.T, files ...string) (last stream.SeedProgress, err error) {
	err = s.proxy.Seed(context.Background(), "", "", files, func(p stream.SeedProgress) { last = p })
	return last, err
}

// TestSeed: after both sites have seeded an image its transfer costs next to
// nothing, whichever way; the control is an image that only one has.
func TestSeed(t *testing.T) {
	const size = 3<<20 + 12345
	image, other := text(1, size), text(2, size)
	image = append(image, make([]byte, 1<<20)...) // a hole
	here, there := file(t, "image", image), file(t, "copy", append(bytes.Clone(text(3, 1<<20)), image...))
	alone := file(t, "other", other)
	bubble(t, 20*time.Millisecond, func(w *world) {
		p, err := w.a.seed(t, here, alone)
		if err != nil || p.Common != 0 || p.Pieces != 4+4 || p.Hashed != p.Total || p.Total != int64(len(image)+len(other)) || p.Domain != "lab" || p.Peer != "dc2" {
			t.Fatalf("first: %+v, %v", p, err)
		}
		before := w.wire()
		p, err = w.b.seed(t, there)
		if err != nil || p.Common != 4 || p.Planted != 4 {
			t.Fatalf("second: %+v, %v", p, err)
		}
		if got := w.wire() - before; got > 16<<10 {
			t.Errorf("seeding took %d bytes on the link", got)
		}
		if got := w.crossed(4000, image[:3<<20]); got > 3<<20/100 {
			t.Errorf("the seeded image took %d bytes", got)
		}
		if got := w.crossed(4000, other); got < size/4 {
			t.Errorf("control: what only one site has took %d bytes", got)
		}
		before = w.wire()
		if p, err = w.a.seed(t, here); err != nil || p.Planted != 4 {
			t.Errorf("again: %+v, %v", p, err)
		}
		if got := w.wire() - before; got > 1<<10 {
			t.Errorf("seeding again took %d bytes on the link", got)
		}
		if p := w.a.proxy.Stats().Peers[0]; p.Resent != 0 || p.Restarts != 0 {
			t.Errorf("%+v", p)
		}
	})
}

// TestSeedBoth: two sites that seed at the same time share the work.
func TestSeedBoth(t *testing.T) {
	image := text(1, 5<<20)
	here, there := file(t, "a", image), file(t, "b", image)
	bubble(t, 20*time.Millisecond, func(w *world) {
		done := make(chan error, 2)
		for s, f := range map[*site]string{w.a: here, w.b: there} {
			go func() {
				_, err := s.seed(t, f)
				done <- err
			}()
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if got := w.crossed(4000, image); got > int64(len(image)/50) {
			t.Errorf("the image took %d bytes", got)
		}
	})
}

// TestSeedChanged: a file that changes between its hashing and its use harms
// nobody: not planted from our side, and never referred to from the peer's.
func TestSeedChanged(t *testing.T) {
	image := text(1, 3<<20)
	here, there := file(t, "a", image), file(t, "b", image)
	bubble(t, 20*time.Millisecond, func(w *world) {
		if _, err := w.a.seed(t, here); err != nil {
			t.Fatal(err)
		}
		changed := bytes.Clone(image)
		changed[1<<20+5] ^= 1
		os.WriteFile(here, changed, 0o600)
		p, err := w.b.seed(t, there)
		if err != nil || p.Common != 3 || p.Planted != 2 {
			t.Errorf("%+v, %v", p, err)
		}
		w.crossed(4000, image)
		c, s := w.split(4000)
		exchange(t, c, s, image, image)
		if p := w.a.proxy.Stats().Peers[0]; p.Resent != 0 || p.Reset != 0 {
			t.Errorf("%+v", p)
		}
	})
}

// TestSeedRestart: what a site was told of outlives its process if the history has a
// directory, but for files that are gone; a file that changed meanwhile is noticed
// when it is used. The control has no directory.
func TestSeedRestart(t *testing.T) {
	image, other := text(1, 3<<20), text(2, 2<<20)
	for _, c := range []struct {
		name            string
		dir, key        bool
		change          func(dir, here, gone string)
		common, planted int
	}{
		{"memory", false, false, nil, 0, 0},
		{"directory", true, false, nil, 3, 3},
		{"encrypted", true, true, nil, 3, 3},
		{"changed", true, true, func(_, here, _ string) {
			b := bytes.Clone(image)
			b[1<<20] ^= 1
			os.WriteFile(here, b, 0o600)
		}, 3, 2},
		{"damaged", true, false, func(dir, _, _ string) { os.Truncate(filepath.Join(dir, "dc2/lab/seeds"), 50) }, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			here, there := file(t, "image", image), file(t, "copy", append(bytes.Clone(image), other...))
			gone, dir := file(t, "gone", other), t.TempDir()
			bubble(t, 20*time.Millisecond, func(w *world) {
				if c.dir {
					w.a.cfg.History.Dir = dir
				}
				if c.key {
					w.a.cfg.History.Key = config.Key{1}
				}
				restart := func() {
					w.a.kill()
					time.Sleep(time.Second)
					w.a.start()
					time.Sleep(5 * time.Second)
				}
				restart()
				if p, err := w.a.seed(t, here, gone); err != nil || p.Pieces != 5 || p.Unsaved != "" {
					t.Fatalf("%+v, %v", p, err)
				}
				os.Remove(gone)
				if c.change != nil {
					c.change(dir, here, gone)
				}
				restart()
				p, err := w.b.seed(t, there)
				if err != nil || p.Common != c.common || p.Planted != c.planted {
					t.Errorf("%+v, %v", p, err)
				}
				before := w.crossed(4000, other)
				if got := w.crossed(4000, image[:1<<20]); (got < before/20) != (c.planted > 0) {
					t.Errorf("a planted piece took %d bytes", got)
				}
			})
		})
	}
}

// TestSeedUnsaved: a disk that takes no list of files is said, and nothing else.
func TestSeedUnsaved(t *testing.T) {
	dir := t.TempDir()
	here := file(t, "image", text(1, 2<<20))
	bubble(t, 20*time.Millisecond, func(w *world) {
		w.a.kill()
		w.a.cfg.History.Dir = dir
		w.a.start()
		time.Sleep(5 * time.Second)
		if err := os.Mkdir(filepath.Join(dir, "dc2/lab/seeds"), 0o700); err != nil {
			t.Fatal(err)
		}
		if p, err := w.a.seed(t, here); err != nil || p.Unsaved == "" {
			t.Errorf("%+v, %v", p, err)
		}
		if p, err := w.b.seed(t, here); err != nil || p.Planted != 2 {
			t.Errorf("%+v, %v", p, err)
		}
	})
}

func TestSeedRefused(t *testing.T) {
	bubble(t, 20*time.Millisecond, func(w *world) {
		good := file(t, "a", []byte("x"))
		for name, c := range map[string]struct {
			peer, domain, file string
			want               string
		}{
			"peer":      {"dc9", "", good, "lab with dc2"},
			"domain":    {"", "web", good, "lab with dc2"},
			"missing":   {"", "", good + "-not", "no such file"},
			"directory": {"", "", filepath.Dir(good), "not a regular file"},
			"relative":  {"", "", "a", "not an absolute path"},
		} {
			err := w.a.proxy.Seed(context.Background(), c.peer, c.domain, []string{c.file}, func(stream.SeedProgress) {})
			if !errors.Is(err, stream.ErrSeed) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		w.b.kill()
		time.Sleep(time.Second)
		if _, err := w.a.seed(t, good); err == nil || !strings.Contains(err.Error(), "remembered") {
			t.Errorf("no peer: %v", err)
		}
		w.b.start()
	})
}
