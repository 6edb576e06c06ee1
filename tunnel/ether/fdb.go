package ether

import (
	"slices"
	"time"

	"stitch/tunnel/config"
)

// Bounds of the forwarding table.
const (
	// maxLearned is the most addresses learnt, half of them on the LAN, the
	// other half shared evenly by the peers. 16384 entries take about 3 MB.
	maxLearned = 16384
	// maxWorkloads is the most addresses set by configuration and claims.
	maxWorkloads = 4096
	// ageing is how long a learnt address is kept unseen.
	ageing = 300 * time.Second
	// What moves too often within moveWindow is frozen that long (RFC 7432 section
	// 15.1, with recovery): config.Segment.MoveLimit times for a MAC.
	moveWindow = 180 * time.Second
	// maxClaims is how often an address may change its MAC.
	maxClaims = config.DefaultMoveLimit
)

// key is a MAC in a VLAN: each VLAN is a network of its own, and one MAC may be
// at different places in two of them.
type key uint64

func keyOf(m config.MAC, vlan uint16) key {
	return key(vlan)<<48 | key(m[0])<<40 | key(m[1])<<32 | key(m[2])<<24 | key(m[3])<<16 | key(m[4])<<8 | key(m[5])
}

func (k key) mac() config.MAC {
	return config.MAC{byte(k >> 40), byte(k >> 32), byte(k >> 24), byte(k >> 16), byte(k >> 8), byte(k)}
}

func (k key) vlan() uint16 { return uint16(k >> 48) }

// Place is where a MAC is: Local or the number of a peer.
type Place uint8

const (
	// Local is the LAN of this site.
	Local Place = 0
	// All stands for every peer, as a destination.
	All Place = 255
	// maxPeers is the most peers of a segment; they are Place 1 to maxPeers.
	maxPeers = 254
)

// entry is a MAC in the table. Learnt entries are in the list of their place,
// least recently seen first.
type entry struct {
	prev, next *entry
	key        key
	place      Place
	// claimed is the place of the last claim, for a workload.
	claimed  Place
	workload bool
	seen     time.Duration
	// since is when it came to its place.
	since time.Duration
	// announced is when it was last reported, if reports is set.
	announced time.Duration
	reports   bool
	flaps     flaps
	ips       []*neighbour // the addresses it is known to have, at most maxIPs
}

// flaps remembers the last moves of something.
type flaps struct {
	at    []time.Duration // a ring, empty until the first
	last  int             // slot of the latest
	until time.Duration
}

// note counts a move and reports whether it was the one that froze: the last of
// limit within moveWindow.
func (f *flaps) note(now time.Duration, limit int) (froze bool) {
	if len(f.at) < limit {
		f.at = append(f.at, now)
		f.last = len(f.at) - 1
	} else {
		f.last = (f.last + 1) % limit
		f.at[f.last] = now
	}
	oldest := f.at[(f.last+1)%len(f.at)]
	if f.frozen(now) || len(f.at) < limit || now-oldest > moveWindow {
		return false
	}
	f.until = now + moveWindow
	return true
}

func (f *flaps) frozen(now time.Duration) bool { return now < f.until }

// table is the forwarding table. It is not safe for concurrent use.
type table struct {
	// limit is how many moves freeze a MAC.
	limit int
	byMAC map[key]*entry
	byIP  map[ipKey]*neighbour
	// Per place: the list of learnt entries, how many they are and may be, and
	// how many workloads there are.
	learned   []entry
	count     []int
	quota     []int
	fixed     []int
	workloads int // sum of fixed
	// bound is the number of addresses known of the MACs of a place, at most
	// as many as MACs may be learnt there.
	bound    []int
	frozen   []*entry
	refused  uint64
	moves    uint64
	disputes uint64 // addresses that were claimed by turns
}

// newTable returns the table of a segment with that many peers, in which limit
// moves freeze a MAC.
func newTable(peers, limit int) *table {
	n := peers + 1
	t := &table{
		limit: limit,
		byMAC: make(map[key]*entry), byIP: make(map[ipKey]*neighbour), learned: make([]entry, n),
		count: make([]int, n), quota: make([]int, n), fixed: make([]int, n), bound: make([]int, n),
	}
	for i := range t.learned {
		head := &t.learned[i]
		head.prev, head.next = head, head
		t.quota[i] = maxLearned / 2 / max(peers, 1)
	}
	t.quota[Local] = maxLearned / 2
	return t
}

