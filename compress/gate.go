package compress

import "encoding/binary"

// The first probe comes after firstSkip blocks and each one that gave nothing
// makes the distance four times as long, up to maxSkip: a probe costs as much as
// matching several blocks, and a stream that turns compressible mostly stops to
// look random, which is seen at once.
const firstSkip, maxSkip = 31, 1023

// Gate turns compression off for a stream of random-looking blocks, and probes
// them at growing distances. A block that does not look random is always
// tried: in guest memory blocks that save little stand next to others, and
// passing over them costs more bytes than it saves time. The zero Gate is open.
// It is not safe for concurrent use.
type Gate struct {
	wait, skip int
}

// Try says whether to compress src (borrowed). After a true answer the caller
// must call Report.
func (g *Gate) Try(src []byte) bool {
	switch {
	case !Random(src):
		return true
	case g.wait == 0:
		g.close()
		return false
	case g.skip > 0:
		g.skip--
		return false
	}
	return true
}

// Report tells the gate what compressing in bytes gave: out bytes.
func (g *Gate) Report(in, out int) {
	switch {
	case out <= in-in>>5:
		*g = Gate{}
	case g.wait > 0:
		g.close()
	}
}

func (g *Gate) close() {
	g.wait = min(4*g.wait+firstSkip, maxSkip)
	g.skip = g.wait
}

// Random says whether a sample of src (at most 4 KiB of it, spread evenly)
// has the byte distribution of random bytes: more than 7.7 bits of entropy in
// each byte. Short inputs never look random.
func Random(src []byte) bool {
	const sample, run = 4096, 64
	if len(src) < 1024 {
		return false
	}
	var count [256]uint16
	n := 0
	step := max(len(src)/(sample/run), run)
	for off := 0; off+run <= len(src) && n < sample; off += step {
		for s := src[off : off+run]; len(s) >= 8; s = s[8:] {
			w := binary.LittleEndian.Uint64(s)
			for range 8 {
				count[byte(w)]++
				w >>= 8
			}
		}
		n += run
	}
	return collisions(&count)*256*10 < 12*uint64(n)*uint64(n-1)
}

// collisions counts ordered pairs of equal bytes: n(n-1)/256 of them are
// expected of n random bytes, and 1.2 times that is 7.7 bits (Rényi's entropy
// of order two, which needs no logarithm and no correction for small n).
func collisions(count *[256]uint16) uint64 {
	var sum uint64
	for _, c := range count {
		sum += uint64(c) * (uint64(c) - 1) // 0 for c = 0 and 1
	}
	return sum
}
