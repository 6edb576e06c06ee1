package wg

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

func hsMessage(kind, index, answers uint32) []byte {
	n := map[uint32]int{1: device.MessageInitiationSize, 2: device.MessageResponseSize, 4: 100}[kind]
	b := make([]byte, n)
	binary.LittleEndian.PutUint32(b, kind)
	binary.LittleEndian.PutUint32(b[4:], index)
	if kind == 2 {
		binary.LittleEndian.PutUint32(b[8:], answers)
	}
	return b
}

// copies runs the handshaker's clock for d and returns when it sent copies.
func copies(h *handshaker, from time.Time, d time.Duration) (at []time.Duration) {
	for now := from; now.Before(from.Add(d)); now = now.Add(10 * time.Millisecond) {
		for {
			data, _, _ := h.due(now)
			if data == nil {
				break
			}
			at = append(at, now.Sub(from))
		}
	}
	return at
}

func TestCopiesOfAnInitiation(t *testing.T) {
	now := time.Unix(1000, 0)
	ms := time.Millisecond
	for _, c := range []struct {
		name        string
		wins        bool
		rtt         time.Duration
		first, last time.Duration
		n           int
	}{
		{"winner, RTT not known", true, 0, 250 * ms, 500 * ms, 2},
		{"winner, 100 ms", true, 100 * ms, 250 * ms, 1000 * ms, 4},
		{"winner, 600 ms", true, 600 * ms, 0, 0, 0},
		{"loser, RTT not known", false, 0, 250 * ms, 4750 * ms, 19},
		{"loser, 600 ms", false, 600 * ms, 900 * ms, 4500 * ms, 5},
	} {
		h := handshaker{wins: c.wins, rtt: c.rtt}
		h.sent(hsMessage(1, 7, 0), simEndpoint{}, now)
		at := copies(&h, now, 20*time.Second)
		if len(at) != c.n || c.n > 0 && (at[0] != c.first || at[c.n-1] != c.last) {
			t.Errorf("%s: copies at %v, want %d from %v to %v", c.name, at, c.n, c.first, c.last)
		}
		// None of the winner's is on its way when its window ends.
		if c.wins && c.n > 0 && at[c.n-1]+c.rtt > h.window() {
			t.Errorf("%s: a copy is answered after the window", c.name)
		}
	}
}

func TestWhatEndsTheCopies(t *testing.T) {
	now := time.Unix(1000, 0)
	initiation, response, data := hsMessage(1, 7, 0), hsMessage(2, 8, 7), hsMessage(4, 8, 0)
	for _, c := range []struct {
		name string
		f    func(h *handshaker)
		ends bool
	}{
		{"the response", func(h *handshaker) { h.received(response, now) }, true},
		{"a response to something else", func(h *handshaker) { h.received(hsMessage(2, 8, 6), now) }, false},
		{"a response of a wrong length", func(h *handshaker) { h.received(response[:91], now) }, false},
		{"data", func(h *handshaker) { h.received(hsMessage(4, 7, 0), now) }, false},
		{"the peer's initiation", func(h *handshaker) { h.received(hsMessage(1, 9, 0), now) }, false},
	} {
		h := handshaker{}
		h.sent(initiation, simEndpoint{}, now)
		c.f(&h)
		if got := len(copies(&h, now, time.Second)) == 0; got != c.ends {
			t.Errorf("initiation, %s: ended %v, want %v", c.name, got, c.ends)
		}
	}
	// Answering the peer's initiation ends ours, and the answer is copied
	// until data comes for it.
	h := handshaker{}
	h.sent(initiation, simEndpoint{}, now)
	h.sent(response, simEndpoint{}, now)
	if got, _, _ := h.due(now.Add(minResend)); !bytes.Equal(got, response) {
		t.Errorf("copy of %x", got[:min(4, len(got))])
	}
	h.received(hsMessage(4, 7, 0), now)
	if !h.reply.live() {
		t.Error("data for another session ended the copies of a response")
	}
	h.received(data, now)
	if got := copies(&h, now, time.Second); len(got) != 0 {
		t.Error("copies of a response after data")
	}
}

func TestPrecedence(t *testing.T) {
	now := time.Unix(1000, 0)
	theirs := hsMessage(1, 9, 0)
	loser := handshaker{}
	loser.sent(hsMessage(1, 7, 0), simEndpoint{}, now)
	if loser.received(theirs, now) {
		t.Error("the loser dropped the winner's initiation")
	}
	for _, rtt := range []time.Duration{0, 100 * time.Millisecond, time.Second} {
		h := handshaker{wins: true, rtt: rtt}
		if h.received(theirs, now) {
			t.Error("dropped without an own initiation")
		}
		h = handshaker{wins: true, rtt: rtt}
		if h.sent(hsMessage(1, 7, 0), simEndpoint{}, now) {
			t.Error("held back without cause")
		}
		window := max(minWindow, 3*rtt)
		if !h.received(theirs, now.Add(window-1)) || h.received(theirs, now.Add(window)) {
			t.Errorf("RTT %v: the window is not %v", rtt, window)
		}
		h.sent(hsMessage(1, 7, 0), simEndpoint{}, now.Add(time.Minute))
		h.received(hsMessage(2, 8, 7), now.Add(time.Minute))
		if h.received(theirs, now.Add(time.Minute+digest)) {
			t.Error("dropped although ours is answered")
		}
	}
}

