// Package estimate carries data through the real codec, from a sender to a
// receiver without a link between them, checks every byte that arrives, and
// accounts for what would have crossed. It is what `stitch estimate` and the
// codec's benchmark run.
//
// # What is counted
//
// Result.Out is everything both agents would hand to the transport: block
// bodies, the header of each frame, the frames that set up and end a
// connection, and from the other side an acknowledgement and a grant of credit
// for each MiB, as a receiver that is kept busy sends them. TCP, IP and WireGuard
// headers are not in it, nor are they in Result.In.
//
// # How time is measured
//
// Encoding and decoding take turns of one block, and the processor time of
// the whole process is read before and behind each: what a codec does on other
// threads, the garbage collector's share and the kernel's time are all in it.
// Reading the input and comparing the output are not, nor is the kernel's first
// touch of the histories' memory, which an agent pays once in its life (Expect).
package estimate

import (
	"errors"
	"io"
	"path/filepath"
	"time"

	"stitch/dedupe"
	"stitch/tunnel/stream/block"
)

// ErrDiffers is returned when a decoder gave other bytes than went in, and did
// not notice: a bug of the codec.
var ErrDiffers = errors.New("estimate: the decoder's bytes differ from the input")

// Config says what a Session's two agents are like.
type Config struct {
	// History is the bytes each agent keeps for each direction, Memory how many
	// of them in memory (0: all), Dir the directory of the two agents' stores
	// ("": everything in memory). See dedupe.Config.
	History, Memory int64
	Dir             string
	// Expect is how many bytes will be sent, if that is known: memory for them
	// is taken before anything is measured, as an agent has it after a while.
	Expect int64
	// Link is the bytes a second that the link takes: the codec works as hard
	// as it can while it fills that. 0: as hard as it can at 100 MB/s of input.
	Link float64
	// CPU is the processor time this process has used: ProcessCPU. With nil no
	// time is measured, and the codec's level is fixed.
	CPU func() time.Duration
}

// Session is two agents that know each other: what one sent is in the history
// of both. It is not safe for concurrent use.
type Session struct {
	cfg              Config
	sender, receiver *dedupe.History
	out, in          *block.Shop // the sender's and the receiver's
	lastID           uint64
	kept             int64 // bytes of an earlier session
	meeting          int64 // bytes that crossed before the first connection was ready
}

// New returns two agents that have met. They know what their stores hold of an
// earlier session, if cfg has a directory; else nothing. Close it.
func New(cfg Config) (*Session, error) {
	s := &Session{cfg: cfg, out: block.NewShop(1), in: block.NewShop(1)}
	for _, side := range []struct {
		h    **dedupe.History
		name string
	}{{&s.sender, "sender"}, {&s.receiver, "receiver"}} {
		c := dedupe.Config{Size: cfg.History, Memory: cfg.Memory}
		if cfg.Dir != "" {
			c.Dir = filepath.Join(cfg.Dir, side.name)
		}
		var err error
		if *side.h, err = dedupe.Open(c); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	if err := s.meet(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if cfg.Dir != "" {
		if err := s.load(); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	if cfg.Expect > 0 {
		// With what the rings would have given ahead while something is measured.
		n := cfg.Expect + min(cfg.Expect, dedupe.MaxAhead)
		s.sender.Touch(dedupe.Sent, n)
		s.receiver.Touch(dedupe.Received, n)
	}
	return s, nil
}

// meet brings the two histories in step, as two agents do when the first
// connection between them comes up.
func (s *Session) meet() error {
	own, peer := s.sender.Summary(), s.receiver.Summary()
	s.meeting = int64(2*frameHeader + len(own) + len(peer))
	a, err := s.sender.Agree(own, peer)
	if err != nil {
		return err
	}
	s.kept = a.Sent
	_, err = s.receiver.Agree(peer, own)
	return err
}

// Kept is the bytes of an earlier session that are still there.
func (s *Session) Kept() int64 { return s.kept }

// Close ends the stores; what they hold is there for the next session.
func (s *Session) Close() error {
	var err error
	for _, h := range []*dedupe.History{s.sender, s.receiver} {
		if h != nil {
			err = errors.Join(err, h.Close())
		}
	}
	return err
}

// now is the processor time so far; 0 if it is not measured.
func (s *Session) now() time.Duration {
	if s.cfg.CPU == nil {
		return 0
	}
	return s.cfg.CPU()
}

// History is the bytes each agent keeps for each direction.
func (s *Session) History() int64 { return s.sender.Size() }

// Result is what carrying some data took.
type Result struct {
	In, Out                int64 // bytes of the application, bytes handed to the transport
	Matched, Zero, Literal int64 // shares of In: from the history, runs of zeros, the rest
	Resent                 int64 // blocks that had to be sent again
	Encode, Decode         time.Duration
	Mix                    block.Mix // of the literals and tokens
}

// Add adds another's counts.
func (r *Result) Add(o Result) {
	r.In += o.In
	r.Out += o.Out
	r.Matched += o.Matched
	r.Zero += o.Zero
	r.Literal += o.Literal
	r.Resent += o.Resent
	r.Encode += o.Encode
	r.Decode += o.Decode
	r.Mix.Raw = sum(r.Mix.Raw, o.Mix.Raw)
	r.Mix.S2 = sum(r.Mix.S2, o.Mix.S2)
	r.Mix.Zstd = sum(r.Mix.Zstd, o.Mix.Zstd)
	r.Mix.Carried = sum(r.Mix.Carried, o.Mix.Carried)
}

func sum(a, b block.Share) block.Share { return block.Share{In: a.In + b.In, Out: a.Out + b.Out} }

// Send carries what the readers give until each has ended, every one on a new
// connection of its own; several take turns, as connections that are open at
// the same time do. An error of a reader, ErrDiffers or an error of the codec
// ends it; the Session is then of no more use.
func (s *Session) Send(from ...io.Reader) (Result, error) {
	r := Result{Out: s.meeting}
	s.meeting = 0
	conns := make([]*conn, len(from))
	for i, src := range from {
		conns[i] = s.dial(src)
		defer conns[i].close()
	}
	for live := conns; len(live) > 0; {
		var err error
		if live, err = s.turn(live, &r); err != nil {
			return r, err
		}
	}
	for _, c := range conns {
		if err := c.finish(&r); err != nil {
			return r, err
		}
	}
	return r, nil
}

// turn carries the next piece of each connection and returns those that have
// not ended.
func (s *Session) turn(conns []*conn, r *Result) (live []*conn, err error) {
	for _, c := range conns {
		if err := c.read(); err != nil {
			return nil, err
		}
	}
	begin := s.now()
	for _, c := range conns {
		if err := c.encode(); err != nil {
			return nil, err
		}
	}
	encoded := s.now()
	for _, c := range conns {
		if err := c.decode(); err != nil {
			return nil, err
		}
	}
	decoded := s.now()
	r.Encode += encoded - begin
	r.Decode += decoded - encoded
	for _, c := range conns {
		if err := c.compare(); err != nil {
			return nil, err
		}
		if !c.ended {
			live = append(live, c)
		}
	}
	return live, nil
}
