package wg

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/wg/shape"
)

// ClassStats says what became of one class of what is sent; see Config.Classes.
type ClassStats struct {
	// Name is empty for what is in no other class.
	Name    string `json:"name"`
	Percent int    `json:"percent"`
	// Limit is the most it may send in bits of IP packets a second; 0: no bound.
	Limit int64 `json:"limit,omitempty"`
	// Rate is what it sent of late, in bits of IP packets a second.
	Rate int64 `json:"rate"`
	// Packets and Bytes were sent, Bytes with the WAN's headers. Dropped are packets
	// that found too much waiting.
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	Dropped uint64 `json:"dropped"`
	// Waiting is how many bytes wait.
	Waiting int64 `json:"waiting"`
}

// classCount are the counters behind a ClassStats.
type classCount struct {
	packets, bytes, dropped atomic.Uint64
	waiting, rate           atomic.Int64
}

// set takes over what the queue counted.
func (c *classCount) set(n shape.Count) {
	c.packets.Store(n.Packets)
	c.bytes.Store(n.Bytes)
	c.dropped.Store(n.Dropped)
	c.waiting.Store(int64(n.Waiting))
}

// classRateTime is how long the rate of a class is counted.
const classRateTime = time.Second

// classRates counts the rates of the classes. It belongs to Link.run.
type classRates struct {
	at    time.Time
	bytes []uint64
}

// tick counts anew when it is time.
func (r *classRates) tick(counts []classCount, now time.Time) {
	took := now.Sub(r.at)
	if len(counts) == 0 || took < classRateTime {
		return
	}
	first := r.bytes == nil
	if first {
		r.bytes = make([]uint64, len(counts))
	}
	for i := range counts {
		n := counts[i].bytes.Load()
		if !first {
			counts[i].rate.Store(int64(float64(n-r.bytes[i]) * 8 / took.Seconds()))
		}
		r.bytes[i] = n
	}
	r.at = now
}

// classStats returns what became of each class; nil without any.
func (m *mux) classStats() (out []ClassStats) {
	for i, c := range m.cfg.Classes {
		n := &m.classes[i]
		out = append(out, ClassStats{
			Name: c.Name, Percent: c.Percent, Limit: c.Limit, Rate: n.rate.Load(),
			Packets: n.packets.Load(), Bytes: n.bytes.Load(), Dropped: n.dropped.Load(), Waiting: n.waiting.Load(),
		})
	}
	return out
}

// shapeClasses are the classes of a link as the queue takes them.
func shapeClasses(classes []config.Class) (out []shape.Class) {
	for _, c := range classes {
		out = append(out, shape.Class{Share: c.Percent, Limit: c.Limit})
	}
	return out
}

// knownClasses is of how many flows the class is remembered.
const knownClasses = 1024

// classifier knows the class of a packet by its flow. Owned by Read.
type classifier struct {
	classOf func(segment uint16, src, dst netip.AddrPort) int
	most    int
	known   [knownClasses]struct {
		key   flowKey
		class int
		ok    bool
	}
}

// newClassifier returns the classifier of a link; nil: it has no classes.
func newClassifier(cfg *Config) *classifier {
	if len(cfg.Classes) == 0 || cfg.ClassOf == nil {
		return nil
	}
	return &classifier{classOf: cfg.ClassOf, most: len(cfg.Classes) - 1}
}

// class returns the class of a frame, or for segment 0 of an IP packet, whose flow
// and its hash are given.
func (c *classifier) class(hash uint64, k flowKey, segment uint16, data []byte) int {
	if c == nil {
		return 0
	}
	e := &c.known[hash%knownClasses]
	if !e.ok || e.key != k {
		src, dst := k.ends(segment, data)
		e.key, e.class, e.ok = k, min(max(c.classOf(segment, src, dst), 0), c.most), true
	}
	return e.class
}

// ends are the ends of the packet or untagged frame that k is of; their ports are 0
// if it has none, they are invalid if it is no IP.
func (k flowKey) ends(segment uint16, data []byte) (src, dst netip.AddrPort) {
	if segment != 0 {
		if len(data) < 14 {
			return src, dst
		}
		if e := binary.BigEndian.Uint16(data[12:]); e != 0x0800 && e != 0x86dd {
			return src, dst
		}
		data = data[14:]
	}
	if len(data) == 0 {
		return src, dst
	}
	a, b := netip.AddrFrom16(k.src), netip.AddrFrom16(k.dst)
	switch data[0] >> 4 {
	case 4:
		a, b = netip.AddrFrom4([4]byte(k.src[:4])), netip.AddrFrom4([4]byte(k.dst[:4]))
	case 6:
	default:
		return src, dst
	}
	return netip.AddrPortFrom(a, uint16(k.ports>>16)), netip.AddrPortFrom(b, uint16(k.ports))
}
