package stream

import "stitch/dedupe"

// LoseHistory gives every connection there is to a peer an empty history
// without telling anybody: what damage to the memory would do.
func (p *Proxy) LoseHistory(peer string) {
	q := p.byName[peer]
	q.mu.Lock()
	defer q.mu.Unlock()
	for pc := range q.conns {
		pc.history = dedupe.NewHistory(q.history.Size())
	}
}
