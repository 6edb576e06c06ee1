package block_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"stitch/compress"
	"stitch/dedupe"
	"stitch/dedupe/store/storetest"
	"stitch/tunnel/stream/block"
	"stitch/tunnel/stream/block/blocktest"
)

// repairing is a pipe whose receiver takes blocks before it asks for them.
func repairing(t *testing.T, from, to *dedupe.History, id uint64) *pipe {
	p := newPipe(t, from, to, id)
	p.enc.Close()
	p.enc = block.NewEncoder(from, id, block.Options{Shop: shop, Repairs: true})
	return p
}

// TestRepairOfMany: the receiver has lost what everything in flight refers to. The
// first nack brings one block, the second all the others, and then nothing that
// was lost is referred to any more; without the feature each block takes a nack.
func TestRepairOfMany(t *testing.T) {
	for _, repairs := range []bool{true, false} {
		a := blocktest.NewAgents(small)
		known := blocktest.Random(1, 200_000)
		first := newPipe(t, a.A, a.B, 1)
		first.send(known, compress.Fast)
		first.drain()
		p := newPipe(t, a.A, dedupe.NewHistory(small), 2)
		if repairs {
			p = repairing(t, a.A, dedupe.NewHistory(small), 2)
		}
		for i := range 20 {
			p.send(known[i*10_000:][:10_000], compress.Fast)
			p.send(blocktest.Text(uint64(i), 500), compress.Fast)
		}
		p.drain()
		if want := map[bool]int{true: 2, false: 20}[repairs]; p.misses != want {
			t.Errorf("repairs %v: %d misses, want %d", repairs, p.misses, want)
		}
		p.send(known, compress.Fast)
		p.drain()
	}
}

