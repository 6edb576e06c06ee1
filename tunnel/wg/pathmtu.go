package wg

import (
	"encoding/binary"
	"time"

	"stitch/tunnel/wg/carrier"
)

// The largest packet that gets through is found by probes of our own, after RFC
// 8899: what ICMP says may be forged, filtered, or about something else. Every
// two seconds a probe as large as the packets in use is sent. When it is lost
// three times though small probes arrive, the path swallows large packets, and
// the smallest size is used at once, while larger ones are tried: the old one
// first, it may have been mere loss, then by halving. Once a minute a path that
// was found small is tried again.

const (
	// sizeStep is the step of sizes: wireguard-go pads packets to it.
	sizeStep = 16
	// minSize always gets through, or nothing does.
	minSize = (minInnerMTU + sizeStep - 1) / sizeStep * sizeStep

	confirmEvery = 2 * time.Second
	raiseEvery   = time.Minute
	// sizeWait is how long an answer may take at least; it is twice the
	// round-trip time if that is more.
	sizeWait = 300 * time.Millisecond
	// A size in use is taken for lost after confirmTries probes, one that is
	// only tried after searchTries.
	confirmTries, searchTries = 3, 2
)

// sizeMsg is a message about sizes. They are probes (see probe) of further
// types: type u8 (6 probe, 7 answer), zero u8, size u16, id u32; a probe is
// padded so that its packet has size bytes.
type sizeMsg struct {
	answer bool
	size   uint16
	id     uint32
}

func (m sizeMsg) append(b []byte) []byte {
	kind := byte(6)
	if m.answer {
		kind = 7
	}
	b = append(b, kind, 0)
	b = binary.BigEndian.AppendUint16(b, m.size)
	b = binary.BigEndian.AppendUint32(b, m.id)
	if !m.answer {
		b = append(b, make([]byte, int(m.size)-carrier.HeaderLen-8)...)
	}
	return b
}

// parseSize reads a message. A probe whose size is not that of its packet was
// not sent by us, and is none.
func parseSize(b []byte) (sizeMsg, bool) {
	if len(b) < 8 || b[0] != 6 && b[0] != 7 {
		return sizeMsg{}, false
	}
	m := sizeMsg{b[0] == 7, binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint32(b[4:])}
	return m, m.answer || int(m.size) == len(b)+carrier.HeaderLen
}

// pathMTU finds the largest inner packet that gets through. It is pure, and
// not safe for concurrent use.
type pathMTU struct {
	most    int  // what the configuration allows
	size    int  // in use
	able    bool // the peer answers such probes
	low     int  // gets through
	high    int  // does not, or is beyond most
	trying  int  // size of the current probe
	id      uint32
	tries   int // probes of it so far
	waiting bool
	due     time.Time // of the next probe, or of the answer
	raise   time.Time // when to look for more
}

func newPathMTU(most int) pathMTU { return pathMTU{most: most, size: most, low: most, high: most + 1} }

// start begins anew: the link came up, maybe over another path. Whether the
// peer knows such probes at all is seen from one that is small.
func (p *pathMTU) start(now time.Time) {
	if p.most < minSize+sizeStep {
		return // nothing to find
	}
	able := p.able
	size, id := p.size, p.id
	*p = newPathMTU(p.most)
	p.able, p.size, p.low, p.id = able, size, size, id
	p.try(minSize, now)
}

// try begins to probe a size.
func (p *pathMTU) try(size int, now time.Time) {
	p.id++
	p.trying, p.tries, p.waiting, p.due = size, 0, false, now
}

// tick returns the probe to send now, if one is due.
func (p *pathMTU) tick(now time.Time, rtt time.Duration) (m sizeMsg, send bool) {
	if p.trying == 0 || now.Before(p.due) {
		return sizeMsg{}, false
	}
	if limit := p.limit(); p.waiting && p.tries == limit {
		p.lost(now)
		if p.trying == 0 || now.Before(p.due) {
			return sizeMsg{}, false
		}
	}
	p.tries++
	p.waiting, p.due = true, now.Add(max(sizeWait, 2*rtt))
	return sizeMsg{size: uint16(p.trying), id: p.id}, true
}

func (p *pathMTU) limit() int {
	if p.trying == p.size || !p.able {
		return confirmTries
	}
	return searchTries
}

// lost notes that no probe of the current size was answered.
func (p *pathMTU) lost(now time.Time) {
	switch {
	case !p.able: // an agent that does not know them: the configuration holds
		p.trying = 0
	case p.trying == minSize: // nothing gets through, for the moment
		p.try(minSize, now.Add(confirmEvery))
	case p.trying == p.size: // what is in use got lost: be careful, then look closer
		old := p.size
		p.size, p.low, p.high = minSize, minSize, p.most+1
		p.try(old, now)
	default:
		p.high = p.trying
		p.search(now)
	}
}

// search goes on between what gets through and what does not.
func (p *pathMTU) search(now time.Time) {
	next := (p.low + p.high) / 2 / sizeStep * sizeStep
	if next <= p.low {
		next = p.low + sizeStep
	}
	if next >= p.high {
		p.raise = now.Add(raiseEvery)
		p.try(p.size, now.Add(confirmEvery))
		return
	}
	p.try(next, now)
}

// answered takes in an answer.
func (p *pathMTU) answered(m sizeMsg, now time.Time) {
	if m.id != p.id || int(m.size) != p.trying || !p.waiting {
		return
	}
	first := !p.able
	p.able = true
	p.low = max(p.low, p.trying)
	switch {
	case first || p.trying < p.size: // the peer knows them: now for what is in use
		p.try(p.size, now)
	case p.trying > p.size:
		p.size = p.trying
		if p.size < p.most {
			p.search(now)
			return
		}
		p.try(p.size, now.Add(confirmEvery))
	case p.size < p.most && !now.Before(p.raise):
		p.low, p.high = p.size, p.most+1
		p.try(p.most, now)
	default:
		p.try(p.size, now.Add(confirmEvery))
	}
}
