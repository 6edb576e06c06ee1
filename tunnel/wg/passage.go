package wg

import (
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How long the processors of both ends take is not the path's doing: a gauge counts from when
// it was given to the kernel until the other end's kernel had it. Both are known of
// batches of datagrams only, each by the nonce counter of its last one.

const (
	// passageEvery is how often a passage is noted, at most; passageCount of them are
	// kept, so that an answer finds its gauge after two seconds.
	passageEvery = time.Millisecond
	passageCount = 2048
	// renewed is by how much counters go back at least when a session is renewed, and not
	// when datagrams come out of order.
	renewed = 1 << 13
	// maxAge bounds what is believed of how long a datagram waited in a socket.
	maxAge = time.Second
)

// passage is when the datagram with the given counter, and all before it, had
// passed a socket, and how many bytes had in all.
type passage struct {
	counter uint64
	at      time.Duration
	bytes   uint64
}

// passages are the last ones of one direction, of one session. They are safe for
// concurrent use; the zero value is ready.
type passages struct {
	mu   sync.Mutex
	ring []passage
	n    int // noted
}

func (p *passages) last() *passage { return &p.ring[(p.n-1)%passageCount] }

// note notes a passage.
func (p *passages) note(x passage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ring == nil {
		p.ring = make([]passage, passageCount)
	}
	if p.n > 0 {
		switch last := p.last(); {
		case x.counter+renewed < last.counter:
			p.n = 0
		case x.counter <= last.counter:
			return
		case p.n > 1 && x.at-p.ring[(p.n-2)%passageCount].at < passageEvery:
			*last = x
			return
		}
	}
	p.ring[p.n%passageCount] = x
	p.n++
}

// find returns the first passage with counter or a later one.
func (p *passages) find(counter uint64) (passage, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	low, high := max(p.n-passageCount, 0), p.n
	if high == low || p.ring[low%passageCount].counter > counter && low > 0 {
		return passage{}, false
	}
	for low < high {
		if mid := (low + high) / 2; p.ring[mid%passageCount].counter < counter {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == p.n {
		return passage{}, false
	}
	return p.ring[low%passageCount], true
}

// stamper is a UDP socket whose kernel says when the last datagram that was read had
// arrived. It is used by one goroutine.
type stamper struct{ fd int }

// stampSockets returns the sockets of a port, that of IPv4 first, which is
// wireguard-go's order. They are asked only just after something was read from them: should
// they have been closed since, and their numbers be another's, no harm is done.
func stampSockets(port uint16) (fds []int) {
	err := eachSocket(port, func(fd int, six bool) error {
		if six {
			fds = append(fds, fd)
		} else {
			fds = slices.Insert(fds, 0, fd)
		}
		return nil
	})
	if err != nil {
		return nil
	}
	return fds
}

// age returns how long ago that was; 0 if it is not known.
func (s stamper) age() time.Duration {
	if s.fd < 0 {
		return 0
	}
	var at, now unix.Timespec
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(s.fd), unix.SIOCGSTAMPNS, uintptr(unsafe.Pointer(&at)))
	if e != 0 || unix.ClockGettime(unix.CLOCK_REALTIME, &now) != nil {
		return 0
	}
	d := time.Duration(now.Nano() - at.Nano())
	if d < 0 || d > maxAge { // the clock was set
		return 0
	}
	return d
}
