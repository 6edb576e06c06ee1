package dedupe

import "stitch/dedupe/match"

const (
	// sampleBits is how many top bits of the hash are zero at an anchor: one
	// position in 256.
	sampleBits = 8
	anchorMax  = 1 << (64 - sampleBits)
	// laneSpan is how many bytes two lanes hash together, and laneMost the
	// anchors one lane may find in its half: more are found only in bytes that
	// repeat with a short period, and then one is as good as the others.
	laneSpan = 4 << 10
	laneMost = 128
	// laneLeast is the shortest stretch that two lanes hash faster than one.
	laneLeast = 512
)

// gear is local: changing it costs a running peer nothing.
var gear = match.Gear(0x73746974636821, anchorMax)

// scan appends to out the anchors of src whose window ends in (from, to]; the
// window must lie in src. It borrows src. Which positions are anchors depends on
// the processor; it is the same for all of a process.
func (x *index) scan(out []anchor, src []byte, from, to int) []anchor {
	if wide {
		return x.scanWide(out, src, from, to)
	}
	return x.scanGear(out, src, from, to)
}

// scanGear is scan one byte after the other.
func (x *index) scanGear(out []anchor, src []byte, from, to int) []anchor {
	var l lanes
	i := max(from-match.Window+1, 0)
	start := min(i+match.Window-1, to)
	h := roll(0, src[i:start])
	for start < to {
		n := min(to-start, laneSpan)
		h = l.hash(h, src, start, n)
		for k := range l.found {
			for _, f := range l.found[k][:l.n[k]] {
				out = append(out, x.anchor(f.hash, f.off))
			}
		}
		start += n
	}
	return out
}

// roll moves the hash over b.
func roll(h uint64, b []byte) uint64 {
	for _, c := range b {
		h = gear[c] + 2*h
	}
	return h
}

// lanes are two halves of a stretch that are hashed at the same time: one hash
// alone waits for its own last step.
type lanes struct {
	found [2][laneMost]struct {
		hash uint64
		off  int
	}
	n [2]int
}

// hash finds the anchors of n bytes of src from start on, where the hash before
// them is g, and returns the hash behind them.
func (l *lanes) hash(g uint64, src []byte, start, n int) uint64 {
	if n < laneLeast {
		return l.single(g, src, start, n)
	}
	half := n / 2
	mid := start + half
	h := roll(0, src[max(mid-match.Window, 0):mid])
	one, two := src[start:mid], src[mid:mid+half]
	l.n = [2]int{}
	for i, c := range one {
		g = gear[c] + 2*g
		h = gear[two[i]] + 2*h
		if g < anchorMax {
			l.add(0, g, start+i-7)
		}
		if h < anchorMax {
			l.add(1, h, mid+i-7)
		}
	}
	if n%2 == 1 {
		h = gear[src[mid+half]] + 2*h
		if h < anchorMax {
			l.add(1, h, mid+half-7)
		}
	}
	return h
}

// single is hash for a stretch that is not worth a second lane.
func (l *lanes) single(g uint64, src []byte, start, n int) uint64 {
	l.n = [2]int{}
	for i, c := range src[start : start+n] {
		g = gear[c] + 2*g
		if g < anchorMax {
			l.add(0, g, start+i-7)
		}
	}
	return g
}

func (l *lanes) add(lane int, hash uint64, off int) {
	if k := l.n[lane]; k < laneMost {
		f := &l.found[lane][k]
		f.hash, f.off = hash, off
		l.n[lane]++
	}
}
