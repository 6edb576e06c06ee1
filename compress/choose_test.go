package compress

import (
	"math/rand/v2"
	"testing"
	"time"
)

// bench is a machine, a stream and a link that exist only as numbers.
type bench struct {
	match float64         // seconds a byte of input
	share float64         // of literals
	cost  [levels]float64 // seconds a byte of literals
	out   [levels]float64 // bytes from a byte of literals
	link  float64
	cores int
	noise *rand.Rand
}

// guest is guest memory on a slow core.
func guest() bench {
	return bench{
		match: 1.5e-9, share: 0.6, cores: 1,
		cost:  [levels]float64{0, 1.4e-9, 4e-9, 6e-9, 12e-9},
		out:   [levels]float64{1, 0.5, 0.4, 0.38, 0.36},
		noise: rand.New(rand.NewPCG(1, 1)),
	}
}

// run carries n blocks and returns what the time of the carried bytes was, how
// many bytes went out, and how often the level changed.
func (b *bench) run(c *Chooser, n int) (rate, out float64, changes int) {
	const size = 256 << 10
	var spent float64
	for range n {
		l := c.Level()
		lits := b.share * size
		match, pack := b.match*size, b.cost[l]*lits
		if b.noise.IntN(20) == 0 {
			pack *= 10 // the processor was elsewhere
		}
		packed := b.out[l] * lits * (0.9 + 0.2*b.noise.Float64())
		rest := size * 0.01
		c.Add(Sample{
			In: size, Match: seconds(match), Lits: int(lits), Level: l,
			Out: int(packed), Pack: seconds(pack), Rest: int(rest), Blind: !c.Matching(),
		})
		if c.Level() != l {
			changes++
		}
		out += packed + rest
		t := match + b.cost[l]*lits
		if b.cores > 1 {
			t = max(match, b.cost[l]*lits)
		}
		if b.link > 0 {
			t = max(t, (packed+rest)/b.link)
		}
		spent += t
	}
	return float64(n) * size / spent, out, changes
}

func seconds(s float64) time.Duration { return time.Duration(s * 1e9) }

// fixed is what the best single level would carry.
func (b *bench) fixed() (best float64) {
	for l := range levels {
		out := b.share*b.out[l] + 0.01
		t := b.match + b.share*b.cost[l]
		if b.cores > 1 {
			t = max(b.match, b.share*b.cost[l])
		}
		best = max(best, 1/max(t, out/b.link))
	}
	return best
}

// TestChooserFindsLevel: for each link the chooser settles within 32 MiB on a
// level that carries as much as the best, and stays there.
func TestChooserFindsLevel(t *testing.T) {
	for _, cores := range []int{1, 2} {
		for _, mbit := range []float64{5, 45, 100, 400, 1000, 2500, 10_000, 100_000} {
			b := guest()
			b.link, b.cores = mbit*1e6/8, cores
			c := NewChooser(100e6, cores)
			c.SetLink(b.link)
			b.run(c, 128)
			rate, _, changes := b.run(c, 1000)
			if rate < 0.9*b.fixed() || changes > 2 || mbit <= 100 && c.Level() != Extreme {
				t.Errorf("%d cores, %v Mbit/s: level %d, %.0f MB/s of %.0f, %d changes", cores, mbit, c.Level(), rate/1e6, b.fixed()/1e6, changes)
			}
		}
	}
}

// TestChooserFollowsLink: the link changes from 5 Mbit/s to 1 Gbit/s and back.
func TestChooserFollowsLink(t *testing.T) {
	b := guest()
	c := NewChooser(100e6, 1)
	for i := range 20 {
		b.link = []float64{5e6 / 8, 2000e6 / 8}[i%2]
		c.SetLink(b.link)
		b.run(c, 64)
		rate, _, changes := b.run(c, 500)
		if rate < 0.9*b.fixed() || changes > 2 {
			t.Errorf("turn %d: level %d, %.0f MB/s of %.0f, %d changes", i, c.Level(), rate/1e6, b.fixed()/1e6, changes)
		}
	}
}

// TestChooserKeepsFloor: without a link it takes the strongest level that keeps
// up the floor, on fast and slow machines, and Balanced if none does; the
// strongest of all only if most of the input is new.
func TestChooserKeepsFloor(t *testing.T) {
	for _, c := range []struct {
		slower, share float64
		want          Level
	}{
		{1, 0.6, Extreme}, {1, 0.3, Strong}, {1, 0.02, Strong}, {1.4, 0.6, Strong}, {2.8, 0.6, Balanced}, {20, 0.6, Balanced}, {20, 0.01, Strong},
	} {
		b := guest()
		b.share = c.share
		for l := range b.cost {
			b.cost[l] *= c.slower
		}
		ch := NewChooser(100e6, 1)
		b.run(ch, 256)
		if _, _, changes := b.run(ch, 1000); ch.Level() != c.want || changes > 2 {
			t.Errorf("%+v: level %d, %d changes", c, ch.Level(), changes)
		}
	}
}

