package wg

import (
	"net"
	"testing"
	"time"
)

// TestPassages holds what is found against all that was noted: the first one with the
// counter or a later one, within passageEvery of the true one.
func TestPassages(t *testing.T) {
	var p passages
	if _, ok := p.find(1); ok {
		t.Error("something is found in nothing")
	}
	const every = 300 * time.Microsecond
	at := func(counter uint64) time.Duration { return time.Duration(counter/10) * every }
	last := uint64(0)
	for counter := uint64(10); counter < 200_000; counter += 10 {
		p.note(passage{counter, at(counter), 100 * counter})
		last = counter
	}
	p.note(passage{last - 100, time.Hour, 0}) // out of order
	for _, c := range []uint64{last, last - 5, last - 1000, last - 30_000} {
		x, ok := p.find(c)
		if !ok || x.counter < c || x.at < at(c) || x.at > at(c)+passageEvery+every || x.bytes != 100*x.counter {
			t.Errorf("%d: %+v, %v; it passed at %v", c, x, ok, at(c))
		}
	}
	for _, c := range []uint64{last + 1, 1} {
		if x, ok := p.find(c); ok {
			t.Errorf("%d: %+v is found", c, x)
		}
	}
	p.note(passage{5, time.Hour, 7}) // a new session
	if x, ok := p.find(4); !ok || x.at != time.Hour {
		t.Errorf("new session: %+v, %v", x, ok)
	}
	if x, ok := p.find(last); ok {
		t.Errorf("%+v is found of the old session", x)
	}
}

// TestAge: the kernel tells how long a datagram waited in the socket; without a
// socket, the control case, nobody does.
func TestAge(t *testing.T) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fds := stampSockets(uint16(c.LocalAddr().(*net.UDPAddr).Port))
	if len(fds) != 1 {
		t.Fatalf("%d sockets", len(fds))
	}
	s := stamper{fds[0]}
	const wait = 20 * time.Millisecond
	b, age := make([]byte, 10), time.Duration(0)
	for range 100 { // it is switched on by the first ones, and a little later
		if _, err := c.WriteTo(b, c.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(wait)
		if _, _, err := c.ReadFrom(b); err != nil {
			t.Fatal(err)
		}
		if age = s.age(); age >= wait {
			break
		}
	}
	if age < wait || age > maxAge {
		t.Errorf("it waited %v, the kernel says %v", wait, age)
	}
	if age := (stamper{-1}).age(); age != 0 {
		t.Errorf("age %v without a socket", age)
	}
}
