package main

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	chunk = 1 << 20
	// third is the size of each part of the data: text, pages, random bytes.
	third = 132 * chunk
	page  = 4096
)

// memory is the application's data, outside the Go heap so that the collector
// leaves it alone.
type memory struct {
	text, pages, random []byte
	all                 []byte
}

// mapMemory reserves size bytes for each of the three parts.
func mapMemory(size int) (*memory, error) {
	b, err := unix.Mmap(-1, 0, 3*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("reserve %d MiB: %w", 3*size>>20, err)
	}
	return &memory{text: b[:size], pages: b[size : 2*size], random: b[2*size:], all: b}, nil
}

// fill writes the data, each chunk by its own number, so the result depends on
// nothing else. progress is told the chunks done so far, from any goroutine.
func (m *memory) fill(progress func(done, of int)) {
	vocabulary := newWords(1)
	of := len(m.all) / chunk
	var next, done atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= of {
					return
				}
				m.fillChunk(vocabulary, i)
				progress(int(done.Add(1)), of)
			}
		})
	}
	wg.Wait()
}

// fillChunk writes chunk i.
func (m *memory) fillChunk(w *words, i int) {
	b := m.all[i*chunk : (i+1)*chunk]
	seed := uint64(i) + 1
	switch part := i * chunk / len(m.text); part {
	case 0:
		t := newText(w, seed)
		for at := 0; at < chunk; at += 4 * page {
			t.fill(b[at : at+4*page])
		}
	case 1:
		newPages(w, seed).fill(b)
	default:
		newRandom(seed).fill(b)
	}
}
