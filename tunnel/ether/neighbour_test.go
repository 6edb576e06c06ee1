package ether

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"stitch/tunnel/config"
)

// numbered returns the i-th address of 10.0.0.0/8.
func numbered(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

// TestAddressBound floods the addresses: one MAC with many, many MACs with some.
func TestAddressBound(t *testing.T) {
	s := NewSwitch(testBasic, 2, nil, []Workload{{MAC: macVM, IP: vmIP, At: 1}})
	for i := range 1000 {
		s.FromLAN(time.Duration(i), garp(macA, numbered(1<<17+i)))
	}
	if n := len(s.table.byIP); n != maxIPs+1 {
		t.Errorf("%d addresses, want %d of one MAC and the workload's", n, maxIPs)
	}
	for i := range 40_000 {
		mac := config.MAC{2, 9, 3: byte(i >> 11), 4: byte(i >> 3), 5: 1} // 8 addresses each
		s.FromPeer(time.Duration(1000+i), 1, garp(mac, numbered(1<<18+i)))
	}
	if got, most := s.table.bound[1], maxLearned/4; got != most {
		t.Errorf("%d addresses of a peer that floods, want its share %d", got, most)
	}
	if s.table.byIP[ipKey{vmIP, 0}] == nil {
		t.Error("the workload's address was pushed out")
	}
	s.FromPeer(0, 2, garp(macB, ip11))
	if s.table.byIP[ipKey{ip11, 0}] == nil {
		t.Error("a flood from one peer took the share of another")
	}
	s.Tick(2 * ageing)
	if n := len(s.table.byIP); n != 1 {
		t.Errorf("%d addresses after ageing, want the workload's", n)
	}
}

// TestAddressTwin binds addresses at random and compares with a plain map.
func TestAddressTwin(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 2))
		tab := newTable(2, config.DefaultMoveLimit)
		owner := map[netip.Addr]key{}
		seen := map[netip.Addr]time.Duration{}
		for step := range 2000 {
			now := time.Duration(step) * time.Second / 20
			k, ip := keyOf(config.MAC{2, 5: byte(r.IntN(6))}, 0), numbered(r.IntN(20))
			e := tab.get(now, k)
			if e == nil {
				e = tab.learn(now, k, Place(r.IntN(3)))
			}
			switch r.IntN(8) {
			case 0:
				tab.move(now, e, Place(r.IntN(3)))
			case 1:
				tab.flush()
				clear(owner)
			default:
				twinBind(owner, seen, now, k, ip)
				tab.bind(now, e, ip)
				tab.touch(now, e)
			}
			if compareAddresses(t, tab, owner); t.Failed() {
				t.Fatalf("seed %d step %d", seed, step)
			}
		}
	}
}

// twinBind is bind with maps: at most maxIPs of one MAC, the oldest goes.
func twinBind(owner map[netip.Addr]key, seen map[netip.Addr]time.Duration, now time.Duration, k key, ip netip.Addr) {
	seen[ip] = now
	if owner[ip] == k {
		return
	}
	delete(owner, ip)
	var oldest netip.Addr
	count := 0
	for a, o := range owner {
		if o != k {
			continue
		}
		if count++; !oldest.IsValid() || seen[a] < seen[oldest] {
			oldest = a
		}
	}
	if count == maxIPs {
		delete(owner, oldest)
	}
	owner[ip] = k
}

func compareAddresses(t *testing.T, tab *table, owner map[netip.Addr]key) {
	t.Helper()
	if len(tab.byIP) != len(owner) {
		t.Errorf("%d addresses, twin %d", len(tab.byIP), len(owner))
	}
	bound := make([]int, 3)
	for ip, k := range owner {
		n := tab.byIP[ipKey{ip, 0}]
		if n == nil || n.owner.key != k || n.ip != ip {
			t.Errorf("%v: %+v, twin %v", ip, n, k.mac())
			continue
		}
		bound[n.owner.place]++
	}
	for at, n := range bound {
		if tab.bound[at] != n {
			t.Errorf("place %d has %d addresses, twin %d", at, tab.bound[at], n)
		}
	}
}