// TestChooserIsCalm: two levels that are as good as each other, each a little
// better while it is not used, are changed ever more seldom.
func TestChooserIsCalm(t *testing.T) {
	b := guest()
	c := NewChooser(100e6, 1)
	changes := 0
	for range 2000 {
		l := c.Level()
		for i := range b.cost {
			b.cost[i] = 9.5e-9
		}
		b.cost[l] *= 2 // whatever is used turns out slow
		_, _, n := b.run(c, 8)
		changes += n
	}
	if changes > 100 {
		t.Errorf("%d changes in 16,000 blocks", changes)
	}
}

// TestChooserSuspendsMatching: only for a link faster than the matcher, and only
// if that finds little.
func TestChooserSuspendsMatching(t *testing.T) {
	for _, c := range []struct {
		link, share float64
		want        bool
	}{
		{0, 1, true}, {100e6, 1, true}, {500e6, 1, true}, {2e9, 1, false}, {2e9, 0.1, true},
	} {
		b := guest()
		b.share, b.link = c.share, c.link
		ch := NewChooser(100e6, 1)
		ch.SetLink(c.link)
		b.run(ch, 64)
		if got := ch.Matching(); got != c.want {
			t.Errorf("%+v: matching %v", c, got)
		}
	}
}

// TestChooserMixed: a stream that alternates between text and what compresses
// badly, over a fast link, is carried no slower than without compression.
func TestChooserMixed(t *testing.T) {
	text, hard := guest(), guest()
	for l := Fast; l < levels; l++ {
		hard.out[l] = 0.97
		hard.cost[l] = 3 * text.cost[l]
	}
	c := NewChooser(100e6, 2)
	c.SetLink(300e6)
	var spent, off, bytes float64
	for i := range 60 {
		b := []*bench{&text, &hard}[i/10%2]
		b.link, b.cores = 300e6, 2
		rate, _, _ := b.run(c, 40)
		spent += 40 / rate
		off += 40 / min(b.link/(b.share+0.01), 1/b.match)
		bytes += 40
	}
	if spent > 1.02*off {
		t.Errorf("%.3f of the time without compression", spent/off)
	}
}

// TestChooserLeavesSoon: over a fast link a stream whose beginning told nothing,
// because it does not compress and costs little, is carried raw within 4 MiB of
// where it turns into guest memory.
func TestChooserLeavesSoon(t *testing.T) {
	hard, text := guest(), guest()
	for l := Fast; l < levels; l++ {
		hard.out[l], hard.cost[l] = 0.99, 0.03*text.cost[l]
	}
	hard.link, text.link = 1.25e9, 1.25e9
	c := NewChooser(100e6, 1)
	c.SetLink(hard.link)
	hard.run(c, 8)
	if text.run(c, 16); c.Level() != Store {
		t.Errorf("level %d after 4 MiB", c.Level())
	}
}

// TestChooserSaves: a slow stretch of a stream that keeps up the floor on the
// whole does not cost it the strongest level, and one that goes on and on does
// not bring the whole below the floor.
func TestChooserSaves(t *testing.T) {
	b := guest()
	c := NewChooser(100e6, 1)
	b.run(c, 128)
	for i := range 20 {
		b.share = []float64{0.8, 0.2}[i%2]
		if b.run(c, 100); c.Level() != Extreme {
			t.Errorf("turn %d: level %d", i, c.Level())
		}
	}
	b = guest()
	b.share = 0.8
	for l := range b.cost {
		b.cost[l] *= 1.1
	}
	c = NewChooser(100e6, 1)
	b.run(c, 2000)
	rate, _, changes := b.run(c, 20_000)
	if rate < 97e6 || changes > 20 {
		t.Errorf("%.0f MB/s in the long run, %d changes", rate/1e6, changes)
	}
}

// TestChooserTurns: a stream that is new up to its middle and known from there
// leaves the strongest level once, and takes it again once that is new.
func TestChooserTurns(t *testing.T) {
	b := guest()
	c := NewChooser(100e6, 1)
	for i := range 6 {
		b.share = []float64{0.6, 0.1}[i%2]
		want := []Level{Extreme, Strong}[i%2]
		if _, _, changes := b.run(c, 1000); c.Level() != want || changes > 2 {
			t.Errorf("turn %d: level %d, %d changes", i, c.Level(), changes)
		}
	}
}
