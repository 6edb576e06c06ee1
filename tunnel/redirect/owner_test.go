package redirect

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"stitch/tunnel/config"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func testWorkloads() []config.Workload { return siteConfig("dc1").Workloads }

func TestAnnounceActsAtOnce(t *testing.T) {
	tab := NewTable("dc2", testWorkloads(), nil)
	got := tab.Announce(mac("52:54:00:00:00:50"), ip("10.1.0.50"), t0)
	if len(got) != 2 || got[1].Workload != "app6" {
		t.Fatalf("not both addresses of the machine moved: %+v", got)
	}
	if got[0].Site != "dc2" || got[0].Seq != 1 || got[0].Previous != "dc1" || !got[0].Fresh {
		t.Fatalf("got %+v", got)
	}
	if again := tab.Announce(mac("52:54:00:00:00:50"), ip("10.1.0.50"), t0.Add(time.Minute)); again != nil {
		t.Errorf("repeated announcement changed %+v", again)
	}
	if n := tab.Counts().Moves; n != 2 {
		t.Errorf("%d moves counted", n)
	}
}

func TestAnnounceMatching(t *testing.T) {
	none := netip.Addr{}
	for _, c := range []struct {
		name    string
		mac     string
		ip      netip.Addr
		want    string
		refused uint64
	}{
		{"by both", "52:54:00:00:00:12", ip("10.1.0.12"), "s2", 0},
		{"RARP has no address", "52:54:00:00:00:12", none, "s2", 0},
		{"another address of the machine", "52:54:00:00:00:12", ip("10.1.0.99"), "s2", 0},
		{"mapped address", "52:54:00:00:00:12", ip("::ffff:10.1.0.12"), "s2", 0},
		{"stranger", "52:54:00:99:99:99", ip("10.1.0.99"), "", 0},
		{"stolen address", "52:54:00:99:99:99", ip("10.1.0.12"), "", 1},
		{"address of another workload", "52:54:00:00:00:12", ip("10.1.0.77"), "", 1},
		{"without a MAC in the configuration", "52:54:00:99:99:99", ip("10.1.0.78"), "nomac", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			tab := NewTable("dc1", []config.Workload{
				{Name: "s2", MAC: mac("52:54:00:00:00:12"), IP: ip("10.1.0.12"), Site: "dc2"},
				{Name: "other", MAC: mac("52:54:00:00:00:77"), IP: ip("10.1.0.77"), Site: "dc2"},
				{Name: "nomac", IP: ip("10.1.0.78"), Site: "dc2"},
			}, nil)
			got := ""
			if os := tab.Announce(mac(c.mac), c.ip, t0); len(os) > 0 {
				got = os[0].Workload
			}
			if got != c.want || tab.Counts().Refused != c.refused {
				t.Errorf("moved %q, refused %d; want %q, %d", got, tab.Counts().Refused, c.want, c.refused)
			}
		})
	}
}

func TestClaimRules(t *testing.T) {
	cur := Owner{Workload: "app", Site: "dc2", Previous: "dc1", Seq: 5}
	for _, c := range []struct {
		name string
		o    Owner
		wins bool
	}{
		{"higher", Owner{Workload: "app", Site: "dc3", Seq: 6}, true},
		{"lower", Owner{Workload: "app", Site: "dc1", Seq: 4}, false},
		{"same again", cur, false},
		{"tie, name sorts first", Owner{Workload: "app", Site: "dc1", Seq: 5}, true},
		{"tie, name sorts last", Owner{Workload: "app", Site: "dc3", Seq: 5}, false},
		{"our own of an earlier life", Owner{Workload: "app", Site: "here", Seq: 9}, true},
		{"unknown workload", Owner{Workload: "ghost", Site: "dc1", Seq: 9}, false},
		{"beyond the bound", Owner{Workload: "app", Site: "dc1", Seq: maxSeq + 1}, false},
		{"bad site", Owner{Workload: "app", Site: "a b", Seq: 9}, false},
		{"bad previous", Owner{Workload: "app", Site: "dc1", Previous: "A", Seq: 9}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			tab := NewTable("here", testWorkloads()[:1], nil)
			tab.Claim("dc2", []Owner{cur}, t0)
			if got := len(tab.Claim("x", []Owner{c.o}, t0)) == 1; got != c.wins {
				t.Errorf("wins %v, want %v", got, c.wins)
			}
		})
	}
}

