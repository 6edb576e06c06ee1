package block_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/zeebo/xxh3"

	"stitch/compress"
	"stitch/tunnel/stream/block"
	"stitch/tunnel/stream/block/blocktest"
)

var update = flag.Bool("update", false, "rewrite the golden vectors; look at the difference before committing it")

const golden = "../../../testdata/wire/block.hex"

// TestGolden decodes recorded bodies: a peer of any version must be able to.
// Each line is the direction (> first agent to second, < back,
// ? another connection to the second), what it is
// (block, miss: a block whose sources the receiver lacks, ack, nack, idle: the
// end of a context), the body
// in hex, and the XXH3-64 of the application bytes.
func TestGolden(t *testing.T) {
	if *update {
		if err := os.WriteFile(golden, record(t), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	a := blocktest.NewAgents(small)
	// The sender of < blocks must have sent what they refer to.
	forth, back := newDecoder(a.B, 1), newDecoder(a.A, 2)
	other := newDecoder(a.B, 3)
	own := newEncoder(a.A, 1)
	for _, src := range goldenBlocks() {
		own.Append(nil, src)
	}
	for i, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		var dir, kind, body string
		var want uint64
		if _, err := fmt.Sscanf(line, "%s %s %s %x", &dir, &kind, &body, &want); err != nil {
			t.Fatalf("line %d: %v", i+1, err)
		}
		raw, err := hex.DecodeString(body)
		if err != nil {
			t.Fatalf("line %d: %v", i+1, err)
		}
		d := map[string]*block.Decoder{">": forth, "<": back, "?": other}[dir]
		switch kind {
		case "ack":
			if got := d.AppendAck(nil); !bytes.Equal(got, raw) {
				t.Errorf("line %d: ack is %x", i+1, got)
			}
		case "nack":
			if got := d.AppendNack(nil); !bytes.Equal(got, raw) {
				t.Errorf("line %d: nack is %x", i+1, got)
			}
		default:
			out, err := d.Decode(nil, raw)
			if kind == "miss" && !errors.Is(err, block.ErrMiss) || kind != "miss" && err != nil || xxh3.Hash(out) != want {
				t.Errorf("line %d: %d bytes, %v", i+1, len(out), err)
			}
		}
	}
}

// goldenBlocks is what the first agent sends: literals of the codecs, a
// repeat with an edit, zeros, one byte.
func goldenBlocks() [][]byte {
	text, random := blocktest.Text(1, 600), blocktest.Random(1, 700)
	mixed := append(append(bytes.Clone(random), make([]byte, 5000)...), text...)
	edited := append(bytes.Clone(random), text...)
	edited[300] ^= 1
	return [][]byte{text, text, text, random, {'x'}, mixed, edited, mixed}
}

// words is n bytes of a table: numbers of four bytes that grow by little.
func words(n int) (b []byte) {
	for v := uint32(0x12345678); len(b) < n; v += 1 + v%29 {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b[:n]
}

// record makes the vectors anew.
func record(t *testing.T) []byte {
	var out bytes.Buffer
	out.WriteString("# Block bodies, acks and nacks; see the package doc of tunnel/stream/block and TestGolden.\n")
	a := blocktest.NewAgents(small)
	line := func(dir, kind string, body, app []byte) {
		fmt.Fprintf(&out, "%s %s %x %016x\n", dir, kind, body, xxh3.Hash(app))
	}
	send := func(dir string, e *block.Encoder, d *block.Decoder, src []byte, l compress.Level) {
		e.Pin(l)
		body := e.Append(nil, src)
		got, err := d.Decode(nil, body)
		if errors.Is(err, block.ErrMiss) {
			line(dir, "miss", body, got)
			nack := d.AppendNack(nil)
			line(dir, "nack", nack, nil)
			if body, err = e.Resend(nil, nack); err == nil {
				got, err = d.Decode(nil, body)
			}
		}
		if err != nil || !bytes.Equal(got, src) {
			t.Fatal(err)
		}
		line(dir, "block", body, got)
		ack := d.AppendAck(nil)
		line(dir, "ack", ack, nil)
		if err := e.Ack(ack); err != nil {
			t.Fatal(err)
		}
	}
	enc, dec := newEncoder(a.A, 1), newDecoder(a.B, 1)
	for i, src := range goldenBlocks() {
		send(">", enc, dec, src, levels[i%len(levels)])
	}
	enc.Bulk()
	for seed := range uint64(2) {
		send(">", enc, dec, blocktest.Text(7+seed, 900), compress.Extreme)
	}
	send(">", enc, dec, words(3000), compress.Extreme)
	idle := enc.Idle(nil)
	if got, err := dec.Decode(nil, idle); err != nil || len(got) > 0 || len(idle) == 0 {
		t.Fatal(idle, got, err)
	}
	line(">", "idle", idle, nil)
	enc, dec = newEncoder(a.B, 2), newDecoder(a.A, 2)
	blocks := goldenBlocks()
	send("<", enc, dec, blocks[len(blocks)-1], compress.Fast)
	// A block that refers to what the receiver lacks.
	ghost := blocktest.NewAgents(small)
	fresh := blocktest.Random(5, 900)
	if err := ghost.Forward(4).Send(fresh, nil); err != nil {
		t.Fatal(err)
	}
	send("?", newEncoder(ghost.A, 3), newDecoder(a.B, 3), fresh, compress.Store)
	return out.Bytes()
}
