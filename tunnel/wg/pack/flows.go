package pack

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"

	"stitch/tunnel/wg/pack/history"
)

const (
	// flowSlots is how many flows are remembered, a power of two.
	flowSlots = 1024
	// What looks encrypted is passed over for firstSkip units, four times as
	// many each time, up to longSkip; what saved too little for one, twice as
	// many and one each time, up to failSkip.
	firstSkip, longSkip = 255, 4095
	failSkip            = 255
)

// flow is what is known of one flow.
type flow struct {
	key        uint64
	skip, wait uint16 // units to pass over, of so many
	sealed     bool   // TLS or SSH was seen

	// Of its history: where it was found last, what it is recorded in, up to
	// which of TCP's sequence numbers, and how many bytes are in records.
	last     history.Source
	record   history.Record
	next     uint32
	recorded int32
}

// due reports whether the next unit is to be looked at.
func (f *flow) due() bool {
	if f.skip == 0 {
		return true
	}
	f.skip--
	return false
}

// encrypted notes that the flow looks so.
func (f *flow) encrypted() {
	f.wait = min(max(4*f.wait, firstSkip), longSkip)
	f.skip = f.wait
}

// failed notes that compressing saved too little.
func (f *flow) failed() {
	f.wait = min(2*f.wait+1, failSkip)
	f.skip = f.wait
}

// packed notes that it saved enough.
func (f *flow) packed() { f.wait = 0 }

// far is how far TCP's sequence numbers may fall back for it to be the same
// connection's.
const far = 4 << 20

// overlap returns how many of n bytes are recorded already, or have been passed
// over; again: all. Where some before them are missing the record ends.
func (f *flow) overlap(tcp uint32, n int) (at int, again bool) {
	ahead := int(int32(tcp - f.next))
	if f.recorded == 0 || ahead > 0 || ahead < -far {
		f.record = history.Record{}
		return 0, false
	}
	return -ahead, ahead+n <= 0
}

// flows is a table of flows by hash. A newer one takes an older one's place.
type flows struct {
	seed  maphash.Seed
	slots [flowSlots]flow
}

// of returns the flow of a super-packet.
func (t *flows) of(o *Offer) *flow {
	var id [2 + 32 + 4]byte
	binary.BigEndian.PutUint16(id[:], o.Segment)
	ip := o.Packet[o.IP:]
	if ip[0]>>4 == 6 {
		copy(id[2:34], ip[8:40])
	} else {
		copy(id[2:], ip[12:20])
	}
	copy(id[34:], o.Packet[o.Transport:])
	key := maphash.Bytes(t.seed, id[:])
	f := &t.slots[key%flowSlots]
	if f.key != key {
		*f = flow{key: key}
	}
	return f
}

// sealed reports whether a payload begins as TLS or SSH does.
func sealed(p []byte) bool {
	tls := len(p) > 5 && p[0] >= 20 && p[0] <= 23 && p[1] == 3 && p[2] <= 4
	return tls || bytes.HasPrefix(p, []byte("SSH-"))
}
