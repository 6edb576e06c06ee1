package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"stitch/tunnel/config"
)

// Gossip timing and bounds.
const (
	// MaxMessage is the longest gossip message, what one control datagram holds.
	MaxMessage = config.MaxControl
	// maxReceived is the longest that is read: earlier agents send so many.
	maxReceived = 1200
	// gossipRetry is how often a change is repeated until the peer echoes it,
	// gossipRefresh how often it is repeated anyway.
	gossipRetry   = 200 * time.Millisecond
	gossipRefresh = 5 * time.Second
	// maxBurst is the most chunks sent to one peer at a time; a longer table
	// continues at the next turn.
	maxBurst = 16
	// maxChunks bounds the table a peer may send.
	maxChunks = 64
	// MaxWorkloads is the most workloads a site may have: with the longest
	// names, ten records fill a message.
	MaxWorkloads = 10 * maxChunks
)

const (
	gossipType    = 'O'
	gossipVersion = 1
	gossipHeader  = 23
)

// ErrGossip is returned when a message is not a gossip message of our version;
// nothing of it was used.
var ErrGossip = errors.New("redirect: malformed ownership message")

// stamp names one state of one agent's table: epoch is drawn at random when
// the agent starts, revision counts the table's changes from 1.
type stamp struct{ epoch, revision uint32 }

// message is one gossip datagram; the package doc has its layout.
type message struct {
	chunk, chunks uint16
	own           stamp // of the sender
	seen          stamp // the receiver's newest state that the sender has whole
	owners        []Owner
}

// append appends the datagram to dst.
func (m message) append(dst []byte) []byte {
	dst = append(dst, gossipType, gossipVersion)
	dst = binary.BigEndian.AppendUint16(dst, m.chunk)
	dst = binary.BigEndian.AppendUint16(dst, m.chunks)
	for _, s := range []stamp{m.own, m.seen} {
		dst = binary.BigEndian.AppendUint32(dst, s.epoch)
		dst = binary.BigEndian.AppendUint32(dst, s.revision)
	}
	dst = append(dst, byte(len(m.owners)))
	for _, o := range m.owners {
		dst = appendOwner(dst, o)
	}
	return dst
}

func appendOwner(dst []byte, o Owner) []byte {
	dst = binary.BigEndian.AppendUint64(dst, o.Seq)
	for _, s := range []string{o.Workload, o.Site, o.Previous} {
		dst = append(dst, byte(len(s)))
		dst = append(dst, s...)
	}
	return dst
}

func ownerLen(o Owner) int { return 8 + 3 + len(o.Workload) + len(o.Site) + len(o.Previous) }

// parseMessage reads one datagram. It borrows b; the result holds copies.
// Bytes after the last record are ignored: a later version may use them.
func parseMessage(b []byte) (message, error) {
	var m message
	if len(b) < gossipHeader || len(b) > maxReceived || b[0] != gossipType || b[1] != gossipVersion {
		return m, ErrGossip
	}
	m.chunk, m.chunks = binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint16(b[4:])
	m.own = stamp{binary.BigEndian.Uint32(b[6:]), binary.BigEndian.Uint32(b[10:])}
	m.seen = stamp{binary.BigEndian.Uint32(b[14:]), binary.BigEndian.Uint32(b[18:])}
	if m.chunks > maxChunks || (m.chunk >= m.chunks && m.chunk != 0) {
		return m, fmt.Errorf("%w: chunk %d of %d", ErrGossip, m.chunk, m.chunks)
	}
	n := int(b[22])
	b = b[gossipHeader:]
	for range n {
		o, rest, err := parseOwner(b)
		if err != nil {
			return m, err
		}
		m.owners, b = append(m.owners, o), rest
	}
	return m, nil
}

func parseOwner(b []byte) (Owner, []byte, error) {
	if len(b) < 8 {
		return Owner{}, nil, ErrGossip
	}
	o := Owner{Seq: binary.BigEndian.Uint64(b)}
	b = b[8:]
	for i, dst := range []*string{&o.Workload, &o.Site, &o.Previous} {
		if len(b) < 1 || len(b) < 1+int(b[0]) {
			return Owner{}, nil, ErrGossip
		}
		*dst, b = string(b[1:1+b[0]]), b[1+b[0]:]
		if !validName(*dst) && (i < 2 || *dst != "") {
			return Owner{}, nil, fmt.Errorf("%w: bad name", ErrGossip)
		}
	}
	return o, b, nil
}

// Gossip keeps the tables of the sites equal: each peer is sent the whole
// table, in chunks, at once after a change, again every 200 ms until it has
// echoed that state, and every 5 s otherwise. It is pure (time and messages go
// in, messages come out) and not safe for concurrent use.
type Gossip struct {
	table *Table
	own   stamp
	peers map[string]*gossipPeer
	order []string
	// Malformed counts datagrams that could not be parsed.
	Malformed uint64
}

