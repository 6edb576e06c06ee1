package estimate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"time"

	"stitch/tunnel/stream/block"
	"stitch/tunnel/stream/block/blocktest"
)

const history = 32 << 20

// open returns a session that ends with the test.
func open(t *testing.T, c Config) *Session {
	t.Helper()
	c.History = history
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// send carries pieces of data at once and checks the account's sums.
func send(t *testing.T, s *Session, data ...[]byte) Result {
	t.Helper()
	var from []io.Reader
	var in int64
	for _, d := range data {
		from = append(from, bytes.NewReader(d))
		in += int64(len(d))
	}
	r, err := s.Send(from...)
	if err != nil {
		t.Fatal(err)
	}
	if r.In != in || r.Matched+r.Zero+r.Literal != in || r.Resent != 0 {
		t.Errorf("%d bytes sent, account %+v", in, r)
	}
	return r
}

// TestAccount compares what is counted with a pair of agents that know nothing
// of turns, and whose bodies and acknowledgements are summed as they pass.
func TestAccount(t *testing.T) {
	first := blocktest.Pages(1, 3000)
	second, _, _ := blocktest.Edit(first, 2, 20)
	s, twin := open(t, Config{}), blocktest.NewAgents(history)
	met := 2*4 + len(s.sender.Summary()) + len(s.receiver.Summary())
	for i, data := range [][]byte{first, second, nil, {7}, first[:block.MaxBlock], make([]byte, 3<<20)} {
		got := send(t, s, data)
		c := twin.Forward(uint64(i + 1))
		if err := c.Send(data, nil); err != nil {
			t.Fatal(err)
		}
		c.Close()
		blocks, turns, acks := pieces(len(data), block.MaxBlock), pieces(len(data), answerEvery), 0
		for n := 1; n <= blocks; n++ {
			acks -= len(binary.AppendUvarint(nil, uint64(n))) // the twin's, one a block
			if n*block.MaxBlock%answerEvery == 0 || n == blocks {
				acks += len(binary.AppendUvarint(nil, uint64(n)))
			}
		}
		// DATA of each block; ACK and CREDIT of each MiB; HELLO 89, WELCOME 121,
		// AUTH 32, READY, OPEN 18, DIALING, OPENED 4; FIN and DONE 8, twice; once
		// RESYNC.
		want := c.Wire + acks + blocks*4 + turns*(4+12) + 7*4 + 89 + 121 + 32 + 18 + 4 + 4*12
		if i == 0 {
			want += met
		}
		if int(got.Out) != want {
			t.Errorf("piece %d: %d bytes out, want %d", i, got.Out, want)
		}
	}
}

// pieces is how many pieces of a size cover n bytes.
func pieces(n, size int) int { return (n + size - 1) / size }

// TestShares checks what is found where there is only one thing to find.
func TestShares(t *testing.T) {
	s := open(t, Config{})
	random := blocktest.Random(1, 2<<20)
	if r := send(t, s, random); r.Literal != 2<<20 || r.Out < 2<<20 || r.Out > 2<<20+2<<10 {
		t.Errorf("random bytes: %+v", r)
	}
	if r := send(t, s, random); r.Matched != 2<<20 || r.Out > 2<<10 {
		t.Errorf("the same again: %+v", r)
	}
	if r := send(t, s, make([]byte, 2<<20)); r.Zero != 2<<20 || r.Out > 2<<10 {
		t.Errorf("zeros: %+v", r)
	}
}

// TestSeed: seeded bytes are found, others are not.
func TestSeed(t *testing.T) {
	s := open(t, Config{})
	image, other := blocktest.Random(1, 4<<20), blocktest.Random(2, 4<<20)
	if n, err := s.Seed(io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), bytes.NewReader(image))); err != nil || n != 5<<20 {
		t.Fatal(n, err)
	}
	if st := s.sender.Stats(); st.Sent >= 5<<20 {
		t.Errorf("%d bytes of the history used", st.Sent)
	}
	if r := send(t, s, image[1<<20:]); r.Matched < 3<<20-256 {
		t.Errorf("a part of the seed: %+v", r)
	}
	if r := send(t, s, other); r.Matched != 0 {
		t.Errorf("unknown bytes: %+v", r)
	}
}

