package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/zeebo/xxh3"

	"stitch/tunnel/config"
	"stitch/tunnel/stream/block"
	"stitch/tunnel/stream/field"
)

const (
	// stateMagic begins an encoded state; a change of what follows takes another
	// stateVersion.
	stateMagic   = "stst"
	stateVersion = 1
	// maxPeerName bounds the name of a peer.
	maxPeerName = 255
	// maxUnsent bounds what waits to be written to a peer that is slow: data
	// frames in progress, and blocks that it asked for again.
	maxUnsent = 64 << 20
	// maxUnread bounds what was read from a peer and is no whole frame yet, and
	// frames behind it.
	maxUnread = 2*(frameHeader+maxBody) + readSize
)

// ErrState is wrapped by every error about bytes that are no State, and by that of a
// Resume where the state does not belong.
var ErrState = errors.New("stream: not a state that can go on here")

// State is one end of a split connection, stopped between two reads of its two
// sockets, as a value of plain data: with the sockets and the domain's history it is
// all that a Proxy needs to go on with the connection where another one, perhaps of
// another process, has stopped (Export, Resume). A stream goes on from a state once.
//
// Not in it is what is only learned: how hard to compress, whether matching pays, and
// what the kernel knows of the path.
type State struct {
	// Peer is the site at the other end, Domain that of the stream's rule.
	Peer, Domain string
	// Near says that the connection was begun here: Src is a host of this site.
	Near     bool
	Src, Dst netip.AddrPort
	// Segment is that of both hosts, and these are their MACs; 0: it is routed.
	Segment        uint16
	SrcMAC, DstMAC config.MAC
	// Age is how long ago the stream began.
	Age time.Duration

	mode   mode
	terms  terms
	connID uint64
	epochs epochs
	heads  [2]uint64 // of the history: sent, received

	progress
	round    time.Duration // how long ago grant's round began
	sent     uint64
	received uint64
	wireIn   int64
	wireOut  int64
	seen     int    // of sniffer
	head     []byte // of sniffer
	opaque   bool   // of sniffer
	rate     float64

	queue  []byte // decoded, to be written to the host
	unsent []byte // frames, to be written to the peer
	unread []byte // what came from the peer and was not looked at
	enc    *block.EncoderState
	dec    *block.DecoderState
}

// Append appends the encoded state: magic "stst", version 1, the fields as package
// field writes them in the order of the source, and XXH3-64 of all that, little endian.
func (s *State) Append(b []byte) []byte {
	start := len(b)
	w := field.Writer{Out: append(append(b, stateMagic...), stateVersion)}
	s.fields(&w)
	return binary.LittleEndian.AppendUint64(w.Out, xxh3.Hash(w.Out[start:]))
}

