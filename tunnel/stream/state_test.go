package stream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"stitch/dedupe"
	"stitch/tunnel/config"
)

// bareNet is a Net for a Proxy that is not run.
type bareNet struct{ Net }

// agent is one site's process: a Proxy whose streams are made by hand.
type agent struct {
	site, peer string
	near       bool
	history    config.History
	keep       bool // a new process has the history, else it opens it anew
	p          *Proxy
}

// start makes the process' Proxy.
func (a *agent) start() error {
	subnet := map[string]netip.Prefix{"dc1": netip.MustParsePrefix("10.1.0.0/24"), "dc2": netip.MustParsePrefix("10.2.0.0/24")}
	ports := []config.PortRange{{First: 1, Last: 65535}}
	p, err := New(Config{
		Site: a.site, Net: bareNet{}, MaxStreams: 100, Links: []Link{{Peer: a.peer, Number: 1}},
		Cfg: &config.Config{
			Site: a.site, Subnets: []netip.Prefix{subnet[a.site]}, Peers: []config.Peer{{Name: a.peer, Subnets: []netip.Prefix{subnet[a.peer]}}},
			Streams: []config.StreamRule{{Peer: a.peer, To: []netip.Prefix{subnet[a.peer]}, Ports: ports, Domain: "lab"}},
			Dials:   []config.DialRule{{Peer: a.peer, To: []netip.Prefix{subnet[a.site]}, Ports: ports, Domain: "lab"}},
			Domains: []config.Domain{{Name: "lab"}},
			History: a.history,
		},
	})
	a.p = p
	return err
}

func (a *agent) domain() *domain { return a.p.byName[a.peer].domain("lab") }

// duo is two agents, with hosts, over real TCP connections.
type duo struct {
	t      *testing.T
	agents [2]*agent
	narrow bool // little fits between an agent and its host
}

func duoHistory(dir string) config.History {
	return config.History{Size: 32 << 20, Memory: 32 << 20, Dir: dir}
}

// newDuo starts two agents that have met. With dir their histories are on disk, and
// a new process opens them anew.
func newDuo(t *testing.T, dir bool) *duo {
	d := &duo{t: t}
	for i, names := range [2][2]string{{"dc1", "dc2"}, {"dc2", "dc1"}} {
		a := &agent{site: names[0], peer: names[1], near: i == 0, history: duoHistory(""), keep: !dir}
		if dir {
			a.history = duoHistory(t.TempDir())
		}
		if err := a.start(); err != nil {
			t.Fatal(err)
		}
		a.domain().setEpochs(epochs{uint64(11 + i), uint64(12 - i)})
		d.agents[i] = a
		t.Cleanup(func() {
			for _, q := range a.p.peers {
				q.stop()
			}
			a.p.tasks.Wait()
			a.p.Close()
		})
	}
	return d
}

// splice is a split connection: a host at each end, and the way between the agents,
// of which each direction can be stopped.
type splice struct {
	hosts [2]*net.TCPConn
	gates [2]sync.Mutex // locked: what the agent sends does not arrive
}

var lastPort atomic.Uint32

// open makes a split connection.
func (d *duo) open(m mode) *splice {
	j := &splice{}
	id := uint64(lastPort.Add(1))
	t := tuple{src: netip.AddrPortFrom(netip.MustParseAddr("10.1.0.10"), uint16(1024+id)), dst: netip.MustParseAddrPort("10.2.0.10:80")}
	var ways [2]*net.TCPConn
	for i, a := range d.agents {
		local, host := kernelPair(d.t)
		if d.narrow {
			local.SetWriteBuffer(32 << 10)
			host.SetReadBuffer(32 << 10)
		}
		peer, way := kernelPair(d.t)
		j.hosts[i], ways[i] = host, way
		pc := newPeerConn(peer, a.p.spawn)
		dom := a.domain()
		pc.id, pc.domain, pc.gen, pc.epochs, pc.history = id<<1, dom, dom.gen, dom.epochs, dom.history
		pc.terms = terms{Version: maxVersion, Features: ourFeatures}
		dom.q.mu.Lock()
		dom.conns[pc] = struct{}{}
		dom.q.mu.Unlock()
		a.p.gate.regain()
		a.p.spawn(func() {
			defer a.p.gate.leave()
			defer dom.forget(pc)
			dom.relay(t, a.near, local, pc, m, startWindow)
		})
	}
	for _, a := range d.agents {
		d.await("they relay", func() bool {
			a.domain().q.mu.Lock()
			defer a.domain().q.mu.Unlock()
			return len(a.domain().relays) == len(a.domain().conns)
		})
	}
	for i := range ways {
		go j.forward(i, ways[i], ways[1-i])
	}
	return j
}

