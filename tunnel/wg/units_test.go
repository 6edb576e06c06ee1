package wg

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"stitch/tunnel/netdev"
	"stitch/tunnel/netdev/netdevtest"
	"stitch/tunnel/netdev/super"
)

// superTUN is a Fake that hands over super-packets as a TUN device does: what
// comes from In has a super.Header in front. Only one Read runs at a time.
type superTUN struct {
	*netdevtest.Fake
	pack  netdev.Packer
	split super.Splitter
	limit int
}

func newSuperTUN(name string) *superTUN {
	return &superTUN{Fake: netdevtest.NewFake(name, 128), limit: 1440}
}

func (d *superTUN) Offer(p netdev.Packer) { d.pack = p }
func (d *superTUN) CutTo(int)             {}

func (d *superTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if n := d.cut(bufs, sizes, offset); n > 0 {
		return n, nil
	}
	var one [1][]byte
	one[0] = make([]byte, netdev.MinOffset+super.HeaderLen+super.MaxPacket)
	var size [1]int
	n, err := d.Fake.Read(one[:], size[:], netdev.MinOffset)
	if n == 0 || err != nil {
		return 0, err
	}
	return d.take(one[0][netdev.MinOffset:][:size[0]], bufs, sizes, offset), nil
}

func (d *superTUN) Poll(bufs [][]byte, sizes []int, offset int) (int, error) {
	n := d.cut(bufs, sizes, offset)
	for n < len(bufs) {
		select {
		case b := <-d.In:
			n += d.take(b, bufs[n:], sizes[n:], offset)
		default:
			return n, nil
		}
	}
	return n, nil
}

// take begins with a super-packet.
func (d *superTUN) take(b []byte, bufs [][]byte, sizes []int, offset int) int {
	h, err := super.ParseHeader(b)
	if err == nil {
		err = d.split.Start(b[super.HeaderLen:], h, super.IP, d.limit)
	}
	if err != nil {
		panic(err)
	}
	switch {
	case d.pack == nil:
	case h.Kind == super.None || h.Kind == super.UDP:
		d.pack.Pass(b[super.HeaderLen:])
	case d.pack.Take(b[super.HeaderLen:], h, &d.split):
		d.split = super.Splitter{}
	}
	return d.cut(bufs, sizes, offset)
}

func (d *superTUN) cut(bufs [][]byte, sizes []int, offset int) (n int) {
	for ; n < len(bufs) && d.pack.Len() > 0; n++ {
		sizes[n] = d.pack.Len()
		d.pack.Next(bufs[n][offset:])
	}
	for ; n < len(bufs) && d.split.Len() > 0; n++ {
		sizes[n] = d.split.Len()
		d.split.Next(bufs[n][offset:])
	}
	return n
}

// words returns n bytes of TCP payload that compresses.
func words(rng *rand.Rand, n int) []byte {
	var b []byte
	for len(b) < n {
		b = fmt.Appendf(b, "line %d of the log; ", rng.IntN(1000))
	}
	return b[:n]
}

// superPacket returns a TCP super-packet of IPv4 with its header in front.
func superPacket(payload []byte, seq uint32, size int) []byte {
	h := super.Header{Partial: true, Kind: super.TCP4, Size: uint16(size), Start: 20, Offset: 16}
	b := make([]byte, super.HeaderLen, super.HeaderLen+40+len(payload))
	h.Put(b)
	p, _ := superFrame(nil, seq, 0)
	b = append(append(b, p[14:]...), payload...)
	binary.BigEndian.PutUint16(b[super.HeaderLen+2:], uint16(40+len(payload)))
	return b
}

// plain returns a packet with its header in front.
func plain(p []byte) []byte { return append(make([]byte, super.HeaderLen), p...) }

