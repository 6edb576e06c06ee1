package wg

import (
	"encoding/binary"
	"math"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"stitch/tunnel/config"
	"stitch/tunnel/wan"
)

// TestClasses: floods of two classes beside each other on a link with a rate, and
// small packets of the smaller one, over a path that is no faster. What arrives goes
// by the percentages, however many flows there are; what one leaves the other has; a
// limit is kept; the small packets wait for nobody. Without classes, the control
// case, it goes by flows.
func TestClasses(t *testing.T) {
	const (
		rate  = 8e6
		first = 1000 // ports of class 1; those of class 2 are from 2000 on
		small = 3000
	)
	classes := func(limit int64) []config.Class {
		return []config.Class{{Percent: 1}, {Name: "a", Percent: 75, Limit: limit}, {Name: "b", Percent: 25}}
	}
	params := wan.Params{Rate: 1.02 * rate, Delay: 10 * time.Millisecond, Queue: rate / 8 / 10}
	for name, c := range map[string]struct {
		classes []config.Class
		learn   bool
		flows   [2]int // of each class
		want    [2]float64
	}{
		"75 and 25":        {classes(0), false, [2]int{1, 1}, [2]float64{0.75, 0.25}},
		"1 against 8":      {classes(0), false, [2]int{1, 8}, [2]float64{0.75, 0.25}},
		"one idle":         {classes(0), false, [2]int{0, 2}, [2]float64{0, 1}},
		"a limit":          {classes(0.3 * rate), false, [2]int{1, 1}, [2]float64{0.3, 0.7}},
		"a limit, no rate": {classes(0.3 * rate), true, [2]int{1, 0}, [2]float64{0.3, 0}},
		"no classes":       {nil, false, [2]int{1, 8}, [2]float64{1. / 9, 8. / 9}},
	} {
		t.Run(name, func(t *testing.T) {
			onPath(t, params, func(t *testing.T, p *path) {
				var mu sync.Mutex // guards got
				var got [2]int
				worst, came := time.Duration(0), 0
				done := make(chan struct{})
				go func() {
					defer close(done)
					for b := range p.ends[1].tun.Out {
						switch port := binary.BigEndian.Uint16(b[22:]); port {
						case small:
							came++
							worst = max(worst, time.Since(time.Unix(0, int64(binary.BigEndian.Uint64(b[28:]))))-params.Delay)
						default:
							mu.Lock()
							got[port/first-1] += len(b) + 60
							mu.Unlock()
						}
					}
				}()
				time.Sleep(10 * time.Second)
				const steps = 4000
				for i := range steps {
					for class, n := range c.flows {
						if n > 0 {
							p.ends[0].tun.In <- ipPacket(1250, uint16((class+1)*first+i%n))
						}
					}
					if i%20 == 10 {
						b := ipPacket(smallPacket, small)
						binary.BigEndian.PutUint64(b[28:], uint64(time.Now().UnixNano()))
						p.ends[0].tun.In <- b
					}
					time.Sleep(time.Millisecond)
					synctest.Wait()
				}
				all := float64(rate) / 8 * steps / 1000
				mu.Lock()
				seen := got
				mu.Unlock()
				stats := p.ends[0].Stats()
				time.Sleep(time.Second)
				synctest.Wait()
				close(p.ends[1].tun.Out)
				<-done
				t.Logf("%.3f and %.3f of the rate; small packets waited at most %v", float64(seen[0])/all, float64(seen[1])/all, worst)
				for i, want := range c.want {
					if part := float64(seen[i]) / all; math.Abs(part-want) > 0.05 {
						t.Errorf("class %d had %.3f of the rate, want %.3f", i+1, part, want)
					}
				}
				if worst > 12*time.Millisecond || came != steps/20 {
					t.Errorf("small packets waited %v; %d came", worst, came)
				}
				if len(stats.Classes) != len(c.classes) {
					t.Fatalf("classes %+v", stats.Classes)
				}
				for i, want := range c.want {
					if c.classes == nil {
						break
					}
					s := stats.Classes[i+1]
					if part := float64(s.Rate) / rate; s.Name != c.classes[i+1].Name || math.Abs(part-want) > 0.05 || c.flows[i] > 0 && want < 1 && s.Dropped == 0 {
						t.Errorf("class %d: %+v", i+1, s)
					}
				}
			}, func(cfg *Config) {
				cfg.Rate, cfg.Overhead, cfg.Classes, cfg.Learn = rate, 60, c.classes, c.learn
				if c.learn {
					cfg.Rate = 0
				}
				cfg.ClassOf = func(_ uint16, _, dst netip.AddrPort) int {
					if dst.Port() == small {
						return 2
					}
					return int(dst.Port() / first)
				}
			})
		})
	}
}
