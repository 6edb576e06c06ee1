package estimate

import (
	"errors"
	"io"

	"stitch/dedupe"
)

// Seed puts what the reader gives into the histories of both agents, as
// `stitch seed` does at two sites that hold the same file, and returns how many
// bytes it gave. Blocks of zeros are left out: they are never looked for.
func (s *Session) Seed(from io.Reader) (int64, error) {
	w := s.sender.NewWriter(dedupe.WriterOptions{})
	defer w.Close()
	r := s.receiver.NewReader()
	buf := make([]byte, dedupe.MaxBlock)
	var total int64
	for {
		n, err := io.ReadFull(from, buf)
		total += int64(n)
		if n > 0 && !isZero(buf[:n]) {
			if err := plant(w, r, buf[:n]); err != nil {
				return total, err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// plant puts src into both histories.
func plant(w *dedupe.Writer, r *dedupe.Reader, src []byte) error {
	b, err := w.Plant(src)
	if err != nil {
		return err
	}
	if err := r.Put(src, &b); err != nil {
		return err
	}
	return w.Acked(b.Seq + 1)
}

func isZero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}
