package carrier

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var start = time.Unix(1000, 0)

// part is one part of a message.
type part struct {
	h    Header
	data []byte
}

// cut is the stupid twin of a sender.
func cut(kind Kind, segment uint16, id uint32, msg []byte, mtu int) (all []part) {
	n, size := kind.Split(len(msg), mtu)
	for i := range n {
		h := Header{Kind: kind, Segment: segment, Index: uint8(i), Last: uint8(n - 1), ID: id}
		all = append(all, part{h, msg[i*size : min((i+1)*size, len(msg))]})
	}
	return all
}

func message(n int, seed byte) []byte {
	m := make([]byte, n)
	for i := range m {
		m[i] = byte(i*7) + seed
	}
	return m
}

// Every message is joined whatever the order of its parts.
func TestJoinInAnyOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	var r Reassembler
	for n := 1413; n <= MaxMessage; n += 97 {
		msg := message(n, byte(n))
		parts := cut(Frame, 9, uint32(n), msg, 1440)
		rng.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		for i, p := range parts {
			got := r.Add(p.h, p.data, start)
			if i < len(parts)-1 {
				if got != nil {
					t.Fatalf("%d bytes: complete after %d of %d parts", n, i+1, len(parts))
				}
				continue
			}
			if !bytes.Equal(got, msg) {
				t.Fatalf("%d bytes: joined to %d", n, len(got))
			}
			r.Release(got)
		}
	}
	if d := r.Drops(start); d.Waiting != 0 || d.Bytes != 0 || d.Invalid != 0 {
		t.Errorf("left over: %+v", d)
	}
}

// So is every unit, up to 64 parts of 64 KiB, between frames in parts.
func TestUnitsInAnyOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	var r Reassembler
	for i := range uint32(200) {
		msg, frame := message(1201+rng.IntN(MaxUnit-1200), byte(i)), message(9000, byte(i))
		parts := append(cut(Unit, 0, 2*i, msg, 1228), cut(Frame, 1, 2*i+1, frame, 1228)...)
		rng.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		joined := 0
		for _, p := range parts {
			got := r.Add(p.h, p.data, start)
			if got == nil {
				continue
			}
			joined++
			if want := map[Kind][]byte{Unit: msg, Frame: frame}[p.h.Kind]; !bytes.Equal(got, want) {
				t.Fatalf("joined to %d bytes, want %d", len(got), len(want))
			}
			r.Release(got)
		}
		if joined != 2 {
			t.Fatalf("%d of 2 messages of %d parts", joined, len(parts))
		}
	}
	if d := r.Drops(start); d.Waiting != 0 || d.Bytes != 0 || d.Invalid != 0 {
		t.Errorf("left over: %+v", d)
	}
}

// Many messages interleaved, with losses, against a map of parts: a message is
// joined exactly when all of its parts arrived, and is then right.
func TestInterleavedAgainstTwin(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 2))
		var all []part
		missing := make(map[uint32]bool)
		want := make(map[uint32][]byte)
		for id := range uint32(60) {
			msg := message(1413+rng.IntN(6000), byte(id))
			want[id] = msg
			for _, p := range cut(Frame, 1, id, msg, 1440) {
				if rng.IntN(20) == 0 {
					missing[id] = true
					continue
				}
				all = append(all, p)
				if rng.IntN(20) == 0 { // duplicated by the network
					all = append(all, p)
				}
			}
		}
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		var r Reassembler
		joined := make(map[uint32]bool)
		for _, p := range all {
			if got := r.Add(p.h, p.data, start); got != nil {
				if missing[p.h.ID] || !bytes.Equal(got, want[p.h.ID]) {
					t.Fatalf("seed %d: message %d is wrong", seed, p.h.ID)
				}
				joined[p.h.ID] = true
				r.Release(got)
			}
		}
		for id := range want {
			if joined[id] == missing[id] {
				t.Fatalf("seed %d: message %d: joined %v, a part missing %v", seed, id, joined[id], missing[id])
			}
		}
	}
}

