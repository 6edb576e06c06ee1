package bench

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// TestSources holds that typical data is the same every time and compresses,
// that random data is neither, and that a file is sent as it is.
func TestSources(t *testing.T) {
	s, err := newSources(Config{Rate: 8e6, Length: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	read := func(kind string) []byte {
		t.Helper()
		b, err := io.ReadAll(s.open(kind))
		if err != nil {
			t.Fatal(err)
		}
		if len(b) != 2e6 {
			t.Fatalf("%s: %d bytes, want 2 s at 8 Mbit/s", kind, len(b))
		}
		return b
	}
	if !bytes.Equal(read(Typical), read(Repeated)) {
		t.Error("sent again is not what was sent")
	}
	if bytes.Equal(read(Random), read(Random)) {
		t.Error("incompressible data is the same twice")
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	ratio := func(kind string) float64 { return float64(len(enc.EncodeAll(read(kind), nil))) / 2e6 }
	if r := ratio(Typical); r < 0.2 || r > 0.5 {
		t.Errorf("typical data is compressed to %.2f", r)
	}
	if r := ratio(Random); r < 0.99 {
		t.Errorf("incompressible data is compressed to %.2f", r)
	}
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte("its bytes"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = newSources(Config{Rate: 8e6, Length: time.Second, File: name}); err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(s.open(Typical)); string(b) != "its bytes" {
		t.Errorf("a file is sent as %q", b)
	}
}
