package block_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"

	"stitch/dedupe"
	"stitch/tunnel/stream/block"
	"stitch/tunnel/stream/block/blocktest"
)

// TestFlips flips every bit of some bodies: an error, a miss, or the same
// bytes.
func TestFlips(t *testing.T) {
	m := newMaterial(4)
	one, two := m.block(1000), m.block(400)
	h := dedupe.NewHistory(small)
	for _, l := range levels {
		a := blocktest.NewAgents(small)
		enc := pinned(a.A, 1, l)
		first := enc.Append(nil, one)
		second := enc.Append(nil, append(bytes.Clone(two), one[100:900]...))
		want := append(bytes.Clone(two), one[100:900]...)
		for i := range 8 * len(second) {
			bad := bytes.Clone(second)
			bad[i/8] ^= 1 << (i % 8)
			dec := newDecoder(h, 1)
			if _, err := dec.Decode(nil, first); err != nil {
				t.Fatal(err)
			}
			got, err := dec.Decode(nil, bad)
			if err == nil && !bytes.Equal(got, want) || err != nil && len(got) > 0 {
				t.Fatalf("level %d: bit %d flipped: %d bytes, %v", l, i, len(got), err)
			}
		}
	}
}

// TestFlipsInContext flips one bit in each of 1,000 blocks of guest pages that go
// on from others, at every level: an error, a miss, or the same bytes. Every
// tenth is a control without the flip.
func TestFlipsInContext(t *testing.T) {
	a := blocktest.NewAgents(8 << 20)
	src := blocktest.Pages(1, 100)
	if err := a.Forward(1).Send(src, nil); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(8, 8))
	detected := 0
	for i := range 1112 {
		enc, dec := pinned(a.A, uint64(i+2), levels[i%len(levels)]), newDecoder(a.B, uint64(i+2))
		enc.Bulk()
		at := r.IntN(len(src) - 40_000)
		var app, body []byte
		for range 1 + i%4 {
			n := 1 + r.IntN(9000)
			app, at = bytes.Clone(src[at:at+n]), at+n
			for k := 100; k < n; k += 1 + r.IntN(2000) {
				app[k] ^= byte(1 + r.IntN(255))
			}
			if body != nil {
				if _, err := dec.Decode(nil, body); err != nil {
					t.Fatal(err)
				}
			}
			body = enc.Append(body[:0], app)
		}
		control := i%10 == 0
		if !control {
			body[r.IntN(len(body))] ^= 1 << r.IntN(8)
		}
		got, err := dec.Decode(nil, body)
		if err == nil && !bytes.Equal(got, app) || control && err != nil {
			t.Fatalf("flip %d: %d bytes, %v", i, len(got), err)
		}
		if err != nil {
			detected++
		}
		enc.Close()
		dec.Close()
	}
	t.Logf("%d of 1,000 flips were noticed; the others changed nothing", detected)
}

// TestTruncations: every prefix of a body is refused or missed.
func TestTruncations(t *testing.T) {
	a := blocktest.NewAgents(small)
	m := newMaterial(5)
	h := dedupe.NewHistory(small)
	for _, l := range levels {
		body := pinned(a.A, 1, l).Append(nil, m.block(700))
		for n := range body {
			dec := newDecoder(h, 1)
			if out, err := dec.Decode(nil, body[:n]); err == nil {
				t.Fatalf("level %d: %d bytes of %d gave %d bytes", l, n, len(body), len(out))
			}
		}
	}
}

func TestRefused(t *testing.T) {
	a := blocktest.NewAgents(small)
	body := func() []byte { return newEncoder(a.A, 7).Append(nil, []byte("hello")) }
	for name, decode := range map[string]func() error{
		"another connection": func() error {
			_, err := newDecoder(a.B, 8).Decode(nil, body())
			return err
		},
		"the same again": func() error {
			d, b := newDecoder(a.B, 7), body()
			if _, err := d.Decode(nil, b); err != nil {
				t.Fatal(err)
			}
			_, err := d.Decode(nil, b)
			return err
		},
		"history where there is none": func() error {
			_, err := newDecoder(nil, 7).Decode(nil, body())
			return err
		},
		"resent though not asked": func() error {
			e := newEncoder(a.A, 7)
			e.Append(nil, []byte("hello"))
			b, err := e.Resend(nil, []byte{0, 0})
			if err != nil {
				t.Fatal(err)
			}
			_, err = newDecoder(a.B, 7).Decode(nil, b)
			return err
		},
		"too long": func() error {
			_, err := newDecoder(a.B, 7).Decode(nil, make([]byte, block.MaxFrame+1))
			return err
		},
		"ack of nothing": func() error { return newEncoder(a.A, 7).Ack([]byte{1}) },
		"empty ack":      func() error { return newEncoder(a.A, 7).Ack(nil) },
		"empty nack": func() error {
			_, err := newEncoder(a.A, 7).Resend(nil, nil)
			return err
		},
		"long nack": func() error {
			_, err := newEncoder(a.A, 7).Resend(nil, []byte{0, 17})
			return err
		},
	} {
		if err := decode(); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBombs: bodies that claim much allocate little.
func TestBombs(t *testing.T) {
	h := dedupe.NewHistory(small)
	num := func(b []byte, vs ...uint64) []byte {
		for _, v := range vs {
			b = binary.AppendUvarint(b, v)
		}
		return b
	}
	sum := make([]byte, 8)
	for name, body := range map[string][]byte{
		"zeros":       append(num([]byte{0x60}, 1<<40, 1<<20, 0, 1), append(sum, 0, 1, 2)...),
		"tokens":      append(num([]byte{0x60}, 1<<40, 1<<20, 0, 16384), sum...),
		"s2 literals": append(num([]byte{0x61}, 1<<40, 1<<20, 0, 0), append(sum, 0xff, 0xff, 0xff, 0x7f)...),
		"zstd window": append(num([]byte{0x62}, 1<<40, 1<<20, 0, 0), append(sum, 0x28, 0xb5, 0x2f, 0xfd, 0, 0x98, 1, 0, 0)...),
		"zstd tokens": append(num([]byte{0x68}, 1<<40, 1<<20, 0, 16384, 200_000, 9), append(sum, 0x28, 0xb5, 0x2f, 0xfd, 0, 0x98, 1, 0, 0)...),
		"position":    append(num([]byte{0x60}, 1<<62, 0, 0, 0), make([]byte, 300_000)...),
		"run":         append([]byte{0x5c}, sum...),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		out, err := newDecoder(h, 1).Decode(nil, body)
		runtime.ReadMemStats(&after)
		if err == nil || len(out) > 0 {
			t.Errorf("%s: %d bytes, %v", name, len(out), err)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 4*block.MaxBlock+1<<20 {
			t.Errorf("%s: allocated %d", name, used)
		}
	}
}