// The winner's own initiation waits while one of the peer may be accepted, and
// is not sent at all if it is.
func TestHeldBack(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, accepted := range []bool{true, false} {
		h := handshaker{wins: true}
		h.received(hsMessage(1, 9, 0), now)
		if !h.sent(hsMessage(1, 7, 0), simEndpoint{}, now.Add(digest-1)) {
			t.Error("not held back")
		}
		if accepted {
			h.sent(hsMessage(2, 8, 9), simEndpoint{}, now.Add(digest-1))
		}
		data, _, _ := h.due(now.Add(2 * digest))
		if got := messageType(data) == 1; got == accepted {
			t.Errorf("accepted %v: own initiation sent %v", accepted, got)
		}
		h = handshaker{wins: true}
		h.received(hsMessage(1, 9, 0), now)
		if h.sent(hsMessage(1, 7, 0), simEndpoint{}, now.Add(digest)) {
			t.Error("held back for too long")
		}
	}
}

// An initiation that follows right after a response is not sent if that one
// brings a session, at either end.
func TestHeldBackAfterResponse(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, wins := range []bool{true, false} {
		for _, session := range []bool{true, false} {
			h := handshaker{wins: wins}
			h.sent(hsMessage(2, 8, 9), simEndpoint{}, now)
			if !h.sent(hsMessage(1, 7, 0), simEndpoint{}, now) {
				t.Error("not held back")
			}
			if h.received(hsMessage(1, 9, 0), now) {
				t.Error("an initiation that was not sent has precedence")
			}
			if session {
				h.received(hsMessage(4, 8, 0), now)
			}
			data, _, _ := h.due(now.Add(digest))
			if got := messageType(data) == 1; got == session {
				t.Errorf("session %v: initiation sent %v", session, got)
			}
		}
	}
}

// Right after the answer to ours, an initiation of the peer is a straggler.
func TestStraggler(t *testing.T) {
	now := time.Unix(1000, 0)
	h := handshaker{}
	h.sent(hsMessage(1, 7, 0), simEndpoint{}, now)
	h.received(hsMessage(2, 8, 7), now)
	if !h.received(hsMessage(1, 9, 0), now.Add(digest-1)) || h.received(hsMessage(1, 9, 0), now.Add(digest)) {
		t.Error("stragglers are not dropped for exactly the time of a digest")
	}
}

// A message that arrives twice reaches wireguard-go once, until it has surely
// dealt with the first; the same one later is a copy sent on purpose.
func TestTwice(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, kind := range []uint32{1, 2} {
		h := handshaker{}
		m, other := hsMessage(kind, 9, 7), hsMessage(kind, 10, 7)
		for _, step := range []struct {
			msg  []byte
			at   time.Duration
			drop bool
		}{
			{m, 0, false}, {m, 0, true}, {m, digest - 1, true}, {m, digest, false}, {m, digest + 1, true},
			{other, digest + 1, false}, {other, digest + 1, true},
		} {
			if got := h.received(bytes.Clone(step.msg), now.Add(step.at)); got != step.drop {
				t.Errorf("type %d after %v: dropped %v", kind, step.at, got)
			}
		}
	}
}

func FuzzHandshaker(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8}, true)
	f.Add([]byte{0, 1, 0, 2, 1, 4, 200, 0, 0}, false)
	f.Fuzz(func(t *testing.T, script []byte, wins bool) {
		h := handshaker{wins: wins}
		now := time.Unix(1000, 0)
		var response []byte
		for i, op := range script {
			now = now.Add(time.Duration(op) * 5 * time.Millisecond)
			kind := []uint32{1, 2, 4}[i%3]
			m := hsMessage(kind, uint32(op&3), uint32(op>>2&3))
			if op&1 == 0 {
				h.sent(m, simEndpoint{}, now)
			} else if dropped := h.received(m, now); dropped && (kind == 4 || kind == 2 && !bytes.Equal(m, response)) {
				t.Fatalf("dropped a message of type %d that is no copy", kind)
			} else if kind == 2 {
				response = m
			}
			for range 3 {
				if _, _, next := h.due(now); next.IsZero() || next.After(now) {
					break
				} else if next.Before(now) {
					t.Fatal("due in the past")
				}
			}
			if data, _, _ := h.due(now); data != nil {
				t.Fatal("more than two messages due at once")
			}
		}
	})
}