// packets cuts what superPacket or plain made.
func packets(t *testing.T, b []byte, limit int) (all [][]byte) {
	t.Helper()
	b = bytes.Clone(b)
	h, err := super.ParseHeader(b)
	var s super.Splitter
	if err == nil {
		err = s.Start(b[super.HeaderLen:], h, super.IP, limit)
	}
	if err != nil {
		t.Fatal(err)
	}
	for n := s.Len(); n > 0; n = s.Len() {
		p := make([]byte, n)
		s.Next(p)
		all = append(all, p)
	}
	return all
}

// What leaves a TUN device as super-packets arrives as the packets that they
// are made of, in order, with packets between them that need one datagram, two,
// or may not enter, whether both ends pack or one does not; and only if both do
// units cross.
func TestUnitsOfPackets(t *testing.T) {
	for _, off := range []int{-1, 0, 1} { // which end does not
		tuns := [2]*superTUN{newSuperTUN("st-0"), newSuperTUN("st-1")}
		links := openRing(t, [2]func(*Config){
			func(c *Config) { c.TUN, c.NoPack = tuns[0], off == 0 },
			func(c *Config) { c.TUN, c.NoPack = tuns[1], off == 1 },
		})
		waitFor(t, "what the peer can do", func() bool { return links[0].Stats().Pack.Peer == (off < 0) })
		rng := rand.New(rand.NewPCG(1, 1))
		var want [][]byte
		var own, offered uint64
		sent := make(chan []byte, 4096)
		for i := range uint32(300) {
			var b []byte
			switch rng.IntN(6) {
			case 0:
				b = plain(ipPacket(1500, uint16(i))) // crosses in parts
			case 1:
				b = plain(ipPacket(28+rng.IntN(1400), uint16(i)))
			case 2: // as if it were a part: may not enter
				p := ipPacket(60, 1)
				p[9] = 97
				copy(p[12:], links[0].cfg.Local.AsSlice())
				sent <- plain(p)
				continue
			case 3: // of the agents themselves
				b = superPacket(words(rng, 1+rng.IntN(60000)), i<<16, 1000)
				copy(b[super.HeaderLen+12:], links[0].cfg.Local.AsSlice())
				copy(b[super.HeaderLen+16:], links[0].cfg.Remote.AsSlice())
				own++
			default:
				offered++
				b = superPacket(words(rng, 1+rng.IntN(60000)), i<<16, 300+rng.IntN(1161))
			}
			want = append(want, packets(t, b, 1440)...)
			sent <- b
		}
		close(sent)
		go func() {
			for b := range sent {
				tuns[0].In <- b
			}
		}()
		for i, w := range want {
			select {
			case p := <-tuns[1].Out:
				if !bytes.Equal(p, w) {
					t.Fatalf("end %d off: packet %d of %d is another:\n%x\n%x", off, i, len(want), p[:min(60, len(p))], w[:min(60, len(w))])
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("end %d off: %d of %d packets arrived: %+v", off, i, len(want), links[0].Stats())
			}
		}
		tx, rx := links[0].Stats(), links[1].Stats()
		if p := tx.Pack; off < 0 && (p.Units+p.Odd+p.Small+p.Passed+p.Encrypted+p.Lossy+p.Busy != offered || own == 0) {
			t.Errorf("%d super-packets were to be offered, and none of %d of the agents: %+v", offered, own, p)
		}
		if (tx.Pack.Units > 0) != (off < 0) || tx.Pack.Units != rx.Pack.Received {
			t.Errorf("end %d off: %d units sent, %d received", off, tx.Pack.Units, rx.Pack.Received)
		}
		if tx.Tx.Packets != rx.Rx.Packets || tx.Tx.Bytes != rx.Rx.Bytes || tx.Drops.Forged == 0 || rx.Drops.Unit > 0 {
			t.Errorf("end %d off: sent %+v, received %+v, drops %+v and %+v", off, tx.Tx, rx.Rx, tx.Drops, rx.Drops)
		}
	}
}

// On a link with a rate, units and packets of one flow stay in order: the queue
// that is fair to flows knows to which a unit belongs.
func TestUnitsShaped(t *testing.T) {
	tuns := [2]*superTUN{newSuperTUN("st-0"), newSuperTUN("st-1")}
	links := openRing(t, [2]func(*Config){
		func(c *Config) { c.TUN, c.Rate = tuns[0], 100e6 },
		func(c *Config) { c.TUN, c.Rate = tuns[1], 100e6 },
	})
	waitFor(t, "the peer takes units", func() bool { return links[0].Stats().Pack.Peer })
	rng := rand.New(rand.NewPCG(1, 1))
	var want [][]byte
	for i := range uint32(150) {
		payload := words(rng, 1+rng.IntN(20000))
		if i%3 == 0 {
			payload = payload[:min(len(payload), 1000)] // crosses as it is
		}
		b := superPacket(payload, i<<16, 1400)
		want = append(want, packets(t, b, 1440)...)
		tuns[0].In <- b
	}
	for i, w := range want {
		select {
		case p := <-tuns[1].Out:
			if !bytes.Equal(p, w) {
				t.Fatalf("packet %d of %d is another", i, len(want))
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%d of %d packets arrived: %+v", i, len(want), links[0].Stats())
		}
	}
	if s := links[0].Stats().Pack; s.Units == 0 || s.Odd == 0 {
		t.Errorf("no mixture: %+v", s)
	}
}

// lossy sends super-frames over a lossy path and returns which of their frames
// arrived; each must be as it was sent, once and in order.
func lossy(t *testing.T, loss float64, options ...func(*Config)) (sent, arrived int, s Stats) {
	bubble(t, 10*time.Millisecond, 0, func(t *testing.T, n *simNet) {
		var mu sync.Mutex
		var got [][]byte
		a := n.open(t, 0, options...)
		b := n.open(t, 1, func(c *Config) {
			c.OnFrames = each(func(_ uint16, f []byte) {
				mu.Lock()
				defer mu.Unlock()
				got = append(got, bytes.Clone(f))
			})
		})
		defer a.close(t)
		defer b.close(t)
		a.until(t, Up, 5*time.Second)
		b.until(t, Up, 5*time.Second)
		time.Sleep(2 * time.Second)
		n.set(func() { n.loss = loss })
		rng := rand.New(rand.NewPCG(1, 1))
		var want [][]byte
		for i := range uint32(300) {
			p := superPacket(words(rng, 20000), i<<16, 1350)
			for _, w := range packets(t, p, 1398) {
				want = append(want, w)
			}
			h, _ := super.ParseHeader(p)
			h.Start += 14
			frame := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0}, p[super.HeaderLen:]...)
			if !a.SendFrame(1, frame, h) {
				t.Fatal("not sent")
			}
			time.Sleep(5 * time.Millisecond)
		}
		n.set(func() { n.loss = 0 })
		time.Sleep(time.Second)
		mu.Lock()
		defer mu.Unlock()
		at := 0
		for _, f := range got {
			for at < len(want) && !bytes.Equal(want[at], f[14:]) {
				at++
			}
			if at == len(want) {
				t.Fatal("a frame arrived that was not sent, twice or out of order")
			}
			at++
		}
		sent, arrived, s = len(want), len(got), a.Stats()
	})
	return sent, arrived, s
}

// A lost part loses the unit and nothing else: what arrives is right.
func TestUnitsLost(t *testing.T) {
	sent, arrived, s := lossy(t, 0)
	if arrived != sent || s.Pack.Units != 300 {
		t.Errorf("without loss %d of %d arrive, in %d units", arrived, sent, s.Pack.Units)
	}
	sent, arrived, s = lossy(t, 0.05)
	if share := float64(arrived) / float64(sent); share < 0.5 || share > 0.97 {
		t.Errorf("at 5 %% loss %d of %d arrive", arrived, sent)
	}
	if s.Pack.Units < 200 {
		t.Errorf("only %d units", s.Pack.Units)
	}
}
