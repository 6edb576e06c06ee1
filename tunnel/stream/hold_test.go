package stream

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func numbered(n int) syn {
	a := netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)})
	return syn{tuple{src: netip.AddrPortFrom(a, uint16(1024+n>>16)), dst: testTuple(false).dst}, 1, 2}
}

func TestHoldLife(t *testing.T) {
	h := newHoldTable[int]()
	s := numbered(1)
	want := func(step string, now time.Time, s syn, v verdict) {
		t.Helper()
		if got, _, _ := h.SYN(s, []byte("packet"), now); got != v {
			t.Errorf("%s: verdict %d, want %d", step, got, v)
		}
	}
	want("first", t0, s, verdictOpen)
	want("again", t0.Add(time.Second), s, verdictAbsorb)
	if _, ok := h.Join(s.tuple); ok {
		t.Error("joined before it was opened")
	}
	if p, ok := h.Opened(s.tuple, 7, t0); !ok || string(p) != "packet" || h.Held() != 0 {
		t.Errorf("opened: %q, %v, %d held", p, ok, h.Held())
	}
	if _, ok := h.Opened(s.tuple, 8, t0); ok {
		t.Error("opened twice")
	}
	want("its SYN-ACK was lost", t0.Add(2*time.Second), s, verdictReinject)
	if got, ok := h.Join(s.tuple); !ok || got != 7 {
		t.Errorf("join: %d, %v", got, ok)
	}
	if _, ok := h.Join(s.tuple); ok {
		t.Error("joined twice")
	}
	want("joined", t0.Add(3*time.Second), s, verdictReinject)
	next := s
	next.seq++
	want("the client's next connection", t0.Add(4*time.Second), next, verdictOpen)
	if got, p, ok := h.Refused(s.tuple); !ok || got != next || string(p) != "packet" {
		t.Errorf("refused: %+v %q %v", got, p, ok)
	}
	want("after a refusal", t0.Add(5*time.Second), next, verdictOpen)
	if p, ok := h.Passed(s.tuple, t0.Add(5*time.Second)); !ok || string(p) != "packet" {
		t.Errorf("passed: %q, %v", p, ok)
	}
	want("passed", t0.Add(60*time.Second), next, verdictPass)
	want("passed long ago", t0.Add(5*time.Minute), next, verdictOpen)
}

// TestHoldAgain: the answer goes to the client's latest try.
func TestHoldAgain(t *testing.T) {
	h := newHoldTable[int]()
	s := numbered(1)
	h.SYN(s, []byte("old"), t0)
	s.seq, s.next = 50, 51
	if v, _, _ := h.SYN(s, []byte("new"), t0); v != verdictAbsorb {
		t.Error("verdict", v)
	}
	if p, _ := h.Opened(s.tuple, 1, t0); string(p) != "new" {
		t.Errorf("%q is let go", p)
	}
	if v, _, _ := h.SYN(s, nil, t0); v != verdictReinject {
		t.Error("verdict", v)
	}
	s.seq = 99
	if v, stale, was := h.SYN(s, nil, t0); v != verdictOpen || !was || stale != 1 {
		t.Errorf("verdict %d, stream %d %v: the unused stream must be given back", v, stale, was)
	}
}

func TestHoldBounds(t *testing.T) {
	h := newHoldTable[int]()
	for n := range maxHeld + 10 {
		v, _, _ := h.SYN(numbered(n), nil, t0)
		if want := map[bool]verdict{false: verdictOpen, true: verdictCrowded}[n >= maxHeld]; v != want {
			t.Fatalf("SYN %d: verdict %d", n, v)
		}
	}
	if h.Held() != maxHeld || h.Crowded() != 10 {
		t.Errorf("%d held, %d crowded out", h.Held(), h.Crowded())
	}
	if _, ok := h.Opened(numbered(maxHeld).tuple, 0, t0); ok {
		t.Error("a stream was taken for a SYN that passed")
	}
	for n := range maxHeld {
		h.Opened(numbered(n).tuple, n, t0)
	}
	if v, _, _ := h.SYN(numbered(maxHeld+10), nil, t0); v != verdictCrowded {
		t.Error("streams that wait for their client do not count")
	}
	if got := h.Expire(t0.Add(readyLife)); len(got) != maxHeld || len(h.entries) != 11 {
		t.Errorf("%d unused streams given back, %d entries left", len(got), len(h.entries))
	}
	h.Expire(t0.Add(passLife))
	for n := range 3 * maxKnown {
		h.SYN(numbered(n), nil, t0)
		h.Passed(numbered(n).tuple, t0)
	}
	if len(h.entries) != maxKnown || h.known.Len() != maxKnown {
		t.Errorf("%d entries, %d known, want %d", len(h.entries), h.known.Len(), maxKnown)
	}
	if v, _, _ := h.SYN(numbered(3*maxKnown-1), nil, t0); v != verdictPass {
		t.Error("the newest was forgotten")
	}
}

// TestHoldRandom compares the counters with a recount after random steps, and
// holds that every stream given in comes out exactly once.
func TestHoldRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	h := newHoldTable[int]()
	now, in, out := t0, 0, map[int]int{}
	for step := range 20000 {
		s := numbered(r.IntN(30))
		s.seq = r.Uint32N(2)
		switch r.IntN(6) {
		case 0, 1:
			if _, stream, was := h.SYN(s, nil, now); was {
				out[stream]++
			}
		case 2:
			in++
			if _, ok := h.Opened(s.tuple, in, now); !ok {
				out[in]++
			}
		case 3:
			if stream, ok := h.Join(s.tuple); ok {
				out[stream]++
			}
		case 4:
			h.Passed(s.tuple, now)
		case 5:
			h.Refused(s.tuple)
		}
		now = now.Add(time.Duration(r.Int64N(int64(time.Second))))
		for _, stream := range h.Expire(now) {
			out[stream]++
		}
		recount(t, h, fmt.Sprint("step ", step))
	}
	for _, stream := range h.Expire(now.Add(time.Hour)) {
		out[stream]++
	}
	for stream := 1; stream <= in; stream++ {
		if out[stream] != 1 {
			t.Fatalf("stream %d came out %d times", stream, out[stream])
		}
	}
}

func recount(t *testing.T, h *holdTable[int], when string) {
	t.Helper()
	count := map[holdState]int{}
	for k, e := range h.entries {
		count[e.state]++
		if k != e.tuple || (e.place == nil) != (e.state == held) {
			t.Fatalf("%s: entry %+v", when, e)
		}
	}
	if h.held != count[held] || h.ready != count[ready] || h.known.Len() != len(h.entries)-count[held] {
		t.Fatalf("%s: %d held, %d ready, %d known; counted %v", when, h.held, h.ready, h.known.Len(), count)
	}
}
