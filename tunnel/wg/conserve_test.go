package wg

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"stitch/tunnel/netdev/super"
)

// stamped returns a frame of n bytes with up to two tags that carries its own
// number, and whose every byte follows from that.
func stamped(b []byte, number uint32, tags, n int) []byte {
	b = append(b[:0], 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2)
	for i := range tags {
		b = append(b, 0x81, 0, 0, byte(10+i))
	}
	b = append(b, 0x88, 0xb5)
	b = binary.BigEndian.AppendUint32(b, number)
	for i := len(b); i < n; i++ {
		b = append(b, byte(i)*byte(number>>3)+byte(number))
	}
	return b
}

// ledger is what arrives of one direction.
type ledger struct {
	mu       sync.Mutex
	frames   uint32 // the number that comes next
	altered  int
	missing  int
	again    int
	misplace int
	segments int
	stream   uint32 // the TCP byte that comes next
	buf      []byte
}

// take checks one frame.
func (l *ledger) take(segment uint16, f []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := 12
	for binary.BigEndian.Uint16(f[at:]) == 0x8100 {
		at += 4
	}
	if segment != uint16(100+(at-12)/4) {
		l.misplace++
	}
	if binary.BigEndian.Uint16(f[at:]) == 0x0800 {
		l.tcp(f)
		return
	}
	number := binary.BigEndian.Uint32(f[at+2:])
	switch {
	case number > l.frames:
		l.missing += int(number - l.frames)
	case number < l.frames:
		l.again++
		return
	}
	l.frames = number + 1
	if l.buf = stamped(l.buf, number, (at-12)/4, len(f)); !bytes.Equal(l.buf, f) {
		l.altered++
	}
}

// tcp checks a packet of the one TCP flow: its bytes follow from their place.
func (l *ledger) tcp(f []byte) {
	l.segments++
	if seq := binary.BigEndian.Uint32(f[38:]); seq != l.stream {
		l.missing++
		l.stream = seq
	}
	for _, c := range f[54:] {
		if c != streamByte(l.stream) {
			l.altered++
		}
		l.stream++
	}
}

// streamByte is the byte at a place of the TCP flow; the flow compresses in its
// first million, and looks random in its second.
func streamByte(seq uint32) byte {
	if seq>>20&1 == 0 {
		return byte(seq >> 6)
	}
	return byte(seq ^ seq>>8)
}

// superFrame returns one of the flow from seq on.
func superFrame(b []byte, seq uint32, n int) ([]byte, super.Header) {
	b = append(b[:0], 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0,
		0x45, 0, byte((n+40)>>8), byte(n+40), 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 1, 0, 11, 10, 1, 0, 12,
		0, 7, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[38:], seq)
	for i := range uint32(n) {
		b = append(b, streamByte(seq+i))
	}
	return b, super.Header{Partial: true, Kind: super.TCP4, Size: 1460, Start: 34, Offset: 16}
}

// Conservation: every frame that a link takes arrives once, where it belongs,
// unchanged and in order, or is counted as dropped: short and jumbo frames,
// with and without tags, super-frames in between, both ways at once. The long
// run (STITCH_LONG=1) has two million frames, the usual one a hundred thousand.
func TestConservation(t *testing.T) {
	total := 50_000
	if os.Getenv("STITCH_LONG") != "" {
		total = 1_000_000
	}
	// On a machine so busy that a link counts as down for a while, frames wait,
	// and of each flow the newest alone: that says nothing about a link that is up.
	for range 5 {
		if conserve(t, total) {
			return
		}
		t.Log("a link went down: run again")
	}
	t.Fatal("no link stayed up")
}

// conserve makes one run of TestConservation; false means that a link went down
// in it, and that nothing was checked.
func conserve(t *testing.T, total int) (up bool) {
	t.Helper()
	var books [2]ledger
	links := openRing(t, [2]func(*Config){
		func(c *Config) { c.OnFrames = each(books[1].take) },
		func(c *Config) { c.OnFrames = each(books[0].take) },
	})
	var since [2]time.Time // they are up
	for i, l := range links {
		since[i] = l.Stats().Since
	}
	var refused [2]uint64 // and sent again
	var streams [2]uint32
	var wg sync.WaitGroup
	for i, l := range links {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 9))
			var b []byte
			for number := range uint32(total) {
				tags := rng.IntN(3)
				n := 60 + rng.IntN(200)
				switch rng.IntN(20) {
				case 0:
					n = 9018 - rng.IntN(20)
				case 1, 2:
					n = 1400 + rng.IntN(130) // on both sides of what fits
				}
				b = stamped(b, number, tags, n)
				for !l.SendFrame(uint16(100+tags), b, super.Header{}) {
					refused[i]++
				}
				if rng.IntN(200) == 0 {
					n, h := 1+rng.IntN(60000), super.Header{}
					b, h = superFrame(b, streams[i], n)
					for !l.SendFrame(100, b, h) {
						refused[i]++
					}
					streams[i] += uint32(n)
				}
			}
		})
	}
	wg.Wait()
	for i, l := range links {
		if st := l.Stats(); !st.Since.Equal(since[i]) {
			t.Logf("%s up until %v, now %v since %v; dropped %+v", []string{"a", "b"}[i], since[i], st.State, st.Since, st.Drops)
			return false
		}
	}
	for i := range links {
		from, to, book := links[i], links[1-i], &books[i]
		// On a machine that stops for a second, parts may wait too long.
		lost := func() uint64 {
			r := to.Stats().Reassembly
			return r.TimedOut + r.Evicted
		}
		for range 100 {
			if from.Stats().Tx.Frames == to.Stats().Rx.Frames+lost() {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if tx, rx := from.Stats().Tx.Frames, to.Stats().Rx.Frames; tx <= uint64(total) || tx != rx+lost() {
			t.Errorf("%d frames sent, %d arrived, %d counted as lost", tx, rx, lost())
		}
		book.mu.Lock()
		if book.altered+book.again+book.misplace != 0 || uint64(book.missing) != lost() || book.frames != uint32(total) && lost() == 0 || book.stream != streams[i] {
			t.Errorf("%d altered, %d twice, %d in a wrong segment, %d missing, %d counted as lost, %d frames, %d of %d bytes", book.altered, book.again,
				book.misplace, book.missing, lost(), book.frames, book.stream, streams[i])
		}
		if from.Stats().Pack.Units == 0 {
			t.Error("no super-frame was packed")
		}
		if d := from.Stats().Drops; d.FrameQueue != refused[i] || d.FrameInvalid != 0 {
			t.Errorf("refused %d, counted %+v", refused[i], d)
		}
		t.Logf("%d frames and %d segments, %d in parts, %d lost, %d sent again", book.frames, book.segments, to.Stats().Reassembly.Joined, lost(), refused[i])
		book.mu.Unlock()
	}
	return true
}
