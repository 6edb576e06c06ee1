package block_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"stitch/compress"
	"stitch/dedupe"
	"stitch/tunnel/stream/block"
	"stitch/tunnel/stream/block/blocktest"
)

// ram is a stream as QEMU makes it: pages and zero pages in order, and now and
// then something else. The pages are random.
func ram(seed uint64, records int) (stream []byte, pages int) {
	r := rand.New(rand.NewPCG(seed, 9))
	address := uint64(0)
	for range records {
		address += 4096
		switch r.IntN(20) {
		case 0:
			stream = append(stream, "a section's end, and another one's beginning"[:r.IntN(40)]...)
		case 1:
			address += r.Uint64N(1000) * 4096
		case 2, 3, 4, 5, 6, 7, 8, 9:
			stream = binary.BigEndian.AppendUint64(stream, address|0x22)
			stream = append(stream, 0)
			continue
		}
		stream = binary.BigEndian.AppendUint64(stream, address|0x28)
		stream = append(stream, blocktest.Random(r.Uint64(), 4096)...)
		pages++
	}
	return stream, pages
}

// TestHeaders: the headers of guest pages cost little, in blocks of any size,
// with and without a history, alone and through a context.
func TestHeaders(t *testing.T) {
	src, pages := ram(1, 1000)
	for _, most := range []int{block.MaxBlock, 5000, 300} {
		for _, h := range []*blocktest.Agents{blocktest.NewAgents(16 << 20), {}} {
			p := newPipe(t, h.A, h.B, 1)
			r := rand.New(rand.NewPCG(2, 2))
			for rest := src; len(rest) > 0; {
				n := min(1+r.IntN(most), len(rest))
				p.send(rest[:n], compress.Strong)
				p.deliver()
				rest = rest[n:]
			}
			p.drain()
			if extra := p.wire - 4096*pages; most == block.MaxBlock && extra > len(src)/200 {
				t.Errorf("history %v: %d bytes more than the pages' %d", h.A != nil, extra, 4096*pages)
			}
		}
	}
}

// TestHeadersAndMisses: the headers are followed through blocks that are sent
// again.
func TestHeadersAndMisses(t *testing.T) {
	a := blocktest.NewAgents(16 << 20)
	src, _ := ram(3, 300)
	if err := a.Forward(1).Send(src, nil); err != nil {
		t.Fatal(err)
	}
	p := newPipe(t, a.A, dedupe.NewHistory(16<<20), 2)
	edited := bytes.Clone(src)
	for at := 5000; at < len(edited); at += 9999 {
		edited[at]++
	}
	for rest := edited; len(rest) > 0; {
		n := min(40_000, len(rest))
		p.send(rest[:n], compress.Strong)
		rest = rest[n:]
	}
	p.drain()
	if p.misses == 0 {
		t.Error("no miss")
	}
}

// TestEditsInPlace: records whose counters went up by one cost a few bytes each.
func TestEditsInPlace(t *testing.T) {
	a := blocktest.NewAgents(16 << 20)
	src := blocktest.Random(4, 1<<20)
	if err := a.Forward(1).Send(src, nil); err != nil {
		t.Fatal(err)
	}
	edits := 0
	for at := 100; at < len(src)-100; at += 500 {
		for k := range 12 {
			src[at+2*k]++
		}
		edits++
	}
	c, at := a.Backward(2), 0
	err := c.Send(src, func(b []byte) {
		if !bytes.Equal(b, src[at:at+len(b)]) {
			t.Errorf("wrong bytes behind %d", at)
		}
		at += len(b)
	})
	if err != nil || at != len(src) || c.Wire > 8*edits {
		t.Errorf("%d bytes for %d edits, %d of %d bytes: %v", c.Wire, edits, at, len(src), err)
	}
}

// TestLinesAreExact: where other connections' bytes must not show in sizes,
// edits in place are sent as they are.
func TestLinesAreExact(t *testing.T) {
	a := blocktest.NewAgents(16 << 20)
	src := blocktest.Random(5, 100_000)
	if err := a.Forward(1).Send(src, nil); err != nil {
		t.Fatal(err)
	}
	wire := func(lines bool) int {
		edited := bytes.Clone(src)
		for at := 1000; at < len(edited); at += 2000 {
			for k := range 40 {
				edited[at+2*k] ^= 0x55
			}
		}
		enc := block.NewEncoder(a.A, 9, block.Options{Shop: a.Shop, Lines: lines})
		defer enc.Close()
		return len(enc.Append(nil, edited))
	}
	if with, without := wire(true), wire(false); with < without+50*40 {
		t.Errorf("%d bytes with lines, %d without", with, without)
	}
}

// TestHeadersLost: records cut anywhere and matched in part, so that both ends
// lose the headers and find others all the time, at the same places.
func TestHeadersLost(t *testing.T) {
	src, _ := ram(6, 200)
	r := rand.New(rand.NewPCG(6, 6))
	a := blocktest.NewAgents(1 << 20)
	p := newPipe(t, a.A, a.B, 1)
	for range 600 {
		var b []byte
		for range 1 + r.IntN(6) {
			at := r.IntN(len(src) - 30_000)
			b = append(b, src[at:at+r.IntN(1<<r.IntN(15))]...)
			if r.IntN(2) == 0 {
				fresh, _ := ram(r.Uint64(), 1+r.IntN(5))
				b = append(b, fresh...)
			}
		}
		if len(b) > 0 {
			p.send(b, compress.Fast)
			p.drain()
		}
	}
	if p.misses > 0 {
		t.Errorf("%d misses", p.misses)
	}
}