// get returns the entry of k, nil if there is none or it has aged out.
func (t *table) get(now time.Duration, k key) *entry {
	e := t.byMAC[k]
	if e != nil && e.expired(now) {
		t.remove(e)
		return nil
	}
	return e
}

func (e *entry) expired(now time.Duration) bool { return !e.workload && now-e.seen >= ageing }

// learn adds k at a place; nil if the place's share of the table is used up.
func (t *table) learn(now time.Duration, k key, at Place) *entry {
	if !t.room(now, at) {
		t.refused++
		return nil
	}
	e := &entry{key: k, place: at, seen: now, since: now}
	t.byMAC[k] = e
	t.link(e)
	return e
}

// room makes sure that one more address can be learnt at a place.
func (t *table) room(now time.Duration, at Place) bool {
	if t.count[at] < t.quota[at] {
		return true
	}
	eldest := t.learned[at].next
	if !eldest.expired(now) {
		return false
	}
	t.remove(eldest)
	return true
}

// touch notes that e was seen at its place.
func (t *table) touch(now time.Duration, e *entry) {
	e.seen = now
	t.unlink(e)
	t.link(e)
}

// move brings e to another place and reports whether that froze it. A learnt
// address for which there is no room there is forgotten.
func (t *table) move(now time.Duration, e *entry, to Place) (froze bool) {
	if !e.workload && !t.room(now, to) {
		t.refused++
		t.remove(e)
		return false
	}
	t.unlink(e)
	t.bound[e.place] -= len(e.ips)
	e.place, e.seen, e.since = to, now, now
	t.bound[to] += len(e.ips)
	t.link(e)
	t.moves++
	if e.flaps.note(now, t.limit) {
		t.frozen = append(t.frozen, e)
		return true
	}
	return false
}

// workload returns the entry of a workload, made at a place if there is none;
// nil if there are too many.
func (t *table) workload(now time.Duration, k key, at Place) *entry {
	e := t.get(now, k)
	if e != nil && e.workload {
		return e
	}
	if t.workloads == maxWorkloads {
		t.refused++
		return nil
	}
	t.workloads++
	if e == nil {
		e = &entry{key: k, place: at, seen: now, since: now}
		t.byMAC[k] = e
	} else {
		t.unlink(e)
	}
	e.workload, e.claimed = true, at
	t.link(e)
	return e
}

// tick forgets what has aged and thaws what was frozen long enough.
func (t *table) tick(now time.Duration) {
	for i := range t.learned {
		head := &t.learned[i]
		for head.next != head && head.next.expired(now) {
			t.remove(head.next)
		}
	}
	kept := t.frozen[:0]
	for _, e := range t.frozen {
		if e.flaps.frozen(now) {
			kept = append(kept, e)
		}
	}
	clear(t.frozen[len(kept):])
	t.frozen = kept
}

// link counts e at its place, and puts it last in the list there if it ages.
func (t *table) link(e *entry) {
	if e.workload {
		t.fixed[e.place]++
		return
	}
	head := &t.learned[e.place]
	e.prev, e.next = head.prev, head
	e.prev.next, head.prev = e, e
	t.count[e.place]++
}

func (t *table) unlink(e *entry) {
	if e.workload {
		t.fixed[e.place]--
		return
	}
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = nil, nil
	t.count[e.place]--
}

func (t *table) remove(e *entry) {
	for len(e.ips) > 0 {
		t.unbind(e.ips[0])
	}
	t.unlink(e)
	delete(t.byMAC, e.key)
}

// flush forgets what was learnt, and every move: all of it may be the work of a
// loop. Workloads go back to where they were last claimed to be.
func (t *table) flush() {
	for _, e := range t.byMAC {
		e.flaps = flaps{}
		if !e.workload {
			t.remove(e)
			continue
		}
		for _, n := range slices.Clone(e.ips) {
			if !n.static {
				t.unbind(n)
			}
		}
		t.unlink(e)
		t.bound[e.place] -= len(e.ips)
		e.place = e.claimed
		t.bound[e.place] += len(e.ips)
		t.link(e)
	}
	clear(t.frozen)
	t.frozen = t.frozen[:0]
}

// places returns how many MACs are at a place, workloads included.
func (t *table) places(at Place) int { return t.count[at] + t.fixed[at] }
