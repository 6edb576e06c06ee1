package wg

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// In these tests each end of a link has a clock of its own: each runs in a bubble
// of its own, and the two take turns. In a round, which is the path's delay, each
// lets its clock go on by as much as it does in that time, and then they exchange
// what they have sent. A bubble's time stands still while its end waits for that.

const round = 50 * time.Millisecond

// side is what one end has of the path.
type side struct {
	out, in chan [][]byte
	over    <-chan struct{} // the other's script is at its end
}

// exchange ends a round; ok: the other end is still there.
func (s side) exchange(sent [][]byte) (received [][]byte, ok bool) {
	select {
	case s.out <- sent:
	case <-s.over:
		return nil, false
	}
	select {
	case received = <-s.in:
		return received, true
	case <-s.over:
		return nil, false
	}
}

// off lets rounds pass in which an end's machine is off or asleep.
func (s side) off(d time.Duration) {
	for range d / round {
		s.exchange(nil)
	}
}

// byOwnClocks plays the scripts of both ends until one has ended.
func byOwnClocks(t *testing.T, scripts [2]func(t *testing.T, s side)) {
	t.Helper()
	ways := [2]chan [][]byte{make(chan [][]byte, 1), make(chan [][]byte, 1)}
	left := [2]chan struct{}{make(chan struct{}), make(chan struct{})}
	var tasks sync.WaitGroup
	for i, script := range scripts {
		tasks.Go(func() {
			t.Run(fmt.Sprint("end ", i), func(t *testing.T) {
				defer close(left[i])
				script(t, side{ways[i], ways[1-i], left[1-i]})
			})
		})
	}
	tasks.Wait()
}

// clocked is an end in its own bubble.
type clocked struct {
	*simEnd
	side
	bind *simBind
	tick time.Duration // how far its clock goes in a round
}

// openClocked opens end i.
func openClocked(t *testing.T, i int, s side, rate float64, prepare ...func(*simNet)) *clocked {
	t.Helper()
	n := &simNet{}
	for _, f := range prepare {
		f(n)
	}
	n.ends[i] = &simBind{net: n, self: i, wire: make(chan simPacket, 1<<16), inbox: make(chan []byte, 1<<14)}
	return &clocked{simEnd: n.open(t, i), side: s, bind: n.ends[i], tick: time.Duration(rate * float64(round))}
}

// round lets a round pass.
func (e *clocked) round() (ok bool) {
	time.Sleep(e.tick)
	synctest.Wait()
	var sent [][]byte
	for len(e.bind.wire) > 0 {
		sent = append(sent, (<-e.bind.wire).data)
	}
	received, ok := e.exchange(sent)
	for _, p := range received {
		e.bind.inbox <- p
	}
	return ok
}

// rounds lets rounds pass until d of the path's time is over or the state is the
// one wanted, and returns after how long.
func (e *clocked) rounds(d time.Duration, until State) (took time.Duration) {
	for took < d && (until == "" || e.currentState() != until) && e.round() {
		took += round
	}
	return took
}

// up fails the test if the end does not come up in limit.
func (e *clocked) up(t *testing.T, limit time.Duration) time.Duration {
	t.Helper()
	took := e.rounds(limit, Up)
	if e.currentState() != Up {
		t.Errorf("%s after %v, want up", e.currentState(), took)
	}
	return took
}

// stays plays the end that nothing happens to, until the other's script is at its
// end: prepare before it opens, and each after each round.
func stays(t *testing.T, i int, s side, prepare func(*simNet), each func(*clocked)) {
	synctest.Test(t, func(t *testing.T) {
		e := openClocked(t, i, s, 1, prepare)
		defer e.close(t)
		for e.round() {
			each(e)
		}
	})
}

// TestClocksApart is C-06: the clock of one end runs faster or slower. While keys
// are renewed again and again, all that is sent arrives, once and in order, and
// neither end thinks that the link is down, also when only one end can renew them. The
// control case is a clock so slow that this end keeps keys for longer than the other
// one takes them.
func TestClocksApart(t *testing.T) {
	length := time.Duration(times(24)) * time.Minute
	if os.Getenv("STITCH_LONG") != "" {
		length = 24 * time.Hour
	}
	for _, c := range []struct {
		rates [2]float64
		mute  bool // the initiations of the second end are lost
		bad   bool
	}{
		{[2]float64{0.95, 1.05}, false, false}, {[2]float64{1.05, 0.95}, false, false}, {[2]float64{1, 1.05}, true, false},
		{[2]float64{1.05, 1}, true, false}, {[2]float64{0.95, 1.05}, true, false}, {[2]float64{0.3, 1}, true, true},
	} {
		t.Run(fmt.Sprint(c.rates, c.mute), func(t *testing.T) {
			var lost, edges, renewals [2]int
			script := func(i int) func(*testing.T, side) {
				return func(t *testing.T, s side) {
					synctest.Test(t, func(t *testing.T) {
						e := openClocked(t, i, s, c.rates[i], func(n *simNet) {
							n.drops = func(_ int, p []byte) bool { return c.mute && i == 1 && p[0] == 1 }
						})
						defer e.close(t)
						e.rounds(20*time.Second, "")
						if e.currentState() != Up {
							t.Error("not up after 20 s")
						}
						before := len(e.states)
						handshake, next := e.Stats().LastHandshake, uint32(0)
						take := func() {
							list, altered := numbers(e.simEnd)
							for _, n := range list {
								if n < next || altered > 0 {
									t.Errorf("packet %d came after %d; %d altered", n, next, altered)
								}
								lost[i] += int(n - next)
								next = n + 1
							}
						}
						for k := range int(length / round) {
							if k%3 == 0 {
								e.tun.In <- numbered(uint32(k / 3))
							}
							e.round()
							take()
							if k%100 == 0 && !e.Stats().LastHandshake.Equal(handshake) {
								handshake = e.Stats().LastHandshake
								renewals[i]++
							}
						}
						e.rounds(time.Second, "")
						take()
						lost[i] += int(length/round/3) - int(next)
						edges[i] = len(e.states) - before
					})
				}
			}
			byOwnClocks(t, [2]func(*testing.T, side){script(0), script(1)})
			t.Logf("%v: %v packets lost, %v edges, %v renewals", length, lost, edges, renewals)
			if got := lost[0]+lost[1]+edges[0]+edges[1] > 0; got != c.bad {
				t.Errorf("%v packets lost, %v edges; want some: %v", lost, edges, c.bad)
			}
			if want := int(length / (130 * time.Second)); !c.bad && min(renewals[0], renewals[1]) < want {
				t.Errorf("%v renewals in %v, want %d", renewals, length, want)
			}
		})
	}
}

