package stream

import "net/netip"

// Stats is a snapshot of a Proxy, for status and metrics.
type Stats struct {
	// Held is the number of SYNs waiting now, HeldDropped those dropped
	// because too many were waiting, Malformed the packets in st-hold that
	// were no plain SYN, Stray the accepted connections without a stream.
	Held        int    `json:"held"`
	HeldDropped uint64 `json:"held_dropped"`
	Malformed   uint64 `json:"malformed"`
	Stray       uint64 `json:"stray"`
	// Open is the number of streams open now.
	Open int `json:"open"`
	// Peers has one entry per link, in the order of Config.Links.
	Peers []PeerStats `json:"peers"`
	// Flows are the open streams, at most MaxFlows of them.
	Flows []Flow `json:"flows,omitempty"`
}

// MaxFlows bounds Stats.Flows.
const MaxFlows = 256

// PeerStats counts the streams of one peer since the process started.
type PeerStats struct {
	Peer string `json:"peer"`
	// Ready is the number of warm connections waiting for a stream.
	Ready int `json:"ready"`
	// Alive says that the peer's agent can be reached for new streams.
	Alive bool `json:"alive"`
	// Open and Total are streams; Refused those the far server or agent did
	// not open; Reset those that ended by reset; Passed the SYNs carried as
	// packets because no stream could be had.
	Open    int    `json:"open"`
	Total   uint64 `json:"total"`
	Refused uint64 `json:"refused"`
	Reset   uint64 `json:"reset"`
	Passed  uint64 `json:"passed"`
	// BytesOut are original bytes read from hosts here, WireOut the bytes
	// they were sent as; BytesIn were written to hosts here, WireIn received.
	BytesOut int64 `json:"bytes_out"`
	WireOut  int64 `json:"wire_out"`
	BytesIn  int64 `json:"bytes_in"`
	WireIn   int64 `json:"wire_in"`
	// Matched, Literal and Zero say how BytesOut were encoded; Resent counts
	// blocks the peer asked for again.
	Matched int64 `json:"matched"`
	Literal int64 `json:"literal"`
	Zero    int64 `json:"zero"`
	Resent  int64 `json:"resent"`
	// Epoch names the present history, Restarts counts how often it was
	// dropped because the peer's was gone.
	Epoch    uint64 `json:"epoch"`
	Restarts uint64 `json:"restarts"`
	// Congestion is the congestion control of the inter-agent connections.
	Congestion string `json:"congestion"`
	// LastError says why the peer's agent could last not be reached.
	LastError string `json:"last_error,omitempty"`
}

// Flow is one open stream.
type Flow struct {
	Peer string         `json:"peer"`
	Src  netip.AddrPort `json:"src"`
	Dst  netip.AddrPort `json:"dst"`
	// Side is "near" (the client is here) or "far" (the server is here).
	Side     string `json:"side"`
	BytesOut int64  `json:"bytes_out"`
	BytesIn  int64  `json:"bytes_in"`
}

// Stats returns a snapshot; safe at any time.
func (p *Proxy) Stats() Stats {
	p.mu.Lock()
	s := Stats{Held: p.table.Held(), HeldDropped: p.table.Dropped(), Malformed: p.malformed, Stray: p.stray}
	p.mu.Unlock()
	for _, q := range p.peers {
		ps, flows := q.snapshot(MaxFlows - len(s.Flows))
		s.Peers = append(s.Peers, ps)
		s.Flows = append(s.Flows, flows...)
		s.Open += ps.Open
	}
	return s
}

// snapshot adds what is open to what has ended, and lists up to most flows.
func (q *peer) snapshot(most int) (PeerStats, []Flow) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.stats
	s.Peer, s.Ready, s.Alive, s.Open = q.link.Peer, len(q.ready), q.alive, len(q.relays)
	s.Epoch, s.Congestion = q.epochs.own, q.lastCC
	if q.lastErr != nil {
		s.LastError = q.lastErr.Error()
	}
	for pc := range q.conns {
		s.WireIn += pc.read.Load()
		s.WireOut += pc.out.written.Load()
	}
	var flows []Flow
	for r := range q.relays {
		s.add(r)
		if len(flows) < most {
			flows = append(flows, r.flow(s.Peer))
		}
	}
	return s, flows
}

// add counts a stream's bytes.
func (s *PeerStats) add(r *relay) {
	enc := r.enc.Stats()
	s.BytesOut += int64(r.sent.Load())
	s.BytesIn += int64(r.received.Load())
	s.Matched += enc.Matched
	s.Literal += enc.Literal
	s.Zero += enc.Zero
	s.Resent += enc.Resent
}

func (r *relay) flow(peer string) Flow {
	side := "far"
	if r.near {
		side = "near"
	}
	return Flow{Peer: peer, Src: r.src, Dst: r.dst, Side: side, BytesOut: int64(r.sent.Load()), BytesIn: int64(r.received.Load())}
}
