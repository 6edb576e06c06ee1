package ether

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/netdev/super"
)

// fakeTAP hands out what is put into in and keeps copies of what is written.
type fakeTAP struct {
	in     chan []byte
	closed chan struct{}
	once   sync.Once
	batch  int

	mu  sync.Mutex
	out [][]byte
	at  []time.Time
	err error
}

func newFakeTAP() *fakeTAP {
	return &fakeTAP{in: make(chan []byte, 100), closed: make(chan struct{}), batch: 8}
}

func (f *fakeTAP) Name() string   { return "sg-100" }
func (f *fakeTAP) BatchSize() int { return f.batch }
func (f *fakeTAP) Close() error   { f.once.Do(func() { close(f.closed) }); return nil }

func (f *fakeTAP) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case b, ok := <-f.in:
		if !ok {
			return 0, errors.New("device deleted")
		}
		clear(bufs[0][:offset])
		sizes[0] = copy(bufs[0][offset:], b)
		return 1, nil
	case <-f.closed:
		return 0, net.ErrClosed
	}
}

func (f *fakeTAP) Poll([][]byte, []int, int) (int, error) { return 0, nil }
func (f *fakeTAP) Wake()                                  {}

func (f *fakeTAP) Write(bufs [][]byte, offset int) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return 0, f.err
	}
	for _, b := range bufs {
		f.out = append(f.out, bytes.Clone(b[offset:]))
		f.at = append(f.at, time.Now())
	}
	return len(bufs), nil
}

// written returns what was written since the last call.
func (f *fakeTAP) written() [][]byte {
	out, _ := f.writtenAt(time.Time{})
	return out
}

// writtenAt is written with the time of each frame after begin.
func (f *fakeTAP) writtenAt(begin time.Time) (out [][]byte, at []time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, when := range f.at {
		at = append(at, when.Sub(begin))
	}
	out, f.out, f.at = f.out, nil, nil
	return out, at
}

// fail makes Write fail from now on; nil: work again.
func (f *fakeTAP) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// fakeLink keeps copies of the frames sent.
type fakeLink struct {
	mu     sync.Mutex
	frames [][]byte
	refuse bool
}

func (f *fakeLink) SendFrame(segment uint16, frame []byte, _ super.Header) bool {
	if segment != 100 {
		panic("wrong segment")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.refuse {
		f.frames = append(f.frames, bytes.Clone(frame))
	}
	return !f.refuse
}

func (f *fakeLink) SendBuffer(segment uint16, _ *[]byte, frame []byte, h super.Header) bool {
	return f.SendFrame(segment, frame, h)
}

// take returns the frames sent since the last call; the port's own goroutines
// may be sending.
func (f *fakeLink) take() [][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	sent := f.frames
	f.frames = nil
	return sent
}

// rig is a running port between fakes.
type rig struct {
	*Port
	tap       *fakeTAP
	dc2, dc3  *fakeLink
	announced []Announcement
	log       bytes.Buffer
	ended     chan error
	cancel    context.CancelFunc
}

// start runs a port in a synctest bubble; the caller ends it.
func start(t *testing.T, static ...StaticMAC) *rig {
	r := &rig{tap: newFakeTAP(), dc2: &fakeLink{}, dc3: &fakeLink{}, ended: make(chan error, 1)}
	r.Port = Open(Config{
		Segment: testBasic, Peers: map[string]Sender{"dc3": r.dc3, "dc2": r.dc2}, TAP: r.tap,
		Own:        []config.MAC{macOwn},
		Static:     func() []StaticMAC { return static },
		OnAnnounce: func(a Announcement) { r.announced = append(r.announced, a) },
		Log:        slog.New(slog.NewTextHandler(&r.log, nil)),
	})
	r.run(t)
	return r
}

// run starts the port; the caller stops it.
func (r *rig) run(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	go func() { r.ended <- r.Run(ctx) }()
	synctest.Wait()
}

func (r *rig) fromLAN(frame []byte) {
	r.tap.in <- frame
	synctest.Wait()
}

func (r *rig) fromLink(peer string, frame []byte) {
	r.FromLink(peer, [][]byte{frame})
	synctest.Wait()
}

func (r *rig) stop(t *testing.T) {
	r.cancel()
	if err := <-r.ended; err != nil {
		t.Errorf("Run after cancel: %v, want nil", err)
	}
}

func TestPortCarries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		defer r.stop(t)
		ask := arpFrame(broadcast, macA, arpRequest, macA, ip10, config.MAC{}, ip11)
		r.fromLAN(ask)
		for name, link := range map[string]*fakeLink{"dc2": r.dc2, "dc3": r.dc3} {
			if len(link.frames) != 1 || !bytes.Equal(link.frames[0], ask) {
				t.Errorf("%s got %x", name, link.frames)
			}
		}
		answer := arpFrame(macA, macB, arpReply, macB, ip11, macA, ip10)
		r.fromLink("dc3", answer)
		if out := r.tap.written(); len(out) != 1 || !bytes.Equal(out[0], answer) {
			t.Errorf("LAN got %x", out)
		}
		r.fromLAN(data(macB, macA))
		if len(r.dc2.frames) != 1 || len(r.dc3.frames) != 2 {
			t.Errorf("unicast: %d to dc2, %d to dc3", len(r.dc2.frames)-1, len(r.dc3.frames)-1)
		}
		r.fromLink("dc9", data(macA, macB))
		r.dc3.refuse = true
		r.fromLAN(data(macB, macA))
		want := Stats{
			Segment: 100, LANFrames: 3, LANBytes: uint64(len(ask) + 2*17), ToPeers: 3,
			LinkFrames: 2, LinkBytes: uint64(len(answer) + 17), ToLAN: 1,
			FromLAN: map[string]uint64{"link-refused": 1}, FromLink: map[string]uint64{"unknown-peer": 1},
			MACs: map[string]int{"": 1, "dc2": 0, "dc3": 1}, Addresses: 2,
		}
		equalJSON(t, r.Stats(), want)
	})
}

