package main

import (
	"encoding/binary"

	"stitch/scripts/traffic"
)

const (
	dbPage       = 8192
	dbHeader     = 24
	dbItem       = 4
	dbTuple      = 24 // header of a row
	dbReserve    = 640
	maxRow       = 512
	itemNormal   = 1
	layoutOfPage = dbPage | 4
)

// pages writes database pages: a header, item pointers growing up, rows growing
// down, and free space between, as PostgreSQL lays out a heap. It is not safe
// for concurrent use.
type pages struct {
	words *words
	r     *random
	block uint32
	row   uint64
	clock uint64
	buf   []byte
}

// newPages returns a writer of the pages of one table segment; its output
// follows from seed.
func newPages(w *words, seed uint64) *pages {
	return &pages{
		words: w, r: newRandom(seed ^ 0xdb), block: uint32(seed * 128),
		row: seed * 10_000, clock: 1_690_000_000_000_000 + seed*1_000_000_000,
	}
}

// fill overwrites b, whole pages of it, with pages.
func (p *pages) fill(b []byte) {
	for ; len(b) >= dbPage; b = b[dbPage:] {
		p.page(b[:dbPage])
		p.block++
	}
}

// page lays out one page. A tenth of the pages is half empty.
func (p *pages) page(b []byte) {
	clear(b)
	lower, upper := dbHeader, dbPage
	stop := dbReserve
	if p.r.below(10) == 0 {
		stop = dbPage / 2
	}
	for i := 1; upper-lower-dbItem-maxRow > stop; i++ {
		row := p.tuple(i)
		size := (len(row) + 7) &^ 7
		upper -= size
		copy(b[upper:], row)
		binary.LittleEndian.PutUint32(b[lower:], uint32(upper)|itemNormal<<15|uint32(len(row))<<17)
		lower += dbItem
	}
	binary.LittleEndian.PutUint64(b, p.clock<<8)                   // LSN
	binary.LittleEndian.PutUint16(b[8:], uint16(p.r.next()))       // checksum
	binary.LittleEndian.PutUint16(b[12:], uint16(lower))           //
	binary.LittleEndian.PutUint16(b[14:], uint16(upper))           //
	binary.LittleEndian.PutUint16(b[16:], dbPage)                  // special
	binary.LittleEndian.PutUint16(b[18:], uint16(layoutOfPage&^1)) // size and version
}

// tuple returns the nth row of the page; it is good until the next call.
func (p *pages) tuple(n int) []byte {
	p.row++
	p.clock += uint64(p.r.below(90_000))
	b := p.buf[:0]
	le := binary.LittleEndian
	b = le.AppendUint32(b, 700+uint32(p.row>>8)) // xmin
	b = le.AppendUint32(b, 0)                    // xmax
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, p.block)
	b = le.AppendUint16(b, uint16(n))
	b = append(b, 9, 0, 2, 9, dbTuple, 0)
	b = le.AppendUint64(b, p.row)
	b = le.AppendUint64(b, p.clock)
	b = le.AppendUint32(b, uint32(p.r.below(250_000))) // customer
	b = le.AppendUint32(b, uint32(p.r.below(500_000))) // amount
	b = p.text(b, 2)                                   // name
	first := p.words.draw(p.r)
	b = append(b, byte(len(first)+12)<<1|1)
	b = append(append(b, first...), "@example.com"...)
	b = append(b, 7<<1|1)
	b = append(b, [...]string{"pending", "shipped", "invoice", "settled"}[p.r.below(4)]...)
	b = le.AppendUint64(b, p.r.next()) // a random reference
	b = p.text(b, 4+p.r.below(12))     // note
	if n == 1 && p.block%4 == 0 {
		b = append(b, traffic.Canary...)
	}
	p.buf = b
	return b
}

// text appends n words as one variable-length column.
func (p *pages) text(b []byte, n int) []byte {
	at := len(b)
	b = append(b, 0)
	for range n {
		b = append(append(b, p.words.draw(p.r)...), ' ')
	}
	b[at] = byte(len(b)-at)<<1 | 1
	return b
}
