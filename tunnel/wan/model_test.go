package wan

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

func mustModel(t testing.TB, p Params) *Model {
	t.Helper()
	m, err := NewModel(p)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestModelExactTimes pins when packets leave, to the nanosecond.
func TestModelExactTimes(t *testing.T) {
	type offer struct {
		now  time.Duration
		size int
		at   time.Duration // 0: dropped
	}
	ms, us := time.Millisecond, time.Microsecond
	for name, tc := range map[string]struct {
		p      Params
		offers []offer
	}{
		"perfect":   {Params{}, []offer{{5, 1500, 5}, {5, 9, 5}}},
		"delay":     {Params{Delay: 20 * ms}, []offer{{0, 1500, 20 * ms}, {ms, 40, 21 * ms}}},
		"rate":      {Params{Rate: 100e6}, []offer{{us, 1500, 121 * us}, {us, 1500, 241 * us}, {ms, 1000, 1080 * us}}},
		"both":      {Params{Rate: 1e6, Delay: ms}, []offer{{0, 125, 2 * ms}, {0, 125, 3 * ms}}},
		"remainder": {Params{Rate: 3e9}, []offer{{0, 1, 2}, {0, 1, 5}, {0, 1, 8}, {0, 1, 10}}},
		"tail drop": {Params{Rate: 8e6, Queue: 3000}, []offer{
			{us, 1500, 1501 * us}, {us, 1500, 3001 * us}, {us, 1500, 0}, {us, 1, 0},
			{1501 * us, 1500, 4501 * us}, {1501 * us, 1, 0}}},
		"idle takes any": {Params{Rate: 8e6, Queue: 100}, []offer{{us, 1500, 1501 * us}, {us, 1, 0}}},
		"down":           {Params{Down: true}, []offer{{us, 100, 0}}},
	} {
		t.Run(name, func(t *testing.T) {
			m := mustModel(t, tc.p)
			for i, o := range tc.offers {
				v := m.Enqueue(o.now, o.size)
				if v.At != o.at || (v.Copies == 0) != (o.at == 0) {
					t.Errorf("packet %d: at %v copies %d, want at %v", i, v.At, v.Copies, o.at)
				}
			}
		})
	}
}

func TestQueueDefault(t *testing.T) {
	for _, tc := range []struct {
		p    Params
		want int64
	}{
		{Params{Rate: 100e6, Delay: 20 * time.Millisecond}, 625000},
		{Params{Rate: 45e6, Delay: 50 * time.Millisecond}, 562500},
		{Params{Rate: 64e3}, 24000},
		{Params{Delay: time.Second}, 0},
		{Params{Rate: 1e6, Queue: 77}, 77},
	} {
		if got := tc.p.QueueBytes(); got != tc.want {
			t.Errorf("%+v: queue %d, want %d", tc.p, got, tc.want)
		}
	}
}

// randomParams draws a path with some of the features on.
func randomParams(r *rand.Rand) Params {
	maybe := func(v float64) float64 { return v * float64(r.IntN(2)) * r.Float64() }
	return Params{
		Rate: int64(maybe(1e9)), Delay: time.Duration(maybe(1e8)), Jitter: time.Duration(maybe(1e7)),
		Loss: maybe(0.3), Burst: BurstLoss(maybe(0.3), 1+4*r.Float64()), Queue: int64(maybe(1e5)),
		Duplicate: maybe(0.2), Reorder: maybe(0.2), Down: r.IntN(20) == 0, Seed: r.Uint64(),
	}
}

// conserved checks the identity that Counters documents.
func conserved(t testing.TB, c Counters) {
	t.Helper()
	if c.Packets+c.Duplicates != c.Delivered+c.Drops() {
		t.Fatalf("not conserved: %+v", c)
	}
}

// TestModelProperties: conservation, no delivery before it is possible, order
// kept without Reorder, and the rate never exceeded, over random paths whose
// parameters change on the way.
func TestModelProperties(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		p := randomParams(r)
		m, now, last := mustModel(t, p), time.Duration(0), time.Duration(0)
		var delivered, bytes uint64
		for i := range 500 {
			now += time.Duration(r.IntN(200_000))
			size := 20 + r.IntN(1481)
			v := m.Enqueue(now, size)
			delivered, bytes = delivered+uint64(v.Copies), bytes+uint64(v.Copies*size)
			if v.Copies > 0 && v.At < now+m.Params().Delay {
				t.Fatalf("seed %d: leaves at %v, offered at %v", seed, v.At, now)
			}
			if p.Reorder == 0 && v.Copies > 0 && v.At < last {
				t.Fatalf("seed %d: reordered", seed)
			}
			last = max(last, v.At)
			if i == 250 {
				next := randomParams(r)
				next.Reorder = p.Reorder
				if err := m.Set(next); err != nil {
					t.Fatal(err)
				}
			}
		}
		c := m.Counters()
		conserved(t, c)
		if c.Packets != 500 || c.Delivered != delivered || c.DeliveredBytes != bytes {
			t.Fatalf("seed %d: counters %+v, seen %d packets %d bytes", seed, c, delivered, bytes)
		}
	}
}

