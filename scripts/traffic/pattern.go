// Package traffic is what the demo's hosts say to each other: streams whose
// every byte follows from a connection's number and the byte's offset, so both
// ends can check all of them without sharing anything else.
//
// # Pattern
//
// A connection carries two streams, one each way. A stream is a sequence of
// 64-byte blocks. Block n is eight little-endian words, word i being
// mix(key + 8n + i), where mix is the finaliser of SplitMix64 and key mixes the
// connection's number and the direction. In every 64th block, beginning with
// block 0, the first len(Canary) bytes are Canary instead, so a capture of
// clear text is recognised.
//
// # Exchange
//
// The client sends requests, one outstanding at a time; the server answers each.
// Both are a 32-byte header and a body, big endian:
//
//	0   magic "STQ1" (request) or "STA1" (answer)
//	4   u32 length of the body
//	8   u32 request: length of the answer wanted; answer: 1 if the request's
//	    body had a wrong byte, else 0
//	12  u32 zero
//	16  u64 number of the connection
//	24  u64 offset of the body in its stream: the sum of the bodies before
//
// Whatever deviates from this ends the connection with an error at the side
// that saw it.
package traffic

import (
	"bytes"
	"encoding/binary"
)

// Canary is in every stream and, many times, in the guest's memory. A capture
// of the WAN must not contain it.
const Canary = "stitch-canary/5e1f0c7a93d24b68/must-never-cross-in-clear"

const (
	blockSize   = 64
	canaryEvery = 64
)

// Direction names one of the two streams of a connection.
type Direction uint64

const (
	// Request is the stream from the client to the server.
	Request Direction = 1
	// Answer is the stream from the server to the client.
	Answer Direction = 2
)

// Fill writes the bytes that connection id has at offset off and following in
// direction d to dst. It borrows dst.
func Fill(dst []byte, id uint64, d Direction, off uint64) {
	var block [blockSize]byte
	for len(dst) > 0 {
		makeBlock(&block, id, d, off/blockSize)
		n := copy(dst, block[off%blockSize:])
		dst, off = dst[n:], off+uint64(n)
	}
}

// Check compares b with what Fill would write and returns the index of the
// first byte that differs, or -1. It borrows b.
func Check(b []byte, id uint64, d Direction, off uint64) int {
	var block [blockSize]byte
	for done := 0; done < len(b); {
		makeBlock(&block, id, d, off/blockSize)
		want := block[off%blockSize:]
		want = want[:min(len(want), len(b)-done)]
		if got := b[done : done+len(want)]; !bytes.Equal(got, want) {
			return done + firstDifference(got, want)
		}
		done += len(want)
		off += uint64(len(want))
	}
	return -1
}

// firstDifference returns the first index at which a and b, equally long and
// known to differ, differ.
func firstDifference(a, b []byte) int {
	i := 0
	for a[i] == b[i] {
		i++
	}
	return i
}

// makeBlock fills b with block n of a stream.
func makeBlock(b *[blockSize]byte, id uint64, d Direction, n uint64) {
	key := mix(id*4 + uint64(d))
	for i := range uint64(blockSize / 8) {
		binary.LittleEndian.PutUint64(b[8*i:], mix(key+n*(blockSize/8)+i))
	}
	if n%canaryEvery == 0 {
		copy(b[:], Canary)
	}
}

// mix is SplitMix64: neighbouring arguments give unrelated words.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
