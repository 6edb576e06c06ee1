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

// TestContextSaves: blocks that are alike cost less in a context than alone,
// and the context can be given up and taken again.
func TestContextSaves(t *testing.T) {
	alone, carried := newPipe(t, nil, nil, 1), newPipe(t, nil, nil, 2)
	send := func() {
		for i := range 20 {
			text := blocktest.Text(uint64(i), 2000)
			alone.send(text, compress.Strong)
			carried.enc.Bulk()
			carried.send(text, compress.Strong)
		}
	}
	send()
	if alone.wire < carried.wire*6/5 {
		t.Errorf("%d bytes alone, %d in a context", alone.wire, carried.wire)
	}
	idle := carried.enc.Idle(nil)
	if len(idle) != 2 || len(carried.enc.Idle(nil)) != 0 || len(alone.enc.Idle(nil)) != 0 {
		t.Errorf("idle: %x", idle)
	}
	carried.bodies = append(carried.bodies, idle)
	send()
	carried.drain()
	alone.drain()
}

// TestContextSurvivesMiss: blocks of a context that wait behind a missing one,
// an end of the context among them, decode in their turn.
func TestContextSurvivesMiss(t *testing.T) {
	a := blocktest.NewAgents(small)
	known := blocktest.Random(1, 3000)
	first := newPipe(t, a.A, a.B, 1)
	first.send(known, compress.Store)
	first.drain()
	p := newPipe(t, a.A, dedupe.NewHistory(small), 2)
	for i := range 6 {
		p.enc.Bulk()
		p.send(append(blocktest.Text(uint64(i), 1000), known...), compress.Strong)
		if i == 3 {
			p.bodies = append(p.bodies, p.enc.Idle(nil))
		}
	}
	for range 7 {
		p.deliver()
	}
	if p.misses != 1 || len(p.got) > 0 {
		t.Fatalf("%d misses, %d bytes", p.misses, len(p.got))
	}
	p.drain()
}

// TestContextsBounded: of many bulk streams only some have a context, all of
// them work, and one that ends leaves its context to another.
func TestContextsBounded(t *testing.T) {
	shop := block.NewShop(1)
	var pipes []*pipe
	count := func() (n int) {
		for i, p := range pipes {
			was := p.enc.Stats().Mix.Carried.In
			p.enc.Bulk()
			p.send(blocktest.Text(uint64(i), 3000), compress.Balanced)
			p.drain()
			if p.enc.Stats().Mix.Carried.In > was {
				n++
			}
		}
		return n
	}
	for i := range 20 {
		pipes = append(pipes, &pipe{t: t,
			enc: block.NewEncoder(nil, uint64(i), block.Options{Shop: shop}), dec: block.NewDecoder(nil, uint64(i), shop)})
	}
	if n := count(); n != 8 {
		t.Errorf("%d of 20 streams have a context", n)
	}
	for _, p := range pipes[:3] {
		p.bodies = append(p.bodies, p.enc.Idle(nil))
		p.enc.Close()
		p.dec.Close()
	}
	pipes = pipes[3:]
	if n := count(); n != 8 {
		t.Errorf("%d of 17 streams have a context", n)
	}
}

// TestIdleRefused: there must be a context to end.
func TestIdleRefused(t *testing.T) {
	if _, err := newDecoder(nil, 1).Decode(nil, []byte{3, 0}); !errors.Is(err, block.ErrCorrupt) {
		t.Error(err)
	}
}

// TestWrongCompressor: a compressor's wrong output is found by the checksum
// and the block sent again; what follows is in a new context (D-15).
func TestWrongCompressor(t *testing.T) {
	a := blocktest.NewAgents(small)
	p := newPipe(t, a.A, a.B, 1)
	p.enc.Bulk()
	p.send(blocktest.Text(1, 4000), compress.Strong)
	p.drain()
	// Bytes the codec cannot shrink lie bare in its output.
	half := append(blocktest.Random(1, 5000), bytes.Repeat([]byte("abcdefgh"), 1000)...)
	p.send(half, compress.Strong)
	at := bytes.Index(p.bodies[0], half[1000:1100])
	if at < 0 {
		t.Skip("the compressor found a way to shrink random bytes")
	}
	p.bodies[0][at] ^= 1
	p.deliver()
	if p.misses != 1 {
		t.Fatalf("%d misses", p.misses)
	}
	p.drain()
	p.send(half, compress.Strong)
	p.send(blocktest.Text(2, 4000), compress.Strong)
	p.drain()
	if p.misses != 1 {
		t.Errorf("%d misses", p.misses)
	}
}
