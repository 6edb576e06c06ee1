package stream

import (
	"cmp"
	"time"

	"stitch/dedupe"
	"stitch/tunnel/stream/block"
)

// Stats is a snapshot of a Proxy, for status and metrics.
type Stats struct {
	// Held is the number of SYNs waiting now, HeldPassed those carried as packets
	// because too many were waiting, Malformed the packets in st-hold that
	// were no plain SYN, Stray the accepted connections without a stream.
	Held       int    `json:"held"`
	HeldPassed uint64 `json:"held_passed"`
	Malformed  uint64 `json:"malformed"`
	Stray      uint64 `json:"stray"`
	// Open is the number of streams open now, Admitted that of those and of the
	// ones being opened, of at most Max. Full counts how often there were
	// too many for another one, of this site or of a peer.
	Open     int    `json:"open"`
	Admitted int    `json:"admitted"`
	Max      int    `json:"max"`
	Full     uint64 `json:"full"`
	// Memory is that of the place with the least left above its mark. Lack says what
	// the kernel had no more of within the last minute, as a sentence with what to
	// do; Lacked counts how often.
	Memory MemoryStats `json:"memory"`
	Lack   string      `json:"lack,omitempty"`
	Lacked uint64      `json:"lacked"`
	// Peers has one entry per link, in the order of Config.Links.
	Peers []PeerStats `json:"peers"`
}

// PeerStats is one peer; the traffic of its domains, added up, since the
// process started.
type PeerStats struct {
	Peer string `json:"peer"`
	// Ready is the number of warm connections waiting for a stream.
	Ready int `json:"ready"`
	// Alive says that the peer's agent can be reached for new streams.
	Alive bool `json:"alive"`
	Traffic
	// Congestion is the congestion control of the inter-agent connections.
	Congestion string `json:"congestion"`
	// LastError says why the peer's agent could last not be reached.
	LastError string `json:"last_error,omitempty"`
	// Conflict says what the configurations of the two sites, or their
	// releases, disagree about; what it concerns is carried as packets.
	Conflict string `json:"conflict,omitempty"`
	// Domains are those that rules for the peer name.
	Domains []DomainStats `json:"domains"`
}

// DomainStats is one domain of one peer.
type DomainStats struct {
	// Domain is the name; empty for streams that match only themselves.
	Domain string `json:"domain"`
	// Ready and Alive are as in PeerStats, LastError too.
	Ready     int    `json:"ready"`
	Alive     bool   `json:"alive"`
	LastError string `json:"last_error,omitempty"`
	Traffic
	// Epoch names this side's history; InStep says that it is in step with the
	// peer's. Resyncs counts how often it was brought in step.
	Epoch   uint64 `json:"epoch"`
	InStep  bool   `json:"in_step"`
	Resyncs uint64 `json:"resyncs"`
	// History describes what is kept; Alarm what its last meeting with the
	// peer's showed, "" if all was well.
	History dedupe.Stats `json:"history"`
	Alarm   string       `json:"alarm,omitempty"`
}

// Traffic counts streams and their bytes.
type Traffic struct {
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
	// Mix says by which codecs literals and tokens were carried.
	Mix block.Mix `json:"mix"`
	// Restarts counts how often the peer or this side had to begin anew.
	Restarts uint64 `json:"restarts"`
}

// Stats returns a snapshot; safe at any time.
func (p *Proxy) Stats() Stats {
	p.mu.Lock()
	s := Stats{Held: p.table.Held(), HeldPassed: p.table.Crowded(), Malformed: p.malformed, Stray: p.stray}
	p.mu.Unlock()
	s.Max = p.cfg.MaxStreams
	p.gate.stats(&s, time.Now())
	for _, q := range p.peers {
		ps := q.snapshot()
		s.Peers = append(s.Peers, ps)
		s.Open += ps.Open
	}
	return s
}

// snapshot lists the domains and adds them up.
func (q *peer) snapshot() PeerStats {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := PeerStats{Peer: q.link.Peer, Congestion: q.lastCC}
	s.Passed = q.unruled
	if q.conflict != "" && time.Since(q.conflicts) < disagreeLife {
		s.Conflict = q.conflict
	}
	for _, d := range q.domains {
		ds := d.snapshot()
		s.Domains = append(s.Domains, ds)
		s.Ready += ds.Ready
		s.Alive = s.Alive || ds.Alive
		s.LastError = cmp.Or(s.LastError, ds.LastError)
		s.Traffic.sum(&ds.Traffic)
	}
	return s
}

// snapshot adds what is open to what has ended; the peer's mu is held.
func (d *domain) snapshot() DomainStats {
	s := DomainStats{
		Domain: d.name, Ready: len(d.ready), Alive: d.alive, Traffic: d.stats,
		Epoch: d.epochs.own, InStep: d.epochs.peer != 0, Resyncs: d.resyncs, History: d.history.Stats(), Alarm: d.alarm,
	}
	s.Open = len(d.relays)
	if d.lastErr != nil {
		s.LastError = d.lastErr.Error()
	}
	for pc := range d.conns {
		s.WireIn += pc.read.Load()
		s.WireOut += pc.out.written.Load()
	}
	for r := range d.relays {
		s.add(r)
	}
	return s
}

// sum adds o.
func (s *Traffic) sum(o *Traffic) {
	s.Open += o.Open
	s.Total += o.Total
	s.Refused += o.Refused
	s.Reset += o.Reset
	s.Passed += o.Passed
	s.BytesOut += o.BytesOut
	s.WireOut += o.WireOut
	s.BytesIn += o.BytesIn
	s.WireIn += o.WireIn
	s.Matched += o.Matched
	s.Literal += o.Literal
	s.Zero += o.Zero
	s.Resent += o.Resent
	s.mix(&o.Mix)
	s.Restarts += o.Restarts
}

// add counts a stream's bytes.
func (s *Traffic) add(r *relay) {
	enc := r.enc.Stats()
	s.BytesOut += int64(r.sent.Load())
	s.BytesIn += int64(r.received.Load())
	s.Matched += enc.Matched
	s.Literal += enc.Literal
	s.Zero += enc.Zero
	s.Resent += enc.Resent
	s.mix(&enc.Mix)
}

// mix adds to Mix.
func (s *Traffic) mix(o *block.Mix) {
	for _, c := range []struct{ to, from *block.Share }{{&s.Mix.Raw, &o.Raw}, {&s.Mix.S2, &o.S2}, {&s.Mix.Zstd, &o.Zstd}, {&s.Mix.Carried, &o.Carried}} {
		c.to.In += c.from.In
		c.to.Out += c.from.Out
	}
}
