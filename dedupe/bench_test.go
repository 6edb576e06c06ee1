package dedupe

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	benchPage = 8 + pageSize // a guest page behind its header, as QEMU streams it
	benchSize = 64 << 20     // bytes of a stream
)

// guest makes a stream of guest pages: an 8-byte header (address and flags)
// before each. A third of the pages are random, a third records of pointers,
// a third text-like.
func guest(seed uint64, n int) []byte {
	s := newSource(seed, 64*pageSize)
	words := s.random(64 << 10)
	for i := range words {
		words[i] = "etaoin shrdlu\ncmfwyp"[words[i]%20]
	}
	b := make([]byte, 0, n+benchPage)
	for i := 0; len(b) < n; i++ {
		b = binary.BigEndian.AppendUint64(b, uint64(i)*pageSize|8)
		switch s.r.IntN(3) {
		case 0:
			b = append(b, s.random(pageSize)...)
		case 1:
			for range pageSize / 16 {
				b = binary.LittleEndian.AppendUint64(b, 0xffff_8880_0000_0000|s.r.Uint64()&0xffffff)
				b = binary.LittleEndian.AppendUint64(b, s.r.Uint64()&0xff)
			}
		default:
			for range pageSize / 64 {
				b = append(b, words[s.r.IntN(len(words)-64):][:64]...)
			}
		}
	}
	return b[:n]
}

// edit overwrites 8 to 64 bytes at each of three places of one page in every,
// and returns how many bytes that were.
func edit(stream []byte, seed uint64, every int) (edited int) {
	s := newSource(seed, 64)
	for at := 0; at+benchPage <= len(stream); at += benchPage {
		if s.r.IntN(every) != 0 {
			continue
		}
		for range 3 {
			n := 8 + s.r.IntN(57)
			copy(stream[at+8+s.r.IntN(pageSize-n):], s.random(n))
			edited += n
		}
	}
	return edited
}

// sibling is a stream of the same pages as guest's, in another order and at
// other addresses; one in four is another's.
func sibling(stream []byte, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	other := guest(seed, len(stream))
	out := make([]byte, 0, len(stream))
	for i := range r.Perm(len(stream) / benchPage) {
		from := stream
		if r.IntN(4) == 0 {
			from = other
		}
		page := from[i*benchPage:][:benchPage]
		out = binary.BigEndian.AppendUint64(out, r.Uint64())
		out = append(out, page[8:]...)
	}
	return out
}

// feed puts src into the history over a new connection, acknowledged at once,
// and returns the bytes matched and the tokens.
func feed(tb testing.TB, h *History, src []byte) (matched, tokens int) {
	w := h.NewWriter(WriterOptions{})
	defer w.Close()
	for n := uint64(1); len(src) > 0; n++ {
		k := min(len(src), MaxBlock)
		b, err := w.Put(src[:k])
		if err == nil {
			err = w.Acked(n)
		}
		if err != nil {
			tb.Error(err)
			return
		}
		matched += b.Matched
		tokens += len(b.Tokens)
		src = src[k:]
	}
	return matched, tokens
}

// cpuTime is the processor time of this thread.
func cpuTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}

// BenchmarkPut is matching alone: finding, storing and indexing. before is in
// the history, src is measured; the memory has been touched. MB/cpu-s is the
// best run's bytes for each second of processor time.
func BenchmarkPut(b *testing.B) {
	pages := guest(1, benchSize)
	random := newSource(2, benchSize).pool
	back := append([]byte(nil), pages...)
	edit(back, 3, 10)
	for _, bench := range []struct {
		name        string
		before, src []byte
	}{
		{"fresh/random", nil, random},
		{"fresh/pages", nil, pages},
		{"zeros", nil, make([]byte, benchSize)},
		{"repeat/random", random, random},
		{"repeat/pages", pages, pages},
		{"edited", pages, back},
		{"sibling", pages, sibling(pages, 4)},
	} {
		b.Run(bench.name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			h := NewHistory(4 * benchSize)
			feed(b, h, newSource(5, 4*benchSize).pool)
			b.SetBytes(int64(len(bench.src)))
			b.ReportAllocs()
			var matched, tokens int
			best := time.Duration(math.MaxInt64)
			for b.Loop() {
				b.StopTimer()
				h.Restart()
				feed(b, h, bench.before)
				b.StartTimer()
				start := cpuTime()
				matched, tokens = feed(b, h, bench.src)
				best = min(best, cpuTime()-start)
			}
			b.ReportMetric(float64(len(bench.src))/best.Seconds()/1e6, "MB/cpu-s")
			b.ReportMetric(100*float64(matched)/float64(len(bench.src)), "%matched")
			b.ReportMetric(float64(tokens), "tokens")
			b.ReportMetric(100*float64(h.Stats().Index)/float64(2*h.Size()), "%index")
		})
	}
}

// BenchmarkWriters is Put by so many connections at once that share a history,
// each with its own guest pages: what all of them take in a second.
func BenchmarkWriters(b *testing.B) {
	for _, n := range []int{1, 2, 4} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			var streams [][]byte
			for i := range n {
				streams = append(streams, guest(uint64(10+i), benchSize/4))
			}
			h := NewHistory(4 * benchSize)
			feed(b, h, newSource(5, 4*benchSize).pool)
			b.SetBytes(int64(n * benchSize / 4))
			for b.Loop() {
				var work sync.WaitGroup
				for _, s := range streams {
					work.Go(func() { feed(b, h, s) })
				}
				work.Wait()
			}
		})
	}
}
