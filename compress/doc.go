// Package compress encodes and decodes single blocks of bytes, raw or with S2
// or zstd, and judges whether trying is worth it.
//
// A block is self-contained and carries neither its codec nor its decoded
// length: the caller's framing does, and Pool.Decode checks both against the
// block before it allocates anything. Nothing here protects against damage:
// the caller adds a checksum.
//
// The functions are pure. A Pool holds idle encoders and no data between
// calls; a Gate belongs to one stream.
package compress
