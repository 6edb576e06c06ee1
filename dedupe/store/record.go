package store

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"stitch/dedupe/accord"
)

const (
	// PageSize is what a Map counts in.
	PageSize = 4 << 10
	// Segment is the bytes of a slot.
	Segment = accord.Segment
	// Pages is the pages of a segment.
	Pages = Segment / PageSize

	recordSize  = 1024
	recordMagic = "stS1"
	sumLen      = 16
	nonceLen    = 12
	tagLen      = 16
	sealedFrom  = 32 + nonceLen
	mapFrom     = 16 + 16 + nonceLen + tagLen // in the sealed part
	sealedTo    = sealedFrom + mapFrom + 2*Pages

	flagEncrypted = 1
)

// ErrCorrupt is returned for what does not verify.
var ErrCorrupt = errors.New("store: damaged")

// Map says how many leading bytes of each page are valid.
type Map [Pages]uint16

// Bytes is the number of valid bytes.
func (m *Map) Bytes() (n int) {
	for _, v := range m {
		n += int(v)
	}
	return n
}

// Sum is a segment's digest; data has Segment bytes, 0 where the map says that
// they are not valid.
func Sum(seg uint64, m *Map, data []byte) accord.Digest {
	h := sha256.New()
	var b [8 + 2*Pages]byte
	binary.LittleEndian.PutUint64(b[:], seg)
	m.put(b[8:])
	h.Write(b[:])
	h.Write(data)
	var out [sha256.Size]byte
	return accord.Digest(h.Sum(out[:0])[:16])
}

func (m *Map) put(b []byte) {
	for i, v := range m {
		binary.LittleEndian.PutUint16(b[2*i:], v)
	}
}

// record describes a slot.
type record struct {
	epoch, segment, sequence uint64
	digest                   accord.Digest
	check                    [16]byte       // of the slot's bytes as they were before encryption
	nonce                    [nonceLen]byte // of the slot's bytes
	tag                      [tagLen]byte
	pages                    Map
}

// encode returns the record's bytes; a is nil without encryption.
func (r *record) encode(a cipher.AEAD) (b [recordSize]byte) {
	copy(b[:], recordMagic)
	binary.LittleEndian.PutUint64(b[8:], r.epoch)
	binary.LittleEndian.PutUint64(b[16:], r.segment)
	binary.LittleEndian.PutUint64(b[24:], r.sequence)
	body := b[sealedFrom:sealedTo]
	copy(body, r.digest[:])
	copy(body[16:], r.check[:])
	copy(body[32:], r.nonce[:])
	copy(body[32+nonceLen:], r.tag[:])
	r.pages.put(body[mapFrom:])
	if a != nil {
		b[4] = flagEncrypted
		nonce := b[32:sealedFrom]
		_, _ = rand.Read(nonce) // never fails
		a.Seal(body[:0], nonce, body, b[:sealedFrom])
	}
	seal(b[:])
	return b
}

// decode reads a record; ErrCorrupt if it is none or does not verify.
func (r *record) decode(b []byte, a cipher.AEAD) error {
	if len(b) != recordSize || string(b[:4]) != recordMagic || !sealed(b) ||
		(b[4]&flagEncrypted != 0) != (a != nil) {
		return ErrCorrupt
	}
	body := b[sealedFrom:sealedTo]
	if a != nil {
		var err error
		body, err = a.Open(nil, b[32:sealedFrom], b[sealedFrom:sealedTo+tagLen], b[:sealedFrom])
		if err != nil {
			return ErrCorrupt
		}
	}
	r.epoch = binary.LittleEndian.Uint64(b[8:])
	r.segment = binary.LittleEndian.Uint64(b[16:])
	r.sequence = binary.LittleEndian.Uint64(b[24:])
	copy(r.digest[:], body)
	copy(r.check[:], body[16:])
	copy(r.nonce[:], body[32:])
	copy(r.tag[:], body[32+nonceLen:])
	for i := range r.pages {
		v := binary.LittleEndian.Uint16(body[mapFrom+2*i:])
		if v > PageSize {
			return ErrCorrupt
		}
		r.pages[i] = v
	}
	if r.segment > maxSegment || r.digest == (accord.Digest{}) {
		return ErrCorrupt
	}
	return nil
}

// seal writes the checksum at the end of b.
func seal(b []byte) {
	at := len(b) - sumLen
	h := sha256.Sum256(b[:at])
	copy(b[at:], h[:])
}

func sealed(b []byte) bool {
	at := len(b) - sumLen
	h := sha256.Sum256(b[:at])
	return bytes.Equal(b[at:], h[:sumLen])
}
