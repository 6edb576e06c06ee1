package divert

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"stitch/tunnel/netdev"
	"stitch/tunnel/netdev/super"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// fakeTAP is a TAP: what is written comes out of out, what is put into in is read.
type fakeTAP struct {
	netdev.Device
	in, out chan []byte
	closed  chan struct{}
}

func (f *fakeTAP) BatchSize() int { return 1 }
func (f *fakeTAP) Close() error   { close(f.closed); return nil }

func (f *fakeTAP) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case b := <-f.in:
		super.Header{}.Put(bufs[0][offset-super.HeaderLen:])
		sizes[0] = copy(bufs[0][offset:], b)
		return 1, nil
	case <-f.closed:
		return 0, net.ErrClosed
	}
}

func (f *fakeTAP) WriteSuper(b []byte, _ super.Header) error {
	f.out <- bytes.Clone(b)
	return nil
}

// fakePort keeps what it gets.
type fakePort struct{ delivered, carried chan []byte }

func (f fakePort) Deliver(_ string, b []byte, _ super.Header) { f.delivered <- bytes.Clone(b) }
func (f fakePort) Carry(_ string, b []byte) bool              { f.carried <- bytes.Clone(b); return true }

// fakeStreams is a stream process.
type fakeStreams struct {
	fd    int
	flows []Flow
	syn   chan []byte
	moved chan Flow

	passed chan passed
}

// passed is a connection whose SYN has passed.
type passed struct {
	why byte
	Flow
}

func (f *fakeStreams) Device(uint16, int) (int, error) { return f.fd, nil }
func (f *fakeStreams) Flows() []Flow                   { return f.flows }
func (f *fakeStreams) Moved(m Flow)                    { f.moved <- m }
func (f *fakeStreams) Passed(why byte, p Flow)         { f.passed <- passed{why, p} }
func (f *fakeStreams) SYN(_ uint16, _ string, b []byte) {
	f.syn <- bytes.Clone(b)
}

// rig is a link process with one segment, and what belongs to it.
type rig struct {
	t       *testing.T
	link    *Link
	segment *Segment
	port    fakePort
	path    string
	taps    chan *fakeTAP
	streams *fakeStreams
}

func newRig(t *testing.T) *rig {
	r := &rig{
		t: t, path: filepath.Join(t.TempDir(), "s"), taps: make(chan *fakeTAP, 4),
		port:    fakePort{make(chan []byte, 8), make(chan []byte, 8)},
		streams: &fakeStreams{syn: make(chan []byte, 8), moved: make(chan Flow, 8), passed: make(chan passed, 8)},
	}
	r.link = NewLink(r.path, netdev.Linux{}, nil)
	r.link.adopt = func(_ string, fd int) (netdev.Device, error) {
		f := &fakeTAP{in: make(chan []byte), out: make(chan []byte, 8), closed: make(chan struct{})}
		r.taps <- f
		return f, os.NewFile(uintptr(fd), "").Close()
	}
	r.segment = r.link.Add(100, 1500, func(peer string, src, dst netip.AddrPort) (covered, split bool) {
		covered = peer == "dc2" && dst == server
		return covered, covered && src == client
	})
	r.segment.Use(r.port)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	r.streams.fd = int(null.Fd())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.link.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

// start runs a stream process and waits until its TAP is there.
func (r *rig) start() (c *Client, tap *fakeTAP, stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	c = NewClient(r.path, nil)
	done := make(chan struct{})
	go func() { c.Run(ctx, r.streams); close(done) }()
	tap = receive(r.t, r.taps, "a TAP")
	r.until("the TAP is in use", func() bool { t := r.segment.live.Load(); return t != nil && t.Device == tap })
	return c, tap, func() { cancel(); <-done }
}

// until waits for a condition.
func (r *rig) until(what string, cond func() bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatal("not in time: ", what)
		}
	}
}

func receive[T any](t *testing.T, ch chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatal("did not come: ", what)
		panic("unreachable")
	}
}

// fromLAN offers a frame and wants it taken, or not.
func (r *rig) fromLAN(what, peer string, frame []byte, want bool) {
	r.t.Helper()
	if got := r.segment.FromLAN(peer, bytes.Clone(frame), super.Header{}); got != want {
		r.t.Errorf("%s: taken %v, want %v", what, got, want)
	}
}

// add has a flow taken.
func (r *rig) add(c *Client, f Flow) {
	r.t.Helper()
	r.until("the flow is added", func() bool { return c.Add(r.t.Context(), f) == nil })
}

