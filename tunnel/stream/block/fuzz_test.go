package block_test

import (
	"bytes"
	"errors"
	"testing"

	"stitch/compress"
	"stitch/dedupe"
	"stitch/tunnel/stream/block"
	"stitch/tunnel/stream/block/blocktest"
)

// FuzzDecode gives a decoder that has one block behind it any body: no panic,
// nothing returned with an error, no more than MaxBlock.
func FuzzDecode(f *testing.F) {
	data := append(blocktest.Random(1, 2000), blocktest.Text(1, 2000)...)
	for _, l := range levels {
		enc := pinned(dedupe.NewHistory(small), 1, l)
		enc.Append(nil, data)
		f.Add(enc.Append(nil, append(data[500:3000:3000], make([]byte, 100)...)))
	}
	h := dedupe.NewHistory(small)
	first := newEncoder(h, 1).Append(nil, data)
	f.Fuzz(func(t *testing.T, body []byte) {
		h := dedupe.NewHistory(small)
		d := newDecoder(h, 1)
		if _, err := d.Decode(nil, first); err != nil {
			t.Fatal(err)
		}
		out, err := d.Decode([]byte("canary"), body)
		if !bytes.HasPrefix(out, []byte("canary")) || len(out) > 6+block.MaxBlock || err != nil && len(out) != 6 {
			t.Fatalf("%d bytes, %v", len(out), err)
		}
		if nack := d.AppendNack(nil); errors.Is(err, block.ErrMiss) != (len(nack) > 0) {
			t.Fatalf("%v, nack %x", err, nack)
		}
	})
}

// FuzzRepair gives a decoder that misses a block any two bodies: no panic, and
// nothing returned but what the good answer would bring.
func FuzzRepair(f *testing.F) {
	a := blocktest.NewAgents(small)
	known := blocktest.Random(1, 2000)
	if err := a.Forward(1).Send(known, nil); err != nil {
		f.Fatal(err)
	}
	enc := newEncoder(a.A, 2)
	one, two := enc.Append(nil, known[:1000]), enc.Append(nil, known[700:])
	var again [2][]byte
	for i := range again {
		var err error
		if again[i], err = enc.Resend(nil, []byte{byte(i), 0}); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(again[1], again[0])
	f.Add(again[0], again[1])
	f.Add(two, again[0])
	f.Fuzz(func(t *testing.T, body, next []byte) {
		d := newDecoder(dedupe.NewHistory(small), 2)
		defer d.Close()
		if _, err := d.Decode(nil, one); !errors.Is(err, block.ErrMiss) {
			t.Fatal(err)
		}
		out := []byte("canary")
		for _, b := range [][]byte{body, next} {
			var err error
			if out, err = d.Decode(out, b); err != nil && !errors.Is(err, block.ErrMiss) {
				break
			}
		}
		want := append([]byte("canary"), known[:1000]...)
		if n := min(len(out), len(want)); n != 6 && !bytes.Equal(out[:n], want) || !bytes.HasPrefix(out, want[:6]) {
			t.Fatalf("%d bytes", len(out))
		}
	})
}

// FuzzRoundTrip encodes any bytes, cut in three blocks, twice.
func FuzzRoundTrip(f *testing.F) {
	f.Add(blocktest.Random(1, 3000), uint16(1000), uint8(0))
	f.Add(bytes.Repeat(blocktest.Random(2, 99), 50), uint16(77), uint8(1))
	f.Add(make([]byte, 5000), uint16(3), uint8(2))
	f.Add(blocktest.Text(1, 5000), uint16(2500), uint8(3))
	f.Fuzz(func(t *testing.T, src []byte, cut uint16, level uint8) {
		a := blocktest.NewAgents(small)
		c := a.Forward(1)
		c.Enc.Pin(compress.Level(level % 5))
		k := min(int(cut), len(src))
		for _, part := range [][]byte{src[:k], src[k:], src, src[k/2:]} {
			var got []byte
			err := c.Send(part, func(b []byte) { got = append(got, b...) })
			if err != nil || !bytes.Equal(got, part) {
				t.Fatalf("%d bytes became %d: %v", len(part), len(got), err)
			}
		}
	})
}

// FuzzAnswers gives an encoder any ack and nack.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte{1}, []byte{1, 0})
	f.Add([]byte{0}, []byte{0, 1, 0, 0, 100})
	f.Add([]byte{0xff, 0xff}, []byte{1, 1, 1, 0xff, 0xff, 3, 0x80, 0x80, 0x10})
	f.Fuzz(func(t *testing.T, ack, nack []byte) {
		h := dedupe.NewHistory(small)
		e := newEncoder(h, 1)
		defer e.Close()
		for range 3 {
			e.Append(nil, []byte("hello"))
		}
		behind := func(body []byte) {
			if len(body) == 0 {
				t.Fatal("an empty body")
			}
		}
		_ = e.ResendBehind(nack, behind)
		body, err := e.Resend(nil, nack)
		if (err == nil) != (len(body) > 0) {
			t.Fatalf("%d bytes, %v", len(body), err)
		}
		_ = e.Ack(ack)
	})
}
