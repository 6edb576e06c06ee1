// Package compress encodes and decodes single blocks with raw, S2 or zstd.
package compress