// TestTogether: connections that are open at the same time find each other's
// acknowledged bytes, and end on their own.
func TestTogether(t *testing.T) {
	data := blocktest.Random(1, 6<<20)
	s := open(t, Config{})
	r := send(t, s, data, nil, append(blocktest.Random(2, 3<<20), data...), data[:100])
	if r.Matched < 5<<20 || r.Matched > 6<<20+100 {
		t.Errorf("%d of %d bytes matched", r.Matched, r.In)
	}
}

// TestTimes: the clock's steps between reading, encoding and decoding end up in
// the right sums.
func TestTimes(t *testing.T) {
	var now time.Duration
	s := open(t, Config{CPU: func() time.Duration { now += time.Second; return now }})
	turns := time.Duration(3) // the third finds the end
	r := send(t, s, make([]byte, 2*turnBytes))
	if r.Encode < turns*time.Second || r.Decode != turns*time.Second {
		t.Errorf("encoding %v, decoding %v", r.Encode, r.Decode)
	}
	a, b := ProcessCPU(), ProcessCPU()
	if a <= 0 || b < a {
		t.Errorf("processor time %v, then %v", a, b)
	}
	if rss, err := PeakRSS(); err != nil || rss < 1<<20 {
		t.Errorf("peak memory %d, %v", rss, err)
	}
}

func TestReaderFails(t *testing.T) {
	broken := errors.New("broken")
	_, err := open(t, Config{}).Send(io.MultiReader(bytes.NewReader(make([]byte, 3<<20)), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if _, err := open(t, Config{}).Seed(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("seed: %v", err)
	}
}

// encoded returns a connection with one encoded turn of data.
func encoded(t *testing.T, s *Session, data []byte) *conn {
	t.Helper()
	c := s.dial(bytes.NewReader(data))
	t.Cleanup(c.close)
	if err := errors.Join(c.read(), c.encode()); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestVerification: one wrong bit of the decoder's output is an error that says
// where; without it there is none.
func TestVerification(t *testing.T) {
	for _, bad := range []bool{false, true} {
		c := encoded(t, open(t, Config{}), blocktest.Random(1, 200_000))
		if err := c.decode(); err != nil {
			t.Fatal(err)
		}
		if bad {
			c.out[199_999] ^= 1
		}
		err := c.compare()
		if errors.Is(err, ErrDiffers) != bad || bad && err.Error() != ErrDiffers.Error()+" at byte 199999" {
			t.Errorf("bad %v: %v", bad, err)
		}
	}
	c := encoded(t, open(t, Config{}), blocktest.Random(1, 200_000))
	if err := c.decode(); err != nil {
		t.Fatal(err)
	}
	c.out = c.out[:1000]
	if err := c.compare(); !errors.Is(err, ErrDiffers) {
		t.Errorf("a short output: %v", err)
	}
}

// TestDamage: damaged blocks are noticed by the codec itself; one with tokens
// is sent again and counted.
func TestDamage(t *testing.T) {
	data := blocktest.Random(1, block.MaxBlock)
	s := open(t, Config{})
	c := encoded(t, s, data)
	c.bodies[len(c.bodies)-1] ^= 1
	if err := c.decode(); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("damaged literals: %v", err)
	}
	send(t, s, data)
	c = encoded(t, s, data)
	good := c.wire
	c.bodies[len(c.bodies)-8] ^= 1 // of the checksum
	if err := errors.Join(c.decode(), c.compare()); err != nil {
		t.Fatal(err)
	}
	var r Result
	if err := c.finish(&r); err != nil || r.Resent != 1 || r.Out < good+block.MaxBlock {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestKeep: a second session on the same directory finds what the first sent;
// a directory that is in use, or none at all, is an error.
func TestKeep(t *testing.T) {
	dir, data := t.TempDir(), blocktest.Random(1, 3<<20)
	send(t, open(t, Config{}), data) // elsewhere
	for i, want := range []int64{0, 3 << 20} {
		s, err := New(Config{History: history, Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if s.Kept() < want || want == 0 && s.Kept() > 0 {
			t.Errorf("session %d: %d bytes kept", i, s.Kept())
		}
		if r := send(t, s, data); r.Matched != want {
			t.Errorf("session %d: %+v", i, r)
		}
		if _, err := New(Config{History: history, Dir: dir}); !errors.Is(err, ErrStore) {
			t.Errorf("a directory in use: %v", err)
		}
		if alarms := s.Alarms(); len(alarms) != 0 {
			t.Errorf("alarms %q", alarms)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := New(Config{History: history, Dir: "/dev/null"}); !errors.Is(err, ErrStore) {
		t.Errorf("no directory: %v", err)
	}
}