// forward carries what agent i sends.
func (j *splice) forward(i int, from, to *net.TCPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		j.gates[i].Lock()
		_, werr := to.Write(buf[:n])
		j.gates[i].Unlock()
		switch {
		case err == io.EOF:
			to.CloseWrite()
			return
		case err != nil || werr != nil:
			to.SetLinger(0)
			to.Close()
			from.SetLinger(0)
			from.Close()
			return
		}
	}
}

// packed is a stream in the hands of whoever starts the next process.
type packed struct {
	state       []byte
	local, peer *os.File
}

// pack stops the streams of an agent and its process. look sees the states.
func (d *duo) pack(a *agent, look func(*State)) (out []packed) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 20*time.Second)
	defer cancel()
	streams, left := a.p.Export(ctx)
	if left > 0 {
		d.t.Fatalf("%s: %d streams were not exported", a.site, left)
	}
	for _, e := range streams {
		if look != nil {
			look(e.State)
		}
		p := packed{state: e.State.Append(nil)}
		for _, c := range []struct {
			c Conn
			f **os.File
		}{{e.Local, &p.local}, {e.Peer, &p.peer}} {
			f, err := c.c.(*tcpConn).File()
			if err != nil {
				d.t.Fatal(err)
			}
			*c.f = f
			c.c.Close() // the descriptor of the file keeps it
		}
		out = append(out, p)
	}
	a.p.tasks.Wait()
	return out
}

// unpack goes on with a stream.
func (a *agent) unpack(state []byte, local, peer *os.File) error {
	var conns [2]Conn
	for i, f := range []*os.File{local, peer} {
		c, err := FileConn(f)
		if err != nil {
			return err
		}
		f.Close()
		conns[i] = c
	}
	s, err := ParseState(state)
	if err == nil {
		err = a.p.Resume(context.Background(), s, conns[0], conns[1])
	}
	if err != nil {
		conns[0].Close()
		conns[1].Close()
	}
	return err
}

// renew puts a fresh Proxy in the place of an agent's, which has been packed.
func (d *duo) renew(a *agent) {
	d.t.Helper()
	old := a.domain().history
	if !a.keep {
		if err := a.p.Close(); err != nil {
			d.t.Fatal(err)
		}
	}
	if err := a.start(); err != nil {
		d.t.Fatal(err)
	}
	if a.keep {
		a.domain().history = old
	}
}

// restart hands all streams of an agent to a new process of it.
func (d *duo) restart(a *agent, look func(*State)) {
	d.t.Helper()
	streams := d.pack(a, look)
	d.renew(a)
	for _, s := range streams {
		if err := a.unpack(s.state, s.local, s.peer); err != nil {
			d.t.Fatal(err)
		}
	}
}

// content is the byte at off of connection id: random, or text, or what every other
// connection has there, too.
func content(id, off uint64) byte {
	mix := func(x uint64) uint64 {
		x = (x ^ x>>31) * 0x7fb5d329728ea185
		x = (x ^ x>>27) * 0x81dadef4bc2dd44d
		return x ^ x>>33
	}
	switch off >> 16 % 4 {
	case 0:
		return byte(mix(id<<40|off>>3) >> (off & 7 * 8))
	case 1, 2:
		const words = "tunnel  site    stream  history "
		return words[mix(id<<40|off>>3)%4*8+off&7]
	}
	return byte(mix(off%(192<<10)>>3) >> (off & 7 * 8))
}

