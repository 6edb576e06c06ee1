package wg

import (
	"bytes"
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"stitch/tunnel/netdev"
	"stitch/tunnel/netdev/netdevtest"
	"stitch/tunnel/netdev/super"
	"stitch/tunnel/wg/carrier"
)

// got returns the next packet out of a TUN device, or nil after a second.
func got(e *simEnd) []byte {
	select {
	case p := <-e.tun.Out:
		return p
	case <-time.After(time.Second):
		return nil
	}
}

// Packets of every size cross unchanged, large ones in parts; frames and
// control datagrams arrive where they belong.
func TestEverythingCrosses(t *testing.T) {
	bubble(t, 5*time.Millisecond, 0, func(t *testing.T, n *simNet) {
		type frame struct {
			segment uint16
			data    string
		}
		frames, controls := make(chan frame, 100), make(chan string, 100)
		a := n.open(t, 0)
		b := n.open(t, 1, func(c *Config) {
			c.OnFrames = each(func(s uint16, f []byte) { frames <- frame{s, string(f)} })
			c.OnControl = func(m []byte) { controls <- string(m) }
		})
		defer a.close(t)
		defer b.close(t)
		a.until(t, Up, 3*time.Second)
		for _, size := range []int{28, 100, 1439, 1440, 1441, 1500, 9000, 16384} {
			want := ipPacket(size, uint16(size))
			a.tun.In <- want
			if !bytes.Equal(got(b), want) {
				t.Errorf("packet of %d bytes did not cross", size)
			}
		}
		for _, size := range []int{14, 60, 1412, 1413, 1518, 9018} {
			want := frame{uint16(size), string(ipPacket(max(size, 28), 1)[:size])}
			if !a.SendFrame(want.segment, []byte(want.data), super.Header{}) || <-frames != want {
				t.Errorf("frame of %d bytes did not cross", size)
			}
		}
		if !a.SendControl([]byte("news")) || <-controls != "news" {
			t.Error("control datagram did not cross")
		}
		sa, sb := a.Stats(), b.Stats()
		if sa.Tx.Packets != 8 || sb.Rx.Packets != 8 || sa.Tx.Bytes != sb.Rx.Bytes || sb.Rx.Frames != 6 || sa.Tx.Parts == 0 || sa.Tx.Parts != sb.Rx.Parts || sb.Reassembly.Joined != 7 {
			t.Errorf("tx %+v\nrx %+v\nreassembly %+v", sa.Tx, sb.Rx, sb.Reassembly)
		}
		if sb.Drops != (Drops{}) || sb.Errors != (Errors{}) {
			t.Errorf("drops %+v errors %+v", sb.Drops, sb.Errors)
		}
		if sa.LastHandshake.IsZero() || sa.Endpoint != "192.0.2.1:1" || sa.Tx.WireBytes == 0 || sa.Rx.Datagrams == 0 {
			t.Errorf("%+v", sa)
		}
	})
}

// linkPacket returns a valid carrier packet.
func linkPacket(from, to *simEnd, kind byte) []byte {
	p := make([]byte, 60)
	copy(p, []byte{0x45, 0, 0, 60, 0, 0, 0x40, 0, 1, 97, 0, 0})
	local, remote := from.cfg.Local.As4(), to.cfg.Local.As4()
	copy(p[12:], local[:])
	copy(p[16:], remote[:])
	p[20], p[23] = 0x10|kind, 1
	return p
}

