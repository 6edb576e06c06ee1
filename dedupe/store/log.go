package store

import (
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/zeebo/xxh3"

	"stitch/dedupe/accord"
)

const (
	// spare is the slots beyond the history's segments: for new versions of
	// segments, and for those that hang over the tail.
	spare = 16
	// maxSlots bounds what is read of a file.
	maxSlots   = accord.MaxSize/Segment + spare
	maxSegment = 1 << 40
	// Buffer is the capacity that a buffer for Write needs.
	Buffer = Segment + tagLen
)

// ErrAbsent is returned for a segment that the store does not have.
var ErrAbsent = errors.New("store: no such segment or epoch")

// Log is one ring's segments on disk. It is safe for concurrent use, each
// segment by one writer at a time.
type Log struct {
	data, meta, hints File
	cipher            cipher.AEAD // nil without encryption

	mu       sync.Mutex
	epoch    uint64
	sequence uint64
	entries  []entry // of segment n at n % len
	used     []bool  // slots that are taken
	next     int     // where to look for a free slot
	damaged  int     // records that did not verify when opened
}

// entry says where a segment is.
type entry struct {
	segment  uint64
	sequence uint64
	slot     int32 // -1: absent
	digest   accord.Digest
}

// openLog reads the records. Of what belongs to epoch the newest segments are
// kept, as many as the history has.
func openLog(d Disk, name string, segments int, epoch uint64, a cipher.AEAD) (*Log, error) {
	l := &Log{cipher: a, epoch: epoch, entries: make([]entry, segments+spare)}
	for i := range l.entries {
		l.entries[i].slot = -1
	}
	var err error
	if l.meta, err = d.Open(name + ".meta"); err != nil {
		return nil, err
	}
	if l.data, err = d.Open(name + ".data"); err != nil {
		return nil, errors.Join(err, l.meta.Close())
	}
	if l.hints, err = d.Open(name + ".hints"); err != nil {
		return nil, errors.Join(err, l.meta.Close(), l.data.Close())
	}
	if err := l.scan(segments); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// scan reads the metadata file and gives back what lies behind the last slot
// in use.
func (l *Log) scan(segments int) error {
	size, err := l.meta.Size()
	if err != nil {
		return err
	}
	slots := int(min((size+recordSize-1)/recordSize, maxSlots))
	l.used = make([]bool, max(slots, segments+spare))
	found, err := l.records(slots)
	if err != nil {
		return err
	}
	var newest uint64
	for i := range found {
		newest = max(newest, found[i].segment)
	}
	top := -1
	for i := range found {
		if f := &found[i]; newest-f.segment < uint64(segments) {
			l.place(*f)
		}
	}
	for i := range l.entries {
		top = max(top, int(l.entries[i].slot))
	}
	if top+1 < slots {
		err = errors.Join(l.meta.Truncate(int64(top+1)*recordSize), l.data.Truncate(int64(top+1)*Segment))
	}
	if n, e := l.hints.Size(); e == nil && n > int64(top+1)*hintsSlot {
		err = errors.Join(err, l.hints.Truncate(int64(top+1)*hintsSlot))
	}
	l.used = l.used[:max(top+1, segments+spare)]
	return err
}

// records returns the valid ones of our epoch, in the order of their writing.
func (l *Log) records(slots int) ([]entry, error) {
	var out []entry
	const batch = 512
	buf := make([]byte, min(batch, slots)*recordSize)
	for at := 0; at < slots; at += batch {
		n, err := l.meta.ReadAt(buf, int64(at)*recordSize)
		if err != nil && err != io.EOF {
			return nil, err
		}
		clear(buf[n:])
		for i := range min(batch, slots-at) {
			var r record
			switch b := buf[i*recordSize:][:recordSize]; {
			case r.decode(b, l.cipher) == nil:
				l.sequence = max(l.sequence, r.sequence)
				if r.epoch == l.epoch {
					out = append(out, entry{r.segment, r.sequence, int32(at + i), r.digest})
				}
			case !slices.Equal(b, make([]byte, recordSize)):
				l.damaged++
			}
		}
	}
	slices.SortFunc(out, func(a, b entry) int { return int(min(max(int64(a.sequence-b.sequence), -1), 1)) })
	return out, nil
}

// at is where seg's entry is or would be.
func (l *Log) at(seg uint64) *entry { return &l.entries[seg%uint64(len(l.entries))] }

// place makes e the version of its segment that counts; the caller holds mu.
func (l *Log) place(e entry) {
	p := l.at(e.segment)
	if p.slot >= 0 {
		l.used[p.slot] = false
	}
	*p = e
	l.used[e.slot] = true
}

// Find returns a segment's digest; false if it is absent.
func (l *Log) Find(seg uint64) (accord.Digest, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.at(seg)
	if p.slot < 0 || p.segment != seg {
		return accord.Digest{}, false
	}
	return p.digest, true
}

// Segments returns the segments there are, newest first.
func (l *Log) Segments() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []uint64
	for i := range l.entries {
		if l.entries[i].slot >= 0 {
			out = append(out, l.entries[i].segment)
		}
	}
	slices.SortFunc(out, func(a, b uint64) int { return int(min(max(int64(b-a), -1), 1)) })
	return out
}

