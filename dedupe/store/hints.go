package store

import (
	"crypto/rand"
	"encoding/binary"
	"io"

	"github.com/zeebo/xxh3"

	"stitch/dedupe/accord"
)

const (
	hintsMagic  = "stH1"
	hintsHead   = 48 // before the checksum
	hintsFrom   = hintsHead + sumLen
	hintsSlot   = 40 << 10
	hintsNonce  = 32
	hintsLength = hintsNonce + nonceLen

	// MaxHints is the most bytes of one segment's hints.
	MaxHints = hintsSlot - hintsFrom - tagLen
	// hintsBatch is how many slots are read at a time: 2 MiB, so that their order
	// does not matter to a disk.
	hintsBatch = 51
)

// Hint is what the hints file has about a segment.
type Hint struct {
	Segment uint64
	Digest  accord.Digest
	Pages   Map
	// Hints are the bytes given to Write or WriteHints; lent until the next
	// use of the scratch memory.
	Hints []byte
}

// encodeHints fills a slot's bytes, which b's capacity holds, for the version of
// seg that the sequence tells.
func (l *Log) encodeHints(b []byte, epoch, seg, sequence uint64, hints []byte) []byte {
	b = append(b[:0], hintsMagic...)
	b = append(b, 0, 0, 0, 0)
	for _, v := range [...]uint64{epoch, seg, sequence} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	b = append(b, make([]byte, nonceLen)...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(hints)))
	b = append(b, make([]byte, sumLen)...)
	if l.cipher == nil {
		b = append(b, hints...)
	} else {
		b[4] = flagEncrypted
		_, _ = rand.Read(b[hintsNonce:hintsLength]) // never fails
		b = l.cipher.Seal(b, b[hintsNonce:hintsLength], hints, b[:hintsHead])
	}
	sum := hintsSum(b)
	copy(b[hintsHead:], sum[:])
	return b
}

// hintsSum is the checksum of a slot's used bytes.
func hintsSum(b []byte) [16]byte {
	h := xxh3.New()
	_, _ = h.Write(b[:hintsHead]) // never fails
	_, _ = h.Write(b[hintsFrom:])
	return h.Sum128().Bytes()
}

// decodeHints returns what slot b says about segment seg in the version of
// sequence, in place; false if it says nothing about that or does not verify.
func (l *Log) decodeHints(b []byte, epoch, seg, sequence uint64) ([]byte, bool) {
	if len(b) < hintsFrom || string(b[:4]) != hintsMagic || (b[4]&flagEncrypted != 0) != (l.cipher != nil) {
		return nil, false
	}
	for i, v := range [...]uint64{epoch, seg, sequence} {
		if binary.LittleEndian.Uint64(b[8+8*i:]) != v {
			return nil, false
		}
	}
	n := uint64(binary.LittleEndian.Uint32(b[hintsLength:]))
	if l.cipher != nil {
		n += tagLen
	}
	if n > uint64(len(b)-hintsFrom) {
		return nil, false
	}
	b = b[:hintsFrom+n]
	if sum := hintsSum(b); string(sum[:]) != string(b[hintsHead:hintsFrom]) {
		return nil, false
	}
	body := b[hintsFrom:]
	if l.cipher != nil {
		var err error
		if body, err = l.cipher.Open(body[:0], b[hintsNonce:hintsLength], body, b[:hintsHead]); err != nil {
			return nil, false
		}
	}
	return body, true
}

// WriteHints stores hints, at most MaxHints bytes, for the version of seg whose
// digest is sum, if the log still has it: for a segment that was written without
// them, or whose hints are damaged. It may run beside Write; at worst there are no
// hints afterwards.
func (l *Log) WriteHints(seg uint64, sum accord.Digest, hints []byte) error {
	l.mu.Lock()
	e, epoch := *l.at(seg), l.epoch
	l.mu.Unlock()
	if e.slot < 0 || e.segment != seg || e.digest != sum {
		return ErrAbsent
	}
	b := l.encodeHints(make([]byte, 0, hintsSlot), epoch, seg, e.sequence, hints)
	_, err := l.hints.WriteAt(b, int64(e.slot)*hintsSlot)
	return err
}

// HintBatches is how many calls of Hints there are to be made.
func (l *Log) HintBatches() int { return (len(l.used) + hintsBatch - 1) / hintsBatch }

// Hints calls f for each segment in the i-th part of the hints file whose hints
// verify and are of the version that the log has. Parts come with the newest
// segment's first. scratch is memory that may be used, and is returned to be used
// again. What cannot be read or does not verify is left out: hints are an aid.
func (l *Log) Hints(i int, scratch []byte, f func(*Hint)) []byte {
	const size, metaSize = hintsBatch * hintsSlot, hintsBatch * recordSize
	if cap(scratch) < size+metaSize {
		scratch = make([]byte, size+metaSize)
	}
	at, list := l.batch(i)
	if len(list) == 0 {
		return scratch
	}
	from, to := list[0].slot, list[0].slot
	for _, e := range list {
		from, to = min(from, e.slot), max(to, e.slot)
	}
	slots, ok := readSome(l.hints, scratch[:int(to-from+1)*hintsSlot], int64(from)*hintsSlot)
	if !ok {
		return scratch
	}
	metas, ok := readSome(l.meta, scratch[size:][:int(to-from+1)*recordSize], int64(from)*recordSize)
	if !ok {
		return scratch
	}
	for _, e := range list {
		k := int(e.slot - from)
		if (k+1)*recordSize > len(metas) || k*hintsSlot >= len(slots) {
			continue
		}
		slot := slots[k*hintsSlot : min((k+1)*hintsSlot, len(slots))]
		hints, ok := l.decodeHints(slot, at, e.segment, e.sequence)
		if !ok {
			continue
		}
		var r record
		if r.decode(metas[k*recordSize:][:recordSize], l.cipher) != nil || r.sequence != e.sequence || r.segment != e.segment {
			continue
		}
		f(&Hint{Segment: e.segment, Digest: r.digest, Pages: r.pages, Hints: hints})
	}
	return scratch
}

// batch is the epoch and the segments of the i-th part.
func (l *Log) batch(i int) (epoch uint64, list []entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	newest := entry{slot: -1}
	parts := (len(l.used) + hintsBatch - 1) / hintsBatch
	for k := range l.entries {
		if e := &l.entries[k]; e.slot >= 0 && (newest.slot < 0 || e.segment > newest.segment) {
			newest = *e
		}
	}
	if newest.slot < 0 || i >= parts {
		return l.epoch, nil
	}
	part := (int(newest.slot)/hintsBatch - i + parts) % parts
	for k := range l.entries {
		if e := l.entries[k]; e.slot >= 0 && int(e.slot)/hintsBatch == part {
			list = append(list, e)
		}
	}
	return l.epoch, list
}

// readSome reads what there is of b at off; false if that fails.
func readSome(f File, b []byte, off int64) ([]byte, bool) {
	n, err := f.ReadAt(b, off)
	return b[:n], err == nil || err == io.EOF
}
