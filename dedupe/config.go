package dedupe

import (
	"errors"
	"fmt"
)

// ErrConfig is returned by Open for a Config that cannot be meant.
var ErrConfig = errors.New("dedupe: bad configuration")

// Config says how large a History is and where it is kept.
type Config struct {
	// Size is the bytes of history for each direction, cut to whole MiB
	// between 1 MiB and 64 GiB. Both sides should use the same; the smaller
	// one counts.
	Size int64
	// Memory is how many of these bytes lie in memory, the newest ones: at
	// least 1 MiB; 0, or more than Size, means Size. Without a working store
	// it is all there is. Memory is taken as it is touched, twice (once for
	// each direction), and beside it 0.2 % of Size for page words, the index
	// (Stats.Index), and with a store 1/32 of Memory for segments read back.
	Memory int64
	// Dir is the store's directory, made with mode 0700 if missing; "" means
	// memory only. It belongs to one process at a time.
	Dir string
	// Key encrypts what lies in Dir with AES-256-GCM: 32 bytes, or nil for
	// no encryption. With another key than before the store starts anew.
	Key []byte
}

// check returns c with its sizes made whole.
func (c Config) check() (Config, error) {
	if c.Size < 0 || c.Memory < 0 {
		return c, fmt.Errorf("%w: negative size", ErrConfig)
	}
	if len(c.Key) != 0 && len(c.Key) != 32 {
		return c, fmt.Errorf("%w: a key of %d bytes; it must have 32", ErrConfig, len(c.Key))
	}
	c.Size = whole(c.Size)
	if c.Memory == 0 || c.Memory > c.Size {
		c.Memory = c.Size
	}
	c.Memory = whole(c.Memory)
	if c.Dir == "" {
		c.Size = c.Memory
	}
	return c, nil
}

// whole cuts a size to what a ring can have.
func whole(n int64) int64 {
	return min(max(n, minSize), maxSize) / chunkSize * chunkSize
}
