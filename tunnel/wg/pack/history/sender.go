package history

import (
	"hash/maphash"

	"stitch/dedupe/match"
)

const (
	// line is what lies in the source as a whole, or is not referred to; minMatch
	// the least bytes of a reference.
	line, minMatch = 64, 256
	// stretch is how much is scanned for anchors at a time.
	stretch = 4 << 10
	// lastSeq is the sequence number behind which an epoch begins.
	lastSeq = 1<<32 - 1
)

// Token says: take Lit literal bytes, then Len bytes from At of record Seq.
// What follows the last token is literal.
type Token struct {
	Lit, Len int
	Seq      uint32
	At       int
}

// Record names a record; the zero value none.
type Record struct{ Epoch, Seq uint32 }

// Source is where in the history a flow's bytes were found last; the zero value:
// nowhere.
type Source struct {
	seq uint32
	at  int32
}

// Sender is the history of what was sent. It is not safe for concurrent use.
type Sender struct {
	ring  ring
	index index
	seed  maphash.Seed
	line  int
	epoch uint32
	seq   uint32 // of the latest record; 0: none
	// peer is the receiver's instance, known once it has acknowledged something
	// of this epoch, and most how old a record may be to be referred to.
	peer  uint32
	known bool
	most  uint64

	// Of the payload that is matched: where to look, where literals begin, what
	// has been scanned, with holes or not; and where the last match went on.
	src     []byte
	group   uint64
	at, lit int
	scanned int
	holes   bool
	cursor  int
	anchors []anchor
	tokens  []Token
	matched int
	oldest  uint64
	last    Source
}

// NewSender returns a history of size bytes, MinSize to MaxSize. Its first epoch
// should be a random number.
func NewSender(size int, epoch uint32) *Sender {
	return &Sender{ring: newRing(size), index: newIndex(size), seed: maphash.MakeSeed(), line: line, epoch: epoch}
}

// Restart begins another epoch: nothing is known to be held any more.
func (s *Sender) Restart() {
	s.ring.empty()
	s.epoch++
	s.seq, s.known = 0, false
}

// Base returns the epoch and the sequence number of the latest record, 0 if there
// is none. The references that Match found are to be counted back from it.
func (s *Sender) Base() (epoch, seq uint32) { return s.epoch, s.seq }

// Match looks for parts of a payload, which it borrows until the next call, in
// records of the same group that the receiver has acknowledged, at last first,
// and sets that to where the payload ends. It lends the tokens until the next
// call. A payload longer than MaxRecord gets none.
func (s *Sender) Match(p []byte, group uint64, last *Source) []Token {
	s.last = *last
	s.src, s.group, s.at, s.lit, s.scanned, s.cursor = p, group, 0, 0, 0, 0
	s.anchors, s.tokens = s.anchors[:0], s.tokens[:0]
	s.holes, s.matched, s.oldest = false, 0, 0
	if s.seq == lastSeq {
		s.Restart()
	}
	if !s.known || len(p) > MaxRecord {
		return nil
	}
	for s.follow() || s.hit() {
	}
	// Two records on nothing is found any more, and without end at would overflow.
	*last = Source{}
	if at := int(s.last.at) + len(p) - s.at; at < 2*MaxRecord {
		*last = Source{s.last.seq, int32(at)}
	}
	return s.tokens
}

// Found returns how many bytes Match found, and whether all of their sources
// will be there for long.
func (s *Sender) Found() (n int, young bool) { return s.matched, s.oldest < s.most/2 }

// legal returns a record that may be referred to; nil if it may not.
func (s *Sender) legal(seq uint32) *record {
	rec := s.ring.get(seq)
	if rec == nil || rec.state != held || rec.group != s.group || s.ring.age(rec) > s.most || uint64(s.seq-seq) >= s.most/MinRecord {
		return nil
	}
	return rec
}

// emit adds a token for n bytes of src from at on, equal to those of rec from
// from on, as far as whole lines of the source go.
func (s *Sender) emit(rec *record, at, from, n int) bool {
	skip := (int(rec.phase) - from) & (s.line - 1)
	cut := skip + (from+n-int(rec.phase))&(s.line-1)
	if n-cut < minMatch {
		return false
	}
	at, from, n = at+skip, from+skip, n-cut
	s.tokens = append(s.tokens, Token{Lit: at - s.lit, Len: n, Seq: rec.seq, At: from})
	s.at, s.lit = at+n, at+n
	s.last = Source{rec.seq, int32(from + n)}
	s.matched += n
	s.oldest = max(s.oldest, s.ring.age(rec))
	return true
}

// follow tries what is behind the last match, also the next record's begin.
func (s *Sender) follow() bool {
	rec := s.legal(s.last.seq)
	if rec == nil {
		return false
	}
	left := int(rec.n - s.last.at)
	if left >= minMatch {
		return s.compare(rec, s.at, int(s.last.at))
	}
	if rec = s.legal(s.last.seq + 1); rec == nil {
		return false
	}
	return s.compare(rec, s.at+max(left, 0), max(-left, 0))
}