// What pretends to be the link's own never gets in from the TUN device, and
// the peer's own never gets out to it.
func TestForgedCarrier(t *testing.T) {
	bubble(t, time.Millisecond, 0, func(t *testing.T, n *simNet) {
		delivered := 0
		a := n.open(t, 0)
		b := n.open(t, 1, func(c *Config) { c.OnFrames = func(_ uint16, f [][]byte) { delivered += len(f) } })
		defer a.close(t)
		defer b.close(t)
		a.until(t, Up, 3*time.Second)
		b.until(t, Up, 3*time.Second)
		forged := linkPacket(a, b, 1)
		reverse := linkPacket(b, a, 1)
		spoofed := linkPacket(a, b, 1)
		copy(spoofed[12:], []byte{10, 0, 0, 1})
		options := linkPacket(a, b, 1)
		options[0] = 0x46
		notIP := []byte{0x00, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20}
		for _, p := range [][]byte{forged, reverse, spoofed, options, notIP, {0x45}, ipPacket(16385, 1)} {
			a.tun.In <- p
		}
		etherIP := ipPacket(100, 1)
		etherIP[9] = 97
		a.tun.In <- etherIP
		if !bytes.Equal(got(b), etherIP) {
			t.Error("protocol 97 of two LAN hosts did not cross")
		}
		if d := a.Stats().Drops; d.Forged != 4 || d.NotIP != 2 || d.TooBig != 1 || delivered != 0 {
			t.Errorf("%+v, %d frames delivered", d, delivered)
		}
		// The same from an authenticated peer that breaks the rules.
		version := linkPacket(a, b, 1)
		version[20] = 0x21
		a.mux.mu.Lock()
		for _, p := range [][]byte{reverse, spoofed, options, version} {
			copy(a.mux.control.push(len(p)), p)
		}
		a.mux.notifyLocked()
		a.mux.mu.Unlock()
		time.Sleep(time.Second)
		if d := b.Stats().Drops; d.Foreign != 3 || d.Version != 1 || delivered != 0 || len(b.tun.Out) != 0 {
			t.Errorf("%+v, %d frames delivered, %d packets out", d, delivered, len(b.tun.Out))
		}
	})
}

// A packet carried in parts is checked like any other before it gets out.
func TestForgedInside(t *testing.T) {
	bubble(t, time.Millisecond, 0, func(t *testing.T, n *simNet) {
		a, b := connected(t, n)
		defer a.close(t)
		defer b.close(t)
		evil := linkPacket(b, a, 1)
		evil = append(evil, make([]byte, 1440)...)
		evil[2], evil[3] = byte(len(evil)>>8), byte(len(evil))
		short := ipPacket(1500, 1)
		short[3]--
		a.mux.mu.Lock()
		a.mux.split(2, 0, evil, 1440, a.mux.control.push)
		a.mux.split(2, 0, short, 1440, a.mux.control.push)
		a.mux.notifyLocked()
		a.mux.mu.Unlock()
		time.Sleep(time.Second)
		if d := b.Stats(); d.Drops.Foreign != 2 || len(b.tun.Out) != 0 || d.Reassembly.Joined != 2 {
			t.Errorf("%+v, %d packets out", d.Drops, len(b.tun.Out))
		}
	})
}

func TestRefusals(t *testing.T) {
	bubble(t, time.Millisecond, 0, func(t *testing.T, n *simNet) {
		a := n.open(t, 0)
		if a.SendControl([]byte("x")) {
			t.Error("control datagram accepted before the link is up")
		}
		b := n.open(t, 1)
		a.until(t, Up, 3*time.Second)
		if a.SendFrame(0, make([]byte, 60), super.Header{}) || a.SendFrame(1, nil, super.Header{}) || a.SendFrame(1, make([]byte, 16385), super.Header{}) {
			t.Error("invalid frame accepted")
		}
		if a.SendControl(nil) || a.SendControl(make([]byte, MaxControl+1)) || !a.SendControl(make([]byte, MaxControl)) {
			t.Error("limits of control datagrams")
		}
		a.close(t)
		if a.SendFrame(1, make([]byte, 60), super.Header{}) || a.SendControl([]byte("x")) {
			t.Error("accepted after Close")
		}
		if err := a.Link.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second Close: %v", err)
		}
		if d := a.Stats().Drops; d.FrameInvalid != 3 || d.ControlInvalid != 2 || d.ControlDown != 1 {
			t.Errorf("%+v", d)
		}
		b.close(t)
	})
}

// The queues keep their bounds: frames wait a little for room, then the newest
// is dropped, and the next ones at once. Control goes first.
func TestQueuesAndPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, count := bareMux(t)
		m.setUp(true)
		go func() {
			for range 10 {
				time.Sleep(framePatience / 5)
				m.tick()
			}
		}()
		start, sent := time.Now(), 0
		for range frameQueue + 10 {
			if m.sendFrame(1, make([]byte, 100), super.Header{}, nil) {
				sent++
			}
		}
		if d := time.Since(start); d < framePatience || d > 2*framePatience {
			t.Errorf("frames waited %v for room", d)
		}
		for range controlQueue + 5 {
			m.sendControl(4, []byte("c"))
		}
		if sent != frameQueue || count.dropFrameQueue.Load() != 10 || count.dropControlQueue.Load() != 5 {
			t.Errorf("sent %d, dropped %d frames, %d control", sent, count.dropFrameQueue.Load(), count.dropControlQueue.Load())
		}
		bufs, sizes := make([][]byte, 128), make([]int, 128)
		for i := range bufs {
			bufs[i] = make([]byte, 1<<16)
		}
		k, err := m.Read(bufs, sizes, 16)
		if err != nil || k != 128-plainRoom {
			t.Fatal(k, err)
		}
		if !m.sendFrame(1, make([]byte, 100), super.Header{}, nil) {
			t.Error("no room after a read")
		}
		for i := range k {
			if kind := bufs[i][16+20] & 15; (kind == 4) != (i < controlQueue) {
				t.Fatalf("packet %d has kind %d", i, kind)
			}
		}
		m.Close()
		if _, err := m.Read(bufs, sizes, 16); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read after Close: %v", err)
		}
		time.Sleep(time.Second) // the ticks end
	})
}