func TestContradictions(t *testing.T) {
	first := Header{Kind: Frame, Segment: 1, Index: 0, Last: 2, ID: 5}
	final := Header{Kind: Frame, Segment: 1, Index: 2, Last: 2, ID: 5}
	with := func(h Header, f func(*Header)) Header { f(&h); return h }
	for _, c := range []struct {
		name    string
		h       Header
		n       int
		invalid uint64
	}{
		{"other kind", with(first, func(h *Header) { h.Index = 1; h.Kind = IP }), 100, 1},
		{"other segment", with(first, func(h *Header) { h.Index = 1; h.Segment = 2 }), 100, 1},
		{"other count", with(first, func(h *Header) { h.Index = 1; h.Last = 3 }), 100, 1},
		{"other length", with(first, func(h *Header) { h.Index = 1 }), 99, 1},
		{"final too long", final, 101, 1},
		{"final too short", final, 97, 1},
		{"final shortest", final, 98, 0},
		{"no parts", Header{Kind: Frame, Segment: 1, ID: 9}, 100, 1},
		{"empty", with(first, func(h *Header) { h.ID = 9 }), 0, 1},
		{"more than a message", with(first, func(h *Header) { h.ID = 9 }), MaxMessage/2 + 1, 1},
		{"final alone more than a message", with(final, func(h *Header) { h.ID = 9 }), MaxMessage + 1, 1},
		{"duplicate", first, 100, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r Reassembler
			r.Add(first, message(100, 0), start)
			if r.Add(c.h, message(c.n, 0), start) != nil {
				t.Error("joined")
			}
			if d := r.Drops(start); d.Invalid != c.invalid {
				t.Errorf("%+v, want %d invalid", d, c.invalid)
			}
		})
	}
}

// A receiver that stands still between two parts of a message loses nothing,
// and a message that is fed slowly is not the first to be forgotten.
func TestStall(t *testing.T) {
	var r Reassembler
	msg := message(4000, 0)
	parts := cut(Frame, 1, 1, msg, 1440)
	if len(parts) != 3 {
		t.Fatal(len(parts), "parts")
	}
	r.Add(parts[0].h, parts[0].data, start)
	other := cut(Frame, 1, 2, message(2000, 1), 1440)
	r.Add(other[0].h, other[0].data, start)
	r.Add(parts[1].h, parts[1].data, start.Add(3*Timeout))
	if d := r.Drops(start.Add(3 * Timeout)); d.TimedOut != 1 || d.Waiting != 1 {
		t.Errorf("%+v, want only the message without news timed out", d)
	}
	if got := r.Add(parts[2].h, parts[2].data, start.Add(5*Timeout)); !bytes.Equal(got, msg) {
		t.Errorf("joined to %d bytes", len(got))
	}
	if d := r.Drops(start.Add(9 * Timeout)); d.TimedOut != 1 || d.Joined != 1 || d.Waiting != 0 || d.Bytes != 0 {
		t.Errorf("at the end: %+v", d)
	}
}

func TestTimeout(t *testing.T) {
	var r Reassembler
	parts := cut(Frame, 1, 1, message(2000, 0), 1440)
	r.Add(parts[0].h, parts[0].data, start)
	if d := r.Drops(start.Add(Timeout - 1)); d.Waiting != 1 || d.TimedOut != 0 {
		t.Errorf("just before the timeout: %+v", d)
	}
	if d := r.Drops(start.Add(Timeout)); d.Waiting != 0 || d.TimedOut != 1 {
		t.Errorf("at the timeout: %+v", d)
	}
	if got := r.Add(parts[1].h, parts[1].data, start.Add(Timeout)); got != nil {
		t.Error("joined with a part that had timed out")
	}
	if d := r.Drops(start.Add(Timeout)); d.TimedOut != 1 || d.Waiting != 1 {
		t.Errorf("%+v, want 1 timed out, 1 waiting", d)
	}
}

