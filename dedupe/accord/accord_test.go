package accord

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden vector")

// twin is a ring as the naive method sees it: a digest for every segment.
type twin map[uint64]Digest

func (w twin) digest(seg uint64) Digest { return w[seg] }

func random(r *rand.Rand) (d Digest) {
	binary.LittleEndian.PutUint64(d[:], r.Uint64()|1)
	return d
}

// pair makes two views of one ring that differ in some segments, heads and
// tails.
func pair(r *rand.Rand) (tx, rx Ring, a, b twin) {
	end := uint64(1 + r.IntN(1<<r.IntN(17)))
	first := end - min(end, uint64(r.IntN(MaxSize/Segment-100)))
	a, b = twin{}, twin{}
	for seg := first; seg < end; seg++ {
		a[seg] = random(r)
		b[seg] = a[seg]
	}
	for range r.IntN(6) {
		seg := first + r.Uint64N(end-first+1)
		switch r.IntN(3) {
		case 0:
			delete(a, seg)
			delete(b, seg)
		case 1:
			delete(b, seg)
		default:
			b[seg] = random(r)
		}
	}
	head := end*Segment - uint64(r.IntN(Segment))
	lead, lag := uint64(r.IntN(100*Segment)), uint64(r.IntN(100*Segment))
	tx = NewRing(7, head+lead, first*Segment+min(lag, head-first*Segment), a.digest)
	rx = NewRing(7, head, first*Segment, b.digest)
	return tx, rx, a, b
}

// TestCommonTwin: what is kept is the same on both sides and in truth; what
// differs costs its group and no more.
func TestCommonTwin(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	kept, lost := 0, 0
	for range 100 {
		tx, rx, a, b := pair(r)
		got := common(&tx, &rx)
		if !reflect.DeepEqual(got, common(&rx, &tx)) {
			t.Fatal("the two sides differ")
		}
		in := map[uint64]bool{}
		for i, g := range got {
			if g.From >= g.To || i > 0 && got[i-1].To >= g.From {
				t.Fatalf("ranges %v", got)
			}
			for seg := g.From; seg < g.To; seg++ {
				in[seg] = true
				if seg*Segment >= max(tx.Tail, rx.Tail) && a[seg] != b[seg] {
					t.Fatalf("segment %d differs and is kept", seg)
				}
			}
		}
		la, lb := tx.layout(), rx.layout()
		for seg := range a {
			g := uint64(1) << (3 * max(la.level(seg), lb.level(seg)))
			same := seg/block*block >= max(tx.Tail, rx.Tail)/Segment/block*block+block
			for s := seg / g * g; s < seg/g*g+g; s++ {
				same = same && a[s] == b[s] && (g > 1 || s < la.end && s < lb.end)
			}
			if in[seg] {
				kept++
			} else if lost++; same && a[seg] != (Digest{}) {
				t.Fatalf("segment %d in a group of %d is the same and lost", seg, g)
			}
		}
	}
	t.Logf("%d kept, %d lost", kept, lost)
	if kept < 4*lost {
		t.Error("too much is lost")
	}
}

// likely is a pair that has something in common.
func likely(r *rand.Rand) (tx, rx Ring) {
	for len(common(&tx, &rx)) == 0 {
		tx, rx, _, _ = pair(r)
	}
	return tx, rx
}

// sides returns two summaries that know each other.
func sides(r *rand.Rand) (a, b *Summary) {
	tx, rx := likely(r)
	tx2, rx2 := likely(r)
	a = &Summary{Size: 1 << 30, Self: Identity{[16]byte{1}, 11, 5}, Sent: tx, Received: rx2}
	b = &Summary{Size: 1 << 30, Self: Identity{[16]byte{2}, 22, 9}, Sent: tx2, Received: rx}
	a.Sent.Epoch, b.Received.Epoch = 100, 100
	b.Sent.Epoch, a.Received.Epoch = 200, 200
	a.Peer, b.Peer = b.Self, a.Self
	return a, b
}

// mirrored agrees on both sides.
func mirrored(t *testing.T, a, b *Summary) Verdict {
	t.Helper()
	v, w := Agree(a, b), Agree(b, a)
	w.Sent, w.Received = w.Received, w.Sent
	w.Suspect, w.PeerSuspect = w.PeerSuspect, w.Suspect
	if !reflect.DeepEqual(v, w) {
		t.Fatalf("one side: %+v\nthe other: %+v", v, w)
	}
	return v
}

