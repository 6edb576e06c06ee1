package stream

import (
	"context"
	"io"
	"log/slog"

	"stitch/tunnel/config"
)

// Config is what a Proxy is made from.
type Config struct {
	// Site is this site's name.
	Site string
	// Cfg gives the stream rules, the dial rules, the peers' subnets, the
	// workloads (never split) and the size of the history. Borrowed for good.
	Cfg *config.Config
	// Links are the links to agent peers (not stock ones).
	Links []Link
	// Net is the kernel or a fake of it.
	Net Net
	// Rand gives the nonces; nil means crypto/rand.
	Rand io.Reader
	// Log may be nil: nothing is logged.
	Log *slog.Logger
}

// Proxy is one site's stream plane.
type Proxy struct{ cfg Config }

// New checks the configuration; it opens nothing.
func New(cfg Config) (*Proxy, error) { return &Proxy{cfg: cfg}, nil }

// Run works until ctx is done, then resets every stream and returns ctx's
// error. It returns earlier when the listeners or st-hold cannot be had.
func (p *Proxy) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