// fakeDiverter takes what has one of its MACs as destination, from either side.
type fakeDiverter struct {
	lan, peer config.MAC
	taken     []string
}

func (f *fakeDiverter) FromLAN(peer string, frame []byte, _ super.Header) bool {
	if config.MAC(frame[:6]) != f.lan {
		return false
	}
	f.taken = append(f.taken, peer)
	return true
}

func (f *fakeDiverter) FromPeer(frame []byte) bool { return config.MAC(frame[:6]) == f.peer }

// WriteSuper makes fakeTAP a netdev.SuperWriter.
func (f *fakeTAP) WriteSuper(b []byte, _ super.Header) error {
	_, err := f.Write([][]byte{b}, 0)
	return err
}

// TestPortDivert: the frames of one connection are taken from both sides, and what
// is delivered instead is learnt from and judged like what a peer sent.
func TestPortDivert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		macC := config.MAC{2, 0, 0, 0, 0, 0xc}
		d := &fakeDiverter{lan: macB, peer: macC}
		r := &rig{tap: newFakeTAP(), dc2: &fakeLink{}, dc3: &fakeLink{}, ended: make(chan error, 1)}
		r.Port = Open(Config{Segment: testBasic, Peers: map[string]Sender{"dc3": r.dc3, "dc2": r.dc2}, TAP: r.tap, Own: []config.MAC{macOwn}, Divert: d})
		r.run(t)
		defer r.stop(t)
		r.fromLAN(rarp(macA))
		r.fromLink("dc2", rarp(macB))
		r.dc2.take()
		r.tap.written()
		r.fromLAN(data(macB, macA))
		if !slices.Equal(d.taken, []string{"dc2"}) || len(r.dc2.take()) > 0 {
			t.Errorf("taken to %v, want dc2 only", d.taken)
		}
		r.fromLAN(data(broadcast, macA))
		if len(r.dc2.take()) != 1 {
			t.Error("a broadcast did not cross")
		}
		r.fromLAN(rarp(macC))
		r.tap.written()
		r.fromLink("dc2", data(macC, macB))
		if r.count(macC) != 0 {
			t.Error("what the other TCP sent reached the LAN")
		}
		r.Deliver("dc2", data(macA, macB), super.Header{})
		r.Deliver("dc2", data(macA, macOwn), super.Header{}) // as a peer must not send
		r.Deliver("dc9", data(macA, macB), super.Header{})
		if r.count(macA) != 1 {
			t.Error("what the split connection sent did not reach the LAN once")
		}
		if !r.Carry("dc3", data(macB, macA)) || r.Carry("dc9", data(macB, macA)) || len(r.dc3.take()) != 3+1 {
			t.Error("carried to the wrong peer, or not")
		}
		st := r.Stats()
		if in, out := st.LinkFrames+st.Made+st.Returned, st.ToLAN+sum(st.FromLink); in != out || st.Diverted != 1 || st.Returned != 3 || st.FromLink["split"] != 1 {
			t.Errorf("%d frames for the LAN, %d written and dropped: %+v", in, out, st)
		}
		if in, out := st.LANFrames, uint64(4); in != out {
			t.Errorf("%d frames of the LAN", in)
		}
	})
}

func equalJSON(t *testing.T, got, want any) {
	t.Helper()
	g, _ := json.Marshal(got)
	w, _ := json.Marshal(want)
	if !bytes.Equal(g, w) {
		t.Errorf("got  %s\nwant %s", g, w)
	}
}

