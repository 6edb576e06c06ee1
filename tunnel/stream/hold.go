package stream

import (
	"container/list"
	"time"
)

const (
	// maxHeld bounds the SYNs that wait for a far server, together with the
	// streams that wait for their client; when it is reached a new SYN is
	// carried as a packet.
	maxHeld = 4096
	// maxKnown bounds the tuples remembered after the answer; the oldest goes.
	maxKnown = 2 * maxStreams
	// readyLife is how long an opened stream waits for its client.
	readyLife = 30 * time.Second
	// passLife is how long a passed tuple stays passed: longer than a
	// client's kernel repeats a SYN (about 127 s with Linux' defaults).
	passLife = 130 * time.Second
)

// holdState is what has become of a SYN.
type holdState uint8

const (
	held   holdState = iota // waits for the far server
	ready                   // answered: the stream waits for its client
	joined                  // the client has its stream
	passed                  // carried as packets
)

// verdict says what to do with a packet in the hold device.
type verdict uint8

const (
	verdictOpen     verdict = iota // new: ask the far agent
	verdictAbsorb                  // a repetition of one that waits
	verdictReinject                // answered already: let the kernel have it
	verdictPass                    // passed before: pass again
	verdictCrowded                 // too many wait: pass it too
)

// holdEntry is one tuple. S is what is ready for it.
type holdEntry[S any] struct {
	syn
	state   holdState
	packet  []byte
	stream  S
	expires time.Time
	place   *list.Element // in holdTable.known, unless held
}

// holdTable remembers the SYNs that came through the hold device and their
// fate. Pure: time comes in. Not safe for concurrent use.
type holdTable[S any] struct {
	entries map[tuple]*holdEntry[S]
	known   list.List // *holdEntry, oldest first: all but held
	held    int
	ready   int
	crowded uint64
}

func newHoldTable[S any]() *holdTable[S] {
	return &holdTable[S]{entries: make(map[tuple]*holdEntry[S])}
}

// SYN takes a packet that came in; with verdictOpen it keeps a copy of it. A
// tuple whose client begins anew (another sequence number) forgets what was
// known; a stream that was ready for it is given back to be reset.
func (t *holdTable[S]) SYN(s syn, packet []byte, now time.Time) (v verdict, stale S, wasReady bool) {
	e := t.entries[s.tuple]
	switch {
	case e == nil:
	case e.state == held:
		if e.seq != s.seq { // the answer is for the client's latest try
			e.syn, e.packet = s, append(e.packet[:0], packet...)
		}
		return verdictAbsorb, stale, false
	case e.seq == s.seq && now.Before(e.expires):
		if e.state == passed {
			return verdictPass, stale, false
		}
		return verdictReinject, stale, false
	default:
		stale, wasReady = e.stream, e.state == ready
		t.forget(e)
	}
	crowded := t.held+t.ready >= maxHeld
	t.held++
	t.entries[s.tuple] = &holdEntry[S]{syn: s}
	if crowded {
		t.crowded++
		t.settle(s.tuple, passed, now.Add(passLife))
		return verdictCrowded, stale, wasReady
	}
	t.entries[s.tuple].packet = append([]byte(nil), packet...)
	return verdictOpen, stale, wasReady
}

// Opened says that the far server answered. The returned packet, owned by the
// caller, goes to the kernel; ok is false if nobody waits for it.
func (t *holdTable[S]) Opened(k tuple, stream S, now time.Time) (packet []byte, ok bool) {
	e := t.settle(k, ready, now.Add(readyLife))
	if e == nil {
		return nil, false
	}
	e.stream = stream
	t.ready++
	packet, e.packet = e.packet, nil
	return packet, true
}

// Passed says that the SYN is carried as a packet, which it returns.
func (t *holdTable[S]) Passed(k tuple, now time.Time) (packet []byte, ok bool) {
	e := t.settle(k, passed, now.Add(passLife))
	if e == nil {
		return nil, false
	}
	packet, e.packet = e.packet, nil
	return packet, true
}

// Refused forgets the SYN and returns it; a repetition asks anew.
func (t *holdTable[S]) Refused(k tuple) (s syn, packet []byte, ok bool) {
	e := t.entries[k]
	if e == nil || e.state != held {
		return syn{}, nil, false
	}
	t.forget(e)
	return e.syn, e.packet, true
}

// Join returns the stream that is ready for an accepted connection.
func (t *holdTable[S]) Join(k tuple) (stream S, ok bool) {
	e := t.entries[k]
	if e == nil || e.state != ready {
		return stream, false
	}
	stream = e.stream
	t.ready--
	var none S
	e.state, e.stream = joined, none
	return stream, true
}

// Split reports whether the tuple is known and not passed: it has a stream, had
// one, or waits for one.
func (t *holdTable[S]) Split(k tuple) bool {
	e := t.entries[k]
	return e != nil && e.state != passed
}

// Expire forgets what is too old and returns the streams nobody joined.
func (t *holdTable[S]) Expire(now time.Time) (unused []S) {
	var next *list.Element
	for el := t.known.Front(); el != nil; el = next {
		next = el.Next()
		e := el.Value.(*holdEntry[S])
		if now.Before(e.expires) {
			continue
		}
		if e.state == ready {
			unused = append(unused, e.stream)
		}
		t.forget(e)
	}
	return unused
}

// Held is the number of SYNs waiting, Crowded those there was no room for.
func (t *holdTable[S]) Held() int       { return t.held }
func (t *holdTable[S]) Crowded() uint64 { return t.crowded }

// settle moves a held entry on, making room among the known ones.
func (t *holdTable[S]) settle(k tuple, state holdState, expires time.Time) *holdEntry[S] {
	e := t.entries[k]
	if e == nil || e.state != held {
		return nil
	}
	if t.known.Len() >= maxKnown {
		t.evict()
	}
	t.held--
	e.state, e.expires = state, expires
	e.place = t.known.PushBack(e)
	return e
}

// evict forgets the oldest known tuple that has no stream waiting; those that
// have one expire soon by themselves and are at most maxHeld.
func (t *holdTable[S]) evict() {
	for el := t.known.Front(); el != nil; el = el.Next() {
		if e := el.Value.(*holdEntry[S]); e.state != ready {
			t.forget(e)
			return
		}
	}
}

func (t *holdTable[S]) forget(e *holdEntry[S]) {
	delete(t.entries, e.tuple)
	if e.state == ready {
		t.ready--
	}
	if e.place == nil {
		t.held--
		return
	}
	t.known.Remove(e.place)
	e.place = nil
}
