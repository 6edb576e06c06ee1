package main

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"stitch/dedupe"
	"stitch/tunnel/estimate"
)

// randomBytes is how much of what cannot be compressed is sent.
const randomBytes = 200 << 20

// Matching is the matcher and the history alone, without compression, framing
// and decoding.
type Matching struct {
	Data     string  `json:"data"`
	Bytes    int64   `json:"bytes"`
	Fresh    float64 `json:"fresh_mb_s"`  // the first time
	Repeated float64 `json:"repeat_mb_s"` // the second time
	Index    float64 `json:"index_share"` // memory of the index, of the history's
}

// matching measures the matcher, and what the rest of the codec adds for bytes
// that do not compress.
func (b *bench) matching() error {
	if !b.only.MatchString("matching random") {
		return nil
	}
	random := filepath.Join(b.work, "random")
	if err := os.WriteFile(random, chaff(randomBytes), 0o644); err != nil {
		return err
	}
	defer os.Remove(random)
	if _, err := b.matcher(filepath.Join(b.corpus, "a1")); errors.Is(err, os.ErrNotExist) {
		b.skip("matching a1", err)
	} else if err != nil {
		return err
	}
	if _, err := b.matcher(random); err != nil {
		return err
	}
	for _, c := range dense("random", random) {
		if err := b.compare(&c); err != nil {
			return err
		}
	}
	return b.overhead(random)
}

// overhead compares matching alone with the whole encoder on a file that does
// not compress, in turns, so that both see the same machine.
func (b *bench) overhead(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var shares []float64
	for range max(b.runs, 3) {
		alone, err := put(newHistory(len(data)), data)
		if err != nil {
			return err
		}
		whole, _, err := ours(&comparison{files: []string{file}})
		if err != nil {
			return err
		}
		shares = append(shares, alone.Seconds()/whole.Encode)
		runtime.GC()
	}
	slices.Sort(shares)
	b.report.Aims = append(b.report.Aims, atLeast("random: encoding speed, of matching alone", shares[len(shares)/2], 0.9))
	return nil
}

// newHistory returns a history that has room for n bytes several times, what
// will be forgotten soon costs more, and memory to send them twice.
func newHistory(n int) *dedupe.History {
	h := dedupe.NewHistory(int64(4 * n))
	h.Touch(dedupe.Sent, int64(2*n))
	return h
}

// matcher measures a file the first and the second time.
func (b *bench) matcher(file string) (Matching, error) {
	m := Matching{Data: filepath.Base(file)}
	data, err := os.ReadFile(file)
	if err != nil {
		return m, err
	}
	b.Say("matching %s", m.Data)
	m.Bytes = int64(len(data))
	var fresh, repeated []float64
	for range b.runs {
		h := newHistory(len(data))
		for _, speeds := range []*[]float64{&fresh, &repeated} {
			spent, err := put(h, data)
			if err != nil {
				return m, err
			}
			*speeds = append(*speeds, mbs(m.Bytes, spent.Seconds()))
		}
		st := h.Stats()
		m.Index = float64(st.Index) / float64(2*st.Size) // of both directions
		runtime.GC()                                     // lets the history go
	}
	slices.Sort(fresh)
	slices.Sort(repeated)
	m.Fresh, m.Repeated = fresh[len(fresh)/2], repeated[len(repeated)/2]
	b.report.Matching = append(b.report.Matching, m)
	b.report.Aims = append(b.report.Aims,
		atLeast("matching "+m.Data+", fresh: MB/s", m.Fresh, 1000),
		atLeast("matching "+m.Data+", again: MB/s", m.Repeated, 3000),
		atMost("matching "+m.Data+": index, share of the history", m.Index, 0.04))
	return m, nil
}

// put carries data into h over one connection, from a buffer that is in the
// processor's caches, as what a socket gave is.
func put(h *dedupe.History, data []byte) (spent time.Duration, err error) {
	w := h.NewWriter(dedupe.WriterOptions{})
	defer w.Close()
	buf := make([]byte, 4*dedupe.MaxBlock)
	for len(data) > 0 {
		n := copy(buf, data)
		data = data[n:]
		begin := estimate.ProcessCPU()
		for piece := range slices.Chunk(buf[:n], dedupe.MaxBlock) {
			b, err := w.Put(piece)
			if err == nil {
				err = w.Acked(b.Seq + 1)
			}
			if err != nil {
				return 0, err
			}
		}
		spent += estimate.ProcessCPU() - begin
	}
	return spent, nil
}

// chaff returns n random bytes, the same each time.
func chaff(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b) // never fails
	return b
}
