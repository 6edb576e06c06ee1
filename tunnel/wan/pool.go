package wan

// chunkFrames is how many frame buffers the pool allocates at a time.
const chunkFrames = 1024

// pool hands out numbered frame buffers. It grows by chunks and never
// shrinks, so a running emulator makes no garbage. Not safe for concurrent use.
type pool struct {
	chunks [][]byte
	lens   []uint16
	free   []uint32
	limit  int // most buffers
}

// get returns a free buffer, or false when limit buffers are in use.
func (p *pool) get() (uint32, bool) {
	if len(p.free) == 0 && !p.grow() {
		return 0, false
	}
	slot := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	return slot, true
}

func (p *pool) grow() bool {
	base := len(p.lens)
	if base+chunkFrames > p.limit {
		return false
	}
	p.chunks = append(p.chunks, make([]byte, chunkFrames*frameSize))
	p.lens = append(p.lens, make([]uint16, chunkFrames)...)
	for i := range chunkFrames {
		p.free = append(p.free, uint32(base+chunkFrames-1-i))
	}
	return true
}

func (p *pool) put(slot uint32) { p.free = append(p.free, slot) }

// room is the whole buffer of slot, frame the part in use.
func (p *pool) room(slot uint32) []byte {
	at := int(slot%chunkFrames) * frameSize
	return p.chunks[slot/chunkFrames][at : at+frameSize : at+frameSize]
}

func (p *pool) frame(slot uint32) []byte { return p.room(slot)[:p.lens[slot]] }
