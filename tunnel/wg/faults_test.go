package wg

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"stitch/tunnel/wan"
)

// numbered is an IPv4 packet of 200 bytes with a number, from which all of its
// payload follows.
func numbered(number uint32) []byte {
	p := ipPacket(200, 7)
	binary.BigEndian.PutUint32(p[28:], number)
	for i := 32; i < len(p); i++ {
		p[i] = byte(number>>(i%4*8)) ^ byte(i)
	}
	return p
}

// numbers takes what has arrived at e: the numbers in order, and how many
// packets were altered.
func numbers(e *simEnd) (list []uint32, altered int) {
	synctest.Wait()
	for len(e.tun.Out) > 0 {
		p := <-e.tun.Out
		n := uint32(0)
		if len(p) == 200 {
			n = binary.BigEndian.Uint32(p[28:])
		}
		if !bytes.Equal(p, numbered(n)) {
			altered++
			continue
		}
		list = append(list, n)
	}
	return list, altered
}

// TestDamage is W-04: a bit of some datagrams is flipped. Nothing that was altered
// comes out, the rest does, what was damaged is counted, and a few per cent are
// no dead link. The control case damages nothing.
func TestDamage(t *testing.T) {
	for _, share := range []float64{0, 0.02, 0.3} {
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			bubble(t, 20*time.Millisecond, 0, func(t *testing.T, n *simNet) {
				a, b := connected(t, n)
				defer a.close(t)
				defer b.close(t)
				time.Sleep(time.Second)
				edges := len(a.states) + len(b.states)
				rng, damaged := rand.New(rand.NewPCG(1, 4)), uint64(0)
				n.set(func() {
					n.drops = func(from int, p []byte) bool {
						if rng.Float64() < share {
							bit := rng.IntN(8 * len(p))
							p[bit/8] ^= 1 << (bit % 8)
							if from == 0 && len(p) > keepaliveLen {
								damaged++
							}
						}
						return false
					}
				})
				const packets = 4000
				var arrived []uint32
				for i := range uint32(packets) {
					a.tun.In <- numbered(i)
					time.Sleep(5 * time.Millisecond)
					if i%100 == 99 {
						list, altered := numbers(b)
						if arrived = append(arrived, list...); altered > 0 {
							t.Fatalf("%d altered packets came out", altered)
						}
					}
				}
				time.Sleep(time.Second)
				list, _ := numbers(b)
				arrived = append(arrived, list...)
				if share < 0.1 {
					if got := len(a.states) + len(b.states) - edges; got != 0 {
						t.Errorf("%d edges", got)
					}
					if want := packets - int(1.5*share*packets); len(arrived) < want {
						t.Errorf("%d of %d packets arrived, want %d", len(arrived), packets, want)
					}
				}
				n.set(func() { n.drops = nil })
				b.until(t, Up, 5*time.Second)
				// A flipped type or receiver makes it another message.
				got := b.Stats().Drops.Rejected
				t.Logf("%d arrived, %d rejected of %d damaged", len(arrived), got, damaged)
				if got > damaged || got < damaged*8/10 {
					t.Errorf("%d rejected of %d damaged", got, damaged)
				}
			})
		})
	}
}

// TestTwiceOnTheWay is W-05: datagrams arrive twice. Each packet comes out once,
// in order, and the rest is counted.
func TestTwiceOnTheWay(t *testing.T) {
	for _, share := range []float64{0, 0.01, 0.5} {
		onPath(t, wan.Params{Delay: 20 * time.Millisecond, Duplicate: share}, func(t *testing.T, p *path) {
			before := p.Counters(pathAddrs[0], pathAddrs[1]).Duplicates
			rejected := p.ends[1].Stats().Drops.Rejected
			var arrived []uint32
			for i := range uint32(2000) {
				p.ends[0].tun.In <- numbered(i)
				if i%20 == 19 {
					time.Sleep(50 * time.Millisecond)
					list, _ := numbers(p.ends[1])
					arrived = append(arrived, list...)
				}
			}
			if len(arrived) != 2000 || !slices.IsSorted(arrived) || len(slices.Compact(arrived)) != 2000 {
				t.Errorf("%v twice: %d of 2000 came out", share, len(arrived))
			}
			twice := p.Counters(pathAddrs[0], pathAddrs[1]).Duplicates - before
			// A few were under way before; keepalives and handshakes count elsewhere.
			if got := p.ends[1].Stats().Drops.Rejected - rejected; got > twice+20 || got+20 < twice || share > 0 && twice == 0 {
				t.Errorf("%v twice: %d rejected, %d were there twice", share, got, twice)
			}
		})
	}
}

