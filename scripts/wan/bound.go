package main

import (
	"context"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
)

// earlier are the streams that have crossed before those that are returns.
var earlier = map[string]string{back: "a1", gentle: "light1"}

// patch counts the bytes that zstd makes of the captured stream of a kind with the
// earlier one as its dictionary: nearly the least that any codec does.
func (m *measurement) patch(ctx context.Context, kind string) error {
	m.Say("zstd --patch-from: %s", kind)
	cmd := exec.CommandContext(ctx, "zstd", "-q", "--single-thread", "--long=31", "-3",
		"--patch-from="+filepath.Join(m.corpus, earlier[kind]), filepath.Join(m.corpus, files[kind]), "-c")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, out)
	m.report.Patches[kind] = n
	return errors.Join(err, cmd.Wait())
}

// Bound is what a codec could reach that takes no time and makes what zstd
// --patch-from makes: Seconds for those bytes at the link's rate, one and a half
// round trips for connecting and for the last byte.
type Bound struct {
	Link    string  `json:"link"`
	Data    string  `json:"data"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
	// Over is how many times as fast as plain CUBIC that is.
	Over float64 `json:"over"`
}

// bound computes it for a row; false: there is none.
func (r *Report) bound(l link, row Row) (Bound, bool) {
	plain, n := row.Cells[0], r.Patches[row.Data]
	if n == 0 || plain.Seconds == 0 || plain.Cut || l.loss > 0 {
		return Bound{}, false
	}
	b := Bound{Link: l.name, Data: row.Data, Bytes: n, Seconds: float64(n)/l.ceiling() + 1.5*l.rtt.Seconds()}
	b.Over = plain.Seconds / b.Seconds
	return b, true
}