func TestAgree(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for name, c := range map[string]struct {
		change                  func(a, b *Summary)
		live, sent, rcvd, alarm bool
	}{
		"both lived":                 {func(_, _ *Summary) {}, true, false, false, false},
		"a restarted":                {func(a, _ *Summary) { a.Self.Instance, a.Self.Generation = 12, 6 }, false, true, true, false},
		"both restarted":             {func(a, b *Summary) { a.Self = Identity{[16]byte{1}, 12, 6}; b.Self = Identity{[16]byte{2}, 23, 10} }, false, true, true, false},
		"a lost its store":           {func(a, _ *Summary) { *a = Summary{Size: 1, Self: Identity{[16]byte{9}, 99, 1}, Sent: Ring{Epoch: 900}} }, false, false, false, false},
		"a restarted in memory":      {func(a, _ *Summary) { *a = Summary{Size: 1, Self: Identity{Instance: 99}, Sent: Ring{Epoch: 900}} }, false, false, false, false},
		"a began a new epoch":        {func(a, _ *Summary) { a.Sent.Epoch = 101 }, false, false, true, false},
		"a clone of a":               {func(a, _ *Summary) { a.Self.Instance = 12 }, false, false, false, true},
		"an old copy of a":           {func(a, _ *Summary) { a.Self.Instance, a.Self.Generation = 12, 3 }, false, false, false, true},
		"an old copy, same instance": {func(a, _ *Summary) { a.Self.Generation = 3 }, true, false, false, false},
		"never met":                  {func(a, b *Summary) { a.Peer, b.Peer = Identity{}, Identity{} }, false, true, true, false},
	} {
		a, b := sides(r)
		c.change(a, b)
		v := mirrored(t, a, b)
		if v.Live != c.live || len(v.Sent.Kept) > 0 != c.sent || len(v.Received.Kept) > 0 != c.rcvd || v.Suspect != c.alarm || v.PeerSuspect {
			t.Errorf("%s: live %v, kept %d and %d, suspect %v %v", name, v.Live, len(v.Sent.Kept), len(v.Received.Kept), v.Suspect, v.PeerSuspect)
		}
		if v.Live {
			continue
		}
		if c.alarm == (v.Sent.Epoch == a.Sent.Epoch) || v.Received.Epoch != b.Sent.Epoch {
			t.Errorf("%s: epochs %d and %d", name, v.Sent.Epoch, v.Received.Epoch)
		}
		if v.Sent.Head%Segment != 0 || v.Sent.Head < a.Sent.Head || v.Sent.Epoch == b.Received.Epoch && v.Sent.Head < b.Received.Head {
			t.Errorf("%s: head %d after %d", name, v.Sent.Head, a.Sent.Head)
		}
	}
}

func equal(a, b *Summary) bool { return bytes.Equal(a.Append(nil), b.Append(nil)) }

func TestRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for range 50 {
		a, _ := sides(r)
		b := a.Append(nil)
		got, err := Parse(b)
		if err != nil || !equal(got, a) {
			t.Fatalf("%v", err)
		}
		for range 20 {
			if _, err := Parse(b[:r.IntN(len(b))]); err == nil {
				t.Fatal("a part was taken for a summary")
			}
		}
		if _, err := Parse(append(b, 0)); err == nil {
			t.Fatal("a byte too many")
		}
	}
}

// TestLen: 64 GiB in both directions, the worst alignments.
func TestLen(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	d := func(seg uint64) Digest { return Digest{byte(seg), 1} }
	most := 0
	for range 200 {
		head := uint64(200<<30 + r.IntN(1<<30))
		ring := NewRing(1, head, 0, d)
		s := Summary{Size: MaxSize, Self: Identity{Instance: 1}, Sent: ring, Received: ring}
		b := s.Append(nil)
		if _, err := Parse(b); err != nil {
			t.Fatal(err)
		}
		most = max(most, len(b))
	}
	t.Logf("at most %d bytes", most)
	if most > MaxLen {
		t.Errorf("%d bytes", most)
	}
}

// golden is the summary of the vector: a ring with all three granularities and
// an absent segment, and an empty one.
func golden() *Summary {
	d := func(seg uint64) (d Digest) {
		if seg != 1999 {
			binary.BigEndian.PutUint64(d[:], seg)
			d[15] = 1
		}
		return d
	}
	return &Summary{
		Size: 2 << 30,
		Self: Identity{[16]byte{0: 0xa1, 15: 0xa2}, 0x1122334455667788, 3},
		Peer: Identity{[16]byte{0: 0xb1, 15: 0xb2}, 0x99aabbccddeeff00, 4},
		Sent: NewRing(0xe1, 2000*Segment+5, 5*Segment, d), Received: Ring{Epoch: 0xe2, Head: 77, Tail: 77},
	}
}

func TestGolden(t *testing.T) {
	path := filepath.Join("..", "..", "testdata", "wire", "summary.hex")
	b := golden().Append(nil)
	if *update {
		if err := os.WriteFile(path, []byte(hex.EncodeToString(b)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || !bytes.Equal(b, want) {
		t.Errorf("the summary's form has changed: %v", err)
	}
	s, err := Parse(want)
	if err != nil || !equal(s, golden()) {
		t.Errorf("the vector is not read: %v", err)
	}
}

// FuzzSummary: no input panics, allocates without measure, or gives two sides
// different verdicts.
func FuzzSummary(f *testing.F) {
	r := rand.New(rand.NewPCG(5, 5))
	a, b := sides(r)
	small := &Summary{Size: 1, Self: Identity{Instance: 1}, Sent: Ring{Epoch: 1}}
	f.Add(small.Append(nil), small.Append(nil))
	f.Add(golden().Append(nil), small.Append(nil))
	f.Add(a.Append(nil), b.Append(nil))
	f.Add([]byte{version}, []byte{})
	f.Fuzz(func(t *testing.T, x, y []byte) {
		a, err := Parse(x)
		if err != nil {
			return
		}
		if !equal(a, a) || len(a.Append(nil)) != len(x) {
			t.Fatal("not the same again")
		}
		b, err := Parse(y)
		if err != nil {
			return
		}
		mirrored(t, a, b)
	})
}

func BenchmarkAgree(b *testing.B) {
	d := func(seg uint64) Digest { return Digest{byte(seg), byte(seg >> 8), 1} }
	b.Run("summary", func(b *testing.B) {
		for b.Loop() {
			NewRing(1, 200<<30, 0, d)
		}
	})
	ring := NewRing(1, 200<<30, 0, d)
	s := &Summary{Size: MaxSize, Self: Identity{Instance: 1}, Sent: ring, Received: ring}
	wire := s.Append(nil)
	b.Run("agree", func(b *testing.B) {
		b.ReportMetric(float64(len(wire)), "summary-bytes")
		for b.Loop() {
			p, err := Parse(wire)
			if err != nil {
				b.Fatal(err)
			}
			Agree(s, p)
		}
	})
}