// TestDoubtGrows: misses of blocks that were encoded behind the repair of the ones
// before make the encoder give up ever more of the history, all of it in the end;
// many good blocks make it forget.
func TestDoubtGrows(t *testing.T) {
	const size, step = 32 << 20, 1 << 20
	a := blocktest.NewAgents(size)
	known := blocktest.Random(2, 24<<20)
	if err := a.Forward(1).Send(known, nil); err != nil {
		t.Fatal(err)
	}
	c := a.Forward(2)
	c.Dec = block.NewDecoder(dedupe.NewHistory(size), 2, a.Shop)
	missed := func() int64 { return c.Dec.Stats().Resent }
	for i := range 24 {
		if err := c.Send(known[i*step:][:1000], nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := missed(); n < 3 || n > 4 {
		t.Errorf("%d misses before nothing was trusted", n)
	}
	if err := c.Send(known, nil); err != nil || missed() > 4 {
		t.Errorf("%d misses, %v", missed(), err)
	}
	for i := range 4 * 64 {
		if err := c.Send(blocktest.Text(uint64(i), 100), nil); err != nil {
			t.Fatal(err)
		}
	}
	one, other := a.Forward(3), a.Forward(4) // what has crossed since
	if err := one.Send(blocktest.Random(3, 16<<20), nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*blocktest.Conn{one, other} {
		if err := c.Send(blocktest.Random(3, 16<<20)[8<<20:], nil); err != nil {
			t.Fatal(err)
		}
	}
	if other.Wire > 1<<20 {
		t.Errorf("%d bytes: what was good is not trusted", other.Wire)
	}
}

// TestLate: the receiver has restarted on a slow disk, and every block refers to
// what it has not loaded yet. Each is sent again and arrives, and when all is loaded
// all is still referred to. The control is a disk that hangs: what it holds is given
// up after some blocks.
func TestLate(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			open := func(d *storetest.Disk) *dedupe.History {
				h, err := dedupe.OpenOn(dedupe.Config{Size: 32 << 20}, d)
				if err != nil {
					t.Fatal(err)
				}
				return h
			}
			one, two := storetest.New(), storetest.New()
			a := &blocktest.Agents{A: open(one), B: open(two), Shop: block.NewShop(2)}
			a.Meet()
			known := blocktest.Random(5, 20<<20)
			if err := a.Forward(1).Send(known, nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			if err := a.B.Close(); err != nil {
				t.Fatal(err)
			}
			released := make(chan struct{})
			two.SetFault(func(op storetest.Op) error {
				if op.Kind != "read" || op.File != "received.data" {
					return nil
				}
				if hangs {
					<-released
				} else {
					time.Sleep(time.Second)
				}
				return nil
			})
			a.B = open(two)
			a.Meet()
			c := a.Forward(2)
			for i := range 20 { // a segment each
				if err := c.Send(known[i<<20:][:5000], nil); err != nil {
					t.Fatal(err)
				}
			}
			late := c.Dec.Stats().Resent
			if hangs {
				time.Sleep(3 * time.Second)
				for i := range 20 {
					if err := c.Send(known[i<<20+5000:][:5000], nil); err != nil {
						t.Fatal(err)
					}
				}
				close(released)
			}
			<-a.B.Loaded()
			c.Wire = 0
			got := 0
			if err := c.Send(known[:18<<20], func(b []byte) { got += len(b) }); err != nil || got != 18<<20 {
				t.Fatalf("%d bytes, %v", got, err)
			}
			if late < 3 || hangs != (c.Wire > 1<<20) || !hangs && c.Dec.Stats().Resent != late {
				t.Errorf("hangs %v: %d blocks were late, then 18 MiB took %d bytes on the wire", hangs, late, c.Wire)
			}
			if err := errors.Join(a.A.Close(), a.B.Close()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSparesRefused: what no encoder sends, and what would be kept without bound.
func TestSparesRefused(t *testing.T) {
	known := blocktest.Random(3, 20_000)
	for name, c := range map[string]struct {
		seq   []uint64 // resent while block 0 is missing, of 40 blocks encoded
		state int      // of which so many have arrived
		ok    bool
	}{
		"next ones":    {[]uint64{1, 2, 3}, 4, true},
		"not yet sent": {[]uint64{4}, 2, true},
		"twice":        {[]uint64{1, 1}, 2, false},
		"far ahead":    {[]uint64{30}, 2, false},
	} {
		a := blocktest.NewAgents(small) // an encoder matches what one of its number has sent
		first := newPipe(t, a.A, a.B, 1)
		first.send(known, compress.Fast)
		first.drain()
		e := block.NewEncoder(a.A, 2, block.Options{Shop: shop})
		d := newDecoder(dedupe.NewHistory(small), 2)
		bodies, want := make([][]byte, 40), []byte(nil)
		for i := range bodies {
			bodies[i] = e.Append(nil, known[i*400:][:3000])
			want = append(want, known[i*400:][:3000]...)
		}
		var got []byte
		var err error
		take := func(body []byte) {
			if err == nil || errors.Is(err, block.ErrMiss) {
				got, err = d.Decode(got, body)
			}
		}
		for _, b := range bodies[:c.state] {
			take(b)
		}
		for _, seq := range append(c.seq, 0) {
			body, failed := e.Resend(nil, []byte{byte(seq), 0})
			if failed != nil {
				t.Fatal(failed)
			}
			take(body)
		}
		if corrupt := errors.Is(err, block.ErrCorrupt); corrupt == c.ok || !bytes.HasPrefix(want, got) {
			t.Errorf("%s: %v, %d bytes", name, err, len(got))
		}
		e.Close()
		d.Close()
	}
}

// TestRepairsAnyOrder loses the receiver's history again and again while blocks,
// acknowledgements and nacks of several connections are under way in any order:
// everything arrives, and nothing else.
func TestRepairsAnyOrder(t *testing.T) {
	total := 0
	seeds := uint64(8)
	if os.Getenv("STITCH_LONG") != "" {
		seeds = 300
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 9))
		a := blocktest.NewAgents(small)
		m := newMaterial(seed)
		lost := dedupe.NewHistory(small)
		for w := lost.NewWriter(dedupe.WriterOptions{}); lost.Stats().Sent < 16<<20; {
			if _, err := w.Plant(m.any()); err != nil {
				t.Fatal(err)
			}
		}
		pipes := []*pipe{repairing(t, a.A, a.B, 1), repairing(t, a.B, a.A, 2)}
		for i := range 600 {
			if i == 200 { // from here on some of the peers have another history
				pipes = append(pipes, repairing(t, a.A, lost, 3), repairing(t, a.A, lost, 4), repairing(t, a.B, lost, 5))
			}
			p := pipes[r.IntN(len(pipes))]
			switch r.IntN(4) {
			case 0, 1:
				p.send(m.any(), levels[r.IntN(len(levels))])
			case 2:
				p.deliver()
			default:
				p.answer()
			}
		}
		for _, p := range pipes {
			p.drain()
			total += p.misses
		}
	}
	t.Logf("%d misses", total)
	if total < 50 {
		t.Error("too few to show anything")
	}
}

// TestCrowded: a stream whose blocks are long under way shares a history with a faster
// one that sends the same bytes and others. It brings new sources with every block, and by
// the time that a block of the slow one arrives its sources have been recycled. There are
// soon good blocks among those that miss, and the more miss the fewer refer to anything. In the
// control the history holds all of it.
func TestCrowded(t *testing.T) {
	const blocks, size, delay, rounds = 64, 16 << 10, 40, 4000
	for name, history := range map[string]int64{"control": 256 << 20, "crowded": 1 << 20} {
		a := blocktest.NewAgents(history)
		slow, fast := repairing(t, a.A, a.B, 1), repairing(t, a.A, a.B, 2)
		known, other := blocktest.Random(7, blocks*size), blocktest.Random(8, 8<<20)
		row, longest := 0, 0
		missed := [2]int{} // in each half
		for i := range rounds {
			fast.send(known[(i+1)%blocks*size:][:size], compress.Fast)
			fast.send(other[i*size%(8<<20):][:size], compress.Fast)
			for len(fast.bodies)+len(fast.acks) > 0 {
				fast.deliver()
				fast.answer()
			}
			slow.send(known[i%blocks*size:][:size], compress.Fast)
			for len(slow.bodies) > delay {
				good, misses := slow.dec.Good(), slow.misses
				slow.deliver()
				if slow.dec.Good() > good {
					row = 0
				}
				row += slow.misses - misses
				longest = max(longest, row)
				missed[2*i/rounds] += slow.misses - misses
			}
			for len(slow.nacks)+len(slow.acks) > 0 {
				slow.answer()
			}
		}
		slow.drain()
		s := slow.enc.Stats()
		t.Logf("%s: %d misses, %d at most in a row; %d blocks sent again, %d good of %d; %d bytes for %d", name, missed, longest, s.Resent, slow.dec.Good(), rounds, s.Out, s.In)
		if (missed[0] == 0) != (name == "control") || longest > 8 {
			t.Errorf("%s: %d misses, %d in a row", name, missed, longest)
		}
		if name == "crowded" && slow.dec.Good() < rounds/2 {
			t.Errorf("%d good blocks of %d", slow.dec.Good(), rounds)
		}
	}
}