// say writes [from, to) of connection id.
func say(c *net.TCPConn, id, from, to uint64) error {
	buf := make([]byte, 0, 50_000)
	for from < to {
		for buf = buf[:0]; len(buf) < cap(buf) && from < to; from++ {
			buf = append(buf, content(id, from))
		}
		if _, err := c.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

// heardSoFar is how far a direction has come.
type heardSoFar struct{ atomic.Uint64 }

func sum(cs []heardSoFar) (n uint64) {
	for i := range cs {
		n += cs[i].Load()
	}
	return n
}

var errWrong = errors.New("a wrong byte")

// hear reads [from, to) of connection id, or, if to is 0, to the end, and returns
// how far it came. done, if not nil, follows it.
func hear(c *net.TCPConn, id, from, to uint64, done *heardSoFar) (uint64, error) {
	buf := make([]byte, 64<<10)
	for to == 0 || from < to {
		part := buf
		if to > 0 {
			part = buf[:min(uint64(len(buf)), to-from)]
		}
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, err := c.Read(part)
		for _, b := range part[:n] {
			if b != content(id, from) {
				return from, fmt.Errorf("%w at %d", errWrong, from)
			}
			from++
		}
		if done != nil {
			done.Store(from)
		}
		if err == io.EOF && to == 0 {
			return from, nil
		}
		if err != nil {
			return from, err
		}
	}
	return from, nil
}

// must fails the test.
func (d *duo) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// ask sends bytes from host i to the other and reads them there.
func (d *duo) ask(j *splice, i int, id, from, to uint64) {
	d.t.Helper()
	done := make(chan error, 1)
	go func() { done <- say(j.hosts[i], id, from, to) }()
	_, err := hear(j.hosts[1-i], id, from, to, nil)
	d.must(err)
	d.must(<-done)
}

// end ends direction i, which has n bytes, and sees the end arrive.
func (d *duo) end(j *splice, i int, id, n uint64) {
	d.t.Helper()
	d.must(j.hosts[i].CloseWrite())
	got, err := hear(j.hosts[1-i], id, n, 0, nil)
	if d.must(err); got != n {
		d.t.Fatalf("direction %d ends after %d bytes", i, got)
	}
}

// ended waits until no stream is left, and none was reset.
func (d *duo) ended() {
	d.t.Helper()
	for _, a := range d.agents {
		for end := time.Now().Add(10 * time.Second); a.p.Stats().Open > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				d.t.Fatalf("%s: a stream does not end", a.site)
			}
		}
		if s := a.p.Stats(); s.Peers[0].Reset > 0 {
			d.t.Errorf("%s: %d streams were reset", a.site, s.Peers[0].Reset)
		}
	}
}

// await waits until cond holds.
func (d *duo) await(what string, cond func() bool) {
	d.t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			d.t.Fatal("not so: " + what)
		}
	}
}

// eachWay runs f with histories that are shared and that are opened anew, at either
// side.
func eachWay(t *testing.T, f func(d *duo, side int)) {
	for _, dir := range []bool{false, true} {
		for side := range 2 {
			t.Run(fmt.Sprintf("reopened %v, near %v", dir, side == 0), func(t *testing.T) { f(newDuo(t, dir), side) })
		}
	}
}

// TestResumeIdle: a stream that is quiet goes on, also of a second new process, and
// ends as any other.
func TestResumeIdle(t *testing.T) {
	for _, m := range []mode{modeFull, modeCompress, modeAccelerate} {
		t.Run(m.String(), func(t *testing.T) {
			eachWay(t, func(d *duo, side int) {
				j := d.open(m)
				const step = 300_000
				d.ask(j, 0, 1, 0, step)
				d.ask(j, 1, 2, 0, step)
				for n := uint64(1); n < 4; n++ {
					d.restart(d.agents[side], nil)
					d.ask(j, 1, 2, n*step, (n+1)*step)
					d.ask(j, 0, 1, n*step, (n+1)*step)
				}
				d.restart(d.agents[1-side], nil)
				d.end(j, side, uint64(1+side), 4*step)
				d.end(j, 1-side, uint64(2-side), 4*step)
				d.ended()
			})
		})
	}
}