func TestSYN(t *testing.T) {
	r := newRig(t)
	syn := tcpFrame(client, server, flagSYN)
	r.fromLAN("without a stream process", "dc2", syn, false)
	c, _, stop := r.start()
	r.fromLAN("covered", "dc2", syn, true)
	if got := receive(t, r.streams.syn, "the SYN"); !bytes.Equal(got, syn) {
		t.Errorf("%x became %x", syn, got)
	}
	r.fromLAN("another peer", "dc3", syn, false)
	r.fromLAN("another port", "dc2", tcpFrame(client, client, flagSYN), false)
	r.fromLAN("an open connection", "dc2", tcpFrame(client, server, flagACK), false)
	tagged := ether(serverMAC, clientMAC, syn[etherHeader:], 0x81, 0, 0, 10)
	r.fromLAN("in a VLAN", "dc2", tagged, false)
	if p := receive(t, r.streams.passed, "the word about it"); p != (passed{PassedTagged, testFlow()}) {
		t.Errorf("%+v", p)
	}
	mobile := netip.AddrPortFrom(client.Addr(), 1)
	r.fromLAN("not to be split", "dc2", tcpFrame(mobile, server, flagSYN), false)
	if p := receive(t, r.streams.passed, "the word about it"); p.why != PassedByRule || p.Local != mobile || p.Remote != server {
		t.Errorf("%+v", p)
	}
	if err := c.ToPeer(100, "dc2", syn); err != nil {
		t.Error(err)
	}
	if got := receive(t, r.port.carried, "the passed SYN"); !bytes.Equal(got, syn) {
		t.Errorf("%x passed as %x", syn, got)
	}
	if err := c.ToLAN(100, "dc2", syn); err != nil {
		t.Error(err)
	}
	receive(t, r.port.delivered, "the answer")
	stop()
	r.until("the end is noticed", func() bool { return r.segment.live.Load() == nil })
	r.fromLAN("after its end", "dc2", syn, false)
	if st := r.link.Stats(); st.Asked != 1 || st.Crowded != 0 || st.Connected {
		t.Errorf("%+v", st)
	}
}

func TestFlow(t *testing.T) {
	r := newRig(t)
	c, tap, _ := r.start()
	ack, answer := tcpFrame(client, server, flagACK), tcpFrame(server, client, flagACK)
	r.add(c, testFlow())
	r.fromLAN("of the flow", "dc2", ack, true)
	want := bytes.Clone(ack)
	setMACs(want, DeviceMAC, clientMAC)
	if got := receive(t, tap.out, "the frame"); !bytes.Equal(got, want) {
		t.Errorf("%x became %x", ack, got)
	}
	r.fromLAN("of another", "dc2", tcpFrame(client6, server6, flagACK), false)
	kernel := bytes.Clone(answer)
	setMACs(kernel, DeviceMAC, DeviceMAC)
	tap.in <- kernel
	if got := receive(t, r.port.delivered, "the answer"); !bytes.Equal(got, answer) {
		t.Errorf("%x became %x", answer, got)
	}
	quoted := ipPacket(server.Addr(), client.Addr(), protoTCP, tcpSegment(server, client, flagACK))
	r.fromLAN("an ICMP error", "dc2", ether(serverMAC, clientMAC, ipPacket(client.Addr(), server.Addr(), protoICMP, append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, quoted...))), true)
	receive(t, tap.out, "the error")
	for what, frame := range map[string][]byte{"of the flow": answer, "of another": tcpFrame(server6, client6, flagACK)} {
		if got, want := r.segment.FromPeer(frame), what == "of the flow"; got != want {
			t.Errorf("%s from the peer: dropped %v", what, got)
		}
	}
	want = resetFor(answer)
	if got := receive(t, r.port.carried, "the reset for a peer's host without an agent"); !bytes.Equal(got, want) {
		t.Errorf("%x was answered by %x", answer, got)
	}
	c.Remove(testFlow())
	r.until("it is forgotten", r.segment.empty)
	r.fromLAN("after its end", "dc2", ack, false)

	r.add(c, testFlow())
	if r.segment.FromPeer(tcpFrame(server, client, flagSYN)) || !r.segment.empty() {
		t.Error("a connection that the peer has passed does not end what was split")
	}
	f := testFlow()
	f.Segment = 7
	if err := c.Add(t.Context(), f); err == nil {
		t.Error("a flow of a segment that there is not was taken")
	}
}

