package dedupe

const (
	// gearWindow is the bytes a 64-bit gear hash depends on.
	gearWindow = 64
	// sampleBits is how many top bits of the hash are zero at an anchor: one
	// position in 128.
	sampleBits = 7
	anchorMax  = 1 << (64 - sampleBits)
)

// gear holds a random number for each byte value. It is local: changing it
// costs a running peer nothing.
var gear = makeGear()

// makeGear fills the table with splitmix64. A run of one byte value b hashes
// to -gear[b] everywhere; that must not be an anchor.
func makeGear() (t [256]uint64) {
	x := uint64(0x73746974636821)
	for b := range t {
		for {
			x += 0x9e3779b97f4a7c15
			z := x
			z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
			z = (z ^ z>>27) * 0x94d049bb133111eb
			t[b] = z ^ z>>31
			if -t[b] >= anchorMax {
				break
			}
		}
	}
	return t
}

// anchor is a sampled position: off is where the last 8 bytes of its window
// begin; slot and tag come from the hash; entry is what the index holds.
type anchor struct {
	off   int32
	slot  uint32
	tag   uint32
	entry uint32
}

// scan appends to out the anchors of src whose window ends in (from, to]; the
// window must lie in src. It borrows src.
func (x *index) scan(out []anchor, src []byte, from, to int) []anchor {
	i := max(from-gearWindow+1, 0)
	var h uint64
	for end := min(i+gearWindow-1, to); i < end; i++ {
		h = h<<1 + gear[src[i]]
	}
	for j, b := range src[i:to] {
		h = h<<1 + gear[b]
		if h < anchorMax {
			out = append(out, x.anchor(h, i+j-7))
		}
	}
	return out
}
