package block

// A binary range coder after G. N. N. Martin (1979) with the carry of LZMA:
// each decision is coded with a probability that follows what was decided
// before, so decisions that are always the same cost almost nothing.

// decider codes decisions. An encoder codes what it is given and returns it; a
// decoder returns what was coded. So one function describes both directions.
type decider interface {
	// bit codes 0 or 1 as likely as p says, and teaches p.
	bit(p *prob, b uint64) uint64
	// plain codes the low n bits of v as they are.
	plain(v uint64, n int) uint64
}

const (
	probBits = 15
	topRange = 1 << 24
	// probFloor keeps both decisions possible.
	probFloor = 1 << 5
)

// prob is how likely a 0 is: the mean of one estimate that follows fast and
// one that follows slowly. Ready for use after reset.
type prob struct{ fast, slow uint16 }

func (p *prob) reset() { p.fast, p.slow = 1<<15, 1<<15 }

func resetAll(ps []prob) {
	for i := range ps {
		ps[i].reset()
	}
}

// zero is the probability of a 0 in units of 1/2^probBits.
func (p *prob) zero() uint32 {
	z := (uint32(p.fast) + uint32(p.slow)) >> (17 - probBits)
	return min(max(z, probFloor), 1<<probBits-probFloor)
}

// follow moves both estimates towards bit.
func (p *prob) follow(bit uint64) {
	const fast, slow = 4, 7
	if bit == 0 {
		p.fast += (65535 - p.fast) >> fast
		p.slow += (65535 - p.slow) >> slow
		return
	}
	p.fast -= p.fast >> fast
	p.slow -= p.slow >> slow
}

// rangeEncoder appends decisions to out. Begin with begin, end with finish.
type rangeEncoder struct {
	out     []byte
	start   int
	low     uint64
	width   uint32
	cache   byte
	pending int  // bytes 0xff behind cache that a carry may still change
	first   bool // the first byte is always 0 and is left out
}

func (e *rangeEncoder) begin(dst []byte) {
	*e = rangeEncoder{out: dst, start: len(dst), width: 1<<32 - 1, first: true}
}

func (e *rangeEncoder) bit(p *prob, bit uint64) uint64 {
	bound := e.width >> probBits * p.zero()
	if bit == 0 {
		e.width = bound
	} else {
		e.low += uint64(bound)
		e.width -= bound
	}
	p.follow(bit)
	e.normalize()
	return bit
}

func (e *rangeEncoder) plain(v uint64, n int) uint64 {
	for n--; n >= 0; n-- {
		e.width >>= 1
		if v>>n&1 == 1 {
			e.low += uint64(e.width)
		}
		e.normalize()
	}
	return v
}

func (e *rangeEncoder) normalize() {
	for e.width < topRange {
		e.width <<= 8
		e.shift()
	}
}

// shift moves the highest byte of low out, or lets it wait for a carry.
func (e *rangeEncoder) shift() {
	if uint32(e.low) >= 0xff000000 && e.low>>32 == 0 {
		e.pending++
	} else {
		carry := byte(e.low >> 32)
		if !e.first {
			e.out = append(e.out, e.cache+carry)
		}
		for ; e.pending > 0; e.pending-- {
			e.out = append(e.out, 0xff+carry)
		}
		e.first, e.cache = false, byte(e.low>>24)
	}
	e.low = e.low & 0x00ffffff << 8
}

// finish ends the section with the shortest number in the last range: zeros
// at its end are left out.
func (e *rangeEncoder) finish() []byte {
	top := e.low + uint64(e.width) - 1
	for n := 32; ; n-- {
		if v := top &^ (1<<n - 1); v >= e.low {
			e.low = v
			break
		}
	}
	for range 5 {
		e.shift()
	}
	out := e.out
	for len(out) > e.start && out[len(out)-1] == 0 {
		out = out[:len(out)-1]
	}
	e.out = nil
	return out
}

// rangeDecoder is the inverse. It never fails: behind the end it reads zeros,
// and done says whether the section was a possible one.
type rangeDecoder struct {
	in    []byte
	at    int
	code  uint32
	width uint32
}

func (d *rangeDecoder) begin(section []byte) {
	*d = rangeDecoder{in: section, width: 1<<32 - 1}
	for range 4 {
		d.code = d.code<<8 | uint32(d.next())
	}
}

func (d *rangeDecoder) next() (b byte) {
	if d.at < len(d.in) {
		b = d.in[d.at]
	}
	d.at++
	return b
}

func (d *rangeDecoder) bit(p *prob, _ uint64) (bit uint64) {
	bound := d.width >> probBits * p.zero()
	if d.code < bound {
		d.width = bound
	} else {
		d.code -= bound
		d.width -= bound
		bit = 1
	}
	p.follow(bit)
	d.normalize()
	return bit
}

func (d *rangeDecoder) plain(_ uint64, n int) (v uint64) {
	for ; n > 0; n-- {
		d.width >>= 1
		v <<= 1
		if d.code >= d.width {
			d.code -= d.width
			v |= 1
		}
		d.normalize()
	}
	return v
}

func (d *rangeDecoder) normalize() {
	for d.width < topRange {
		d.width <<= 8
		d.code = d.code<<8 | uint32(d.next())
	}
}

// done says that everything was read and nothing could have been left out.
func (d *rangeDecoder) done() bool {
	return d.at >= len(d.in) && (len(d.in) == 0 || d.in[len(d.in)-1] != 0)
}