// With wireguard-go stuck, no more than maxInFlight packets go in; control
// still does; and when everything inside was lost, it goes on after a second.
func TestCreditBoundsWhatIsInside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := bareMux(t)
		m.setUp(true)
		bufs, sizes := make([][]byte, 128), make([]int, 128)
		for i := range bufs {
			bufs[i] = make([]byte, 1<<16)
		}
		inside := 0
		for inside < maxInFlight {
			for m.frames.n < frameQueue {
				m.sendFrame(1, make([]byte, 100), super.Header{}, nil)
			}
			k, _ := m.Read(bufs, sizes, 16)
			inside += k
		}
		if inside != maxInFlight {
			t.Fatalf("%d packets went in", inside)
		}
		m.sendControl(3, make([]byte, probeLen))
		if k, _ := m.Read(bufs, sizes, 16); k != 1 {
			t.Errorf("%d packets with a probe waiting", k)
		}
		start := time.Now()
		m.departed(5)
		for n := 0; n < 4; {
			k, _ := m.Read(bufs, sizes, 16)
			if n += k; n > 4 || time.Since(start) != 0 {
				t.Fatalf("%d packets after 5 came out, %v later", n, time.Since(start))
			}
		}
		if k, _ := m.Read(bufs, sizes, 16); k < 100 || time.Since(start) < creditTimeout {
			t.Errorf("%d packets %v after the last one came out", k, time.Since(start))
		}
		m.Close()
	})
}

// bareMux returns a mux without wireguard-go behind it and a device without
// packets.
func bareMux(t *testing.T) (*mux, *counters) {
	t.Helper()
	cfg := Config{TUN: failingTUN{}, InnerMTU: 1440}
	cfg.Local, cfg.Remote = LinkAddrs([32]byte{1}, [32]byte{2})
	cfg.PrivateKey, cfg.PublicKey = [32]byte{1}, [32]byte{2}
	if _, _, err := cfg.validate(); err != nil {
		t.Fatal(err)
	}
	path, err := carrier.NewPath(cfg.Local, cfg.Remote)
	if err != nil {
		t.Fatal(err)
	}
	count := new(counters)
	m := newMux(path, &cfg, count, nil, cfg.Log)
	m.arrived = func(uint64) {}
	return m, count
}

// failingTUN is a device of which the tests use nothing but the name.
type failingTUN struct{}

func (failingTUN) Name() string                           { return "failing" }
func (failingTUN) BatchSize() int                         { return 1 }
func (failingTUN) Close() error                           { return nil }
func (failingTUN) Read([][]byte, []int, int) (int, error) { return 0, net.ErrClosed }
func (failingTUN) Poll([][]byte, []int, int) (int, error) { return 0, nil }
func (failingTUN) Wake()                                  {}
func (failingTUN) Write(b [][]byte, offset int) (int, error) {
	return 0, errors.New("input/output error")
}

// flakyTUN fails two of three reads in the ways a kernel does, and every
// second write.
type flakyTUN struct {
	*netdevtest.Fake
	reads, writes int
}

func (f *flakyTUN) Write(b [][]byte, offset int) (int, error) {
	if f.writes++; f.writes%2 == 1 {
		return 0, errors.New("input/output error")
	}
	return f.Fake.Write(b, offset)
}

func (f *flakyTUN) Read(b [][]byte, s []int, offset int) (int, error) {
	f.reads++
	if f.reads%3 == 1 {
		return 0, errors.New("input/output error")
	}
	n, err := f.Fake.Read(b, s, offset)
	if err == nil && f.reads%3 == 2 {
		err = tun.ErrTooManySegments
	}
	return n, err
}

// timeoutError is what ends a receive routine of wireguard-go for good.
type timeoutError struct{}

