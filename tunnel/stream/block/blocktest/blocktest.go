// Package blocktest makes data and connections for tests and benchmarks of the
// codec: guest memory as QEMU streams it, and a pair of agents without a
// network between them.
package blocktest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"stitch/dedupe"
	"stitch/tunnel/stream/block"
)

const (
	pageSize   = 4096
	headerSize = 8
)

// Random returns n random bytes; the same for the same seed.
func Random(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b[:n]
}

// Text returns n bytes of words with a natural skew; the same for the same
// seed.
func Text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	z := rand.NewZipf(r, 1.2, 4, 20000)
	b := make([]byte, 0, n+16)
	for len(b) < n {
		w := z.Uint64() * 0x9e3779b97f4a7c15
		for range 2 + w>>61 {
			b = append(b, 'a'+byte(w%26))
			w /= 26
		}
		b = append(b, ' ')
	}
	return b[:n]
}

// Pages returns a stream of count guest pages as QEMU sends them: an 8-byte
// header (address and flags: a page of the RAM block at hand) before each page. A third of the pages are
// random, a third text, a third sparse records; the same for the same seed.
func Pages(seed uint64, count int) []byte {
	r := rand.New(rand.NewPCG(seed, 3))
	text := Text(seed, 64*pageSize)
	b := make([]byte, 0, count*(pageSize+headerSize))
	var page [pageSize]byte
	for i := range count {
		switch r.IntN(3) {
		case 0:
			copy(page[:], Random(r.Uint64(), pageSize))
		case 1:
			copy(page[:], text[r.IntN(len(text)-pageSize):])
		default:
			clear(page[:])
			for o := 0; o < pageSize; o += 32 {
				binary.LittleEndian.PutUint64(page[o:], 0xffff_8880_0000_0000|r.Uint64()&0xffffff)
			}
		}
		b = binary.BigEndian.AppendUint64(b, uint64(i)*pageSize|0x28)
		b = append(b, page[:]...)
	}
	return b
}

// Edit returns a copy of a stream from Pages as it looks after a while: one
// page in every has 8 to 64 bytes overwritten at one place, and one in a
// thousand has moved to another place in the stream. edited is the number of
// bytes overwritten, pages the number of pages.
func Edit(stream []byte, seed uint64, every int) (out []byte, edited, pages int) {
	const unit = pageSize + headerSize
	r := rand.New(rand.NewPCG(seed, 4))
	out = append([]byte(nil), stream...)
	count := len(stream) / unit
	for range count / 1000 {
		i, j := r.IntN(count), r.IntN(count)
		var tmp [unit]byte
		copy(tmp[:], out[i*unit:])
		copy(out[i*unit:], out[j*unit:][:unit])
		copy(out[j*unit:], tmp[:])
	}
	for i := range count {
		if r.IntN(every) != 0 {
			continue
		}
		n := 8 + r.IntN(57)
		o := i*unit + headerSize + r.IntN(pageSize-n)
		copy(out[o:o+n], Random(r.Uint64(), n))
		edited += n
		pages++
	}
	return out, edited, pages
}

// Agents are two agents' histories, as after their hellos.
type Agents struct {
	A, B *dedupe.History
	Shop *block.Shop // of all their connections
}

// NewAgents returns a pair with histories of size bytes each direction.
func NewAgents(size int64) *Agents {
	p := &Agents{dedupe.NewHistory(size), dedupe.NewHistory(size), block.NewShop(2)}
	p.Meet()
	return p
}

// Meet exchanges summaries. True if the histories did not stay as they were.
func (p *Agents) Meet() bool {
	own, peer := p.A.Summary(), p.B.Summary()
	a, errA := p.A.Agree(own, peer)
	b, errB := p.B.Agree(peer, own)
	if err := errors.Join(errA, errB); err != nil {
		panic(err) // both are ours
	}
	return a.Reset || b.Reset
}

// Conn is one direction of a connection whose blocks arrive, and are
// acknowledged, at once.
type Conn struct {
	Enc  *block.Encoder
	Dec  *block.Decoder
	Wire int // bytes of bodies, acks and nacks so far
	body []byte
	out  []byte
	ack  []byte
}

// Forward opens a connection from A to B, Backward one from B to A.
func (p *Agents) Forward(id uint64) *Conn  { return p.dial(p.A, p.B, id) }
func (p *Agents) Backward(id uint64) *Conn { return p.dial(p.B, p.A, id) }

func (p *Agents) dial(from, to *dedupe.History, id uint64) *Conn {
	return &Conn{Enc: block.NewEncoder(from, id, block.Options{Shop: p.Shop, Tables: true}), Dec: block.NewDecoder(to, id, p.Shop)}
}

// Send carries src in blocks and calls got (may be nil) with what arrives,
// lent until it returns. Misses are repaired.
func (c *Conn) Send(src []byte, got func([]byte)) error {
	for len(src) > 0 {
		n := min(len(src), block.MaxBlock)
		if err := c.one(src[:n], got); err != nil {
			return err
		}
		src = src[n:]
	}
	return nil
}

func (c *Conn) one(src []byte, got func([]byte)) error {
	var err error
	c.body = c.Enc.Append(c.body[:0], src)
	c.Wire += len(c.body)
	c.out, err = c.Dec.Decode(c.out[:0], c.body)
	if errors.Is(err, block.ErrMiss) {
		c.ack = c.Dec.AppendNack(c.ack[:0])
		if c.body, err = c.Enc.Resend(c.body[:0], c.ack); err != nil {
			return err
		}
		c.Wire += len(c.body) + len(c.ack)
		c.out, err = c.Dec.Decode(c.out[:0], c.body)
	}
	if err != nil {
		return err
	}
	if len(c.out) != len(src) {
		return fmt.Errorf("decoded %d bytes of %d", len(c.out), len(src))
	}
	if got != nil {
		got(c.out)
	}
	c.ack = c.Dec.AppendAck(c.ack[:0])
	c.Wire += len(c.ack)
	return c.Enc.Ack(c.ack)
}

// Close closes both ends.
func (c *Conn) Close() {
	c.Enc.Close()
	c.Dec.Close()
}