// TestModelRate offers twice the rate and counts what leaves in a second.
func TestModelRate(t *testing.T) {
	m, out := mustModel(t, Params{Rate: 50e6}), 0
	for i := range 2000 * 100 / 24 {
		v := m.Enqueue(time.Duration(i)*120*time.Microsecond, 1500)
		if v.Copies > 0 && v.At <= time.Second {
			out += 1500
		}
	}
	if want := 50_000_000 / 8; math.Abs(float64(out-want)) > 3000 {
		t.Errorf("%d bytes in a second, want %d", out, want)
	}
}

// TestModelLoss checks shares within 4 sigma of the binomial, and that bursts
// come in runs of the asked length.
func TestModelLoss(t *testing.T) {
	const packets = 100_000
	for name, tc := range map[string]struct {
		p    Params
		mean float64 // length of a run
	}{
		"independent": {Params{Loss: 0.02, Seed: 7}, 1 / 0.98},
		"burst":       {Params{Burst: BurstLoss(0.02, 3), Seed: 7}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			m, runs, was := mustModel(t, tc.p), 0, false
			for i := range packets {
				gone := m.Enqueue(time.Duration(i), 100).Copies == 0
				if gone && !was {
					runs++
				}
				was = gone
			}
			lost := float64(m.Counters().LossDrops)
			sigma := math.Sqrt(packets*0.02*0.98) * tc.mean
			if math.Abs(lost-packets*0.02) > 4*sigma {
				t.Errorf("%v lost of %d", lost, packets)
			}
			if mean := lost / float64(runs); math.Abs(mean-tc.mean) > 0.15*tc.mean {
				t.Errorf("mean run %.2f, want %.2f", mean, tc.mean)
			}
		})
	}
}

func TestModelSeed(t *testing.T) {
	p := Params{Loss: 0.5, Jitter: time.Millisecond, Seed: 3}
	a, b := mustModel(t, p), mustModel(t, p)
	for i := range 1000 {
		if va, vb := a.Enqueue(0, 10), b.Enqueue(0, 10); va != vb {
			t.Fatalf("packet %d: %+v and %+v from one seed", i, va, vb)
		}
	}
}

func TestParamsRefused(t *testing.T) {
	for name, p := range map[string]Params{
		"rate": {Rate: -1}, "huge rate": {Rate: 2e12}, "queue": {Queue: -1}, "delay": {Delay: -1},
		"long delay": {Delay: time.Hour}, "loss": {Loss: 1.1}, "nan": {Loss: math.NaN()},
		"burst": {Burst: Burst{Enter: -0.1}}, "duplicate": {Duplicate: 2}, "reorder": {Reorder: -1},
	} {
		if _, err := NewModel(p); err == nil {
			t.Errorf("%s: %+v accepted", name, p)
		}
	}
}

func TestParse(t *testing.T) {
	for s, want := range map[string]int64{"100mbit": 100e6, "1.5gbit": 15e8, "64KBIT": 64e3, "8000bit": 8000, "0": 0, "0mbit": 0} {
		if got, err := ParseRate(s); err != nil || got != want {
			t.Errorf("ParseRate(%q) = %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "100", "mbit", "-1mbit", "nanmbit", "9e9gbit", "bit"} {
		if v, err := ParseRate(s); err == nil {
			t.Errorf("ParseRate(%q) = %d", s, v)
		}
	}
	for s, want := range map[string]float64{"0.1%": 0.001, "0.5": 0.5, "0": 0, "100%": 1} {
		if got, err := ParseLoss(s); err != nil || math.Abs(got-want) > 1e-12 {
			t.Errorf("ParseLoss(%q) = %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "%", "2", "-1%", "nan"} {
		if v, err := ParseLoss(s); err == nil {
			t.Errorf("ParseLoss(%q) = %v", s, v)
		}
	}
}

// TestScheduleOrder compares the heap with its stupid twin, a stable scan.
func TestScheduleOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var s schedule
	var twin []item
	for i := range 5000 {
		if r.IntN(3) > 0 || s.len() == 0 {
			at := time.Duration(r.IntN(50))
			s.push(at, uint32(i), 0)
			twin = append(twin, item{at: at, slot: uint32(i)})
			continue
		}
		first := 0
		for k := range twin {
			if twin[k].at < twin[first].at {
				first = k
			}
		}
		if got := s.pop(); got.slot != twin[first].slot || got.at != twin[first].at {
			t.Fatalf("step %d: popped %+v, want %+v", i, got, twin[first])
		}
		twin = append(twin[:first], twin[first+1:]...)
	}
}
