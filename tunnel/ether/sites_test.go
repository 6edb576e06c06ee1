package ether

import (
	"bytes"
	"container/heap"
	"slices"
	"testing"
	"time"

	"stitch/tunnel/config"
)

// sites is a world of switches without sockets: each site has a LAN, every LAN
// may be joined to others by cables, links have a delay, time is a number.
type sites struct {
	now   time.Duration
	all   []*node
	lans  []*lan
	queue events
	seq   int
}

type node struct {
	sw    *Switch
	lan   *lan
	peers []*node // Place i+1
	// wire is how many frames its links took, heard the Announcements.
	wire  int
	heard []Announcement
}

// lan is a network of one broadcast domain. Every frame reaches everybody.
type lan struct {
	edges  []*node
	hosts  []*host
	cables []*lan
}

// host keeps what is sent to it or to all, but agents' messages.
type host struct {
	mac config.MAC
	got [][]byte
	// answer, if set, returns what the host sends on receiving a frame; nil:
	// nothing.
	answer func(frame []byte) []byte
}

const (
	linkDelay  = 5 * time.Millisecond
	cableDelay = 100 * time.Microsecond
)

type event struct {
	at  time.Duration
	seq int
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

func (w *sites) after(d time.Duration, do func()) {
	w.seq++
	heap.Push(&w.queue, event{w.now + d, w.seq, do})
}

// newSites returns n sites that are all stretched to each other, with guards on
// or off. The id of a site is 10 times its number, from 1.
func newSites(n int, seg config.Segment, guarded bool, workloads ...config.MAC) *sites {
	w := &sites{}
	for range n {
		l := &lan{}
		s := &node{lan: l}
		l.edges = append(l.edges, s)
		w.all, w.lans = append(w.all, s), append(w.lans, l)
	}
	for i, s := range w.all {
		w.start(i, seg, guarded, workloads...)
		w.every(s)
	}
	return w
}

// start starts the agent of a site, again if it runs. Workloads are at the first
// site.
func (w *sites) start(i int, seg config.Segment, guarded bool, workloads ...config.MAC) {
	s := w.all[i]
	s.peers = slices.DeleteFunc(slices.Clone(w.all), func(o *node) bool { return o == s })
	var static []Workload
	for _, mac := range workloads {
		static = append(static, Workload{MAC: mac, At: s.place(w.all[0])})
	}
	s.sw = NewSwitch(seg, len(s.peers), nil, static)
	if guarded {
		s.sw.Guard(uint64(i+1) * 10)
	}
}

// place is where s finds o.
func (s *node) place(o *node) Place { return Place(slices.Index(s.peers, o) + 1) }

// every lets s do what is due, and again when more is.
func (w *sites) every(s *node) {
	s.sw.Tick(w.now)
	wait := w.due(s)
	w.after(max(wait, time.Millisecond), func() { w.every(s) })
}

// due lets s do what is due and returns the time until more is.
func (w *sites) due(s *node) time.Duration {
	out, wait := s.sw.Due(w.now, nil, maxBatch, tickEvery)
	for _, o := range out {
		if o.To == Local {
			w.flood(s.lan, s, nil, o.Frame)
		} else {
			w.send(s, o.To, o.Frame)
		}
	}
	return wait
}

// run lets d pass.
func (w *sites) run(d time.Duration) {
	end := w.now + d
	for len(w.queue) > 0 && w.queue[0].at <= end {
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		e.do()
	}
	w.now = end
}

// send puts a frame into the links of s.
func (w *sites) send(s *node, to Place, frame []byte) {
	for i, p := range s.peers {
		if to != All && int(to) != i+1 {
			continue
		}
		s.wire++
		w.after(linkDelay, func() {
			switch v := p.sw.FromPeer(w.now, p.place(s), frame); v.Drop {
			case Carried:
				w.flood(p.lan, p, nil, frame)
			case AgentMessage:
				w.due(p)
			}
		})
	}
}

// flood gives a frame of a LAN to everybody there but whoever sent it.
func (w *sites) flood(l *lan, from *node, cable *lan, frame []byte) {
	dst := config.MAC(frame[:6])
	for _, h := range l.hosts {
		if dst == agentGroup {
			continue
		}
		if dst == h.mac || group(dst) && h.mac != config.MAC(frame[6:12]) {
			h.got = append(h.got, frame)
			if h.answer != nil {
				if reply := h.answer(frame); reply != nil {
					w.after(cableDelay, func() { w.from(h, reply) })
				}
			}
		}
	}
	for _, c := range l.cables {
		if c != cable {
			w.after(cableDelay, func() { w.flood(c, nil, l, frame) })
		}
	}
	for _, s := range l.edges {
		if s != from {
			w.fromLAN(s, frame)
		}
	}
}

func (w *sites) fromLAN(s *node, frame []byte) {
	v := s.sw.FromLAN(w.now, frame)
	if v.Announce.Kind != "" {
		s.heard = append(s.heard, v.Announce)
	}
	switch {
	case v.Drop == Carried:
		w.send(s, v.To, frame)
	case v.Drop == Answered:
		reply := bytes.Clone(v.Reply)
		w.after(0, func() { w.flood(s.lan, s, nil, reply) })
	case v.Query != nil:
		w.send(s, All, v.Query)
	}
}

// host adds a host to a LAN.
func (w *sites) host(site int, mac config.MAC) *host {
	h := &host{mac: mac}
	w.lans[site].hosts = append(w.lans[site].hosts, h)
	return h
}

// move takes h to another site.
func (w *sites) move(h *host, site int) {
	for _, l := range w.lans {
		l.hosts = slices.DeleteFunc(l.hosts, func(o *host) bool { return o == h })
	}
	w.lans[site].hosts = append(w.lans[site].hosts, h)
}

// from has h send a frame where it is.
func (w *sites) from(h *host, frame []byte) {
	for _, l := range w.lans {
		if slices.Contains(l.hosts, h) {
			w.flood(l, nil, nil, frame)
		}
	}
}

// join lays a cable between the LANs of two sites, which may be one.
func (w *sites) join(a, b int) {
	w.lans[a].cables = append(w.lans[a].cables, w.lans[b])
	if a != b {
		w.lans[b].cables = append(w.lans[b].cables, w.lans[a])
	}
}

// cut removes the cables of a site.
func (w *sites) cut(a int) {
	for _, l := range w.lans {
		l.cables = slices.DeleteFunc(l.cables, func(o *lan) bool { return o == w.lans[a] })
	}
	w.lans[a].cables = nil
}

func (h *host) take() (got [][]byte) {
	got, h.got = h.got, nil
	return got
}

// blocked lists the sites whose segment is blocked.
func (w *sites) blocked() (list []int) {
	for i, s := range w.all {
		if s.sw.Loop() != nil {
			list = append(list, i)
		}
	}
	return list
}

// TestThreeSites stretches a segment over three sites: a broadcast arrives
// everywhere once, unicast only where its destination is, also after that has
// moved.
func TestThreeSites(t *testing.T) {
	w := newSites(3, testBasic, true, macVM)
	a, b, vm := w.host(0, macA), w.host(1, macB), w.host(0, macVM)
	c := w.host(2, testMAC("cc"))
	w.from(a, arpFrame(broadcast, macA, arpRequest, macA, ip10, config.MAC{}, ip11))
	w.run(time.Second)
	for name, h := range map[string]*host{"b": b, "c": c, "vm": vm} {
		if got := h.take(); len(got) != 1 {
			t.Errorf("%s got %d copies of a broadcast", name, len(got))
		}
	}
	w.from(b, arpFrame(macA, macB, arpReply, macB, ip11, macA, ip10))
	w.from(c, data(broadcast, c.mac))
	w.from(b, data(broadcast, macB))
	w.run(time.Second)
	if got := a.take(); len(got) != 3 {
		t.Errorf("a got %d frames, want an answer and two broadcasts", len(got))
	}
	b.take()
	before := [3]int{w.all[0].wire, w.all[1].wire, w.all[2].wire}
	w.from(a, data(macB, macA))
	w.from(c, data(macB, c.mac))
	w.run(50 * time.Millisecond)
	if got := b.take(); len(got) != 2 {
		t.Errorf("b got %d frames, want 2", len(got))
	}
	for i, want := range []int{1, 0, 1} {
		if n := w.all[i].wire - before[i]; n != want {
			t.Errorf("site %d sent %d frames for unicast, want %d", i, n, want)
		}
	}
	for site := range 3 { // twice round
		w.move(vm, (site+1)%3)
		w.from(vm, rarp(macVM))
		w.run(100 * time.Millisecond)
		a.take()
		vm.take()
		w.from(a, data(macVM, macA))
		w.from(vm, data(macA, macVM))
		w.run(time.Second)
		if len(a.take()) != 1 || len(vm.take()) != 1 {
			t.Errorf("the workload at site %d: unicast did not pass once each way", (site+1)%3)
		}
	}
	if n := w.blocked(); n != nil {
		t.Errorf("blocked without a loop: %v", n)
	}
}

// TestLoopBetweenSites is L-01: LANs that a segment joins get a second way
// between them. One edge blocks within 2 s, before 1000 frames have gone round,
// and all is well again when the way is gone. A third site stays connected.
func TestLoopBetweenSites(t *testing.T) {
	w := newSites(3, testBasic, true)
	a, b := w.host(0, macA), w.host(1, macB)
	c := w.host(2, testMAC("cc"))
	w.run(3 * time.Second)
	w.join(0, 1)
	start := w.now
	sent := w.all[0].wire + w.all[1].wire + w.all[2].wire
	talk := func(d time.Duration) {
		for end := w.now + d; w.now < end; w.run(10 * time.Millisecond) {
			w.from(a, data(broadcast, macA))
			w.from(b, data(broadcast, macB))
		}
	}
	for len(w.blocked()) == 0 && w.now-start < 10*time.Second {
		talk(10 * time.Millisecond)
	}
	took, frames := w.now-start, w.all[0].wire+w.all[1].wire+w.all[2].wire-sent
	t.Logf("blocked after %v, %d frames sent", took, frames)
	if took > 2*time.Second || frames > 1000 {
		t.Errorf("blocked after %v and %d frames, want 2 s and 1000", took, frames)
	}
	talk(2 * time.Second)
	if got := w.blocked(); !slices.Equal(got, []int{1}) {
		t.Fatalf("blocked %v, want the greater id of the two", got)
	}
	// Everybody still reaches everybody once: site 1 by the cable.
	w.run(time.Second)
	for _, h := range []*host{a, b, c} {
		h.take()
	}
	w.from(c, data(broadcast, c.mac))
	w.from(b, eth(broadcast, macB, 0x88b5, 9))
	w.run(time.Second)
	if len(a.take()) != 2 || len(b.take()) != 1 || len(c.take()) != 1 {
		t.Error("not everybody was reached once while the loop was there")
	}
	w.cut(0)
	w.run(loopOver + time.Second)
	if got := w.blocked(); got != nil {
		t.Fatalf("still blocked: %v", got)
	}
	w.from(a, data(broadcast, macA))
	w.run(time.Second)
	if len(b.take()) != 1 || len(c.take()) != 1 {
		t.Error("the segment does not carry after the loop")
	}
	if st := stats(w.all[1].sw, "dc1", "dc3"); st.Loops != 1 || st.Loop != nil || st.FromLAN["looped"] == 0 || st.Frozen != 0 {
		t.Errorf("the site that blocked says %+v", st)
	}
}

// TestForgedProbes has a host make up probes, and another one send back what its
// edge sends. Each cuts off its own site, and nobody else, for as long as it does.
// The control case is a probe that says that its sender has blocked.
func TestForgedProbes(t *testing.T) {
	w := newSites(3, testBasic, true)
	hosts := []*host{w.host(0, macA), w.host(1, macB), w.host(2, testMAC("cc"))}
	w.run(3 * time.Second)
	forge := func(id uint64, flags byte) func() {
		return func() {
			w.from(hosts[1], agentMsg{kind: msgProbe, flags: flags, segment: testBasic.ID, id: id}.appendFrame(nil, 0))
		}
	}
	echo := func() { w.from(hosts[1], agentMsg{kind: msgProbe, segment: testBasic.ID, id: 20}.appendFrame(nil, 0)) }
	for name, c := range map[string]struct {
		send func()
		want []int
	}{
		"of a lesser id": {forge(7, 0), []int{1}}, "of a greater id": {forge(1<<60, 0), []int{1}}, "sent back": {echo, []int{1}},
		"control: of one that has blocked": {forge(1<<60, flagBlocked), nil},
	} {
		for range 10 {
			c.send()
			w.run(probeEvery)
		}
		if got := w.blocked(); !slices.Equal(got, c.want) {
			t.Errorf("%s: blocked %v, want %v", name, got, c.want)
		}
		for _, h := range hosts {
			h.take()
		}
		w.from(hosts[0], data(broadcast, macA))
		w.run(100 * time.Millisecond)
		if far, cut := len(hosts[2].take()), len(hosts[1].take()); far != 1 || cut != map[bool]int{true: 1}[c.want == nil] {
			t.Errorf("%s: a broadcast arrived %d times at the third site and %d at the one that is cut off", name, far, cut)
		}
		w.run(loopOver + time.Second)
		if got := w.blocked(); got != nil {
			t.Errorf("%s: %v is blocked when it is over", name, got)
		}
	}
}

// TestLoopControl is the control case: without guards nobody blocks, every
// broadcast crosses the links in both directions, and whoever announces itself
// seems to move until it is frozen, wherever that is.
func TestLoopControl(t *testing.T) {
	w := newSites(2, testBasic, false)
	a := w.host(0, macA)
	w.join(0, 1)
	for range 1000 {
		w.from(a, data(broadcast, macA))
		w.run(10 * time.Millisecond)
	}
	if w.blocked() != nil || w.all[0].wire < 900 || w.all[1].wire < 900 {
		t.Errorf("%d and %d frames on the links for 1000 broadcasts", w.all[0].wire, w.all[1].wire)
	}
	w.from(a, garp(macA, ip10))
	w.run(time.Second)
	if st := stats(w.all[0].sw, "dc2"); st.Moves < config.DefaultMoveLimit || st.Frozen != 1 {
		t.Errorf("%d moves of a host that never moved, %d frozen", st.Moves, st.Frozen)
	}
}

// stats are the counters of a switch.
func stats(sw *Switch, peers ...string) Stats {
	st := Stats{FromLAN: map[string]uint64{}, FromLink: map[string]uint64{}, MACs: map[string]int{}}
	sw.addTo(&st, peers)
	return st
}

// TestLoopOneWay hears only one direction: the edge that should not block has
// to, because the other one does not know.
func TestLoopOneWay(t *testing.T) {
	for _, way := range [][2]int{{0, 1}, {1, 0}} {
		w := newSites(2, testBasic, true)
		w.run(time.Second)
		w.lans[way[0]].cables = append(w.lans[way[0]].cables, w.lans[way[1]])
		start := w.now
		for len(w.blocked()) == 0 && w.now-start < 10*time.Second {
			w.run(10 * time.Millisecond)
		}
		if got, took := w.blocked(), w.now-start; !slices.Equal(got, []int{way[1]}) || took > 2*time.Second {
			t.Errorf("frames leak from site %d to %d: blocked %v after %v", way[0], way[1], got, took)
		}
	}
}

// TestLoopInside is L-02: two ports of one LAN are joined.
func TestLoopInside(t *testing.T) {
	w := newSites(2, testBasic, true)
	w.run(time.Second)
	w.join(0, 0)
	start := w.now
	for len(w.blocked()) == 0 && w.now-start < 10*time.Second {
		w.run(10 * time.Millisecond)
	}
	if took := w.now - start; took > 2*time.Second || !slices.Equal(w.blocked(), []int{0}) || !w.all[0].sw.Loop().Own {
		t.Errorf("blocked %v after %v", w.blocked(), took)
	}
}

// TestAnnouncementStorm is L-10: a thousand hosts come up at another site within
// a second and announce themselves. What crosses is limited; a second later
// every site has them at their place, and the bridges have been told.
func TestAnnouncementStorm(t *testing.T) {
	const hosts = 1000
	w := newSites(3, testBasic, true)
	watcher := w.host(0, macA)
	mac := func(i int) config.MAC { return config.MAC{2, 6, 4: byte(i >> 8), 5: byte(i)} }
	for i := range hosts {
		w.fromLAN(w.all[0], data(macB, mac(i)))
		w.fromLAN(w.all[0], data(macB, mac(i)))
		w.run(time.Millisecond)
	}
	w.run(time.Second)
	sent := w.all[1].wire
	watcher.take()
	for i := range hosts {
		w.flood(w.lans[1], nil, nil, garp(mac(i), ip10))
		w.run(time.Millisecond)
	}
	if n := w.all[1].wire - sent; n > 2*(500+100)+20 {
		t.Errorf("%d copies crossed within the second, want the limit of 500 to each peer", n)
	}
	w.run(time.Second)
	for i, s := range w.all {
		at := s.place(w.all[1])
		if got := s.sw.table.places(at); got < hosts {
			t.Errorf("site %d has %d of %d hosts where they are now", i, got, hosts)
		}
	}
	told := map[config.MAC]bool{}
	for _, frame := range watcher.take() {
		told[config.MAC(frame[6:12])] = true
	}
	if len(told) != hosts {
		t.Errorf("the bridge of the old site heard of %d of %d hosts", len(told), hosts)
	}
}
