package compress

import "time"

// Chooser picks the level of each block of one stream: with a known link the
// one that carries most bytes a second, which is the strongest that still
// fills the link; else the one with the smallest output that keeps up the
// floor, but not the last bit of it where most of the input is found in the
// history. It is pure: what happened and how long it took is told to it. It is
// not safe for concurrent use.
type Chooser struct {
	floor  float64 // input bytes per second of processor time
	saved  float64 // seconds by which the floor was more than kept up
	easy   bool    // so many that a stretch may be slower
	beside bool    // matching and compression have a core each
	link   float64 // bytes per second; 0 unknown

	level Level
	// stay is how many bytes of input the level is kept at least; it doubles
	// when a level is left and taken up again, so two that are as good as each
	// other do not take turns.
	stay, left float64
	last       Level // the level before
	known      Level // the last one that was not Store

	all   seen    // input, bytes out that no level changes, matching
	tried seen    // of blocks that were matched: input, what was not found, matching
	lits  float64 // literals among the input; fades with it
	fresh float64 // share of literals in the latest memory bytes of input
	heard float64 // how many bytes of input that is the mean of
	seen  [levels]seen
}

// seen is what a level has been seen to do; the sums fade.
type seen struct{ in, out, seconds float64 }

// add adds a block. Until there is enough to tell what is usual, the fastest
// block counts for all: a slow one may be time the processor spent elsewhere.
// Then none counts as slower than outlier times the usual.
func (v *seen) add(in, out, seconds float64) {
	cost := seconds / in
	switch usual := v.seconds / v.in; {
	case v.in == 0:
	case v.in < fade/8:
		cost = min(cost, usual)
		v.seconds = cost * v.in
	default:
		cost = min(cost, outlier*usual)
	}
	v.fade(in)
	v.in += in
	v.out += out
	v.seconds += cost * in
}

// fade forgets a little for n bytes that came.
func (v *seen) fade(n float64) {
	keep := 1 - min(1, n/fade)
	v.in, v.out, v.seconds = v.in*keep, v.out*keep, v.seconds*keep
}

// Sample is what became of one block.
type Sample struct {
	In    int           // application bytes
	Match time.Duration // time spent on finding its place and on matching
	Blind bool          // it was not matched
	Lits  int           // literals given to the compressor,
	Level Level         // at this level,
	Out   int           // what it made of them,
	Pack  time.Duration // and how long it took
	Rest  int           // other bytes of the body
}

const (
	// fade is how many bytes of input a sum remembers.
	fade = 8 << 20
	// minStay and maxStay bound stay.
	minStay, maxStay = 8 << 20, 1 << 30
	// clearly is how much better another level must be.
	clearly = 1.1
	// maxSaved is how many seconds may be saved up, and there are to begin with;
	// slack is how far below the floor a stretch of the stream may lie while
	// they last. The floor is kept over the stream, not in each stretch of it.
	maxSaved, slack = 1, 0.75
	// Without a link Extreme is taken from a share of literals of mostlyFresh
	// on, and kept down to a share of mostlyKnown, of the latest memory bytes.
	// Where most is known, nearly all has been saved by then and what is left to
	// gain is speed: on a returning guest Extreme packs for three times as long as
	// Strong, which is half of all its time, for 5 % fewer bytes.
	mostlyFresh, mostlyKnown, memory = 0.5, 0.4, 64 << 20
	// outlier is how much slower than usual one block may count as: the rest
	// is time that the processor spent elsewhere.
	outlier = 1.5
)

// typical is what the levels do to guest memory, on a core of 2024; one that
// was not tried yet is judged by how the present one compares to it.
var typical = [levels]struct{ cost, out float64 }{
	Store:    {0.05e-9, 1},
	Fast:     {1.4e-9, 0.46},
	Balanced: {3.5e-9, 0.38},
	Strong:   {5e-9, 0.365},
	Extreme:  {11e-9, 0.355},
}

// NewChooser returns a Chooser that begins with Strong. Without a known link
// it keeps up floor bytes of input per second of processor time; cores is how
// many the stream may use.
func NewChooser(floor float64, cores int) *Chooser {
	return &Chooser{floor: floor, saved: maxSaved, easy: true, beside: cores > 1, level: Strong, last: Strong, known: Strong, stay: minStay}
}

// SetLink tells how many bytes a second the link takes; 0 if unknown.
func (c *Chooser) SetLink(rate float64) {
	if rate > 2*c.link || rate < c.link/2 {
		c.left, c.stay = 0, minStay // what was learned of the old one is void
	}
	c.link = rate
}

// Level is the level of the next block.
func (c *Chooser) Level() Level { return c.level }

