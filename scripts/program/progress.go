package program

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Progress tells a person what a long program does.
type Progress struct{ began time.Time }

// Begin is the Progress of a program that begins now.
func Begin() Progress { return Progress{time.Now()} }

// Say writes a line to standard error, behind the seconds since the beginning.
func (p Progress) Say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(p.began).Seconds(), fmt.Sprintf(format, args...))
}

// Sleep waits for d, or for the end of ctx, which is its error.
func Sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// WriteReport writes v as JSON to a file, in a directory that is made if it is
// missing: nowhere if file is "", and to standard output if it is "-".
func WriteReport(file string, v any) error {
	if file == "" {
		return nil
	}
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if file == "-" {
		_, err = os.Stdout.Write(data)
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}
