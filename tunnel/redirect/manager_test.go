package redirect_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/redirect"
	"stitch/tunnel/redirect/redirecttest"
)

var appMAC = config.MAC{0x52, 0x54, 0, 0, 0, 0x50}

func managerConfig(site, peer string) *config.Config {
	return &config.Config{
		Site:      site,
		Peers:     []config.Peer{{Name: peer}},
		Segments:  []config.Segment{{ID: 100, Bridge: "br", Subnet: netip.MustParsePrefix("10.1.0.0/24"), Gateway: netip.MustParseAddr("10.1.0.1"), Home: "dc1", Peers: []string{peer}}},
		Workloads: []config.Workload{{Name: "app", MAC: appMAC, IP: netip.MustParseAddr("10.1.0.50"), Site: "dc1", Segment: 100}},
		Services: []config.Service{{Name: "www.app.example", Workload: "app", Port: 443, At: map[string]netip.AddrPort{
			"dc1": netip.MustParseAddrPort("203.0.113.10:443"), "dc2": netip.MustParseAddrPort("198.51.100.20:443")}}},
	}
}

// pair is two managers whose datagrams take 20 ms.
type pair struct {
	m     map[string]*redirect.Manager
	k     map[string]*redirecttest.Kernel
	mu    sync.Mutex
	moved map[string][]redirect.Owner // guarded by mu while the managers run
	cut   atomic.Bool
}

func newPair(t *testing.T, ctx context.Context) *pair {
	p := &pair{m: map[string]*redirect.Manager{}, k: map[string]*redirecttest.Kernel{}, moved: map[string][]redirect.Owner{}}
	for i, site := range []string{"dc1", "dc2"} {
		peer := []string{"dc2", "dc1"}[i]
		p.k[site] = &redirecttest.Kernel{}
		m, err := redirect.New(redirect.Config{
			Cfg: managerConfig(site, peer), Kernel: p.k[site],
			Links: redirect.Links{peer: {Number: 1, Device: "st-" + peer, InnerMTU: 1440,
				Local: netip.MustParseAddr("169.254.7.1"), Remote: netip.MustParseAddr("169.254.7.2")}},
			Send: func(to string, msg []byte) bool {
				if p.cut.Load() {
					return false
				}
				data := slices.Clone(msg)
				time.AfterFunc(20*time.Millisecond, func() { p.m[to].FromPeer(site, data) })
				return true
			},
			OnMove: func(o redirect.Owner) {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.moved[site] = append(p.moved[site], o)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		p.m[site] = m
	}
	for _, m := range p.m {
		go m.Run(ctx)
	}
	synctest.Wait()
	return p
}

func bubble(t *testing.T, f func(t *testing.T, p *pair)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		p := newPair(t, ctx)
		f(t, p)
		cancel()
		synctest.Wait()
		time.Sleep(time.Second) // datagrams under way
	})
}

func device(d redirect.Desired) string {
	for _, r := range d.Routes {
		if r.Dst == netip.MustParsePrefix("10.1.0.50/32") {
			return r.Device
		}
	}
	return ""
}

func TestManagerMove(t *testing.T) {
	bubble(t, func(t *testing.T, p *pair) {
		at, _ := p.m["dc2"].Where("www.app.example")
		if at.String() != "203.0.113.10" {
			t.Errorf("before the move the service is at %v", at)
		}
		p.m["dc2"].Announce(appMAC, netip.Addr{})
		synctest.Wait()
		if d := p.k["dc2"].Steered(); device(d) != "br" {
			t.Errorf("the far edge has not steered: %q", device(d))
		}
		if d, _ := p.k["dc2"].Last(); device(d) != "br" {
			t.Errorf("the far edge has not switched at once: %q", device(d))
		}
		time.Sleep(20 * time.Millisecond)
		synctest.Wait()
		if d, _ := p.k["dc1"].Last(); device(d) != "st-dc2" {
			t.Errorf("the near edge has not switched after one way: %q", device(d))
		}
		if at, _ := p.m["dc1"].Where("www.app.example"); at.String() != "198.51.100.20" {
			t.Errorf("after the move the service is at %v", at)
		}
		p.mu.Lock()
		for _, site := range []string{"dc1", "dc2"} {
			if len(p.moved[site]) != 1 || p.moved[site][0].Site != "dc2" {
				t.Errorf("%s heard of %+v", site, p.moved[site])
			}
		}
		p.mu.Unlock()
		_, before := p.k["dc2"].Last()
		time.Sleep(redirect.AnchorTime + time.Second)
		if _, after := p.k["dc2"].Last(); after != before+1 {
			t.Errorf("%d programmings when the UDP anchor ended, want 1", after-before)
		}
	})
}

func TestManagerHealsAfterCut(t *testing.T) {
	bubble(t, func(t *testing.T, p *pair) {
		p.cut.Store(true)
		p.m["dc2"].Announce(appMAC, netip.Addr{})
		time.Sleep(time.Minute)
		if p.m["dc1"].Owners()[0].Site != "dc1" || p.m["dc2"].Stats().Unsent == 0 {
			t.Error("news crossed a cut")
		}
		p.cut.Store(false)
		time.Sleep(250 * time.Millisecond)
		if p.m["dc1"].Owners()[0].Site != "dc2" {
			t.Error("no news 250 ms after the heal")
		}
	})
}

func TestManagerReasserts(t *testing.T) {
	bubble(t, func(t *testing.T, p *pair) {
		k := p.k["dc1"]
		_, n := k.Last()
		time.Sleep(time.Minute)
		if _, again := k.Last(); again != n {
			t.Errorf("programmed %d times with nothing to do", again-n)
		}
		k.Flush()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if _, again := k.Last(); again != n+1 {
			t.Error("a flushed table was not repaired within 2 s")
		}
		k.Fail(errors.New("no device st-dc2 yet"))
		k.Flush()
		time.Sleep(3 * time.Second)
		if s := p.m["dc1"].Stats(); s.Error != "no device st-dc2 yet" {
			t.Errorf("error not shown: %q", s.Error)
		}
		k.Fail(nil)
		time.Sleep(3 * time.Second)
		if s := p.m["dc1"].Stats(); s.Error != "" {
			t.Errorf("repaired but still shown: %q", s.Error)
		}
	})
}

// The queue is bounded, and what it loses is counted.
func TestManagerQueueBound(t *testing.T) {
	m, err := redirect.New(redirect.Config{Cfg: managerConfig("dc1", "dc2"), Kernel: &redirecttest.Kernel{}, Send: func(string, []byte) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		m.Announce(appMAC, netip.Addr{})
	}
	m.FromPeer("dc2", make([]byte, 1201))
	if got := m.Stats().Dropped; got != 1000-256+1 {
		t.Errorf("%d dropped", got)
	}
}

func TestNewRefuses(t *testing.T) {
	many := managerConfig("dc1", "dc2")
	for i := range redirect.MaxWorkloads {
		many.Workloads = append(many.Workloads, config.Workload{Name: fmt.Sprint("w", i)})
	}
	bad := managerConfig("dc1", "dc2")
	bad.Segments[0].Bridge = `br" drop`
	for name, cfg := range map[string]*config.Config{"too many": many, "bad bridge": bad} {
		if _, err := redirect.New(redirect.Config{Cfg: cfg, Kernel: &redirecttest.Kernel{}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