// Matching says whether matching is worth its time: not when the link takes
// bytes faster than the matcher and the matcher finds little.
func (c *Chooser) Matching() bool {
	v := &c.tried
	return c.link == 0 || v.in < fade/8 || v.seconds*c.link < clearly*v.in || v.out < v.in/2
}

// Add takes what became of a block.
func (c *Chooser) Add(s Sample) {
	n := float64(s.In)
	if n <= 0 {
		return
	}
	c.all.add(n, float64(s.Rest), s.Match.Seconds())
	c.save(n/c.floor - (s.Match + s.Pack).Seconds())
	if !s.Blind {
		c.tried.add(n, float64(s.Lits+s.Rest), s.Match.Seconds())
	}
	c.heard = min(c.heard+n, memory)
	c.fresh += (float64(s.Lits)/n - c.fresh) * min(1, n/c.heard)
	c.lits = c.lits*(1-min(1, n/fade)) + float64(s.Lits)
	for l := range c.seen {
		c.seen[l].fade(n / 32) // what is not used is forgotten slowly
	}
	if s.Lits > 0 && s.Level != Store {
		c.seen[s.Level].add(float64(s.Lits), float64(s.Out), s.Pack.Seconds())
	}
	if c.left -= n; c.left <= 0 {
		c.choose()
	}
}

// save adds to what was saved. A stretch may be slow from when all is saved
// until nothing is.
func (c *Chooser) save(t float64) {
	c.saved = min(c.saved+t, maxSaved)
	switch {
	case c.saved <= 0:
		c.saved, c.easy = 0, false
	case c.saved == maxSaved:
		c.easy = true
	}
}

// goal is the speed that the next stretch must have.
func (c *Chooser) goal() float64 {
	if c.easy {
		return slack * c.floor
	}
	return c.floor
}

// choose takes another level if it is clearly better. After a stay in Store
// nothing is known of the others any more, so that one is tried for a moment.
func (c *Chooser) choose() {
	switch {
	case c.all.in < fade/8, c.level != Store && c.seen[c.level].in < fade/8:
		return // too little to tell
	case c.level == Store:
		c.seen = [levels]seen{}
	}
	best := c.level
	for l := Store; l < levels; l++ {
		if c.better(l, best) {
			best = l
		}
	}
	if best == c.level {
		c.left = fade / 8
		return
	}
	if best == c.last {
		c.stay = min(2*c.stay, maxStay)
	} else {
		c.stay = max(c.stay/2, minStay)
	}
	c.left = c.stay
	if c.level == Store {
		c.left = fade / 8
	}
	c.last, c.level = c.level, best
	if best != Store {
		c.known = best
	}
}

// better says whether l is better than best, clearly so if best is what the
// stream has now.
func (c *Chooser) better(l, best Level) bool {
	margin := 1.0
	if best == c.level {
		margin = clearly
	}
	if c.link > 0 {
		if l > best && c.wall(l) > clearly*c.rate(l) {
			margin = 1 // the link is what is slow: every byte counts
		}
		return c.rate(l) > margin*c.rate(best)
	}
	// Without a link: from Balanced up, the smallest output that keeps up.
	switch {
	case l < Balanced, l == Extreme && c.fresh < mostlyFresh:
		return false
	case best == Extreme && c.fresh < mostlyKnown:
		return true
	}
	if c.speed(best)*margin < c.goal() {
		return c.speed(l) > c.speed(best) && (best > l || best < Balanced)
	}
	return l > best && c.speed(l) >= c.goal()
}

// rate is how many bytes of input a second go out at level l: what the
// processor does, or what the link takes.
func (c *Chooser) rate(l Level) float64 {
	_, out := c.expect(l)
	return min(c.wall(l), c.link*c.all.in/max(c.lits*out+c.all.out, 1))
}

// wall is the bytes of input a second of time at level l.
func (c *Chooser) wall(l Level) float64 {
	cost, _ := c.expect(l)
	if c.beside {
		return c.all.in / max(c.all.seconds, c.lits*cost, 1e-12)
	}
	return c.speed(l)
}

// speed is the bytes of input a second of processor time at level l.
func (c *Chooser) speed(l Level) float64 {
	cost, _ := c.expect(l)
	return c.all.in / max(c.all.seconds+c.lits*cost, 1e-12)
}

// expect is the seconds a byte of literals takes at level l and what becomes
// of it: as seen, or as the known level and what is typical let expect.
func (c *Chooser) expect(l Level) (cost, out float64) {
	if l == Store {
		return typical[Store].cost, 1
	}
	if v := &c.seen[l]; v.in >= fade/8 {
		return v.seconds / v.in, v.out / v.in
	}
	v, from, to := &c.seen[c.known], &typical[c.known], &typical[l]
	if v.in < fade/8 {
		return to.cost, to.out
	}
	return v.seconds / v.in * to.cost / from.cost, min(1, v.out/v.in*to.out/from.out)
}