func TestFreshEnds(t *testing.T) {
	tab := NewTable("dc2", testWorkloads()[:1], nil)
	tab.Announce(mac("52:54:00:00:00:50"), netip.Addr{}, t0)
	os, next := tab.View(t0.Add(AnchorTime - 1))
	if !os[0].Fresh || !next.Equal(t0.Add(AnchorTime)) {
		t.Errorf("before the end: %+v, next %v", os, next)
	}
	if os, next = tab.View(t0.Add(AnchorTime)); os[0].Fresh || !next.IsZero() {
		t.Errorf("at the end: %+v, next %v", os, next)
	}
}

// Five moves in the window are believed, the sixth freezes, and after the
// freeze the next announcement acts at once.
func TestDamping(t *testing.T) {
	damping(t, NewTable("dc1", testWorkloads()[:1], nil), 2)
	// The limit is that of its segment.
	ws := testWorkloads()[:1]
	segments := []config.Segment{{ID: ws[0].Segment + 1, MoveLimit: 7}, {ID: ws[0].Segment, MoveLimit: 21}}
	damping(t, NewTable("dc1", ws, segments), 10)
}

// damping has a workload move away and back, and away once more: that is the
// last move that is believed.
func damping(t *testing.T, tab *Table, times int) {
	t.Helper()
	m := mac("52:54:00:00:00:50")
	now, seq := t0, uint64(0)
	for range times {
		seq += 1
		now = now.Add(10 * time.Second)
		tab.Claim("dc2", []Owner{{Workload: "app", Site: "dc2", Seq: seq}}, now)
		if len(tab.Announce(m, netip.Addr{}, now)) != 1 {
			t.Fatal("a move below the limit was not believed")
		}
		seq++
	}
	tab.Claim("dc2", []Owner{{Workload: "app", Site: "dc2", Seq: seq + 1}}, now)
	if len(tab.Announce(m, netip.Addr{}, now)) != 0 {
		t.Fatal("the sixth move was believed")
	}
	if f := tab.Frozen(now); !reflect.DeepEqual(f, []string{"app"}) {
		t.Errorf("frozen: %v", f)
	}
	if len(tab.Announce(m, netip.Addr{}, now.Add(FreezeTime-1))) != 0 || tab.Counts().Damped != 2 {
		t.Errorf("frozen workload moved, counts %+v", tab.Counts())
	}
	if len(tab.Announce(m, netip.Addr{}, now.Add(FreezeTime))) != 1 {
		t.Error("still frozen after the freeze")
	}
}

// A healed split brain leaves one winner at both sites; the loser is frozen and
// does not fight back.
func TestSplitBrain(t *testing.T) {
	m := mac("52:54:00:00:00:50")
	a, b, c := NewTable("dc1", testWorkloads()[:1], nil), NewTable("dc2", testWorkloads()[:1], nil), NewTable("dc3", testWorkloads()[:1], nil)
	// dc3 had it; both others claim it while nobody hears of anybody.
	c.Announce(m, netip.Addr{}, t0)
	for _, tab := range []*Table{a, b} {
		tab.Claim("dc3", c.Owners(), t0)
		tab.Announce(m, netip.Addr{}, t0.Add(time.Second))
	}
	now := t0.Add(time.Minute)
	fromA, fromB := a.Owners(), b.Owners()
	a.Claim("dc2", fromB, now)
	b.Claim("dc1", fromA, now)
	if !reflect.DeepEqual(a.Owners(), b.Owners()) || a.Owners()[0].Site != "dc1" {
		t.Fatalf("after the heal: %+v and %+v", a.Owners(), b.Owners())
	}
	if len(b.Announce(m, netip.Addr{}, now)) != 0 || len(b.Frozen(now)) != 1 || b.Counts().Conflicts != 1 {
		t.Errorf("the loser fights back: %+v", b.Counts())
	}
	if len(a.Frozen(now)) != 0 {
		t.Error("the winner is frozen")
	}
}

// Whatever the order and repetition of the same claims, all tables end equal:
// the property is checked against the stupid twin, the maximum under wins.
func TestClaimsConverge(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 1))
		claims := make([]Owner, 1+r.IntN(12))
		best := Owner{Workload: "app", Site: "dc1"}
		for i := range claims {
			claims[i] = Owner{Workload: "app", Site: fmt.Sprint("dc", r.IntN(4)), Previous: fmt.Sprint("dc", r.IntN(4)), Seq: r.Uint64N(4)}
			if wins(claims[i], best) {
				best = claims[i]
			}
		}
		for range 3 {
			tab := NewTable("dc1", testWorkloads()[:1], nil)
			for range 3 {
				r.Shuffle(len(claims), func(i, j int) { claims[i], claims[j] = claims[j], claims[i] })
				tab.Claim("x", claims, t0)
			}
			if got := tab.Owners()[0]; got != best {
				t.Fatalf("seed %d: %+v, want %+v", seed, got, best)
			}
		}
	}
}