// TestOvertaken is W-06: one datagram is overtaken by others. It still counts
// until 8,128 have; after that it is rejected, and nothing else is.
func TestOvertaken(t *testing.T) {
	for _, c := range []struct {
		depth int
		late  bool
	}{{0, false}, {3, false}, {100, false}, {8000, false}, {9000, true}} {
		t.Run(fmt.Sprint(c.depth), func(t *testing.T) {
			bubble(t, time.Millisecond, 0, func(t *testing.T, n *simNet) {
				a, b := connected(t, n)
				defer a.close(t)
				defer b.close(t)
				time.Sleep(time.Second)
				before := b.Stats().Drops.Rejected
				var held []byte
				n.set(func() {
					n.drops = func(from int, p []byte) bool {
						// A packet of 200 bytes is one of ours, no probe.
						if from != 0 || held != nil || c.depth == 0 || len(p) != 208+device.MessageTransportSize {
							return false
						}
						held = bytes.Clone(p)
						return true
					}
				})
				seen := map[uint32]int{}
				take := func() {
					time.Sleep(5 * time.Millisecond)
					list, altered := numbers(b)
					for _, v := range list {
						seen[v]++
					}
					if altered > 0 {
						t.Fatal("altered packets")
					}
				}
				for i := range uint32(c.depth + 1) {
					a.tun.In <- numbered(i)
					if i%50 == 49 {
						take()
					}
				}
				take()
				if held != nil {
					if err := n.ends[0].Send([][]byte{held}, simEndpoint{}); err != nil {
						t.Fatal(err)
					}
				}
				take()
				want := c.depth + 1
				if c.late {
					want--
				}
				rejected := b.Stats().Drops.Rejected - before
				if len(seen) != want || seen[0] == 1 == c.late || rejected != map[bool]uint64{true: 1}[c.late] {
					t.Errorf("%d of %d came out, the late one %d times, %d rejected", len(seen), c.depth+1, seen[0], rejected)
				}
			})
		})
	}
}

// TestConnectWithMuchLoss is G-18: two ends find each other under loss each way,
// the worst of a hundred tries within a bound.
func TestConnectWithMuchLoss(t *testing.T) {
	for _, c := range []struct {
		loss  float64
		limit time.Duration
	}{{0.3, 45 * time.Second}, {0.5, 90 * time.Second}} {
		var worst, sum time.Duration
		for seed := range uint64(times(100)) {
			synctest.Test(t, func(t *testing.T) {
				n := newSimNet(20*time.Millisecond, c.loss, seed)
				defer n.close()
				a, b := n.open(t, 0), n.open(t, 1)
				defer a.close(t)
				defer b.close(t)
				took := waitHandshake(t, c.limit, a, b)
				worst, sum = max(worst, took), sum+took
			})
		}
		t.Logf("loss %v: worst %v, mean %v", c.loss, worst, sum/time.Duration(times(100)))
	}
}

// waitHandshake waits until both ends have a session.
func waitHandshake(t *testing.T, limit time.Duration, ends ...*simEnd) time.Duration {
	t.Helper()
	start := time.Now()
	for time.Since(start) <= limit {
		if !slices.ContainsFunc(ends, func(e *simEnd) bool { return e.Stats().LastHandshake.IsZero() }) {
			return time.Since(start)
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("no session after %v", limit)
	return 0
}

// TestOddTimes is C-07 and C-03: links come up and renew their sessions over the
// end of 32-bit seconds, a leap second and the end of summer time. The control
// case is an ordinary day.
func TestOddTimes(t *testing.T) {
	for name, at := range map[string]time.Time{
		"an ordinary day":           time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC),
		"a leap second":             time.Date(2016, 12, 31, 23, 59, 50, 0, time.UTC),
		"the end of summer time":    time.Date(2026, 10, 25, 0, 59, 50, 0, time.UTC),
		"the end of 32-bit seconds": time.Unix(1<<31-10, 0),
		"of unsigned ones":          time.Unix(1<<32-10, 0),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Until(at))
				n := newSimNet(20*time.Millisecond, 0, 1)
				defer n.close()
				a, b := connected(t, n)
				defer a.close(t)
				defer b.close(t)
				first := a.Stats().LastHandshake
				time.Sleep(6 * time.Minute)
				if len(a.states) != 1 || len(b.states) != 1 {
					t.Errorf("%d and %d edges", len(a.states), len(b.states))
				}
				if s := a.Stats(); s.LastHandshake.Sub(first) < 2*time.Minute || s.LastHandshake.Before(at) {
					t.Errorf("handshakes at %v and %v", first, s.LastHandshake)
				}
			})
		})
	}
}