// Drop forgets the segments for which keep says false.
func (l *Log) Drop(keep func(seg uint64) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.entries {
		if p := &l.entries[i]; p.slot >= 0 && !keep(p.segment) {
			l.used[p.slot] = false
			p.slot = -1
		}
	}
}

// Restart forgets everything; what is written from now on is of epoch.
func (l *Log) Restart(epoch uint64) {
	l.Drop(func(uint64) bool { return false })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epoch = epoch
}

// take finds a free slot.
func (l *Log) take(epoch uint64) (slot int, sequence uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if epoch != l.epoch {
		return 0, 0, ErrAbsent
	}
	for range l.entries { // slots beyond are from a larger store: not used again
		slot = l.next % len(l.entries)
		l.next = slot + 1
		if !l.used[slot] {
			l.used[slot] = true
			l.sequence++
			return slot, l.sequence, nil
		}
	}
	return 0, 0, fmt.Errorf("store: no free slot among %d", len(l.entries))
}

// Write stores a version of seg, whose digest is sum, and hints about it, at most
// MaxHints bytes (see Hints). data has Segment bytes and capacity Buffer, and is
// spoilt. On error the older version, if there is one, still counts. ErrAbsent if
// the log's epoch is another by now.
func (l *Log) Write(epoch, seg uint64, m *Map, data, hints []byte, sum accord.Digest) error {
	slot, sequence, err := l.take(epoch)
	if err != nil {
		return err
	}
	r := record{epoch: epoch, segment: seg, sequence: sequence, digest: sum, check: xxh3.Hash128(data).Bytes(), pages: *m}
	if l.cipher != nil {
		_, _ = rand.Read(r.nonce[:]) // never fails
		sealed := l.cipher.Seal(data[:0], r.nonce[:], data, nil)
		copy(r.tag[:], sealed[Segment:])
	}
	var b [recordSize]byte // first nothing: the slot's old record must not outlive its bytes
	if _, err = l.meta.WriteAt(b[:], int64(slot)*recordSize); err == nil {
		_, err = l.data.WriteAt(data, int64(slot)*Segment)
	}
	if err == nil && len(hints) > 0 {
		slot := int64(slot) * hintsSlot
		_, err = l.hints.WriteAt(l.encodeHints(make([]byte, 0, hintsSlot), epoch, seg, sequence, hints), slot)
	}
	if err == nil {
		b = r.encode(l.cipher)
		_, err = l.meta.WriteAt(b[:], int64(slot)*recordSize)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil && epoch != l.epoch {
		err = ErrAbsent
	}
	if err != nil {
		l.used[slot] = false
		return err
	}
	l.place(entry{seg, sequence, int32(slot), sum})
	return nil
}

// Read fills data (Segment bytes, capacity Buffer) with seg and returns its
// map and digest. ErrAbsent if there is no such segment or no longer; ErrCorrupt, or the
// disk's error, means that it was there and is now dropped.
func (l *Log) Read(seg uint64, data []byte) (*Map, accord.Digest, error) {
	for {
		l.mu.Lock()
		e := *l.at(seg)
		l.mu.Unlock()
		if e.slot < 0 || e.segment != seg {
			return nil, accord.Digest{}, ErrAbsent
		}
		m, err := l.read(&e, data)
		if err == nil {
			return m, e.digest, nil
		}
		if l.discard(&e) {
			return nil, accord.Digest{}, err
		}
	}
}

// discard drops e; false if another version has taken its place.
func (l *Log) discard(e *entry) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.at(e.segment)
	if *p != *e {
		return false
	}
	l.used[p.slot] = false
	p.slot = -1
	return true
}

func (l *Log) read(e *entry, data []byte) (*Map, error) {
	var b [recordSize]byte
	if _, err := l.meta.ReadAt(b[:], int64(e.slot)*recordSize); err != nil {
		return nil, err
	}
	var r record
	if err := r.decode(b[:], l.cipher); err != nil {
		return nil, err
	}
	if r.segment != e.segment || r.digest != e.digest {
		return nil, ErrCorrupt
	}
	if _, err := l.data.ReadAt(data, int64(e.slot)*Segment); err != nil {
		return nil, err
	}
	if l.cipher != nil {
		sealed := append(data, r.tag[:]...)
		if _, err := l.cipher.Open(sealed[:0], r.nonce[:], sealed, nil); err != nil {
			return nil, ErrCorrupt
		}
	}
	if xxh3.Hash128(data).Bytes() != r.check {
		return nil, ErrCorrupt
	}
	return &r.pages, nil
}

// Bytes is the bytes of segments in use on disk.
func (l *Log) Bytes() (n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.entries {
		if l.entries[i].slot >= 0 {
			n += Segment
		}
	}
	return n
}

// Damaged is how many records did not verify when the log was opened.
func (l *Log) Damaged() int { return l.damaged }

// Sync brings what was written to the disk.
func (l *Log) Sync() error { return errors.Join(l.data.Sync(), l.hints.Sync(), l.meta.Sync()) }

// Close closes the files.
func (l *Log) Close() error { return errors.Join(l.meta.Close(), l.data.Close(), l.hints.Close()) }
