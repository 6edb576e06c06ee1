package stream_test

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"stitch/tunnel/stream/block"
)

// TestMain makes the codec's encoders and decoders, which are shared by the
// whole process, outside of any synctest bubble: their channels would
// otherwise belong to the first one.
func TestMain(m *testing.M) {
	if name := os.Getenv(edgeVariable); name != "" {
		if err := edgeMain(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	for _, effort := range []block.Effort{block.Fast, block.Balanced, block.Strong} {
		text := bytes.Repeat([]byte("warm up "), 1000)
		for i := range text {
			text[i] += byte(i * i >> 9 & 7)
		}
		body := block.NewEncoder(nil, 1).Append(nil, text, effort)
		if _, err := block.NewDecoder(nil, 1).Decode(nil, body); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}