// gossipPeer is what we know of one peer.
type gossipPeer struct {
	seen   stamp  // its newest state that we have whole
	part   stamp  // the state that is arriving
	have   uint64 // chunks of part that are here, one bit each
	echoed stamp  // our state that it has whole
	ack    bool   // it waits for our echo
	next   time.Time
	cursor int // next chunk to send
}

// Outgoing is a datagram for a peer. The receiver of it owns Data.
type Outgoing struct {
	Peer string
	Data []byte
}

// NewGossip returns the gossip of a table with the named peers. epoch has to
// differ from that of every earlier run: draw it at random; 0 becomes 1.
func NewGossip(table *Table, epoch uint32, peers []string) *Gossip {
	g := &Gossip{table: table, own: stamp{max(epoch, 1), 1}, order: peers, peers: make(map[string]*gossipPeer, len(peers))}
	for _, p := range peers {
		g.peers[p] = &gossipPeer{}
	}
	return g
}

// Changed says that the table has changed: everybody is told at the next Poll.
func (g *Gossip) Changed() {
	g.own.revision++
	for _, p := range g.peers {
		p.next, p.cursor = time.Time{}, 0
	}
}

// Receive merges a datagram from a peer and returns what changed. It borrows
// msg. After a change it calls Changed itself.
func (g *Gossip) Receive(peer string, msg []byte, now time.Time) ([]Owner, error) {
	p, ok := g.peers[peer]
	if !ok {
		return nil, fmt.Errorf("%w: unknown peer %q", ErrGossip, peer)
	}
	m, err := parseMessage(msg)
	if err != nil {
		g.Malformed++
		return nil, err
	}
	p.heard(m.seen, g.own, now)
	p.collect(m)
	changed := g.table.Claim(peer, m.owners, now)
	if len(changed) > 0 {
		g.Changed()
	}
	return changed, nil
}

// heard notes which of our states the peer has: with the present one we may
// rest, with another one (it has restarted) we may not.
func (p *gossipPeer) heard(seen, own stamp, now time.Time) {
	switch {
	case seen == p.echoed:
	case seen == own:
		p.next = now.Add(gossipRefresh)
	case now.Add(gossipRetry).Before(p.next):
		p.next = now.Add(gossipRetry)
	}
	p.echoed = seen
}

// collect notes which parts of the peer's state have come, and asks for an
// echo when the state is whole.
func (p *gossipPeer) collect(m message) {
	if m.chunks == 0 {
		return
	}
	if m.own != p.part {
		p.part, p.have = m.own, 0
	}
	p.have |= 1 << m.chunk
	if bits.OnesCount64(p.have) == int(m.chunks) {
		p.seen, p.ack = m.own, true
	}
}

// Poll returns the datagrams that are due and when to poll next. Call it after
// Receive and Changed too.
func (g *Gossip) Poll(now time.Time) (out []Outgoing, next time.Time) {
	for _, name := range g.order {
		p := g.peers[name]
		if !now.Before(p.next) {
			out = append(out, g.burst(name, p, now)...)
		} else if p.ack {
			out = append(out, Outgoing{name, message{own: g.own, seen: p.seen}.append(nil)})
		}
		p.ack = false
		if next.IsZero() || p.next.Before(next) {
			next = p.next
		}
	}
	return out, next
}

// burst returns the next burst of the table for a peer and sets when the
// following one is due.
func (g *Gossip) burst(name string, p *gossipPeer, now time.Time) (out []Outgoing) {
	chunks := split(g.table.Owners())
	for range min(maxBurst, len(chunks)) {
		i := p.cursor % len(chunks)
		m := message{chunk: uint16(i), chunks: uint16(len(chunks)), own: g.own, seen: p.seen, owners: chunks[i]}
		out = append(out, Outgoing{name, m.append(nil)})
		p.cursor = i + 1
	}
	p.next = now.Add(gossipRetry)
	if p.echoed == g.own {
		p.next = now.Add(gossipRefresh)
	}
	return out
}

// split divides owners into chunks that fit into one message each; there is
// always at least one. MaxWorkloads of the longest names fill maxChunks.
func split(os []Owner) [][]Owner {
	chunks := [][]Owner{nil}
	size := gossipHeader
	for _, o := range os {
		last := len(chunks) - 1
		if size+ownerLen(o) > MaxMessage || len(chunks[last]) == 255 {
			chunks, size, last = append(chunks, nil), gossipHeader, last+1
		}
		chunks[last] = append(chunks[last], o)
		size += ownerLen(o)
	}
	return chunks
}