// TestResumeBulk: both directions at full speed, several streams, and the processes
// at both ends take turns in being replaced.
func TestResumeBulk(t *testing.T) {
	for _, m := range []mode{modeFull, modeCompress} {
		for _, dir := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v, reopened %v", m, dir), func(t *testing.T) {
				d := newDuo(t, dir)
				const streams, size = 3, 3 << 20
				var heard [2 * streams]heardSoFar
				results := make(chan error, 4*streams)
				for k := range streams {
					j := d.open(m)
					for i := range 2 {
						id := uint64(2*k + i)
						go func() {
							results <- cmpErr(say(j.hosts[i], id, 0, size), j.hosts[i].CloseWrite())
						}()
						go func() {
							n, err := hear(j.hosts[1-i], id, 0, 0, &heard[id])
							if err == nil && n != size {
								err = fmt.Errorf("direction %d ended after %d bytes", id, n)
							}
							results <- err
						}()
					}
				}
				inHand := 0
				for n := range 6 {
					d.await("they are on the way", func() bool { return sum(heard[:]) > uint64(n+1)*2*streams*size/8 })
					d.restart(d.agents[n%2], func(s *State) { inHand += len(s.unsent) + len(s.unread) + len(s.queue) })
				}
				for range cap(results) {
					if err := <-results; err != nil {
						t.Error(err)
					}
				}
				if t.Logf("%d bytes were in hand", inHand); inHand == 0 {
					t.Error("nothing was in hand: the streams were idle")
				}
				d.ended()
			})
		}
	}
}

// TestResumeHalfClosed: one direction has ended, the other goes on.
func TestResumeHalfClosed(t *testing.T) {
	for ending := range 2 {
		t.Run(fmt.Sprintf("ended by %d", ending), func(t *testing.T) {
			eachWay(t, func(d *duo, side int) {
				j, other := d.open(modeFull), 1-ending
				d.ask(j, other, 1, 0, 1000)
				d.ask(j, ending, 2, 0, 1000)
				d.end(j, ending, 2, 1000)
				d.restart(d.agents[side], nil)
				d.ask(j, other, 1, 1000, 500_000)
				d.restart(d.agents[1-side], nil)
				d.ask(j, other, 1, 500_000, 600_000)
				d.end(j, other, 1, 600_000)
				d.ended()
			})
		})
	}
}

// TestResumeUnacknowledged: blocks on their way, of which nothing has been heard yet,
// and an end behind them.
func TestResumeUnacknowledged(t *testing.T) {
	eachWay(t, func(d *duo, side int) {
		j := d.open(modeFull)
		d.ask(j, 0, 1, 0, 1000)
		d.ask(j, 1, 2, 0, 1000)
		j.gates[side].Lock()
		const size = 600_000
		d.must(say(j.hosts[side], uint64(1+side), 1000, size))
		d.must(j.hosts[side].CloseWrite())
		r := d.agents[side].p.relays()[0]
		d.await("it has sent all", func() bool { return r.sent.Load() == size })
		kept := 0
		d.restart(d.agents[side], func(s *State) { kept = s.enc.Kept() })
		if j.gates[side].Unlock(); kept == 0 {
			t.Error("no block waits for an acknowledgement")
		}
		got, err := hear(j.hosts[1-side], uint64(1+side), 1000, 0, nil)
		if d.must(err); got != size {
			t.Errorf("%d bytes", got)
		}
		d.restart(d.agents[1-side], nil)
		d.ask(j, 1-side, 9, 0, 300_000)
		d.end(j, 1-side, 9, 300_000)
		d.ended()
	})
}

// TestResumeUnread: a host that does not read has its bytes in the agent's hand, an
// end behind them too; and they arrive when it does.
func TestResumeUnread(t *testing.T) {
	eachWay(t, func(d *duo, side int) {
		d.narrow = true
		j := d.open(modeFull)
		const size = 900_000
		said := make(chan error, 1)
		go func() { said <- cmpErr(say(j.hosts[1-side], 5, 0, size), j.hosts[1-side].CloseWrite()) }()
		d.must(<-said)
		r := d.agents[side].p.relays()[0]
		d.await("all is there", func() bool { return r.received.Load() == size })
		var queued int
		for range 3 {
			d.restart(d.agents[side], func(s *State) { queued = len(s.queue) })
		}
		d.restart(d.agents[1-side], nil)
		if queued == 0 {
			t.Error("nothing waits for the host")
		}
		got, err := hear(j.hosts[side], 5, 0, 0, nil)
		if d.must(err); got != size {
			t.Fatalf("%d bytes", got)
		}
		d.ask(j, side, 6, 0, 1000)
		d.end(j, side, 6, 1000)
		d.ended()
	})
}

