package ether

import (
	"context"

	"stitch/tunnel/config"
)

// Port is the shell around a Switch.
type Port struct{ cfg Config }

// Open returns the port of one segment; nothing moves until Run.
func Open(cfg Config) *Port { return &Port{cfg: cfg} }

// Run moves frames until ctx is done.
func (p *Port) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// FromLink takes a frame that peer sent. It borrows frame and does not block.
func (p *Port) FromLink(peer string, frame []byte) {}

// Claim says that the workload with this MAC is at peer; empty: here.
func (p *Port) Claim(mac config.MAC, peer string) {}

// Stats returns the counters.
func (p *Port) Stats() Stats { return Stats{Segment: p.cfg.Segment.ID} }

// Close ends Run and closes the TAP.
func (p *Port) Close() error { return p.cfg.TAP.Close() }
