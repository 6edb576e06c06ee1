package stream_test

import (
	"fmt"
	"os"
	"testing"
)

// TestMain lets the test binary be an edge of its own.
func TestMain(m *testing.M) {
	if name := os.Getenv(edgeVariable); name != "" {
		if err := edgeMain(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}
