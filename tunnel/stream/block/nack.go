package block

import (
	"encoding/binary"

	"stitch/dedupe"
)

// maxBad is the most unusable sources one nack names; the rest stay in use
// until they are met again.
const maxBad = 16

// badSource is a source the decoder could not use, as the encoder sees it.
type badSource struct {
	ring dedupe.Ring
	span dedupe.Span
}

// nack asks for block seq again and names unusable sources.
type nack struct {
	seq   uint64
	bad   [maxBad]badSource
	count int
}

// add names t's source, if there is room; one that goes on where the last one
// ends extends it. A position that no ring has needs no dropping.
func (m *nack) add(t *dedupe.Token) {
	if t.Ring == dedupe.Zeros || t.Pos > maxNumber {
		return
	}
	if m.count > 0 {
		last := &m.bad[m.count-1]
		if last.ring == t.Ring && last.span.Pos+uint64(last.span.Len) == t.Pos && last.span.Len+t.Len <= MaxBlock {
			last.span.Len += t.Len
			return
		}
	}
	if m.count < maxBad {
		m.bad[m.count] = badSource{t.Ring, dedupe.Span{Pos: t.Pos, Len: t.Len}}
		m.count++
	}
}

func (m *nack) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, m.seq)
	dst = binary.AppendUvarint(dst, uint64(m.count))
	for _, b := range m.bad[:m.count] {
		dst = binary.AppendUvarint(dst, uint64(b.ring))
		dst = binary.AppendUvarint(dst, b.span.Pos)
		dst = binary.AppendUvarint(dst, uint64(b.span.Len))
	}
	return dst
}

func parseNack(body []byte) (m nack, ok bool) {
	r := reader{buf: body}
	m.seq = r.number(1 << 60)
	m.count = int(r.number(maxBad))
	for i := range m.bad[:m.count] {
		b := &m.bad[i]
		b.ring = dedupe.Ring(r.number(uint64(dedupe.Received)))
		b.span.Pos = r.number(1 << 60)
		b.span.Len = int(r.number(MaxBlock))
	}
	return m, !r.bad && r.at == len(body)
}
