package ether

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"stitch/tunnel/config"
)

// naive is the table without lists, rings or incremental counts.
type naive struct {
	m       map[config.MAC]*naiveEntry
	quota   []int
	refused uint64
}

type naiveEntry struct {
	place, claimed Place
	workload       bool
	seen, since    time.Duration
	moves          []time.Duration
	frozen         time.Duration
}

func (n *naive) get(now time.Duration, mac config.MAC) *naiveEntry {
	e := n.m[mac]
	if e == nil || !e.workload && now-e.seen >= ageing {
		return nil
	}
	return e
}

// full drops everything aged and counts the rest.
func (n *naive) full(now time.Duration, at Place) bool {
	count := 0
	for mac, e := range n.m {
		switch {
		case n.get(now, mac) == nil:
			delete(n.m, mac)
		case !e.workload && e.place == at:
			count++
		}
	}
	if count >= n.quota[at] {
		n.refused++
		return true
	}
	return false
}

func (n *naive) learn(now time.Duration, mac config.MAC, at Place) {
	if !n.full(now, at) {
		n.m[mac] = &naiveEntry{place: at, seen: now, since: now}
	}
}

func (n *naive) move(now time.Duration, mac config.MAC, to Place) (froze bool) {
	e := n.m[mac]
	if !e.workload && n.full(now, to) {
		delete(n.m, mac)
		return false
	}
	e.place, e.seen, e.since = to, now, now
	e.moves = append(e.moves, now)
	if now < e.frozen || len(e.moves) < config.DefaultMoveLimit || now-e.moves[len(e.moves)-config.DefaultMoveLimit] > moveWindow {
		return false
	}
	e.frozen = now + moveWindow
	return true
}

func (n *naive) workload(now time.Duration, mac config.MAC, at Place) {
	e := n.get(now, mac)
	if e == nil {
		e = &naiveEntry{place: at, seen: now, since: now}
		n.m[mac] = e
	}
	if !e.workload {
		e.workload, e.claimed = true, at
	}
}

// TestTableTwin runs random operations on the table and on its twin.
func TestTableTwin(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		tab, twin := newTable(2, config.DefaultMoveLimit), &naive{m: map[config.MAC]*naiveEntry{}, quota: []int{4, 3, 3}}
		copy(tab.quota, twin.quota)
		var now time.Duration
		for step := range 3000 {
			now += time.Duration(r.Int64N(int64(20 * time.Second)))
			if r.IntN(50) == 0 {
				now += ageing
			}
			mac, at := config.MAC{2, 5: byte(r.IntN(14))}, Place(r.IntN(3))
			stepBoth(t, r, tab, twin, now, mac, at)
			if t.Failed() {
				t.Fatalf("seed %d step %d", seed, step)
			}
		}
	}
}

func stepBoth(t *testing.T, r *rand.Rand, tab *table, twin *naive, now time.Duration, mac config.MAC, at Place) {
	e, ne := tab.get(now, keyOf(mac, 0)), twin.get(now, mac)
	switch op := r.IntN(20); {
	case op == 0:
		tab.tick(now)
	case op == 1 && mac[5] < 3:
		tab.workload(now, keyOf(mac, 0), at)
		twin.workload(now, mac, at)
	case e == nil:
		tab.learn(now, keyOf(mac, 0), at)
		twin.learn(now, mac, at)
	case e.place == at:
		tab.touch(now, e)
		ne.seen = now
	default:
		if got, want := tab.move(now, e, at), twin.move(now, mac, at); got != want {
			t.Errorf("move froze %v, twin %v", got, want)
		}
	}
	compareTables(t, tab, twin, now)
}

func compareTables(t *testing.T, tab *table, twin *naive, now time.Duration) {
	if tab.refused != twin.refused {
		t.Errorf("refused %d, twin %d", tab.refused, twin.refused)
	}
	places := make([]int, 3)
	for last := range byte(14) {
		mac := config.MAC{2, 5: last}
		ne := twin.get(now, mac)
		e := tab.byMAC[keyOf(mac, 0)]
		if e != nil && e.expired(now) {
			e = nil
		}
		if (e == nil) != (ne == nil) {
			t.Errorf("%v: %v, twin %v", mac, e, ne)
			continue
		}
		if e == nil {
			continue
		}
		places[e.place]++
		if e.place != ne.place || e.workload != ne.workload || e.claimed != ne.claimed ||
			e.since != ne.since || e.flaps.frozen(now) != (now < ne.frozen) {
			t.Errorf("%v: %+v, twin %+v", mac, e, ne)
		}
	}
	tab.tick(now) // counts include what has aged until then
	if got := []int{tab.places(0), tab.places(1), tab.places(2)}; !slices.Equal(got, places) {
		t.Errorf("places %v, twin %v", got, places)
	}
}

// TestTableBound floods the table from two places.
func TestTableBound(t *testing.T) {
	tab := newTable(2, config.DefaultMoveLimit)
	vm := keyOf(config.MAC{2, 1}, 0)
	tab.workload(0, vm, 1)
	for i := range 100_000 {
		mac := keyOf(config.MAC{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}, 0)
		at := Place(i % 2)
		if tab.get(0, mac) == nil {
			tab.learn(0, mac, at)
		}
	}
	if got, want := tab.places(Local), maxLearned/2; got != want {
		t.Errorf("%d MACs on the LAN, want the quota %d", got, want)
	}
	if got, want := tab.places(1), maxLearned/4+1; got != want {
		t.Errorf("%d MACs behind the flooding peer, want its quota and the workload, %d", got, want)
	}
	if tab.learn(0, keyOf(config.MAC{2, 2}, 0), 2) == nil {
		t.Error("a flood from one peer took the share of another")
	}
	if tab.learn(ageing, keyOf(config.MAC{2, 3}, 0), Local) == nil {
		t.Error("no room after the flood has aged")
	}
	tab.tick(ageing)
	if got := len(tab.byMAC); got != 2 {
		t.Errorf("%d entries after ageing, want the workload and the new one", got)
	}
}

func TestWorkloadBound(t *testing.T) {
	tab := newTable(1, config.DefaultMoveLimit)
	for i := range maxWorkloads + 5 {
		tab.workload(0, keyOf(config.MAC{2, 4: byte(i >> 8), 5: byte(i)}, 0), Local)
	}
	if tab.workloads != maxWorkloads || tab.refused != 5 {
		t.Errorf("%d workloads, %d refused", tab.workloads, tab.refused)
	}
}

// TestLimiter counts what a limiter lets through in every window.
func TestLimiter(t *testing.T) {
	l := newLimiter(100)
	count := func(from, to, step time.Duration) (n int) {
		for now := from; now < to; now += step {
			if l.allow(now) {
				n++
			}
		}
		return n
	}
	if n := count(0, time.Second, time.Millisecond/4); n != 119 && n != 120 {
		t.Errorf("first second: %d, want 100 and a burst of 20", n)
	}
	if n := count(time.Second, 2*time.Second, time.Millisecond/4); n < 99 || n > 101 {
		t.Errorf("second second: %d, want 100", n)
	}
	if n := count(2*time.Second, 12*time.Second, 20*time.Millisecond); n != 500 {
		t.Errorf("at half the rate: %d of 500", n)
	}
	one := newLimiter(1)
	if !one.allow(0) || one.allow(time.Second/2) || !one.allow(time.Second) {
		t.Error("a limit of one a second is not one a second")
	}
	if none := newLimiter(0); none.every != time.Second/500 {
		t.Errorf("no limit is %v a frame, want the default", none.every)
	}
}