// Whatever arrives, memory stays bounded, and the oldest message goes first.
func TestBounds(t *testing.T) {
	for _, size := range []int{10, 1412, MaxMessage / 15} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			var r Reassembler
			for id := range uint32(2000) {
				r.Add(Header{Kind: Frame, Segment: 1, Index: 0, Last: 15, ID: id}, make([]byte, min(size, MaxMessage/15)), start)
				if d := r.Drops(start); d.Waiting > MaxEntries || d.Bytes > MaxBytes {
					t.Fatalf("%+v", d)
				}
			}
			d := r.Drops(start)
			if d.Evicted == 0 || d.Waiting == 0 {
				t.Errorf("%+v: nothing evicted, or nothing left", d)
			}
			if _, ok := r.entries[1999]; !ok {
				t.Error("the newest message was evicted")
			}
		})
	}
}

func TestNoAllocs(t *testing.T) {
	var r Reassembler
	parts := cut(IP, 0, 1, message(1500, 0), 1440)
	id := uint32(0)
	got := testing.AllocsPerRun(1000, func() {
		id++
		for _, p := range parts {
			p.h.ID = id
			if whole := r.Add(p.h, p.data, start); whole != nil {
				r.Release(whole)
			}
		}
	})
	if got > 0.01 {
		t.Errorf("%v allocations per message", got)
	}
}

// Any stream of parts keeps the bounds and the counters of memory.
func FuzzReassembler(f *testing.F) {
	f.Add([]byte{1, 0x01, 0, 10, 1, 0x11, 0, 10})
	f.Add([]byte{1, 0x0f, 1, 0, 2, 0x0f, 4, 0, 1, 0xff, 0, 1, 1, 0x21, 0, 3})
	f.Fuzz(func(t *testing.T, script []byte) {
		var r Reassembler
		now := start
		buf := make([]byte, 2048)
		for op := range slices.Chunk(script, 4) {
			if len(op) < 4 {
				break
			}
			h := Header{Kind: Frame, Segment: 1, ID: uint32(op[0] & 15), Index: op[1] >> 4, Last: op[1] & 15}
			if op[2]&0x80 != 0 { // the same bits make a unit of up to 64 parts
				h.Kind, h.Segment, h.Index, h.Last = Unit, 0, 4*h.Index, 4*h.Last+3
			}
			if !h.valid() {
				continue
			}
			now = now.Add(time.Duration(op[0]>>4) * 20 * time.Millisecond)
			n := (int(op[2])<<8 | int(op[3])) % len(buf)
			if whole := r.Add(h, buf[:n], now); whole != nil {
				if _, most := h.Kind.limits(); len(whole) > most {
					t.Fatalf("message of %d bytes", len(whole))
				}
				r.Release(whole)
			}
			d := r.Drops(now)
			sum, count := 0, 0
			for e := r.oldest; e != nil; e = e.next {
				sum += e.bytes()
				count++
			}
			if d.Bytes != sum || d.Waiting != count || d.Bytes > MaxBytes || count > MaxEntries {
				t.Fatalf("%+v, counted %d bytes in %d", d, sum, count)
			}
		}
	})
}

// BenchmarkJoin joins a message from its parts, many others waiting. The copy of
// the message is what it costs at least.
func BenchmarkJoin(b *testing.B) {
	for _, n := range []int{1514, 9014} {
		msg := message(n, 0)
		parts := cut(Frame, 1, 0, msg, 1440)
		b.Run(fmt.Sprintf("%d/parts=%d", n, len(parts)), func(b *testing.B) {
			var r Reassembler
			for id := range uint32(MaxEntries / 2) {
				r.Add(Header{Kind: Frame, Segment: 1, Last: 1, ID: 1<<31 + id}, msg[:1400], start)
			}
			b.SetBytes(int64(n))
			b.ReportAllocs()
			id := uint32(0)
			for b.Loop() {
				id++
				for _, p := range parts {
					p.h.ID = id
					if whole := r.Add(p.h, p.data, start); whole != nil {
						r.Release(whole)
					}
				}
			}
		})
		b.Run(fmt.Sprintf("%d/copy", n), func(b *testing.B) {
			dst := make([]byte, n)
			b.SetBytes(int64(n))
			for b.Loop() {
				copy(dst, msg)
			}
		})
	}
}
