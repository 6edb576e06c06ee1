package stream_test

import (
	"fmt"
	"os"
	"testing"

	"stitch/tunnel/stream"
)

// TestMain lets the test binary be an edge of its own, or a new stream process.
func TestMain(m *testing.M) {
	if name := os.Getenv(edgeVariable); name != "" {
		if err := edgeMain(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if dir := os.Getenv(stream.ResumeVariable); dir != "" {
		if err := stream.ResumeMain(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}
