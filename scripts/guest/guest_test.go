package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"stitch/scripts/traffic"
)

// sample fills a small memory of three chunks a part.
func sample() *memory {
	b := make([]byte, 9*chunk)
	m := &memory{text: b[:3*chunk], pages: b[3*chunk : 6*chunk], random: b[6*chunk:], all: b}
	m.fill(func(int, int) {})
	return m
}

func TestMemoryIsTheSameAtEveryBoot(t *testing.T) {
	m := sample()
	golden := map[string]string{
		"text":   "d3db0f9c064f2552",
		"pages":  "0f1ff3ab48af788c",
		"random": "051db6798b61de95",
	}
	for name, b := range map[string][]byte{"text": m.text, "pages": m.pages, "random": m.random} {
		sum := sha256.Sum256(b)
		if got := hex.EncodeToString(sum[:8]); got != golden[name] {
			t.Errorf("%s: %s, want %s", name, got, golden[name])
		}
	}
}

// TestCompressesLikeRealData keeps the generators honest: neither noise nor a
// repeated phrase.
func TestCompressesLikeRealData(t *testing.T) {
	m := sample()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		b        []byte
		low, top float64
	}{{"text", m.text, 2.8, 4.5}, {"pages", m.pages, 2.5, 4.5}, {"random", m.random, 0.99, 1.01}} {
		ratio := float64(len(c.b)) / float64(len(enc.EncodeAll(c.b, nil)))
		t.Logf("%s: %.2f", c.name, ratio)
		if ratio < c.low || ratio > c.top {
			t.Errorf("%s compresses %.2f times, want %.1f to %.1f", c.name, ratio, c.low, c.top)
		}
	}
}

func TestCanaryIsAllOverTheMemory(t *testing.T) {
	m := sample()
	for name, b := range map[string][]byte{"text": m.text, "pages": m.pages} {
		if n := bytes.Count(b, []byte(traffic.Canary)); n < 64 {
			t.Errorf("%s: canary %d times in 3 MiB, want at least 64", name, n)
		}
	}
}

func TestPagesAreWellFormed(t *testing.T) {
	m := sample()
	for at := 0; at < len(m.pages); at += dbPage {
		b := m.pages[at : at+dbPage]
		lower, upper := int(binary.LittleEndian.Uint16(b[12:])), int(binary.LittleEndian.Uint16(b[14:]))
		if lower < dbHeader+dbItem || upper < lower || upper > dbPage {
			t.Fatalf("page at %d: lower %d, upper %d", at, lower, upper)
		}
		for i := dbHeader; i < lower; i += dbItem {
			item := binary.LittleEndian.Uint32(b[i:])
			if off, n := int(item&0x7fff), int(item>>17); off < upper || n < dbTuple || off+n > dbPage {
				t.Fatalf("page at %d: item %d is %d bytes at %d", at, (i-dbHeader)/dbItem, n, off)
			}
		}
	}
}

func TestChurnKeepsItsRates(t *testing.T) {
	m := sample()
	before := bytes.Clone(m.all)
	c := newChurn(m)
	for range 100 {
		c.step(10 * time.Millisecond)
	}
	if p := c.Pages.Load(); p < 999 || p > 1000 {
		t.Errorf("%d edits in a second, want 1000", p)
	}
	if b := c.Bytes.Load(); b < freshPerSecond-1 || b > freshPerSecond {
		t.Errorf("%d fresh bytes in a second, want %d", b, freshPerSecond)
	}
	changed := 0
	for at := 0; at < len(before); at += page {
		if !bytes.Equal(before[at:at+page], m.all[at:at+page]) {
			changed++
		}
	}
	if changed < 700 || changed > 1020 { // some of the 2,304 pages are hit twice
		t.Errorf("%d pages changed", changed)
	}
	if err := sampleAround(c, m); err != nil {
		t.Error(err)
	}
}

// sampleAround lets the fresh bytes go round the random part.
func sampleAround(c *churn, m *memory) error {
	for range 3 * len(m.random) / freshPerSecond {
		if c.step(time.Second); c.at < 0 || c.at >= len(m.random) {
			return fmt.Errorf("the ring is at %d of %d", c.at, len(m.random))
		}
	}
	return nil
}

func TestWebServesDerivableBytes(t *testing.T) {
	h := handler(func() Status { return Status{Ready: true} })
	for _, c := range []struct {
		path string
		code int
		n    int
		id   uint64
		off  uint64
	}{
		{"/bytes?id=7&offset=100&bytes=5000", http.StatusOK, 5000, 7, 100},
		{"/download?id=8&bytes=100000", http.StatusOK, 100000, 8, 0},
		{"/download?id=8&bytes=900&rate=1000000", http.StatusOK, 900, 8, 0},
		{"/bytes?bytes=1048577", http.StatusBadRequest, -1, 0, 0},
		{"/bytes?bytes=-1", http.StatusBadRequest, -1, 0, 0},
		{"/download?bytes=1073741825", http.StatusBadRequest, -1, 0, 0},
		{"/nothing", http.StatusNotFound, -1, 0, 0},
		{"/", http.StatusOK, -1, 0, 0},
		{"/status", http.StatusOK, -1, 0, 0},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, c.path, nil))
		if w.Code != c.code {
			t.Errorf("%s: status %d, want %d", c.path, w.Code, c.code)
		}
		if c.n < 0 {
			continue
		}
		if b := w.Body.Bytes(); len(b) != c.n || traffic.Check(b, c.id, traffic.Answer, c.off) >= 0 {
			t.Errorf("%s: %d bytes, or wrong ones", c.path, len(b))
		}
	}
}

// TestHurryEndsPacing would last for ever if it did not.
func TestHurryEndsPacing(t *testing.T) {
	h := handler(func() Status { return Status{} })
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/hurry", nil))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/download?id=8&bytes=20000&rate=10", nil))
	if b := w.Body.Bytes(); len(b) != 20000 || traffic.Check(b, 8, traffic.Answer, 0) >= 0 {
		t.Errorf("%d bytes, or wrong ones", len(b))
	}
}