// TestResumeRepair: a block that could not be decoded is asked for again, others wait
// behind it, and the process that waits is replaced; and then the one that is asked.
func TestResumeRepair(t *testing.T) {
	for _, asked := range []bool{false, true} {
		eachWay(t, func(d *duo, side int) {
			known := d.open(modeFull) // connection 3 has 192 KiB that are in every one
			d.ask(known, side, 3, 3<<16, 4<<16)
			time.Sleep(20 * time.Millisecond) // acknowledged
			j := d.open(modeFull)
			far := d.agents[1-side]
			dedupeForget(far.domain().history)
			j.gates[1-side].Lock() // the request does not arrive
			const from, to = 3 << 16, 4 << 16
			go say(j.hosts[side], 4, from, to)
			d.await("a block is missed", func() bool {
				for _, r := range far.p.relays() {
					if r.dec.Stats().Resent > 0 {
						return true
					}
				}
				return false
			})
			time.Sleep(20 * time.Millisecond)
			if asked {
				d.restart(d.agents[side], nil)
			} else {
				missing := 0
				d.restart(far, func(s *State) {
					if s.missing {
						missing++
					}
				})
				if missing != 1 {
					t.Errorf("%d streams were under repair", missing)
				}
			}
			j.gates[1-side].Unlock()
			_, err := hear(j.hosts[1-side], 4, from, to, nil)
			d.must(err)
			d.ask(j, side, 4, to, to+200_000)
			d.ask(j, 1-side, 5, 0, 200_000)
		})
	}
}

// dedupeForget puts other bytes in the place of what a history has received.
func dedupeForget(h *dedupe.History) {
	_, head := h.Heads()
	r, b := h.NewReader(), make([]byte, 64<<10)
	for pos := uint64(0); pos < head; pos += uint64(len(b)) {
		n := int(min(head-pos, uint64(len(b))))
		binary.LittleEndian.PutUint64(b, pos)
		blk := dedupe.Block{TxHead: head, Spans: [2]dedupe.Span{{Pos: pos, Len: n}}}
		if err := r.Put(b[:n], &blk); err != nil {
			panic(err)
		}
	}
}

// TestResumeReset: a host's reset after the handover is a reset at the other end, and
// one before it, that waits behind bytes, too.
func TestResumeReset(t *testing.T) {
	eachWay(t, func(d *duo, side int) {
		for resetting := range 2 {
			j := d.open(modeFull)
			d.ask(j, 0, 1, 0, 1000)
			d.ask(j, 1, 2, 0, 1000)
			d.restart(d.agents[side], nil)
			j.hosts[resetting].SetLinger(0)
			j.hosts[resetting].Close()
			j.hosts[1-resetting].SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := j.hosts[1-resetting].Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("reset by %d: the other host read %v", resetting, err)
			}
		}
	})
}

// TestExportTimes: a stream that cannot be stopped in time goes on.
func TestExportTimes(t *testing.T) {
	d := newDuo(t, false)
	j := d.open(modeCompress)
	d.ask(j, 1, 1, 1<<16, 3<<16)
	d.ask(j, 1, 1, 3<<16, 7<<16) // now its compressor has a context
	d.await("a context", func() bool { return d.agents[0].p.relays()[0].pc.read.Load() > 0 })
	j.gates[0].Lock() // it is not asked to give it up
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	out, left := d.agents[0].p.Export(ctx)
	j.gates[0].Unlock()
	if len(out) != 0 || left != 1 {
		t.Fatalf("%d exported, %d left", len(out), left)
	}
	d.ask(j, 1, 1, 7<<16, 9<<16)
	d.ask(j, 0, 2, 0, 100_000)
	d.restart(d.agents[0], nil)
	d.ask(j, 1, 1, 9<<16, 11<<16)
	d.end(j, 0, 2, 100_000)
	d.end(j, 1, 1, 11<<16)
	d.ended()
}