func (timeoutError) Error() string   { return "protocol not available" }
func (timeoutError) Timeout() bool   { return false }
func (timeoutError) Temporary() bool { return false }

// Errors of the TUN device and of the socket are counted and survived.
func TestErrorsAreSurvived(t *testing.T) {
	bubble(t, time.Millisecond, 0, func(t *testing.T, n *simNet) {
		for range 20 {
			n.ends[0].faults = append(n.ends[0].faults, timeoutError{})
		}
		a := n.open(t, 0, func(c *Config) { c.TUN = &flakyTUN{Fake: c.TUN.(*netdevtest.Fake)} })
		b := n.open(t, 1)
		defer a.close(t)
		defer b.close(t)
		a.until(t, Up, 5*time.Second)
		for i := range 9 {
			a.tun.In <- ipPacket(100, uint16(i))
			if got(b) == nil {
				t.Errorf("packet %d did not cross", i)
			}
		}
		b.tun.In <- ipPacket(100, 1)
		time.Sleep(time.Second)
		b.tun.In <- ipPacket(100, 2)
		if !bytes.Equal(got(a), ipPacket(100, 2)) {
			t.Error("no packet after a failed write")
		}
		if e := a.Stats().Errors; e.Receive != 20 || e.TUNRead < 3 || e.TUNWrite != 1 {
			t.Errorf("%+v", e)
		}
	})
}

// A socket that fails for good is opened anew.
func TestRebind(t *testing.T) {
	bubble(t, time.Millisecond, 0, func(t *testing.T, n *simNet) {
		a, b := connected(t, n)
		defer a.close(t)
		defer b.close(t)
		n.ends[0].setBroken(true)
		n.ends[0].inbox <- nil // ends the receive that waits
		a.until(t, Down, 2*time.Second)
		time.Sleep(5 * time.Second)
		if a.Stats().Errors.Rebinds != 0 {
			t.Error("opened anew at once")
		}
		a.until(t, Up, 20*time.Second)
		if e := a.Stats().Errors; e.Rebinds == 0 {
			t.Errorf("%+v", e)
		}
	})
}

// sinkReceiver counts frames.
type sinkReceiver struct{ frames, batches int }

func (s *sinkReceiver) onFrames(_ uint16, f [][]byte) {
	s.frames, s.batches = s.frames+len(f), s.batches+1
}
func (s *sinkReceiver) onControl([]byte)          {}
func (s *sinkReceiver) onProbe([]byte, time.Time) {}
func (s *sinkReceiver) onBench([]byte, time.Time) {}

// No frame costs an allocation, neither on its way into wireguard-go nor out
// of it: short ones, one in parts, a super-frame.
func TestNoAllocations(t *testing.T) {
	m, _ := bareMux(t)
	m.setUp(true)
	far, _ := bareMux(t)
	var err error
	if far.path, err = carrier.NewPath(LinkAddrs([32]byte{2}, [32]byte{1})); err != nil {
		t.Fatal(err)
	}
	got := new(sinkReceiver)
	far.recv = got
	super1, h := superFrame(nil, 1, 60000)
	short, long := stamped(nil, 1, 0, 100), stamped(nil, 2, 1, 1522)
	bufs, sizes := make([][]byte, 128), make([]int, 128)
	for i := range bufs {
		bufs[i] = make([]byte, 1<<16)
	}
	views, buf := make([][]byte, 128), make([]byte, netdev.BufferLen)
	round := func() {
		for range 10 {
			m.sendFrame(1, short, super.Header{}, nil)
			m.sendFrame(1, long, super.Header{}, nil)
		}
		m.sendFrame(1, super1, h, nil)
		frame := buf[netdev.MinOffset:][:len(super1)]
		copy(frame, super1)
		m.sendFrame(1, frame, h, &buf)
		for m.frames.n > 0 || m.cut.Len() > 0 {
			k, _ := m.Read(bufs, sizes, 16)
			for i := range k {
				views[i] = bufs[i][: 16+sizes[i] : 16+sizes[i]]
			}
			m.departed(k)
			if _, err := far.Write(views[:k], 16); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 300 {
		round() // every buffer of the ring grows to the longest
	}
	if n := testing.AllocsPerRun(50, round); n != 0 {
		t.Errorf("%v allocations for 22 frames and super-frames", n)
	}
	if got.frames < 52*60 || got.batches < 52 {
		t.Errorf("%d frames in %d batches arrived: the test shows little", got.frames, got.batches)
	}
}
