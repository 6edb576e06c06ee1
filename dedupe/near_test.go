package dedupe

import (
	"bytes"
	"testing"
)

// records returns the records that stay, behind each of them 100 to 199 new bytes,
// and how many bytes stay.
func records(src *source, stay [][]byte) (b []byte, kept int) {
	for _, r := range stay {
		b = append(b, r...)
		b = append(b, src.random(100+src.r.IntN(100))...)
		kept += len(r)
	}
	return b, kept
}

// TestNear: what lies between two changes of other lengths is found though it is
// too short for an anchor. The controls are the same traffic where nothing was
// known before it, and for whoever must not tell where it is (Lines).
func TestNear(t *testing.T) {
	for _, c := range []struct {
		known, lines bool
	}{{true, false}, {false, false}, {true, true}} {
		a, b := newSide(4<<20), newSide(4<<20)
		src := newSource(21, 300_000)
		first := dial(t, a, b)
		stay := make([][]byte, 400)
		for i := range stay {
			stay[i] = src.random(80)
		}
		old, _ := records(src, stay)
		changed, kept := records(src, stay)
		for _, p := range [][]byte{src.pool[:200_000], old} {
			first.send(p)
			first.deliver()
			first.ack()
		}
		again := dialWith(t, a, b, WriterOptions{Lines: c.lines})
		if c.known {
			for range 4 {
				again.send(src.pool[:200_000])
				again.deliver()
			}
		}
		blk := again.send(changed)
		again.deliver()
		found := 10 * blk.Matched / kept
		if near := c.known && !c.lines; near && found < 8 || !near && found > 4 {
			t.Errorf("%+v: %d of %d bytes that stayed were found", c, blk.Matched, kept)
		}
	}
}

// TestNearPlaces: words are found in both places, none of one byte value, and
// nothing of another segment is read.
func TestNearPlaces(t *testing.T) {
	a, b := newSide(4<<20), newSide(4<<20)
	src := newSource(22, 300_000)
	c := dial(t, a, b)
	data := bytes.Clone(src.pool[:200_000])
	copy(data[5000:], bytes.Repeat([]byte{7}, 600))
	blk := c.send(data)
	c.deliver()
	at := blk.Spans[0].Pos
	n := new(near)
	for k, from := range []int{4000, 9000} {
		n.add(k, a.h, Sent, at+uint64(from), 2000)
		for _, want := range []int{from, from + 61*nearStep} {
			i, u, ok := n.find(data, want, want+8)
			if !ok || i != want || u.ring != Sent || u.diag != at {
				t.Errorf("byte %d: at %d, %+v, %v", want, i, u, ok)
			}
		}
	}
	if i, _, ok := n.find(data, 5000, 5600-8); ok {
		t.Errorf("byte %d found in a run of one value", i)
	}
	end := segmentSize - int(at%segmentSize)
	n = new(near)
	n.add(0, a.h, Sent, at+uint64(end)-100, nearOld)
	if n.n != 100 && end <= len(data) {
		t.Errorf("%d bytes of a place 100 bytes before the end of a segment", n.n)
	}
	if n.add(1, a.h, Sent, 1<<40, nearOld); n.n > 100 {
		t.Error("a place beyond the head has bytes")
	}
}
