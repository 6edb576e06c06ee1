package block

import (
	"encoding/binary"

	"stitch/dedupe"
)

// Some literals are sent as their difference from what can be expected of
// them, so that most are 0 or like each other, and apart from the others: edits
// in place, from the bytes they replace, and the headers of guest pages, from
// the header before.

const (
	// maxPatch is the longest edit in place that may be sent as differences.
	maxPatch = 256
	pageSize = 4096
)

// literals finds the literals of a block that are not patches.
type literals struct {
	tokens  []dedupe.Token
	patched []bool
	token   int // the first one that does not end before
	at      int // where its literals begin in the block
	index   int // and among the literals
}

// find says whether the block's byte at is one of the literals, where it is
// among them, and where in the block the run of its kind ends. It is for
// rising positions; n is the block's length.
func (l *literals) find(at, n int) (index, end int, ok bool) {
	for ; l.token < len(l.tokens); l.token++ {
		t := &l.tokens[l.token]
		end := l.at + t.Lit
		switch {
		case at < end:
			return l.index + at - l.at, end, !l.patched[l.token]
		case at < end+t.Len:
			return 0, end + t.Len, false
		case !l.patched[l.token]:
			l.index += t.Lit
		}
		l.at = end + t.Len
	}
	return l.index + at - l.at, n, true
}

// framing follows the page headers of a guest's memory as QEMU streams it
// (migration/ram.c): eight bytes, big endian, the page's address and flags,
// then the page, or one byte for a page of zeros. Both ends follow them through
// the application's bytes. The zero framing has found none yet.
type framing struct {
	known bool
	next  int    // where the next header begins in the next block
	word  uint64 // the last one
	// wait is how many blocks without a header are passed over until the next
	// look; skip is how many of them remain.
	wait, skip int
}

// record is the length of the record that begins with the header word; 0 if
// it is none that can be followed.
func record(word uint64) int {
	switch word & (0xffff<<48 | 0xfff) {
	case 0x28: // a page of the same RAM block as the one before
		return 8 + pageSize
	case 0x22: // the same, and its bytes are all zero
		return 8 + 1
	}
	return 0
}

// follow follows the headers through a block, and looks for them if there are
// none it knows.
func (f *framing) follow(app []byte) {
	f.walk(app, func(int, uint64) {})
	f.find(app)
}

// walk follows the headers through a block. Before it reads one it calls fix
// with where it is and what it is expected to be. find comes next, when the
// block is whole.
func (f *framing) walk(app []byte, fix func(at int, guess uint64)) {
	at := f.next
	for f.known && at+8 <= len(app) {
		fix(at, f.word+pageSize)
		at = f.read(app, at)
	}
	f.known = f.known && at >= len(app) // one across the end is let go
	f.next = at - len(app)
}

// read takes the header at and returns where the next one begins.
func (f *framing) read(app []byte, at int) int {
	f.word = binary.BigEndian.Uint64(app[at:])
	n := record(f.word)
	f.known = n > 0
	return at + n
}

// find looks for two headers in a row at the beginning of a block, unless one
// is known.
func (f *framing) find(app []byte) {
	switch {
	case f.known:
		return
	case f.skip > 0:
		f.skip--
		return
	}
	for at := 0; at < 2*(8+pageSize) && at+16 <= len(app); at++ {
		word := binary.BigEndian.Uint64(app[at:])
		next := at + record(word)
		if next == at || next+8 > len(app) || binary.BigEndian.Uint64(app[next:]) != word+pageSize {
			continue
		}
		for f.known = true; f.known && next+8 <= len(app); {
			next = f.read(app, next)
		}
		f.known = f.known && next >= len(app)
		f.next, f.wait = next-len(app), 0
		return
	}
	f.wait = min(2*f.wait+1, 63)
	f.skip = f.wait
}

// split moves the header bytes among the literals (l says which these are)
// behind the others, last one first, as differences from what they are
// expected to be. heads is working memory and is returned.
func (f *framing) split(app, lits, heads []byte, l literals) (memory []byte) {
	heads = heads[:0]
	kept, next := 0, 0
	keep := func(to int) {
		kept += copy(lits[kept:], lits[next:to])
	}
	f.walk(app, func(at int, guess uint64) {
		for i := range 8 {
			if k, _, ok := l.find(at+i, len(app)); ok {
				keep(k)
				next = k + 1
				heads = append(heads, app[at+i]-byte(guess>>(56-8*i)))
			}
		}
	})
	f.find(app)
	keep(len(lits))
	for i := range heads {
		lits[kept+i] = heads[len(heads)-1-i]
	}
	return heads
}

// join puts literals that went through split in their places in app, where
// everything else is already.
func (f *framing) join(app, lits []byte, l literals) {
	done := 0
	fill := func(to int) {
		for done < to {
			_, end, ok := l.find(done, len(app))
			end = min(end, to)
			if ok {
				lits = lits[copy(app[done:end], lits):]
			}
			done = end
		}
	}
	f.walk(app, func(at int, guess uint64) {
		fill(at)
		for done = at; done < at+8; done++ {
			if _, _, ok := l.find(done, len(app)); ok {
				last := len(lits) - 1
				app[done] = lits[last] + byte(guess>>(56-8*(done-at)))
				lits = lits[:last]
			}
		}
	})
	fill(len(app))
	f.find(app)
}

// patch is where t's source begins if the literals in front of it are sent as
// differences from what stands in front of the source, and how long it is then.
func patch(t *dedupe.Token) dedupe.Token {
	return dedupe.Token{Len: t.Lit + t.Len, Ring: t.Ring, Pos: t.Pos - uint64(t.Lit)}
}

// alike says whether edited, of as many bytes as old, is better sent as
// differences: a quarter of the bytes stayed.
func alike(edited, old []byte) bool {
	same := 0
	for i := range edited {
		if edited[i] == old[i] {
			same++
		}
	}
	return 4*same >= len(edited)
}
