package stream

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var seedKey = bytes.Repeat([]byte{7}, 32)

// someSeeds are the pieces of some files, n in all.
func someSeeds(r *rand.Rand, n int) map[digest]place {
	known := make(map[digest]place)
	for file := 0; len(known) < n; file++ {
		name := fmt.Sprintf("/images/%d", file)
		for i := int64(0); len(known) < n && r.IntN(50) > 0; i += 1 + r.Int64N(3) {
			var d digest
			for k := range d {
				d[k] = byte(r.Uint32())
			}
			at := place{file: name, offset: i * pieceSize, size: pieceSize}
			if r.IntN(10) == 0 {
				at.size = 1 + r.IntN(pieceSize)
			}
			known[d] = at
		}
	}
	return known
}

func seedBytes(t testing.TB, known map[digest]place, key []byte) []byte {
	t.Helper()
	b, err := appendSeeds(nil, known, [16]byte{1, 2, 3}, key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGoldenSeeds(t *testing.T) {
	known := map[digest]place{
		{1}: {"/images/a", 0, pieceSize}, {2}: {"/images/a", 3 * pieceSize, 1000}, {3}: {"/images/b", pieceSize, pieceSize},
	}
	golden(t, "seeds", seedBytes(t, known, nil))
	golden(t, "seeds-encrypted", seedBytes(t, known, seedKey))
}

// TestSeedFile: what was written is read, and what was damaged, cut or written with
// another key is not.
func TestSeedFile(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	flips := 1000
	if os.Getenv("STITCH_LONG") != "" {
		flips = 10_000
	}
	for _, key := range [][]byte{nil, seedKey} {
		for _, n := range []int{0, 1, 100, maxPieces} {
			known := someSeeds(r, n)
			b := seedBytes(t, known, key)
			if got, err := parseSeeds(bytes.Clone(b), key); err != nil || !maps.Equal(got, known) {
				t.Fatalf("%d pieces of %d, %v", len(got), n, err)
			}
			if len(b) > maxSeedFile {
				t.Errorf("%d pieces have %d bytes", n, len(b))
			}
		}
		b := seedBytes(t, someSeeds(r, 100), key)
		for range flips {
			bad := bytes.Clone(b)
			bit := r.IntN(8 * len(bad))
			bad[bit/8] ^= 1 << (bit % 8)
			if _, err := parseSeeds(bad, key); err == nil {
				t.Fatalf("bit %d went unnoticed", bit)
			}
			if _, err := parseSeeds(bytes.Clone(b[:r.IntN(len(b))]), key); err == nil {
				t.Fatal("a part was taken for the whole")
			}
		}
		for _, other := range [][]byte{nil, seedKey, bytes.Repeat([]byte{8}, 32)} {
			if _, err := parseSeeds(bytes.Clone(b), other); (err == nil) != bytes.Equal(key, other) {
				t.Errorf("key %x instead of %x: %v", other, key, err)
			}
		}
		if key != nil && bytes.Contains(b, []byte("/images/")) {
			t.Error("names can be read")
		}
	}
	newer := seedBytes(t, nil, nil)
	newer[8]++
	sum := sha256.Sum256(newer[:len(newer)-seedSumLen])
	copy(newer[len(newer)-seedSumLen:], sum[:])
	if _, err := parseSeeds(newer, nil); !errors.Is(err, errSeedNewer) {
		t.Error(err)
	}
	long := make(map[digest]place)
	for i := range maxSeedNames/maxSeedName + 1 {
		long[digest{byte(i), byte(i >> 8)}] = place{fmt.Sprint("/", i, strings.Repeat("x", maxSeedName)), 0, 1}
	}
	if _, err := appendSeeds(nil, long, [16]byte{}, nil); !errors.Is(err, errSeedNames) {
		t.Error(err)
	}
}

// TestSeedFileWrites: the file is replaced as a whole, what a process that died left
// is no hindrance, and no link is followed.
func TestSeedFileWrites(t *testing.T) {
	dir := t.TempDir()
	if known, err := readSeeds(dir, nil); err != nil || len(known) > 0 {
		t.Errorf("none: %v", err)
	}
	r := rand.New(rand.NewPCG(2, 2))
	for range 3 {
		known := someSeeds(r, 20)
		b := seedBytes(t, known, nil)
		if err := os.WriteFile(filepath.Join(dir, seedFile+".new"), b[:r.IntN(len(b))], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := writeSeeds(dir, b); err != nil {
			t.Fatal(err)
		}
		if got, err := readSeeds(dir, nil); err != nil || !maps.Equal(got, known) {
			t.Fatalf("%d pieces, %v", len(got), err)
		}
		if fi, err := os.Stat(filepath.Join(dir, seedFile)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", fi, err)
		}
	}
	elsewhere := filepath.Join(t.TempDir(), "precious")
	for name, do := range map[string]func() error{
		seedFile:          func() error { _, err := readSeeds(dir, nil); return err },
		seedFile + ".new": func() error { return cmpErr(writeSeeds(dir, []byte("x")), errSeedFile) },
	} {
		if err := os.WriteFile(elsewhere, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(filepath.Join(dir, name))
		if err := os.Symlink(elsewhere, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if err := do(); err == nil {
			t.Errorf("%s: a link was followed", name)
		}
		if b, err := os.ReadFile(elsewhere); err != nil || string(b) != "precious" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

// FuzzSeeds gives the parser any body behind good checksums: what it takes comes out
// the same when written and read again.
func FuzzSeeds(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 3))
	for _, n := range []int{0, 1, 5} {
		b := seedBytes(f, someSeeds(r, n), nil)
		f.Add(b[seedHead : len(b)-seedSumLen])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		known, err := parseSeedBody(body)
		if err != nil {
			return
		}
		for _, at := range known {
			if at.file == "" || at.size < 1 || at.size > pieceSize || at.offset < 0 || at.offset%pieceSize != 0 {
				t.Fatalf("%+v", at)
			}
		}
		again, err := parseSeeds(seedBytes(t, known, seedKey), seedKey)
		if err != nil || !maps.Equal(again, known) {
			t.Fatalf("%d pieces of %d, %v", len(again), len(known), err)
		}
	})
}
