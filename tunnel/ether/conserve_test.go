package ether

import (
	"encoding/binary"
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"stitch/tunnel/config"
)

// conservation sends tagged frames through switches that are joined without a
// loss and holds an account of each.
type conservation struct {
	t     *testing.T
	r     *rand.Rand
	seed  maphash.Seed
	sw    []*Switch
	home  map[config.MAC]int // where each host is
	hosts []config.MAC
	buf   []byte
	// per site: offered by its LAN, and per way what became of it.
	offered, carriedLAN, copies, fromLink, toLAN []uint64
	dropLAN, dropLink                            []uint64
}

// TestConservation holds the account of two million tagged frames between three
// sites: what goes in comes out, or is counted as dropped with a reason; nothing
// is changed, nothing arrives twice, and no unicast frame at a site where its
// destination is not. (In -short, for the race detector, a tenth of them.)
func TestConservation(t *testing.T) {
	frames := 2_100_000
	if testing.Short() {
		frames /= 10
	}
	c := newConservation(t)
	var now time.Duration
	for i := range frames {
		now += 20 * time.Microsecond
		c.one(now, uint64(i))
		if i%50_000 == 0 {
			for _, s := range c.sw {
				s.Tick(now)
			}
		}
	}
	c.settle(uint64(frames))
}

func newConservation(t *testing.T) *conservation {
	const sites, perSite = 3, 40
	c := &conservation{t: t, r: rand.New(rand.NewPCG(4, 12)), seed: maphash.MakeSeed(), home: map[config.MAC]int{}}
	seg := testBasic
	seg.BroadcastLimit, seg.VLANs = 300, []uint16{10}
	for i := range sites {
		c.sw = append(c.sw, NewSwitch(seg, sites-1, []config.MAC{macOwn}, nil))
		c.sw[i].Guard(uint64(i + 1))
		for j := range perSite {
			mac := config.MAC{2, 7, 4: byte(i), 5: byte(j)}
			c.home[mac] = i
			c.hosts = append(c.hosts, mac)
		}
	}
	for _, p := range []*[]uint64{&c.offered, &c.carriedLAN, &c.copies, &c.fromLink, &c.toLAN, &c.dropLAN, &c.dropLink} {
		*p = make([]uint64, sites)
	}
	return c
}

// one makes a frame, sends it into its site and follows every copy.
func (c *conservation) one(now time.Duration, tag uint64) {
	src := c.hosts[c.r.IntN(len(c.hosts))]
	from := c.home[src]
	frame := c.frame(src, tag)
	sum := maphash.Bytes(c.seed, frame)
	c.offered[from]++
	v := c.sw[from].FromLAN(now, frame)
	if v.Drop != Carried {
		c.dropLAN[from]++
		if v.Drop == Answered && maphash.Bytes(c.seed, v.Reply) == sum {
			c.t.Fatal("the answer is the request")
		}
		return
	}
	c.carriedLAN[from]++
	dst := config.MAC(frame[:6])
	for i := range c.sw {
		if i == from || v.To != All && v.To != c.place(from, i) {
			continue
		}
		c.copies[from]++
		c.fromLink[i]++
		if c.sw[i].FromPeer(now, c.place(i, from), frame).Drop != Carried {
			c.dropLink[i]++
			continue
		}
		c.toLAN[i]++
		if home, host := c.home[dst]; host && home != i {
			c.t.Fatalf("frame %d for a host of site %d was delivered at %d", tag, home, i)
		}
	}
	if maphash.Bytes(c.seed, frame) != sum {
		c.t.Fatalf("frame %d was changed", tag)
	}
}

// place is where site i finds site j.
func (c *conservation) place(i, j int) Place {
	if j > i {
		return Place(j)
	}
	return Place(j + 1)
}

// frame makes a frame of random kind, size and tagging with tag in it.
func (c *conservation) frame(src config.MAC, tag uint64) []byte {
	dst := c.hosts[c.r.IntN(len(c.hosts))]
	body := binary.BigEndian.AppendUint64(c.buf[:0], tag)
	ip := func(m config.MAC) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, 1 + m[4], m[5]}) }
	var frame []byte
	switch k := c.r.IntN(100); {
	case k < 3:
		frame = arpFrame(broadcast, src, arpRequest, src, ip(src), config.MAC{}, ip(dst))
		frame = binary.BigEndian.AppendUint64(frame, tag)
	case k < 5:
		frame = eth(broadcast, src, 0x88b5, body...)
	case k < 6:
		frame = eth(testMAC("01:80:c2:00:00:0e"), src, typeLLDP, body...)
	case k < 7:
		frame = eth(macGW, src, typeIPv4, body...)
	case k < 9:
		frame = eth(config.MAC{2, 8, 5: byte(tag)}, src, 0x88b5, body...) // nobody
	case k < 60:
		p := ipv4Packet(6, 0, append(body, make([]byte, c.r.IntN(1400))...)...)
		copy(p[12:], ip(src).AsSlice())
		frame = eth(dst, src, typeIPv4, p...)
	default:
		frame = eth(dst, src, 0x88b5, append(body, make([]byte, c.r.IntN(64))...)...)
	}
	if tag%7 == 0 {
		frame = tagged(frame, 0x8100, uint16(tag%3*5)) // 0, 5 (not carried), 10
	}
	return frame
}

// settle compares the account with the switches' own counters.
func (c *conservation) settle(frames uint64) {
	var offered, copies, arrived uint64
	for i, s := range c.sw {
		st := stats(s, "a", "b")
		offered, copies, arrived = offered+c.offered[i], copies+c.copies[i], arrived+c.fromLink[i]
		if in, out := c.offered[i], c.carriedLAN[i]+sum(st.FromLAN); in != out || c.dropLAN[i] != sum(st.FromLAN) {
			c.t.Errorf("site %d: %d frames from the LAN, %d carried and counted as dropped", i, in, out)
		}
		if in, out := c.fromLink[i], c.toLAN[i]+sum(st.FromLink); in != out || c.dropLink[i] != sum(st.FromLink) {
			c.t.Errorf("site %d: %d frames from links, %d delivered and counted as dropped", i, in, out)
		}
		c.t.Logf("site %d: LAN %d, carried %d, dropped %v; links %d, delivered %d, dropped %v", i, c.offered[i], c.carriedLAN[i], st.FromLAN, c.fromLink[i], c.toLAN[i], st.FromLink)
	}
	if offered != frames || copies != arrived {
		c.t.Errorf("%d frames offered of %d, %d copies sent, %d arrived", offered, frames, copies, arrived)
	}
}

func sum(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}
