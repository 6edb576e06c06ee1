// Package netdevtest has devices made of channels, for tests that need no
// root and may run inside a testing/synctest bubble.
package netdevtest

import (
	"net"
	"slices"
	"sync"

	"stitch/tunnel/netdev"
)

// queueLen is the capacity of In and Out.
const queueLen = 4096

// Fake is a device whose kernel side is two channels.
type Fake struct {
	// In is what Read returns: packets that the kernel sends into the device.
	// Fake takes them. Never close it.
	In chan []byte
	// Out gets a copy of every packet written. When it is full, Write blocks
	// until someone receives or the device is closed.
	Out chan []byte

	name   string
	batch  int
	once   sync.Once
	closed chan struct{}
	wake   chan struct{} // holds one
}

var _ netdev.Device = (*Fake)(nil)

// NewFake returns an open device called name whose Read fills at most batch
// packets.
func NewFake(name string, batch int) *Fake {
	return &Fake{
		In: make(chan []byte, queueLen), Out: make(chan []byte, queueLen),
		name: name, batch: max(batch, 1), closed: make(chan struct{}), wake: make(chan struct{}, 1),
	}
}

// Name returns the name given to NewFake.
func (f *Fake) Name() string { return f.name }

// BatchSize returns the batch given to NewFake.
func (f *Fake) BatchSize() int { return f.batch }

// Read waits for one packet from In and takes what else is queued. No packet
// is a super-packet.
func (f *Fake) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-f.closed:
		return 0, net.ErrClosed
	case <-f.wake:
		return 0, nil
	case p := <-f.In:
		fill(bufs, sizes, offset, 0, p)
	}
	n, err := f.Poll(bufs[1:min(len(bufs), f.batch)], sizes[1:], offset)
	return n + 1, err
}

// Poll takes what is queued.
func (f *Fake) Poll(bufs [][]byte, sizes []int, offset int) (int, error) {
	for n := range min(len(bufs), f.batch) {
		select {
		case p := <-f.In:
			fill(bufs, sizes, offset, n, p)
		default:
			return n, nil
		}
	}
	return min(len(bufs), f.batch), nil
}

// fill puts p into the n-th buffer, with the header of a plain packet in front.
func fill(bufs [][]byte, sizes []int, offset, n int, p []byte) {
	if offset < netdev.MinOffset {
		panic("netdevtest: offset below netdev.MinOffset")
	}
	clear(bufs[n][:offset])
	sizes[n] = copy(bufs[n][offset:], p)
}

// Write copies the packets to Out.
func (f *Fake) Write(bufs [][]byte, offset int) (int, error) {
	for i, b := range bufs {
		select {
		case <-f.closed:
			return i, net.ErrClosed
		default:
		}
		select {
		case <-f.closed:
			return i, net.ErrClosed
		case f.Out <- slices.Clone(b[offset:]):
		}
	}
	return len(bufs), nil
}

// Wake implements netdev.Device.
func (f *Fake) Wake() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Close unblocks Read and Write; they return net.ErrClosed from then on.
func (f *Fake) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

// FakeOpener hands out Fakes and remembers them. It is safe for concurrent
// use; the zero value is ready.
type FakeOpener struct {
	// Err, if set, is what every Open returns.
	Err error

	mu      sync.Mutex
	devices map[string]*Fake
	removed []string
}

var _ netdev.Opener = (*FakeOpener)(nil)

// OpenTUN returns a new Fake with batches of 128.
func (o *FakeOpener) OpenTUN(name string, _ int) (netdev.Device, error) { return o.open(name, 128) }

// OpenTAP returns a new Fake with batches of 64.
func (o *FakeOpener) OpenTAP(name string, _ int) (netdev.Device, error) { return o.open(name, 64) }

// OpenPrivateTUN returns a new Fake with batches of 64.
func (o *FakeOpener) OpenPrivateTUN(name string, _ int) (netdev.Device, error) {
	return o.open(name, 64)
}

func (o *FakeOpener) open(name string, batch int) (netdev.Device, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.Err != nil {
		return nil, o.Err
	}
	if o.devices == nil {
		o.devices = make(map[string]*Fake)
	}
	f := NewFake(name, batch)
	o.devices[name] = f
	return f, nil
}

// Remove forgets the device.
func (o *FakeOpener) Remove(name string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.devices, name)
	o.removed = append(o.removed, name)
	return nil
}

// Device returns the newest device opened as name, or nil.
func (o *FakeOpener) Device(name string) *Fake {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.devices[name]
}

// Removed returns the names given to Remove so far; the caller owns them.
func (o *FakeOpener) Removed() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.removed)
}