// TestClockSetBack is C-01, C-02 and C-03: an end restarts with a clock that is
// an hour, ten or twenty-six years behind what it was. The other end takes none of
// its initiations, and renews the session itself. In the control cases its own are
// lost: then the link comes up only if the clock was not set back.
func TestClockSetBack(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for _, c := range []struct {
		back time.Duration // 0: the clock goes on
		mute bool          // the other end's initiations are lost
		want State
	}{{time.Hour, false, Up}, {10 * year, false, Up}, {26 * year, false, Up}, {0, true, Up}, {time.Hour, true, Connecting}} {
		for restarted := range 2 {
			t.Run(fmt.Sprintf("%v,end=%d,mute=%v", c.back, restarted, c.mute), func(t *testing.T) {
				var scripts [2]func(*testing.T, side)
				scripts[restarted] = func(t *testing.T, s side) {
					synctest.Test(t, func(t *testing.T) {
						time.Sleep(c.back)
						e := openClocked(t, restarted, s, 1)
						e.up(t, 5*time.Second)
						e.rounds(20*time.Second, "")
						e.close(t)
					})
					s.off(time.Second)
					synctest.Test(t, func(t *testing.T) { // at the first one's beginning again
						if c.back == 0 {
							time.Sleep(time.Minute)
						}
						e := openClocked(t, restarted, s, 1)
						defer e.close(t)
						took := e.rounds(6*time.Second, Up)
						t.Logf("%s after %v", e.currentState(), took)
						if got := e.currentState(); got != c.want {
							t.Errorf("%s after %v, want %s", got, took, c.want)
						}
						if c.mute {
							return
						}
						synctest.Wait()
						edges := len(e.states)
						e.rounds(10*time.Minute, "")
						if n := len(e.states) - edges; n > 0 || e.currentState() != Up {
							t.Errorf("%d edges in the ten minutes after it, %s", n, e.currentState())
						}
					})
				}
				scripts[1-restarted] = func(t *testing.T, s side) {
					stays(t, 1-restarted, s, func(n *simNet) {
						n.drops = func(_ int, p []byte) bool { return c.mute && p[0] == 1 }
					}, func(*clocked) {})
				}
				byOwnClocks(t, scripts)
			})
		}
	}
}

// TestSleep is C-05: the machine of an end sleeps, its clock stands still, and the
// other end's does not. It wakes with keys that the other one takes for old, or no
// longer has, and both have a new session within 6 s.
func TestSleep(t *testing.T) {
	for _, asleep := range []time.Duration{time.Minute, 4 * time.Minute, 10 * time.Minute, time.Hour} {
		if testing.Short() && asleep > 10*time.Minute {
			continue
		}
		for sleeper := range 2 {
			t.Run(fmt.Sprintf("%v,end=%d", asleep, sleeper), func(t *testing.T) {
				var scripts [2]func(*testing.T, side)
				scripts[sleeper] = func(t *testing.T, s side) {
					synctest.Test(t, func(t *testing.T) {
						e := openClocked(t, sleeper, s, 1)
						defer e.close(t)
						e.up(t, 5*time.Second)
						e.rounds(10*time.Second, "")
						e.off(asleep)
						// It does not know that it slept, and cannot: what it finds out is
						// that nothing comes back.
						e.rounds(time.Second, "")
						e.up(t, 5*time.Second)
						e.rounds(5*time.Second, "")
					})
				}
				scripts[1-sleeper] = func(t *testing.T, s side) {
					downs, last := 0, Connecting
					stays(t, 1-sleeper, s, func(*simNet) {}, func(e *clocked) {
						if state := e.currentState(); state != last {
							if last = state; state == Down {
								downs++
							}
						}
					})
					if downs == 0 || last != Up {
						t.Errorf("control case: the one that was awake was down %d times; at last %s", downs, last)
					}
				}
				byOwnClocks(t, scripts)
			})
		}
	}
}