// ParseState returns the state that b encodes; it keeps b. It takes memory for what is
// there, never for what is only said to be. The error wraps ErrState.
func ParseState(b []byte) (*State, error) {
	n := len(b) - 8
	switch {
	case n < len(stateMagic)+1 || string(b[:len(stateMagic)]) != stateMagic:
		return nil, fmt.Errorf("%w: it does not begin as one", ErrState)
	case b[len(stateMagic)] != stateVersion:
		return nil, fmt.Errorf("%w: version %d, this release has %d", ErrState, b[len(stateMagic)], stateVersion)
	case xxh3.Hash(b[:n]) != binary.LittleEndian.Uint64(b[n:]):
		return nil, fmt.Errorf("%w: checksum", ErrState)
	}
	s := &State{enc: new(block.EncoderState), dec: new(block.DecoderState)}
	r := field.NewReader(b[len(stateMagic)+1 : n])
	s.fields(r)
	if err := r.End(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	return s, nil
}

// fields shows the fields.
func (s *State) fields(c field.Coder) {
	s.identity(c)
	field.Int(c, &s.mode, uint64(modeAccelerate))
	field.Int(c, &s.terms.Version, block.Version)
	anyNumber(c, &s.terms.Features)
	c.Flag(&s.terms.Tenants)
	for _, v := range []*uint64{&s.connID, &s.epochs.own, &s.epochs.peer, &s.heads[0], &s.heads[1], &s.sent, &s.received} {
		anyNumber(c, v)
	}
	s.progress.fields(c)
	field.Int(c, &s.round, math.MaxInt64)
	field.Int(c, &s.wireIn, math.MaxInt64)
	field.Int(c, &s.wireOut, math.MaxInt64)
	field.Int(c, &s.seen, math.MaxInt32)
	c.Bytes(&s.head, sniffNeed)
	c.Flag(&s.opaque)
	rate(c, &s.rate)
	c.Bytes(&s.queue, maxWindow)
	c.Bytes(&s.unsent, maxUnsent)
	c.Bytes(&s.unread, maxUnread)
	s.enc.Fields(c)
	s.dec.Fields(c)
	c.Check(s.sound())
}

// identity shows which connection it is.
func (s *State) identity(c field.Coder) {
	text(c, &s.Peer, maxPeerName)
	text(c, &s.Domain, maxDomain)
	c.Flag(&s.Near)
	for _, ap := range []*netip.AddrPort{&s.Src, &s.Dst} {
		addr, port := ap.Addr().AsSlice(), ap.Port()
		c.Bytes(&addr, 16)
		field.Int(c, &port, math.MaxUint16)
		a, ok := netip.AddrFromSlice(addr)
		c.Check(ok && !a.Is4In6())
		*ap = netip.AddrPortFrom(a, port)
	}
	c.Check(s.Src.Addr().Is4() == s.Dst.Addr().Is4())
	if field.Int(c, &s.Segment, math.MaxUint16); s.Segment != 0 {
		field.Array(c, s.SrcMAC[:])
		field.Array(c, s.DstMAC[:])
	}
	field.Int(c, &s.Age, math.MaxInt64)
}

func (p *progress) fields(c field.Coder) {
	anyNumber(c, &p.sendMax)
	p.grant.fields(c)
	field.List(c, &p.marks, func(v *uint64) { anyNumber(c, v) })
	anyNumber(c, &p.written)
	anyNumber(c, &p.acked)
	anyNumber(c, &p.finTotal)
	field.Int(c, &p.misses, maxMisses)
	for _, v := range []*bool{&p.finSent, &p.peerDone, &p.finSeen, &p.fin, &p.missing, &p.done, &p.shut, &p.shutDone, &p.rst} {
		c.Flag(v)
	}
}

func (g *credit) fields(c field.Coder) {
	anyNumber(c, &g.limit)
	c.Number(&g.window, maxWindow)
	rate(c, &g.rate)
	field.Int(c, &g.starts, startRounds)
	rate(c, &g.best)
	anyNumber(c, &g.base)
	c.Flag(&g.limited)
	anyNumber(c, &g.behind)
	field.Int(c, &g.busy, math.MaxInt64)
	anyNumber(c, &g.seen)
	c.Flag(&g.idle)
	anyNumber(c, &g.taken)
	anyNumber(c, &g.widest)
}

// anyNumber shows a number that may be any.
func anyNumber[T ~uint64](c field.Coder, v *T) {
	n := uint64(*v)
	c.Number(&n, math.MaxUint64)
	*v = T(n)
}

// rate shows a number of bytes per second.
func rate(c field.Coder, v *float64) {
	n := math.Float64bits(*v)
	c.Number(&n, math.MaxUint64)
	*v = math.Float64frombits(n)
	c.Check(*v >= 0 && !math.IsInf(*v, 1))
}

func text(c field.Coder, v *string, most int) {
	b := []byte(*v)
	c.Bytes(&b, most)
	*v = string(b)
}

// sound says whether the fields fit each other. So a state that is wrong about how far
// the stream has come is no state, whoever has made it.
func (s *State) sound() bool {
	end := uint64(0) // what the host acknowledges besides bytes
	if s.shut {
		end = 1
	}
	for _, ok := range []bool{
		s.terms.Version == block.Version,
		s.enc.Sent() == s.sent && s.sent <= s.sendMax,
		s.dec.Decoded() == s.received && s.dec.Missing() == s.missing,
		s.written+uint64(len(s.queue)) == s.received,
		s.acked <= s.written+end,
		s.received <= s.grant.limit && s.grant.limit-s.received <= maxWindow,
		s.grant.window >= minWindow && s.grant.base <= s.acked && s.grant.seen <= s.received,
		len(s.marks) <= maxMarks,
		!s.finSeen || s.received <= s.finTotal,
		s.fin == (s.finSeen && s.received == s.finTotal),
		!s.done || s.fin && len(s.queue) == 0 && s.acked >= s.written,
		!s.shut || s.fin,
		!s.shutDone || s.shut,
		!s.peerDone || s.finSent,
		s.seen >= 0 && len(s.head) <= sniffNeed,
	} {
		if !ok {
			return false
		}
	}
	return true
}

// export makes the state of a relay that has been halted and at which nothing is at
// work any more.
func (r *relay) export() (*State, error) {
	now, d := time.Now(), r.pc.domain
	unsent := r.appendLeave(r.pc.out.rest())
	if r.owed > 0 {
		unsent = append(unsent, r.ackFrame()...)
	}
	s := &State{
		Peer: d.q.link.Peer, Domain: d.name, Near: r.near, Src: r.src, Dst: r.dst, Segment: r.segment, Age: now.Sub(r.began),
		mode: r.mode, terms: r.pc.terms, connID: r.pc.id, epochs: r.pc.epochs,
		progress: r.progress, round: now.Sub(r.grant.began), sent: r.sent.Load(), received: r.received.Load(),
		wireIn: r.pc.read.Load(), wireOut: r.pc.out.written.Load(),
		seen: r.sniff.seen, head: slices.Clone(r.sniff.head), opaque: r.sniff.opaque, rate: r.link.rate,
		queue: slices.Concat(r.queue...), unsent: unsent, unread: r.pc.buffered(),
	}
	s.grant.began, s.grant.looked = time.Time{}, time.Time{}
	s.marks = slices.Clone(r.marks)
	s.heads[0], s.heads[1] = r.pc.history.Heads()
	var err error
	if s.enc, err = r.enc.State(); err != nil {
		return nil, err
	}
	if s.dec, err = r.dec.State(); err != nil {
		return nil, err
	}
	switch {
	case len(unsent) > maxUnsent:
		return nil, fmt.Errorf("%w: %d bytes wait for the peer", ErrState, len(unsent))
	case !s.sound():
		return nil, fmt.Errorf("%w: its parts do not fit each other", ErrState)
	}
	return s, nil
}

// resumeRelay returns a relay that goes on with s, of which it keeps the bytes.
func resumeRelay(s *State, local Conn, pc *peerConn, bufs *buffers, spawn func(func())) (*relay, error) {
	t := tuple{src: s.Src, dst: s.Dst, segment: s.Segment}
	r := newIdleRelay(t, s.Near, local, pc, s.mode, bufs, spawn)
	now := time.Now()
	o, history := pc.options(s.mode, bufs.shop)
	var err error
	if r.enc, err = block.ResumeEncoder(history, pc.id, o, s.enc); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	r.dec = block.ResumeDecoder(history, pc.id, bufs.shop, s.dec)
	r.began, r.progress = now.Add(-s.Age), s.progress
	r.grant.began, r.grant.looked = now.Add(-s.round), now
	r.marks = slices.Clone(s.marks)
	r.sent.Store(s.sent)
	r.received.Store(s.received)
	r.sniff = sniffer{seen: s.seen, opaque: s.opaque}
	if len(s.head) > 0 {
		r.sniff.head = r.sniff.array[:copy(r.sniff.array[:], s.head)]
	}
	r.opaque.Store(s.opaque)
	r.link.rate = s.rate
	r.queued = len(s.queue)
	for part := range slices.Chunk(s.queue, block.MaxBlock) {
		r.queue = append(r.queue, part)
	}
	return r, nil
}

// wakeUp sets going what a resumed stream has to do.
func (r *relay) wakeUp(s *State) {
	r.local.SetDeadline(time.Time{})
	r.pc.conn.SetDeadline(time.Time{})
	if s.shut {
		_ = r.local.CloseWrite() // once more, so that it knows; the kernel does
	}
	if len(s.unread) > 0 {
		r.pc.unread(s.unread)
	}
	if len(s.unsent) > 0 {
		r.pc.out.control(s.unsent)
	}
	r.askContext(contextAllowed)
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.rst {
		r.local.SetWriteDeadline(time.Now().Add(resetGrace))
	}
	r.kick()
}
