package main

import (
	"math"
	"strconv"

	"stitch/scripts/traffic"
)

const (
	vocabulary = 12_000
	// wordTable is the number of equally likely draws words are spread over.
	wordTable = 1 << 17
)

// words draws from a vocabulary with Zipf's frequencies, as in natural text. It
// is immutable and safe for concurrent use.
type words struct {
	list  []string
	table [wordTable]uint16
}

// newWords makes the vocabulary: syllables put together, common words short.
func newWords(seed uint64) *words {
	r := newRandom(seed)
	onsets := []string{"b", "c", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "t", "v", "w", "st", "tr", "pl", "ch", "th"}
	vowels := []string{"a", "e", "i", "o", "u", "ea", "ou", "ai"}
	codas := []string{"", "", "n", "r", "s", "t", "l", "nd", "ng", "ck"}
	w := &words{}
	for seen := map[string]bool{}; len(w.list) < vocabulary; {
		word := ""
		for range 1 + r.below(2) + len(w.list)/(vocabulary/2) {
			word += onsets[r.below(len(onsets))] + vowels[r.below(len(vowels))] + codas[r.below(len(codas))]
		}
		if !seen[word] || len(word) > 8 {
			seen[word] = true
			w.list = append(w.list, word)
		}
	}
	scale := float64(wordTable) / (math.Log(vocabulary) + 0.5772)
	for rank, at := 0, 0; at < wordTable; rank = (rank + 1) % vocabulary {
		for range max(1, int(scale/float64(rank+1))) {
			if at < wordTable {
				w.table[at] = uint16(rank)
				at++
			}
		}
	}
	return w
}

// draw returns a word.
func (w *words) draw(r *random) string {
	return w.list[w.table[r.next()>>(64-17)]]
}

// text writes what the memory of a busy application server is full of: prose,
// log lines and JSON. It is not safe for concurrent use.
type text struct {
	words *words
	r     *random
	clock uint64
	line  []byte
}

// newText returns a writer whose output follows from seed.
func newText(w *words, seed uint64) *text {
	return &text{words: w, r: newRandom(seed), clock: 1_700_000_000_000 + seed*1_000_000}
}

// fill overwrites b with text that begins with a line with the canary.
func (t *text) fill(b []byte) {
	n := copy(b, "# "+traffic.Canary+"\n")
	for n < len(b) {
		t.line = t.line[:0]
		switch kind := t.r.below(16); {
		case kind < 6:
			t.log()
		case kind < 10:
			t.json()
		default:
			t.prose()
		}
		n += copy(b[n:], t.line)
	}
}

func (t *text) prose() {
	for range 8 + t.r.below(16) {
		t.line = append(append(t.line, t.words.draw(t.r)...), ' ')
	}
	t.line = append(t.line[:len(t.line)-1], ".\n"...)
}

func (t *text) log() {
	t.clock += uint64(t.r.below(40))
	t.line = strconv.AppendUint(t.line, t.clock, 10)
	levels := [...]string{" INFO ", " INFO ", " INFO ", " DEBUG ", " WARN "}
	t.line = append(t.line, levels[t.r.below(len(levels))]...)
	t.line = append(t.line, "request id="...)
	t.line = strconv.AppendUint(t.line, t.r.next()>>40, 16)
	t.line = append(t.line, " remote=192.0.2."...)
	t.line = strconv.AppendInt(t.line, int64(t.r.below(254)), 10)
	t.line = append(t.line, " method=GET path=/api/v1/"...)
	t.line = append(append(t.line, t.words.draw(t.r)...), '/')
	t.line = append(t.line, t.words.draw(t.r)...)
	t.line = append(t.line, " status=200 duration_us="...)
	t.line = strconv.AppendInt(t.line, int64(t.r.below(90_000)), 10)
	t.line = append(t.line, " bytes="...)
	t.line = strconv.AppendInt(t.line, int64(t.r.below(30_000)), 10)
	t.line = append(t.line, '\n')
}

func (t *text) json() {
	t.line = append(t.line, `{"id":`...)
	t.line = strconv.AppendInt(t.line, int64(t.r.below(1<<30)), 10)
	t.line = append(t.line, `,"type":"order","customer":{"name":"`...)
	t.line = append(append(t.line, t.words.draw(t.r)...), ' ')
	t.line = append(t.line, t.words.draw(t.r)...)
	t.line = append(t.line, `","segment":"`...)
	t.line = append(t.line, t.words.draw(t.r)...)
	t.line = append(t.line, `"},"items":[`...)
	for i := range 1 + t.r.below(4) {
		if i > 0 {
			t.line = append(t.line, ',')
		}
		t.line = append(t.line, `{"sku":`...)
		t.line = strconv.AppendInt(t.line, int64(100_000+t.r.below(50_000)), 10)
		t.line = append(t.line, `,"quantity":`...)
		t.line = strconv.AppendInt(t.line, int64(1+t.r.below(9)), 10)
		t.line = append(t.line, `,"cents":`...)
		t.line = strconv.AppendInt(t.line, int64(t.r.below(20_000)), 10)
		t.line = append(t.line, '}')
	}
	t.line = append(t.line, "]}\n"...)
}
