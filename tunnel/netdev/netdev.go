// Package netdev opens TUN and TAP devices and moves packets between them and
// the agent in batches.
package netdev

// Device is a virtual network device: IP packets for a TUN, Ethernet frames
// for a TAP. Read and Write may be called concurrently with each other, each
// from one goroutine at a time, and with Close.
type Device interface {
	// Name is the interface's name.
	Name() string
	// Read fills bufs[i][offset:] and sizes[i] and returns how many it filled.
	// It blocks until there is at least one. After Close it returns
	// net.ErrClosed (or os.ErrClosed). It borrows bufs.
	Read(bufs [][]byte, sizes []int, offset int) (int, error)
	// Write sends bufs[i][offset:]. It borrows bufs but may overwrite the
	// offset bytes in front of each packet, and the packets themselves
	// (coalescing). offset must be at least MinOffset.
	Write(bufs [][]byte, offset int) (int, error)
	// BatchSize is the most packets one Read can fill; constant.
	BatchSize() int
	// Close releases the device and unblocks Read. A persistent device stays
	// in the kernel with its interface index until Opener.Remove.
	Close() error
}

// MinOffset is the headroom Write needs in front of every packet.
const MinOffset = 16

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
