package estimate

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"stitch/tunnel/stream/block"
)

const (
	// turnBytes is how much of a connection is encoded before it is decoded: one
	// block, which stays in the processor's caches, as what a socket gave does.
	turnBytes = block.MaxBlock
	// answerEvery is how many bytes the receiver takes before it answers.
	answerEvery = 1 << 20
)

// What a connection sends besides its blocks: the wire format of
// tunnel/stream.
const (
	frameHeader = 4
	countFrame  = frameHeader + 8 // CREDIT, FIN, DONE
	helloLen    = 89              // with the name of the domain "default"
	macLen      = 32
	// setupBytes is HELLO, WELCOME, AUTH, READY, OPEN (IPv4), DIALING, OPENED.
	setupBytes = 7*frameHeader + helloLen + helloLen + macLen + macLen + 18 + 4
	// endBytes is FIN and DONE, both ways.
	endBytes = 4 * countFrame
)

// conn is a connection from the sender to the receiver.
type conn struct {
	src   io.Reader
	ended bool // src has
	enc   *block.Encoder
	dec   *block.Decoder
	total int64 // bytes that arrived
	owed  int   // of them, not yet answered
	wire  int64
	ack   []byte // not yet heeded

	// Of this turn.
	in, bodies, out []byte
	ends            []int // of the bodies
}

// dial opens a connection that carries src.
func (s *Session) dial(src io.Reader) *conn {
	s.lastID++
	o := block.Options{Shop: s.out, Clock: s.cfg.CPU, Tables: true}
	c := &conn{
		src: src, in: make([]byte, 0, turnBytes), wire: setupBytes + endBytes,
		enc: block.NewEncoder(s.sender, s.lastID, o), dec: block.NewDecoder(s.receiver, s.lastID, s.in),
	}
	c.enc.SetLink(s.cfg.Link)
	return c
}

func (c *conn) close() {
	c.enc.Close()
	c.dec.Close()
}

// read takes this turn's bytes.
func (c *conn) read() error {
	n, err := io.ReadFull(c.src, c.in[:turnBytes])
	c.in = c.in[:n]
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		c.ended = true
		return nil
	}
	return err
}

// heed lets the receiver's last acknowledgement arrive.
func (c *conn) heed() error {
	if len(c.ack) == 0 {
		return nil
	}
	err := c.enc.Ack(c.ack)
	c.ack = c.ack[:0]
	return err
}

// encode makes this turn's blocks, when the last turn's have been answered.
func (c *conn) encode() error {
	if err := c.heed(); err != nil {
		return err
	}
	c.bodies, c.ends = c.bodies[:0], c.ends[:0]
	for rest := c.in; len(rest) > 0; {
		n := min(len(rest), block.MaxBlock)
		c.bodies = c.enc.Append(c.bodies, rest[:n])
		c.ends = append(c.ends, len(c.bodies))
		rest = rest[n:]
	}
	return nil
}

// decode takes the blocks and answers now and then.
func (c *conn) decode() error {
	c.out = c.out[:0]
	at := 0
	for _, end := range c.ends {
		if err := c.arrive(c.bodies[at:end]); err != nil {
			return fmt.Errorf("block behind byte %d: %w", c.total+int64(len(c.out)), err)
		}
		at = end
	}
	c.owed += len(c.out)
	if c.owed >= answerEvery || c.owed > 0 && c.ended {
		c.ack = c.dec.AppendAck(c.ack[:0])
		c.wire += int64(frameHeader+len(c.ack)) + countFrame
		c.owed = 0
	}
	return nil
}

// arrive takes one block; one that cannot be decoded is sent again.
func (c *conn) arrive(body []byte) (err error) {
	c.wire += int64(frameHeader + len(body))
	c.out, err = c.dec.Decode(c.out, body)
	if !errors.Is(err, block.ErrMiss) {
		return err
	}
	nack := c.dec.AppendNack(nil)
	resent, err := c.enc.Resend(nil, nack)
	if err != nil {
		return err
	}
	c.wire += int64(2*frameHeader + len(nack) + len(resent))
	c.out, err = c.dec.Decode(c.out, resent)
	return err
}

// compare checks what arrived.
func (c *conn) compare() error {
	if bytes.Equal(c.in, c.out) {
		c.total += int64(len(c.in))
		return nil
	}
	i := 0
	for i < min(len(c.in), len(c.out)) && c.in[i] == c.out[i] {
		i++
	}
	return fmt.Errorf("%w at byte %d", ErrDiffers, c.total+int64(i))
}

// finish takes the receiver's last word and adds what the connection carried
// to r, but for the times.
func (c *conn) finish(r *Result) error {
	if err := c.heed(); err != nil {
		return err
	}
	st := c.enc.Stats()
	r.Add(Result{
		In: c.total, Out: c.wire, Matched: st.Matched, Zero: st.Zero, Literal: st.Literal, Resent: st.Resent, Mix: st.Mix,
	})
	return nil
}
