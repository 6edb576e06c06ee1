package bench

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
)

// pageSize is the unit of made data, as of a machine's memory.
const pageSize = 4096

// sources opens the data to send.
type sources struct {
	amount int64
	most   int64  // of what is to be sent again; 0: no limit
	file   []byte // nil: data is made
	opened uint64
}

// maxFile bounds what of a file is sent.
const maxFile = 1 << 30

func newSources(cfg Config) (*sources, error) {
	s := &sources{amount: max(int64(float64(cfg.Rate)/8*cfg.Length.Seconds()), pageSize)}
	if cfg.File == "" {
		return s, nil
	}
	f, err := os.Open(cfg.File)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s.file, err = io.ReadAll(io.LimitReader(f, maxFile))
	return s, err
}

// bound limits the data that is to be sent again.
func (s *sources) bound(n int64) {
	s.most = n
	s.file = s.file[:min(int64(len(s.file)), n)]
}

// open returns data of a kind from its beginning: Typical and Repeated are the
// same, Random is never the same.
func (s *sources) open(kind string) io.Reader {
	switch {
	case kind == Random:
		s.opened++
		return io.LimitReader(random(s.opened), s.amount)
	case s.file != nil:
		return bytes.NewReader(s.file)
	}
	n := s.amount
	if s.most > 0 {
		n = min(n, s.most)
	}
	return io.LimitReader(newPages(), n)
}

// random is data that no codec makes smaller.
func random(seed uint64) *rand.ChaCha8 {
	var key [32]byte
	key[0], key[1], key[31] = byte(seed), byte(seed>>8), 1
	return rand.NewChaCha8(key)
}

// pages is made memory: of ten pages four are zero, four are text of words in
// no order, one and a half are random, and half a one has been there before. A
// real machine's memory compresses better or worse: give a file of one.
type pages struct {
	random *rand.ChaCha8
	r      *rand.Rand
	words  [4000]string
	seen   [64][]byte
	left   []byte
}

func newPages() *pages {
	p := &pages{random: random(0), r: rand.New(rand.NewPCG(1, 2))}
	for i := range p.words {
		w := make([]byte, 2+p.r.IntN(7), 9)
		for j := range w {
			w[j] = 'a' + byte(p.r.IntN(26))
		}
		p.words[i] = string(append(w, ' '))
	}
	return p
}

// Read makes more. It does not end.
func (p *pages) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		p.left = p.page()
	}
	n := copy(b, p.left)
	p.left = p.left[n:]
	return n, nil
}

func (p *pages) page() []byte {
	page := make([]byte, pageSize)
	switch kind := p.r.IntN(20); {
	case kind < 8:
		return page
	case kind < 16:
		for n := 0; n < pageSize; {
			n += copy(page[n:], p.word())
		}
	case kind < 19:
		_, _ = p.random.Read(page) // never fails
	default:
		if old := p.seen[p.r.IntN(len(p.seen))]; old != nil {
			return old
		}
	}
	p.seen[p.r.IntN(len(p.seen))] = page
	return page
}

// word is one of the words, two to eight letters long, the early ones often.
func (p *pages) word() string { return p.words[int(p.r.ExpFloat64()*400)%len(p.words)] }
