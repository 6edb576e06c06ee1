package wg

import (
	"encoding/binary"
	"slices"
)

const (
	// maxHeld is the most flows of which a packet is kept while the link is down.
	maxHeld = 1024
	// maxHeldBytes bounds their memory.
	maxHeldBytes = 4 << 20
)

// flowKey names a flow: segment (0 for IP packets of the TUN), the MACs of a
// frame, and what flows are told apart by in an IP header.
type flowKey struct {
	segment  uint16
	macs     [12]byte
	proto    uint16 // IP protocol, or the EtherType of what is not IP
	src, dst [16]byte
	ports    uint32
}

// held is a packet that waits for the link to come up.
type held struct {
	segment uint16 // 0: IP packet
	data    []byte
	seq     uint64
}

// hold keeps the newest packet of each flow: of TCP that is the latest
// retransmission, so when it is released the connection goes on at once and
// does not wait for its sender's backed-off timer. A new flow that finds it
// full is dropped. It is not safe for concurrent use; the zero value is ready.
type hold struct {
	flows map[flowKey]*held
	bytes int
	seq   uint64
}

// put keeps a copy of data. False means that there was no room.
func (h *hold) put(segment uint16, data []byte) (replaced, ok bool) {
	if h.flows == nil {
		h.flows = make(map[flowKey]*held)
	}
	key := keyOf(segment, data)
	e := h.flows[key]
	if e == nil {
		if len(h.flows) >= maxHeld || h.bytes+len(data) > maxHeldBytes {
			return false, false
		}
		e = &held{segment: segment}
		h.flows[key] = e
	} else if h.bytes-len(e.data)+len(data) > maxHeldBytes {
		return false, false
	} else {
		replaced = true
	}
	h.bytes += len(data) - len(e.data)
	e.data = append(e.data[:0], data...)
	h.seq++
	e.seq = h.seq
	return replaced, true
}

// take empties the hold and returns what it kept, oldest first.
func (h *hold) take() []*held {
	all := make([]*held, 0, len(h.flows))
	for _, e := range h.flows {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *held) int { return int(int64(a.seq - b.seq)) })
	clear(h.flows)
	h.bytes = 0
	return all
}

// keyOf returns the flow of a frame (segment not 0) or an IP packet. What it
// cannot parse is told apart by the headers it can.
func keyOf(segment uint16, data []byte) flowKey {
	k := flowKey{segment: segment}
	if segment == 0 {
		k.ip(data)
		return k
	}
	if len(data) < 14 {
		return k
	}
	copy(k.macs[:], data)
	ethertype, rest := binary.BigEndian.Uint16(data[12:]), data[14:]
	for range 2 { // at most two tags
		if (ethertype == 0x8100 || ethertype == 0x88a8) && len(rest) >= 4 {
			k.ports = k.ports<<12 | uint32(binary.BigEndian.Uint16(rest)&0xfff)
			ethertype, rest = binary.BigEndian.Uint16(rest[2:]), rest[4:]
		}
	}
	k.proto = ethertype
	if ethertype == 0x0800 || ethertype == 0x86dd {
		k.ip(rest)
	}
	return k
}

// ip fills in what the IP header says.
func (k *flowKey) ip(p []byte) {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		k.proto = uint16(p[9])
		copy(k.src[:], p[12:16])
		copy(k.dst[:], p[16:20])
		if binary.BigEndian.Uint16(p[6:])&0x1fff == 0 {
			k.transport(p[min(len(p), int(p[0]&15)*4):])
		}
	case len(p) >= 40 && p[0]>>4 == 6:
		k.proto = uint16(p[6])
		copy(k.src[:], p[8:24])
		copy(k.dst[:], p[24:40])
		k.transport(p[40:])
	}
}

// transport fills in the ports of TCP, UDP and SCTP.
func (k *flowKey) transport(p []byte) {
	if (k.proto == 6 || k.proto == 17 || k.proto == 132) && len(p) >= 4 {
		k.ports ^= binary.BigEndian.Uint32(p)
	}
}