func TestMoved(t *testing.T) {
	r := newRig(t)
	c, tap, _ := r.start()
	r.add(c, testFlow())
	r.segment.Seen(clientMAC) // at home
	r.fromLAN("to where the server was", "dc2", tcpFrame(client, server, flagACK), true)
	receive(t, tap.out, "the frame")
	for range 2 {
		r.fromLAN("to where it is now", "dc3", tcpFrame(client, server, flagACK), true)
		r.segment.Seen(serverMAC)
	}
	if f := receive(t, r.streams.moved, "the news"); f != testFlow() {
		t.Errorf("%+v has moved", f)
	}
	reset := tcpFrame(server, client, flagRST)
	kernel := bytes.Clone(reset)
	setMACs(kernel, DeviceMAC, DeviceMAC)
	tap.in <- kernel
	setMACs(reset, clientMAC, DeviceMAC)
	if got := receive(t, r.port.delivered, "the reset"); !bytes.Equal(got, reset) {
		t.Errorf("%x became %x: the host that has moved would be looked for where it was", reset, got)
	}
	r.add(c, testFlow())
	r.segment.Seen(serverMAC)
	receive(t, r.streams.moved, "the news")
	if len(r.streams.moved) > 0 || len(tap.out) > 0 {
		t.Error("it was said twice, or a frame went to the kernel")
	}
	if st := r.link.Stats(); st.Moved != 2 || st.LastMoved == nil || *st.LastMoved != testFlow() || len(st.Alarms()) != 1 {
		t.Errorf("%+v: %q", st, st.Alarms())
	}
	var m moves
	var none, st Stats
	if m.show(&none, time.Now()); none.LastMoved != nil || none.Alarms() != nil {
		t.Errorf("before any: %+v", none)
	}
	now := time.Now()
	m.note(testFlow(), now)
	if m.show(&st, now.Add(movedLife)); st.LastMoved != nil || st.Moved != 1 || st.Alarms() != nil {
		t.Errorf("long ago: %+v", st)
	}
}

// TestProcessDies: a stream process' connections are served a while after its end,
// but new ones are not; the next one has its own. One that outlives the link process
// brings its connections.
func TestProcessDies(t *testing.T) {
	r := newRig(t)
	c, tap, stop := r.start()
	r.add(c, testFlow())
	stop()
	r.until("the end is noticed", func() bool { return r.segment.live.Load() == nil })
	if err := c.Add(t.Context(), testFlow()); !errors.Is(err, ErrAway) {
		t.Errorf("added: %v", err)
	}
	r.fromLAN("what the host still sends", "dc2", tcpFrame(client, server, flagACK), true)
	receive(t, tap.out, "the frame")
	_, second, stop := r.start()
	r.fromLAN("with the next process there", "dc2", tcpFrame(client, server, flagACK), true)
	receive(t, tap.out, "the frame, for the kernel that knows the connection")
	stop()
	r.until("the end is noticed", func() bool { return r.segment.live.Load() == nil })
	r.fromLAN("a new connection of the same ports", "dc2", tcpFrame(client, server, flagSYN), false)
	r.fromLAN("and its next frame", "dc2", tcpFrame(client, server, flagACK), false)
	if len(second.out) > 0 {
		t.Error("a frame went to the wrong TAP")
	}

	r.streams.flows = []Flow{testFlow()}
	_, third, _ := r.start()
	r.until("the connection is back", func() bool { return !r.segment.empty() })
	r.fromLAN("of a connection that outlived the link process", "dc2", tcpFrame(client, server, flagACK), true)
	receive(t, third.out, "the frame")
}

// TestNoStranger: what is no message ends the connection and harms nothing.
func TestNoStranger(t *testing.T) {
	r := newRig(t)
	for _, msg := range [][]byte{{0}, {byte(msgAdd), 1}, {byte(msgDevice), 0, 100, 0}, append([]byte{byte(msgLAN)}, make([]byte, maxMessage)...)} {
		var conn *net.UnixConn
		r.until("it listens", func() (ok bool) {
			var err error
			conn, err = net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: r.path, Net: "unixpacket"})
			return err == nil
		})
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Write(msg); err != nil {
			t.Error(err)
		}
		buf := make([]byte, 100)
		for {
			n, err := conn.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%x did not end the connection", msg[:1])
			}
			if err != nil || n == 0 {
				break
			}
		}
		conn.Close()
	}
	r.fromLAN("a SYN", "dc2", tcpFrame(client, server, flagSYN), false)
	r.start()
}