func TestPortAnnounces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vm := StaticMAC{MAC: macVM, IP: vmIP, Peer: "dc2"}
		r := start(t, vm, StaticMAC{MAC: macB, IP: ip11, Peer: "dc9"})
		defer r.stop(t)
		if !strings.Contains(r.log.String(), "dc9") {
			t.Errorf("nothing said about a workload at an unknown site: %s", &r.log)
		}
		r.fromLAN(garp(macVM, vmIP))
		want := []Announcement{{Segment: 100, MAC: macVM, IP: vmIP, Kind: KindGARP}}
		if !slices.Equal(r.announced, want) {
			t.Errorf("announced %v, want %v", r.announced, want)
		}
		if len(r.dc2.frames) != 1 {
			t.Error("the announcement did not cross")
		}
	})
}

// TestRelearn checks what a claim puts into the LAN, and when.
func TestRelearn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, StaticMAC{MAC: macVM, IP: vmIP})
		defer r.stop(t)
		begin := time.Now()
		r.Claim(macVM, "dc2")
		r.Claim(macVM, "dc2")
		time.Sleep(10 * time.Second)
		written, at := r.tap.writtenAt(begin)
		if !slices.Equal(at, relearnAt[:]) {
			t.Errorf("announced at %v, want %v", at, relearnAt)
		}
		for _, frame := range written {
			if !bytes.Equal(frame, rarp(macVM)) {
				t.Errorf("put into the LAN: %x", frame)
			}
		}
		if len(r.dc2.frames)+len(r.announced) != 0 {
			t.Error("the announcement left for the link or was taken for one of ours")
		}
		r.Claim(macVM, "dc3")
		time.Sleep(150 * time.Millisecond)
		r.Claim(macVM, "")
		time.Sleep(10 * time.Second)
		if n := len(r.tap.written()); n != 2 {
			t.Errorf("%d announcements before the workload came back, want 2", n)
		}
		r.Claim(macVM, "dc9")
		if st := r.Stats(); st.Relearn != 6 || st.MACs[""] != 1 {
			t.Errorf("relearn %d, MACs %v", st.Relearn, st.MACs)
		}
	})
}

// TestRelearnMany claims more workloads than one batch holds.
func TestRelearnMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		defer r.stop(t)
		for i := range 3 * maxBatch {
			r.Claim(config.MAC{2, 1, 5: byte(i)}, "dc2")
		}
		time.Sleep(5 * time.Second)
		if n := len(r.tap.written()); n != 3*maxBatch*len(relearnAt) {
			t.Errorf("%d announcements, want %d", n, 3*maxBatch*len(relearnAt))
		}
	})
}

func TestRelearnerBound(t *testing.T) {
	var r relearner
	for i := range maxRelearn {
		if !r.start(0, config.MAC{2, 4: byte(i >> 8), 5: byte(i)}) {
			t.Fatalf("refused number %d", i)
		}
	}
	if r.start(0, config.MAC{4}) {
		t.Error("no bound")
	}
	if !r.start(0, config.MAC{2}) {
		t.Error("one that is under way was refused")
	}
}

// Frames of a batch leave for the LAN together, in order.
func TestBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		defer r.stop(t)
		r.fromLAN(data(broadcast, macA))
		var frames [][]byte
		for i := range 300 {
			frames = append(frames, eth(macA, macB, 0x88b5, byte(i>>8), byte(i)))
		}
		r.FromLink("dc2", frames)
		r.FromLink("dc3", nil)
		out := r.tap.written()
		if len(out) != 300 || r.Stats().ToLAN != 300 {
			t.Errorf("%d written, %d counted", len(out), r.Stats().ToLAN)
		}
		for i, b := range out {
			if got := int(b[14])<<8 | int(b[15]); got != i {
				t.Fatalf("frame %d has number %d", i, got)
			}
		}
	})
}

// A super-frame is judged once and goes on as it is.
func TestSuperFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		defer r.stop(t)
		r.fromLink("dc2", data(broadcast, macB))
		frame := eth(macB, macA, typeIPv4, ipv4Packet(6, 0, make([]byte, 60000)...)...)
		r.Port.fromLAN(nil, frame, super.Header{Partial: true, Kind: super.TCP4, Size: 1460, Start: 34, Offset: 16})
		if len(r.dc2.frames) != 1 || !bytes.Equal(r.dc2.frames[0], frame) {
			t.Errorf("%d frames crossed", len(r.dc2.frames))
		}
		r.Port.fromLAN(nil, frame, super.Header{})
		if len(r.dc2.frames) != 1 || r.Stats().FromLAN["too-long"] != 1 {
			t.Errorf("a frame of 60000 bytes crossed: %v", r.Stats().FromLAN)
		}
	})
}

func TestWriteFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		defer r.stop(t)
		r.tap.fail(errors.New("input/output error"))
		r.fromLink("dc2", data(broadcast, macB))
		r.tap.fail(nil)
		r.fromLink("dc2", data(broadcast, macB))
		if st := r.Stats(); st.FromLink["write-failed"] != 1 || st.ToLAN != 1 {
			t.Errorf("%+v", st)
		}
	})
}

// TestTooLong has frames that are longer than any that crosses.
func TestTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		defer r.stop(t)
		r.fromLAN(eth(broadcast, macA, 0x88b5, make([]byte, 65000)...))
		r.fromLink("dc2", eth(broadcast, macB, 0x88b5, make([]byte, MaxFrame+1-14)...))
		if st := r.Stats(); st.FromLAN["too-long"] != 1 || st.FromLink["too-long"] != 1 || len(r.dc2.frames)+len(r.tap.written()) != 0 {
			t.Errorf("%v %v", st.FromLAN, st.FromLink)
		}
	})
}

// TestFreezeAlarm moves many MACs too often: a warning each, but not too many.
func TestFreezeAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t)
		defer r.stop(t)
		for i := range 40 {
			mac := config.MAC{2, 7, 5: byte(i)}
			r.fromLink("dc2", rarp(mac))
			for range 3 {
				r.fromLAN(rarp(mac))
				r.fromLink("dc2", rarp(mac))
			}
		}
		if n := strings.Count(r.log.String(), "frozen"); n != 1 {
			t.Errorf("%d warnings at once", n)
		}
		st := r.Stats()
		if alarms := st.Alarms(); st.Frozen != 40 || st.Moves != 40*config.DefaultMoveLimit || len(alarms) != 1 || !strings.Contains(alarms[0], "02:07:00:00:00:07)") {
			t.Errorf("frozen %d, moves %d, alarms %q", st.Frozen, st.Moves, alarms)
		}
		time.Sleep(moveWindow + 2*tickEvery)
		if n := r.Stats().Frozen; n != 0 {
			t.Errorf("%d still frozen", n)
		}
	})
}

func TestRunEnds(t *testing.T) {
	for name, end := range map[string]func(*rig){
		"close":  func(r *rig) { r.Close(); r.Close() },
		"device": func(r *rig) { close(r.tap.in) },
	} {
		synctest.Test(t, func(t *testing.T) {
			r := start(t)
			defer r.cancel()
			end(r)
			err := <-r.ended
			if closed := errors.Is(err, net.ErrClosed); err == nil || closed != (name == "close") {
				t.Errorf("%s: %v", name, err)
			}
			r.FromLink("dc2", [][]byte{data(broadcast, macB)}) // harmless
			r.Claim(macVM, "dc2")
		})
	}
}

// TestNoAllocs asserts that a frame costs no allocation either way.
func TestNoAllocs(t *testing.T) {
	tap := newFakeTAP()
	discard := discardTAP{tap}
	p := Open(Config{Segment: testBasic, Peers: map[string]Sender{"dc2": nullLink{}}, TAP: discard,
		Static: func() []StaticMAC { return []StaticMAC{{MAC: macVM, IP: vmIP}} }})
	out, in := eth(macB, macA, typeIPv4, ipv4Packet(6, 0, make([]byte, 1460)...)...), data(macA, macB)
	arrived := [][]byte{in, out, out}
	ask := arpFrame(broadcast, macA, arpRequest, macA, ip10, config.MAC{}, ip11)
	solicit := v6(protoICMP6, nd(ndSolicit, 0, hostGUA, macA)...)
	round := func() {
		p.fromLAN(nil, out, super.Header{})
		p.fromLAN(nil, ask, super.Header{})
		p.fromLAN(nil, solicit, super.Header{})
		p.FromLink("dc2", arrived)
	}
	round() // buffers grow
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

type nullLink struct{}

func (nullLink) SendFrame(uint16, []byte, super.Header) bool           { return true }
func (nullLink) SendBuffer(uint16, *[]byte, []byte, super.Header) bool { return true }

type discardTAP struct{ *fakeTAP }

func (discardTAP) Write(bufs [][]byte, offset int) (int, error) { return len(bufs), nil }

func BenchmarkFromLAN(b *testing.B) {
	p := Open(Config{Segment: testBasic, Peers: map[string]Sender{"dc2": nullLink{}}, TAP: newFakeTAP(),
		Static: func() []StaticMAC { return []StaticMAC{{MAC: macVM, IP: netip.Addr{}}} }})
	frame := eth(macB, macA, typeIPv4, ipv4Packet(6, 0, make([]byte, 1460)...)...)
	p.FromLink("dc2", [][]byte{data(broadcast, macB)})
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		p.fromLAN(nil, frame, super.Header{})
	}
}
