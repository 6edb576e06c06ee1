// Package netdev opens TUN and TAP devices and moves packets between them and
// the agent in batches, with the kernel's segmentation offload (package super).
package netdev

import "stitch/tunnel/netdev/super"

// Device is a virtual network device: IP packets for a TUN, Ethernet frames
// for a TAP. Its methods may be called concurrently, but Read and Poll from one
// goroutine at a time.
type Device interface {
	// Name is the interface's name.
	Name() string
	// Read fills bufs[i][offset:] and sizes[i] and returns how many it filled.
	// It blocks until there is at least one; then it takes what else is there
	// already. After Close it returns net.ErrClosed (or os.ErrClosed). It
	// borrows bufs. A TUN cuts super-packets itself. A TAP does not: it leaves
	// the frame's super.Header in the super.HeaderLen bytes in front of it, so
	// offset must be at least MinOffset, and a frame may have super.MaxPacket
	// bytes.
	Read(bufs [][]byte, sizes []int, offset int) (int, error)
	// Poll is Read that does not wait: it may return no packets.
	Poll(bufs [][]byte, sizes []int, offset int) (int, error)
	// Write sends bufs[i][offset:] and returns how many it could; the error is
	// the first one's. It borrows bufs and does not write to them.
	Write(bufs [][]byte, offset int) (int, error)
	// Wake makes the Read that blocks, or else the next one, return no packets
	// and no error.
	Wake()
	// BatchSize is the most packets one Read fills or one Write should get;
	// constant.
	BatchSize() int
	// Close releases the device and unblocks Read. A persistent device stays
	// in the kernel with its interface index until Opener.Remove.
	Close() error
}

// Cutter is a TUN that cuts super-packets.
type Cutter interface {
	// CutTo makes Read cut TCP super-packets into IP packets of at most n
	// bytes, whatever segment size their sender had in mind. It may be called
	// at any time.
	CutTo(n int)
	// Offer gives every TCP super-packet to p first, which may take it; to be
	// called before the first Read, if at all.
	Offer(p Packer)
}

// Packer sees TCP super-packets of a TUN before they are cut. Read's goroutine
// calls it.
type Packer interface {
	// Take is offered a super-packet and how it would be cut, which it
	// borrows. When it takes it, what Next returns until Len is 0 is read in
	// place of its packets, by later Reads too if there is no room before; when
	// not, ahead of them.
	Take(packet []byte, h super.Header, cut *super.Splitter) bool
	// Pass sees every other packet, in order, which it borrows.
	Pass(packet []byte)
	// Len returns the length of the next packet that Next writes; 0: none.
	Len() int
	// Next writes it to dst.
	Next(dst []byte)
}

// SuperWriter is a device that takes a super-packet, or a packet whose checksum
// is not complete, as another device handed it over.
type SuperWriter interface {
	// WriteSuper sends one packet. It borrows b and does not write to it.
	WriteSuper(b []byte, h super.Header) error
}

// Sizer is a device whose MTU can be changed while it is open.
type Sizer interface {
	// SetMTU sets the MTU of the interface, the most the kernel sends into it:
	// what is longer it fragments, or answers that it is too big.
	SetMTU(n int) error
}

// MinOffset is the headroom a TAP's Read needs in front of every frame.
const MinOffset = 16

// BufferLen is the length of a buffer that holds any packet of a Read at
// MinOffset.
const BufferLen = MinOffset + super.MaxPacket

// Opener makes devices; the agent's seam towards /dev/net/tun.
type Opener interface {
	// OpenTUN creates or adopts the persistent TUN called name and brings it up.
	OpenTUN(name string, mtu int) (Device, error)
	// OpenTAP creates or adopts the persistent TAP called name, down, without
	// addresses: the caller puts it into a bridge.
	OpenTAP(name string, mtu int) (Device, error)
	// OpenPrivateTUN creates a TUN that vanishes with its last descriptor.
	OpenPrivateTUN(name string, mtu int) (Device, error)
	// Remove deletes a persistent device; no error if there is none.
	Remove(name string) error
}