// compare takes what src from at on and rec from from on have in common.
func (s *Sender) compare(rec *record, at, from int) bool {
	if at >= len(s.src) || from >= int(rec.n) {
		return false
	}
	return s.emit(rec, at, from, match.Prefix(s.src[at:], s.ring.bytes(rec)[from:]))
}

// hit takes the first anchor that leads to a match.
func (s *Sender) hit() bool {
	for {
		for ; s.cursor < len(s.anchors); s.cursor++ {
			if a := &s.anchors[s.cursor]; int(a.at) >= s.at && s.try(a) {
				return true
			}
		}
		if s.holes = s.holes || s.at > s.scanned; s.at > s.scanned {
			s.scanned = s.at
		}
		if s.scanned >= len(s.src) {
			return false
		}
		end := min(s.scanned+stretch, len(s.src))
		s.anchors = scan(s.anchors, s.src, s.scanned, end)
		s.scanned = end
	}
}

// try verifies what the index says about an anchor.
func (s *Sender) try(a *anchor) bool {
	seq, at, ok := s.index.get(a.hash ^ s.group)
	if !ok {
		return false
	}
	rec := s.legal(seq)
	if rec == nil || at >= int(rec.n) {
		return false
	}
	b, here := s.ring.bytes(rec), int(a.at)
	back := match.Suffix(s.src[s.lit:here+1], b[:at+1])
	if back == 0 {
		return false
	}
	n := back + match.Prefix(s.src[here+1:], b[at+1:])
	// An anchor counts within the lines it leads to only: where it is depends on
	// each byte of its window, and tells of one that is not in them.
	from, end := at+1-back, at+1-back+n
	first := from + (int(rec.phase)-from)&(s.line-1)
	last := end - (end-int(rec.phase))&(s.line-1)
	if at+1-match.Window < first || at >= last {
		return false
	}
	return s.emit(rec, here+1-back, at+1-back, n)
}

// Open begins a record of n bytes, MinRecord to MaxRecord, which is empty. Only its
// group may refer to it, once the receiver has acknowledged it.
func (s *Sender) Open(n int, group uint64) Record {
	s.seq++
	rec := s.ring.place(s.seq, n)
	rec.group, rec.phase = group, uint8(maphash.Comparable(s.seed, s.seq)&uint64(s.line-1))
	return Record{s.epoch, s.seq}
}

// Keep adds to a record what of the payload that was matched last begins at
// from, and returns how much there was room for; 0 if it is not open any more.
func (s *Sender) Keep(r Record, from int) int {
	rec, n := s.extend(r, s.src[from:])
	if rec == nil {
		return 0
	}
	old := int(rec.n) - n
	if s.holes || s.scanned < len(s.src) {
		s.enter(rec, old)
		return n
	}
	for _, a := range s.anchors {
		if at := int(a.at) - from; at >= 0 && at < n {
			s.index.put(a.hash^rec.group, rec.seq, old+at)
		}
	}
	return n
}

// Append adds to a record bytes that were not matched. It is like Keep.
func (s *Sender) Append(r Record, p []byte) int {
	rec, n := s.extend(r, p)
	if rec == nil {
		return 0
	}
	s.enter(rec, int(rec.n)-n)
	return n
}

func (s *Sender) extend(r Record, p []byte) (*record, int) {
	rec := s.ring.get(r.Seq)
	if rec == nil || r.Epoch != s.epoch {
		return nil, 0
	}
	n := min(len(p), int(rec.room-rec.n))
	old := rec.n
	rec.n += int32(n)
	copy(s.ring.bytes(rec)[old:], p)
	return rec, n
}

// enter puts the anchors of a record from from on into the index.
func (s *Sender) enter(rec *record, from int) {
	s.anchors = scan(s.anchors[:0], s.ring.bytes(rec), from, int(rec.n))
	for _, a := range s.anchors {
		s.index.put(a.hash^rec.group, rec.seq, int(a.at))
	}
	s.anchors, s.holes = s.anchors[:0], true
}

// Reported takes in what the receiver says it holds. A receiver that is another
// process than before has nothing: that begins an epoch. Late and repeated
// reports do no harm.
func (s *Sender) Reported(r Report) {
	if r.Epoch != s.epoch {
		return
	}
	if s.known && s.peer != r.Instance {
		s.Restart()
		return
	}
	size := min(len(s.ring.buf), int(r.Size)<<20)
	s.peer, s.known, s.most = r.Instance, true, uint64(size-size/marginPart)
	for i := range reportSpan {
		if rec := s.ring.get(r.Top - uint32(i)); r.holds(i) && rec != nil {
			rec.state = held
		}
	}
	for _, seq := range r.Missed {
		if rec := s.ring.get(seq); rec != nil {
			rec.state = none
		}
	}
}
